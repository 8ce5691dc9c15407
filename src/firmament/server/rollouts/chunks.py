"""Moving many targets at once: a chunk at a time, each with its counters, resumable by `fill_cursor`."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from firmament.server.attempts.opening import cancel_attempt
from firmament.server.rollouts.decide import USUAL_INTERVAL_S, silence_s
from firmament.server.rollouts.machine import ENDED, TargetStatus
from firmament.server.rollouts.stop import engine_scope
from firmament.server.rollouts.targets import Target, add_count, move_target

if TYPE_CHECKING:
    from datetime import datetime

    from firmament.server.database.port import Connection
    from firmament.server.rollouts.store import RolloutRecord

OFFERS_CHUNK: Final = 500
"""Withdrawing one offer is some ten statements: 500 are a few dozen milliseconds."""
_NOT_BEGUN: Final = (TargetStatus.OFFERED.value, TargetStatus.ASKING.value)


def withdraw_offers(connection: Connection, rollout: RolloutRecord, now: datetime) -> int:
    """Take back what was offered and not begun; those devices are safe and not started. Return how many."""
    # Every offer has a deadline: the partial index over deadlines finds them without a scan.
    rows = connection.execute(
        "SELECT * FROM rollout_target WHERE deadline IS NOT NULL AND rollout_id = ? AND status IN (?, ?) LIMIT ?",
        (rollout.row_id, *_NOT_BEGUN, OFFERS_CHUNK),
    ).fetchall()
    for row in rows:
        withdraw_offer(connection, rollout, Target.of_row(row), now, reason=f"the rollout is {rollout.state}")
    return len(rows)


def withdraw_offer(  # one target, one reason
    connection: Connection,
    rollout: RolloutRecord,
    target: Target,
    now: datetime,
    *,
    reason: str,
    to: TargetStatus = TargetStatus.WAITING,
    not_before: int = 0,
    code: str = "",
) -> None:
    """Take one attempt back that was not begun, and put its target where it belongs then."""
    if target.attempt_id is not None:
        cancel_attempt(connection, engine_scope(target.tenant_id), target.attempt_id, now, reason=reason)
    move_target(
        connection,
        target,
        to,
        now_s=int(now.timestamp()),
        code=code,
        not_before=not_before,
        stays_active=rollout.state not in ENDED,
    )


def send_back_some(connection: Connection, rollout: RolloutRecord, now: datetime, rows: int) -> bool:
    """Ask updated devices among the next `rows` targets to go back; return whether there may be more."""
    now_s = int(now.timestamp())
    ids = [
        row["device_id"]
        for row in connection.execute(
            "SELECT device_id FROM rollout_target WHERE rollout_id = ? AND device_id > ? ORDER BY device_id LIMIT ?",
            (rollout.row_id, rollout.fill_cursor, rows),
        )
    ]
    if not ids:
        return False
    until = now_s + silence_s(rollout.policy, USUAL_INTERVAL_S)
    # A code beside `updated` says that going back was tried; a device that another rollout has is left to it.
    moved = connection.execute(
        "UPDATE rollout_target SET status = ?, active = 1, deadline = ?, updated_at = ? "
        "WHERE rollout_id = ? AND device_id > ? AND device_id <= ? AND status = ? AND code = '' "
        "AND NOT EXISTS (SELECT 1 FROM rollout_target o WHERE o.device_id = rollout_target.device_id "
        "AND o.active = 1) RETURNING wave",
        (
            TargetStatus.REVERTING.value,
            until,
            now_s,
            rollout.row_id,
            rollout.fill_cursor,
            ids[-1],
            TargetStatus.UPDATED.value,
        ),
    ).fetchall()
    _recount(connection, rollout, [row["wave"] for row in moved], TargetStatus.UPDATED, TargetStatus.REVERTING)
    connection.execute("UPDATE rollout SET fill_cursor = ? WHERE id = ?", (ids[-1], rollout.row_id))
    return True


def release_some(connection: Connection, rollout: RolloutRecord, rows: int) -> bool:
    """Let go of devices that an ended rollout still holds, among its next `rows`; return whether there may be more.

    Devices on the way finish, and devices that were asked to go back still do.
    """
    last = connection.execute(
        "SELECT MAX(device_id) AS last FROM (SELECT device_id FROM rollout_target WHERE rollout_id = ? "
        "AND device_id > ? ORDER BY device_id LIMIT ?) AS part",
        (rollout.row_id, rollout.fill_cursor, rows),
    ).fetchone()["last"]
    if last is None:
        return False
    connection.execute(
        "UPDATE rollout_target SET active = 0 WHERE rollout_id = ? AND device_id > ? AND device_id <= ? AND active = 1 "
        "AND status IN (?, ?)",
        (
            rollout.row_id,
            rollout.fill_cursor,
            last,
            TargetStatus.WAITING.value,
            TargetStatus.POSTPONED.value,
        ),
    )
    connection.execute("UPDATE rollout SET fill_cursor = ? WHERE id = ?", (last, rollout.row_id))
    return True


def _recount(
    connection: Connection, rollout: RolloutRecord, waves: list[int], was: TargetStatus, to: TargetStatus
) -> None:
    for wave, n in Counter(waves).items():
        add_count(connection, rollout.tenant_id, rollout.row_id, wave, was, -n)
        add_count(connection, rollout.tenant_id, rollout.row_id, wave, to, n)
