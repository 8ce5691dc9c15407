"""Letting the signer go on after a restore: by hand, on the server's machine, written down for ever."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from firmament.durable import read_file, replace_durably
from firmament.server import events
from firmament.server.audit.signer import (
    MAX_STATE_LENGTH_BYTES,
    STATE,
    Signed,
    decode_audit_state,
    encode_audit_state,
)
from firmament.server.database.opening import command_database
from firmament.server.database.target import database_target
from firmament.server.events import Event

if TYPE_CHECKING:
    from datetime import datetime

    from firmament.durable import Disk
    from firmament.server.layout import Layout
    from firmament.server.scope import Scope
    from firmament.server.settings import ServerSettings


def restart(
    disk: Disk,
    layout: Layout,
    settings: ServerSettings,
    scope: Scope,
    *,
    tenant_id: int,
    reason: str,
    now: datetime,
) -> Signed:
    """Make the signer forget what it signed for a tenant, and write down what that was; returns it.

    The event is written first: a signer that still knows refuses, which is harmless; one that
    forgot without a trace would not be.
    """
    path = layout.signer / STATE
    state = decode_audit_state(read_file(disk, path, limit_bytes=MAX_STATE_LENGTH_BYTES)) if disk.exists(path) else {}
    was = state.get(tenant_id, Signed())
    with command_database(database_target(layout, settings)) as database:
        database.transact(
            lambda writing: events.append(
                writing,
                type(scope)(tenant_id, scope.actor, scope.role),
                Event.AUDIT_RESTARTED,
                now,
                reason=reason,
                signed_number=was.number,
                signed_hash=was.hash.hex(),
            ),
        )
    replace_durably(disk, path, encode_audit_state({**state, tenant_id: Signed()}))
    if settings.signer_user:
        shutil.chown(path, settings.signer_user)
    return was
