"""Opening and closing attempt rows: what an operator's assignment and a rollout share."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from firmament.core.ids import AttemptId
from firmament.server import events
from firmament.server.attempts.machine import AttemptState, move
from firmament.server.events import Event

if TYPE_CHECKING:
    from datetime import datetime

    from firmament.server.database.port import Connection
    from firmament.server.scope import Scope


@dataclass(frozen=True, slots=True)
class Origin:
    """Which rollout wants an attempt, and which earlier attempt it takes back."""

    rollout_row: int | None = None
    rollout_id: str | None = None
    takes_back: str | None = None


def open_attempt(  # one row, all of it
    connection: Connection,
    scope: Scope,
    *,
    device_row: int,
    device_id: str,
    release_row: int,
    release: str,
    now: datetime,
    origin: Origin | None = None,
) -> tuple[int, AttemptId]:
    """Open an attempt and return its row and its id; raises ConflictError when the device has an open one."""
    origin = origin or Origin()
    attempt_id = AttemptId(str(uuid.uuid4()))
    moment = int(now.timestamp())
    row = connection.execute(
        "INSERT INTO attempt(tenant_id, uid, device_id, release_id, state, created_at, updated_at, rollout_id, "
        "takes_back) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id",
        (
            scope.tenant_id,
            attempt_id,
            device_row,
            release_row,
            AttemptState.ASSIGNED.value,
            moment,
            moment,
            origin.rollout_row,
            origin.takes_back,
        ),
    ).fetchone()
    more = {"rollout_id": origin.rollout_id} if origin.rollout_id is not None else {}
    events.append(
        connection,
        scope,
        Event.ATTEMPT_ASSIGNED,
        now,
        subject=device_id,
        attempt_id=attempt_id,
        release=release,
        **more,
    )
    return int(row["id"]), attempt_id


def cancel_attempt(connection: Connection, scope: Scope, attempt_row: int, now: datetime, *, reason: str) -> bool:
    """Take an open attempt back; False when it is not open any more. What the device then reports still counts."""
    row = connection.execute("SELECT uid, state FROM attempt WHERE id = ? AND active = 1", (attempt_row,)).fetchone()
    if row is None or move(AttemptState(row["state"]), AttemptState.CANCELLED) is None:
        return False
    connection.execute(
        "UPDATE attempt SET state = ?, active = 0, updated_at = ? WHERE id = ?",
        (AttemptState.CANCELLED.value, int(now.timestamp()), attempt_row),
    )
    events.append(connection, scope, Event.ATTEMPT_CANCELLED, now, subject=row["uid"], reason=reason)
    return True
