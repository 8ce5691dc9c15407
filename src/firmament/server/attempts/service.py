"""Assigning releases to devices, and writing down what the device link decided."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from firmament.core.ids import AttemptId
from firmament.errors import (
    HardwareMismatchError,
    NotFoundError,
    ProductMismatchError,
    ReplayError,
    RollbackError,
)
from firmament.server import device_link, events
from firmament.server.attempts.machine import FINAL, AttemptState, move
from firmament.server.attempts.model import AttemptRecord
from firmament.server.attempts.opening import cancel_attempt, open_attempt
from firmament.server.consent.answers import require_notes
from firmament.server.events import Event
from firmament.server.inventory.attributes import write_attributes
from firmament.server.inventory.marks import require_not_pinned
from firmament.server.inventory.store import decode_manifest, get_device
from firmament.server.releases.find import find_served
from firmament.server.rollouts import follow
from firmament.server.rollouts.book import DirectBook
from firmament.server.scope import Action, Scope

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from firmament.server.database.port import Connection, Row
    from firmament.server.device_link import Effect
    from firmament.server.inventory.model import Device

_SELECT: Final = """
SELECT a.*, d.uid AS device_uid, p.name AS product, r.version
FROM attempt a JOIN device d ON d.id = a.device_id JOIN release r ON r.id = a.release_id
JOIN product p ON p.id = r.product_id
WHERE a.tenant_id = ? AND d.uid = ?
"""
MAX_HISTORY: Final = 200


def assign(
    connection: Connection, scope: Scope, *, device_id: str, product: str, version: str, now: datetime
) -> AttemptId:
    """Open an attempt: this device shall go to this release. The same again gives the same attempt.

    An open attempt for another release is cancelled. Raises NotFoundError, ForbiddenError,
    ProductMismatchError, HardwareMismatchError, or RollbackError when the device runs something
    newer: it would refuse, so nobody should have to wait for that; ConflictError also for a pinned
    device, and where the owner is asked and the release has no notes for them.
    """
    scope.require(Action.ASSIGN, product=product)
    device = get_device(connection, scope, device_id)
    release = find_served(connection, scope, product, version)
    manifest = decode_manifest(bytes(release["manifest"]))
    if device.product != product:
        raise ProductMismatchError("The release is for another product", device=device.product, release=product)
    if device.hardware not in manifest.hardware:
        raise HardwareMismatchError(
            "The release is not for this hardware", device=device.hardware, release=" ".join(manifest.hardware)
        )
    if manifest.sequence_number < device.sequence_number:
        raise RollbackError(
            "The device runs a newer release", installed=device.sequence_number, got=manifest.sequence_number
        )
    require_not_pinned(connection, device.row_id, device_id)
    require_notes(connection, scope, manifest, now, device_row=device.row_id)
    return _open(connection, scope, device.row_id, device_id, release["id"], f"{product}/{version}", now)


def _open(
    connection: Connection,
    scope: Scope,
    device_row: int,
    device_id: str,
    release_row: int,
    release: str,
    now: datetime,
) -> AttemptId:
    current = connection.execute(
        "SELECT id, uid, release_id, state FROM attempt WHERE device_id = ? AND active = 1", (device_row,)
    ).fetchone()
    if current is not None and current["release_id"] == release_row:
        return AttemptId(current["uid"])
    if current is not None:
        _cancel(connection, scope, current, now, reason="another release was assigned")
    _, attempt_id = open_attempt(
        connection,
        scope,
        device_row=device_row,
        device_id=device_id,
        release_row=release_row,
        release=release,
        now=now,
    )
    return attempt_id


def unassign(connection: Connection, scope: Scope, *, device_id: str, now: datetime) -> AttemptId:
    """Take the open attempt back; raises NotFoundError when there is none.

    A device that is past the download may finish it; what it then reports still counts.
    """
    scope.require(Action.ASSIGN)
    device = get_device(connection, scope, device_id)
    current = connection.execute(
        "SELECT id, uid, state FROM attempt WHERE device_id = ? AND active = 1", (device.row_id,)
    ).fetchone()
    if current is None:
        raise NotFoundError("The device has no open attempt", device_id=device_id)
    _cancel(connection, scope, current, now, reason="unassigned")
    return AttemptId(current["uid"])


def cancel_of_release(connection: Connection, scope: Scope, release_row: int, now: datetime, *, reason: str) -> None:
    """Cancel every open attempt of a release, e.g. when it was withdrawn."""
    rows = connection.execute(
        "SELECT id, uid, state FROM attempt WHERE release_id = ? AND active = 1", (release_row,)
    ).fetchall()
    for row in rows:
        _cancel(connection, scope, row, now, reason=reason)


def _cancel(connection: Connection, scope: Scope, row: Row, now: datetime, *, reason: str) -> None:
    cancel_attempt(connection, scope, row["id"], now, reason=reason)
    found = connection.execute("SELECT device_id, rollout_id FROM attempt WHERE id = ?", (row["id"],)).fetchone()
    if found["rollout_id"] is not None:
        follow.on_taken_back(
            connection,
            rollout_row=found["rollout_id"],
            device_row=found["device_id"],
            attempt_row=row["id"],
            now=now,
        )


def list_attempts(connection: Connection, scope: Scope, device_id: str) -> list[AttemptRecord]:
    """Return a device's attempts, newest first; raises NotFoundError."""
    get_device(connection, scope, device_id)
    rows = connection.execute(_SELECT + " ORDER BY a.id DESC LIMIT ?", (scope.tenant_id, device_id, MAX_HISTORY))
    return [AttemptRecord.of_row(row) for row in rows]


def carry_out(connection: Connection, scope: Scope, device: Device, effects: Sequence[Effect], now: datetime) -> None:
    """Write the effects of one message, all in the caller's transaction."""
    moment = int(now.timestamp())
    for effect in effects:
        match effect:
            case device_link.UpdateInventory():
                connection.execute(
                    "UPDATE device SET version = ?, sequence_number = ?, image_digest = ?, boot_id = ?, "
                    "attributes = ? WHERE id = ?",
                    (
                        effect.version,
                        effect.sequence_number,
                        effect.image_digest,
                        effect.boot_id,
                        effect.attributes,
                        device.row_id,
                    ),
                )
                write_attributes(
                    connection, device.tenant_id, device.row_id, was=device.attributes, now=effect.attributes
                )
            case device_link.MoveAttempt():
                _move(connection, scope, device, effect, now)
            case device_link.BlockAttempt():
                connection.execute(
                    "UPDATE attempt SET code = ?, message = ?, updated_at = ? WHERE id = ?",
                    (effect.code, effect.message, moment, effect.row_id),
                )
                events.append(connection, scope, Event.ATTEMPT_BLOCKED, now, subject=device.device_id, code=effect.code)
            case device_link.AcceptReport():
                accept(connection, device, effect.number, effect.digest, now)
            case device_link.Note():
                events.append(connection, scope, effect.event, now, subject=device.device_id, **dict(effect.facts))
            case device_link.Reply():
                pass  # the edge answers with it


def _move(connection: Connection, scope: Scope, device: Device, effect: device_link.MoveAttempt, now: datetime) -> None:
    # The state was read before this transaction: look again, so that two reports cannot cross.
    row = connection.execute(
        "SELECT a.uid, a.state, a.active, a.rollout_id, a.takes_back, p.name AS product, r.version FROM attempt a "
        "JOIN release r ON r.id = a.release_id JOIN product p ON p.id = r.product_id WHERE a.id = ?",
        (effect.row_id,),
    ).fetchone()
    state = AttemptState(row["state"])
    if move(state, effect.to) is None:
        return
    connection.execute(
        "UPDATE attempt SET state = ?, active = ?, code = ?, message = ?, log = ?, boot_id = ?, "
        "boot_id_before = COALESCE(?, boot_id_before), updated_at = ? WHERE id = ?",
        (
            effect.to.value,
            int(bool(row["active"]) and effect.to not in FINAL),
            effect.code,
            effect.message,
            json.dumps(list(effect.log)),
            effect.boot_id,
            effect.boot_id_before,
            int(now.timestamp()),
            effect.row_id,
        ),
    )
    events.append(
        connection,
        scope,
        Event.ATTEMPT_MOVED,
        now,
        subject=device.device_id,
        attempt_id=row["uid"],
        release=f"{row['product']}/{row['version']}",
        was=state.value,
        state=effect.to.value,
        code=effect.code,
    )
    if row["rollout_id"] is not None:
        follow.on_attempt(
            DirectBook(connection),
            rollout_row=row["rollout_id"],
            device_row=device.row_id,
            attempt_row=effect.row_id,
            is_way_back=row["takes_back"] is not None,
            state=effect.to,
            code=effect.code,
            now=now,
        )


def was_accepted(connection: Connection, device: Device, number: int, digest: bytes) -> bool:
    """Whether exactly this report was stored before; raises ReplayError if the number said something else."""
    row = connection.execute(
        "SELECT digest FROM report WHERE device_id = ? AND number = ?", (device.row_id, number)
    ).fetchone()
    if row is None:
        return False
    if bytes(row["digest"]) != digest:
        raise ReplayError("This report number was used before for another report", report_number=number)
    return True


def accept(connection: Connection, device: Device, number: int, digest: bytes, now: datetime) -> bool:
    """Use a report's number up; False if exactly this report did before. Raises ReplayError as `was_accepted`."""
    row = connection.execute(
        "INSERT INTO report(device_id, number, digest, received_at) VALUES (?, ?, ?, ?) "
        "ON CONFLICT (device_id, number) DO NOTHING RETURNING number",
        (device.row_id, number, digest, int(now.timestamp())),
    ).fetchone()
    return row is not None or not was_accepted(connection, device, number, digest)
