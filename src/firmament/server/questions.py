"""Stateless questions for integrators: is there an update, where is it, what happened, what is that device.

They answer from the same rows as everything else. `device_type` is a product line. What
`record_update` stores is an unverified word, kept apart from attempts: only a signed report
moves an attempt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from firmament.errors import MalformedError, NotFoundError
from firmament.protocol.v1 import paths
from firmament.server import events
from firmament.server.events import Event
from firmament.server.inventory.store import decode_manifest, get_device
from firmament.server.scope import Action

if TYPE_CHECKING:
    from datetime import datetime

    from firmament.server.database.port import Connection, Row
    from firmament.server.scope import Scope

STABLE: Final = "stable"
MAX_WORD: Final = 64

_NEWEST: Final = """
SELECT r.version, r.sequence_number, r.target, r.length_bytes, r.digest, r.manifest
FROM channel c JOIN release r ON r.id = c.release_id JOIN product p ON p.id = c.product_id
WHERE c.tenant_id = ? AND p.name = ? AND c.name = ? AND r.withdrawn_at IS NULL
"""


def check_for_updates(
    connection: Connection, scope: Scope, *, device_type: str, version: str, channel: str = STABLE
) -> dict[str, Any]:
    """Say whether the channel names something newer than `version`.

    Newer is decided by sequence numbers, never by comparing labels: an unknown label counts as
    older than everything, and is said to be unknown.
    """
    scope.require(Action.READ, product=device_type)
    newest = _newest(connection, scope, device_type, channel)
    installed = connection.execute(
        "SELECT r.sequence_number FROM release r JOIN product p ON p.id = r.product_id "
        "WHERE r.tenant_id = ? AND p.name = ? AND r.version = ?",
        (scope.tenant_id, device_type, version),
    ).fetchone()
    if newest is None:
        return {"update_available": False, "version": None, "is_known": installed is not None}
    current = installed["sequence_number"] if installed is not None else 0
    manifest = decode_manifest(bytes(newest["manifest"]))
    return {
        "update_available": newest["sequence_number"] > current,
        "version": newest["version"],
        "sequence_number": newest["sequence_number"],
        "is_known": installed is not None,
        "minimum_sequence_number": manifest.requires.min_sequence_number,
        "class": manifest.update_class.value,
        "notes": manifest.notes,
    }


def get_firmware_download(
    connection: Connection, scope: Scope, *, device_type: str, version: str | None = None
) -> dict[str, Any]:
    """Say where the bytes of a release are and what they must digest to; raises NotFoundError."""
    scope.require(Action.READ, product=device_type)
    row = (
        _newest(connection, scope, device_type, STABLE)
        if version is None
        else connection.execute(
            "SELECT r.* FROM release r JOIN product p ON p.id = r.product_id "
            "WHERE r.tenant_id = ? AND p.name = ? AND r.version = ? AND r.withdrawn_at IS NULL",
            (scope.tenant_id, device_type, version),
        ).fetchone()
    )
    if row is None:
        raise NotFoundError("There is no such release", product=device_type, version=version or STABLE)
    digest = row["digest"].partition(":")[2]
    directory, _, name = row["target"].rpartition("/")
    return {
        "version": row["version"],
        "path": f"{paths.IMAGE_TARGETS}{directory}/{digest}.{name}",
        "length_bytes": row["length_bytes"],
        "digest": row["digest"],
    }


def record_update(
    connection: Connection,
    scope: Scope,
    *,
    device_id: str,
    old_version: str,
    new_version: str,
    status: str,
    now: datetime,
) -> None:
    """Write down what somebody says about a device's update; raises NotFoundError, MalformedError."""
    scope.require(Action.RECORD)
    for word in (old_version, new_version, status):
        if len(word) > MAX_WORD:
            raise MalformedError("A word is too long", limit=MAX_WORD)
    get_device(connection, scope, device_id)
    events.append(
        connection,
        scope,
        Event.UPDATE_RECORDED,
        now,
        subject=device_id,
        old_version=old_version,
        new_version=new_version,
        status=status,
        is_verified=False,
    )


def get_device_info(connection: Connection, scope: Scope, *, device_id: str) -> dict[str, Any]:
    """Return what is known about a device; raises NotFoundError."""
    scope.require(Action.READ)
    device = get_device(connection, scope, device_id)
    return {
        "device_id": device.device_id,
        "device_type": device.product,
        "hardware": device.hardware,
        "version": device.version,
        "sequence_number": device.sequence_number,
        "last_seen": device.last_seen,
    }


def _newest(connection: Connection, scope: Scope, product: str, channel: str) -> Row | None:
    row: Row | None = connection.execute(_NEWEST, (scope.tenant_id, product, channel)).fetchone()
    return row
