"""Making rollouts and looking at them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from firmament.core.ids import check
from firmament.errors import ConflictError, NotFoundError
from firmament.server import events
from firmament.server.events import Event
from firmament.server.inventory.groups import device_rows
from firmament.server.inventory.query import parse, show
from firmament.server.releases.find import find_named
from firmament.server.rollouts import actions
from firmament.server.rollouts.model import write_policy
from firmament.server.rollouts.plan import Reach, find_reach
from firmament.server.rollouts.store import RolloutRecord, by_row, insert_rollout
from firmament.server.scope import Action

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from firmament.server.database.port import Connection
    from firmament.server.rollouts.model import Policy
    from firmament.server.scope import Scope

NAME: Final = re.compile(r"[^\x00-\x1f\x7f]{1,120}")
MAX_CLEARED: Final = 5000
NO_NOTES: Final = "consent/no-notes"
"""Owners who are asked must be told what for."""


def create(  # what a person fills in
    connection: Connection,
    scope: Scope,
    *,
    name: str,
    release: str,
    selector: str,
    policy: Policy,
    note: str = "",
    start_at: int | None = None,
    is_draft: bool = False,
    expect_count: int | None = None,
    reach: Reach | None = None,
    now: datetime,
) -> RolloutRecord:
    """Make a rollout, and start it unless it is to stay a draft.

    `reach` is what `plan.find_reach` found a moment ago; it looks at every device, and a
    transaction that did would keep other writers waiting. Without it, it is looked for here.

    Raises ConflictError when `expect_count` is not what would be reached now, or when something
    blocks the start; NotFoundError, MalformedError, ForbiddenError.
    """
    product = release.partition("/")[0]
    scope.require(Action.START_ROLLOUT, product=product)
    check(name, NAME, what="The rollout's name")
    if reach is None:
        reach = find_reach(connection, scope, release=release, selector=selector, now=now)
    if expect_count is not None and expect_count != reach.count:
        raise ConflictError("Another number of devices would be reached now", expected=expect_count, found=reach.count)
    if reach.no_notes is not None and not is_draft:
        raise ConflictError(reach.no_notes["message"], code=NO_NOTES)
    row = find_named(connection, scope, release)
    rollout = insert_rollout(
        connection,
        scope,
        name=name,
        product_id=row["product_id"],
        release_id=row["id"],
        selector=show(parse(selector)),
        policy_text=write_policy(policy),
        note=note,
        start_at=int(now.timestamp()) if start_at is None else start_at,
        now_s=int(now.timestamp()),
    )
    connection.execute("UPDATE rollout SET total = ? WHERE id = ?", (reach.count, rollout.row_id))
    events.append(
        connection,
        scope,
        Event.ROLLOUT_CREATED,
        now,
        subject=rollout.rollout_id,
        name=name,
        release=release,
        selector=rollout.selector,
        count=reach.count,
        note=note,
    )
    if is_draft:
        return by_row(connection, rollout.row_id)
    return actions.act(connection, scope, rollout.rollout_id, "start", actions.Request(), now)


def clear_failures(
    connection: Connection, scope: Scope, *, devices: Sequence[str], release: str | None, now: datetime
) -> int:
    """Let releases be offered again to devices where they failed; return how many failures were forgotten."""
    scope.require(Action.MANAGE_DEVICES)
    row_id = None if release is None else find_named(connection, scope, release)["id"]
    cleared = 0
    for device_row in device_rows(connection, scope, devices):
        cleared += connection.execute(
            "DELETE FROM device_failure WHERE device_id = ? AND (CAST(? AS INTEGER) IS NULL OR release_id = ?)",
            (device_row, row_id, row_id),
        ).rowcount
    events.append(connection, scope, Event.FAILURE_CLEARED, now, devices=list(devices)[:20], release=release, n=cleared)
    return cleared


def quarantine(connection: Connection, scope: Scope, *, device_id: str, reason: str, now: datetime) -> None:
    """Keep every rollout away from a device until somebody releases it."""
    scope.require(Action.MANAGE_DEVICES)
    (device_row,) = device_rows(connection, scope, [device_id])
    connection.execute(
        "INSERT INTO device_quarantine(device_id, tenant_id, reason, created_by, at) VALUES (?, ?, ?, ?, ?) "
        "ON CONFLICT(device_id) DO UPDATE SET reason = excluded.reason",
        (device_row, scope.tenant_id, reason, scope.actor, int(now.timestamp())),
    )
    events.append(connection, scope, Event.DEVICE_QUARANTINED, now, subject=device_id, reason=reason)


def release_device(connection: Connection, scope: Scope, *, device_id: str, now: datetime) -> None:
    """Take a device out of quarantine; raises NotFoundError when it is not in."""
    scope.require(Action.MANAGE_DEVICES)
    (device_row,) = device_rows(connection, scope, [device_id])
    if connection.execute("DELETE FROM device_quarantine WHERE device_id = ?", (device_row,)).rowcount != 1:
        raise NotFoundError("The device is not in quarantine", device_id=device_id)
    events.append(connection, scope, Event.DEVICE_RELEASED, now, subject=device_id)


def timeline(connection: Connection, scope: Scope, device_id: str, *, before: int, limit: int) -> dict[str, Any]:
    """Return what happened with a device's attempts, newest first."""
    (device_row,) = device_rows(connection, scope, [device_id])
    rows = connection.execute(
        "SELECT a.*, p.name AS product, r.version AS release_version, o.uid AS rollout_uid FROM attempt a "
        "JOIN release r ON r.id = a.release_id JOIN product p ON p.id = r.product_id "
        "LEFT JOIN rollout o ON o.id = a.rollout_id WHERE a.device_id = ? AND (? = 0 OR a.id < ?) "
        "ORDER BY a.id DESC LIMIT ?",
        (device_row, before, before, limit),
    ).fetchall()
    return {
        "entries": [
            {
                "at": row["updated_at"],
                "kind": "attempt" if row["takes_back"] is None else "revert",
                "attempt_id": row["uid"],
                "release": f"{row['product']}/{row['release_version']}",
                "rollout_id": row["rollout_uid"],
                "status": row["state"],
                "code": row["code"],
                "message": row["message"],
                "facts": {"created_at": row["created_at"], "boot_id": row["boot_id"]},
            }
            for row in rows
        ],
        "next": str(rows[-1]["id"]) if len(rows) == limit else None,
    }
