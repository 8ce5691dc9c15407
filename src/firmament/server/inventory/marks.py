"""Pinned and muted devices: two marks that people set on one device, each with a reason.

A **pinned** device stays on what it runs: rollouts leave it out, and nothing can be offered to it by hand. Only the
revert of a rollout that brought it there still takes it back. A **muted** device wakes nobody: what goes wrong with it
alone is kept from outlets that take events, and from the lists of what needs attention. It still counts for the
limits of a rollout, which are there to protect the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from firmament.errors import ConflictError, NotFoundError
from firmament.server import events
from firmament.server.events import Event
from firmament.server.inventory.groups import device_rows
from firmament.server.inventory.model import Mark
from firmament.server.scope import Action

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from firmament.server.database.port import Connection
    from firmament.server.scope import Scope


_EVENTS: Final = {
    Mark.PINNED: (Event.DEVICE_PINNED, Event.DEVICE_UNPINNED),
    Mark.MUTED: (Event.DEVICE_MUTED, Event.DEVICE_UNMUTED),
}
_TROUBLE: Final = frozenset({Event.ATTEMPT_BLOCKED.value, Event.REPORT_REFUSED.value})


def set_mark(connection: Connection, scope: Scope, *, device_id: str, mark: Mark, reason: str, now: datetime) -> None:
    """Pin or mute a device; the same again changes the reason.

    Raises NotFoundError or ForbiddenError, and ConflictError for the pin of a device with an open attempt: it is
    on its way elsewhere.
    """
    scope.require(Action.MANAGE_DEVICES)
    (device_row,) = device_rows(connection, scope, [device_id])
    if mark is Mark.PINNED and _has_open_attempt(connection, device_row):
        raise ConflictError("The device has an open attempt; take it back first, or let it end", device_id=device_id)
    connection.execute(
        "INSERT INTO device_mark(device_id, mark, tenant_id, reason, created_by, at) VALUES (?, ?, ?, ?, ?, ?) "
        "ON CONFLICT(device_id, mark) DO UPDATE SET reason = excluded.reason",
        (device_row, mark.value, scope.tenant_id, reason, scope.actor, int(now.timestamp())),
    )
    events.append(connection, scope, _EVENTS[mark][0], now, subject=device_id, reason=reason)


def clear_mark(connection: Connection, scope: Scope, *, device_id: str, mark: Mark, now: datetime) -> None:
    """Take a mark away; raises NotFoundError when the device does not have it."""
    scope.require(Action.MANAGE_DEVICES)
    (device_row,) = device_rows(connection, scope, [device_id])
    cleared = connection.execute(
        "DELETE FROM device_mark WHERE device_id = ? AND mark = ?", (device_row, mark.value)
    ).rowcount
    if cleared != 1:
        raise NotFoundError(f"The device is not {mark.value}", device_id=device_id)
    events.append(connection, scope, _EVENTS[mark][1], now, subject=device_id)


def reason_of(connection: Connection, device_row: int, mark: Mark) -> str | None:
    """Return why a device has a mark, None when it does not."""
    row = connection.execute(
        "SELECT reason FROM device_mark WHERE device_id = ? AND mark = ?", (device_row, mark.value)
    ).fetchone()
    return None if row is None else str(row["reason"])


def require_not_pinned(connection: Connection, device_row: int, device_id: str) -> None:
    """Raise ConflictError for a pinned device."""
    reason = reason_of(connection, device_row, Mark.PINNED)
    if reason is not None:
        raise ConflictError("The device is pinned to what it runs; unpin it first", device_id=device_id, reason=reason)


def is_trouble(event: Mapping[str, Any]) -> bool:
    """Whether an event says that something went wrong with one device, its subject. Pure."""
    kind, facts = event["kind"], event["facts"]
    return kind in _TROUBLE or (kind == Event.ATTEMPT_MOVED.value and bool(facts.get("code")))


def without_muted(connection: Connection, scope: Scope, found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return events without the troubles of muted devices."""
    subjects = sorted({event["subject"] for event in found if is_trouble(event)})
    if not subjects:
        return list(found)
    marks = ", ".join("?" * len(subjects))
    rows = connection.execute(
        "SELECT d.uid FROM device d JOIN device_mark m ON m.device_id = d.id "
        f"WHERE d.tenant_id = ? AND m.mark = ? AND d.uid IN ({marks})",
        (scope.tenant_id, Mark.MUTED.value, *subjects),
    )
    muted = {row["uid"] for row in rows}
    return [event for event in found if event["subject"] not in muted or not is_trouble(event)]


def _has_open_attempt(connection: Connection, device_row: int) -> bool:
    query = "SELECT 1 FROM attempt WHERE device_id = ? AND active = 1"
    return connection.execute(query, (device_row,)).fetchone() is not None
