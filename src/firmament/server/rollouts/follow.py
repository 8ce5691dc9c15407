"""A target follows its attempt, in the same transaction; a failure may stop the whole rollout there and then."""

from __future__ import annotations

from typing import TYPE_CHECKING

from firmament.server.rollouts.decide import (
    Code,
    deadline,
    may_retry,
    retry_at,
    reverting_status,
    target_status,
)
from firmament.server.rollouts.machine import ENDED, RolloutState, TargetStatus
from firmament.server.rollouts.stop import check_stop
from firmament.server.rollouts.store import RolloutRecord, by_row
from firmament.server.rollouts.targets import Target, find_target, move_target

if TYPE_CHECKING:
    from datetime import datetime

    from firmament.server.attempts.machine import AttemptState
    from firmament.server.database.port import Connection


def on_attempt(  # what one report changed
    connection: Connection,
    *,
    rollout_row: int,
    device_row: int,
    attempt_row: int,
    is_way_back: bool,
    state: AttemptState,
    code: str,
    now: datetime,
) -> None:
    """Move the target whose attempt just came to `state`."""
    target = find_target(connection, rollout_row, device_row)
    if target is None or target.attempt_id != attempt_row:
        return
    rollout = by_row(connection, rollout_row)
    if is_way_back:
        _went_back(connection, target, state, code, now)
    else:
        _installed(connection, rollout, target, state, code, now)


def _installed(
    connection: Connection, rollout: RolloutRecord, target: Target, state: AttemptState, code: str, now: datetime
) -> None:
    now_s = int(now.timestamp())
    to = target_status(state, code)
    if to is TargetStatus.FAILED:
        if may_retry(state, code, tries=target.tries, budget=rollout.policy.retry_budget):
            again = retry_at(now_s, target.tries)
            move_target(
                connection,
                target,
                TargetStatus.WAITING,
                now_s=now_s,
                code=code,
                not_before=again,
                stays_active=rollout.state not in ENDED,
            )
            return
        fail(connection, rollout, target, code or state.value, now)
        return
    moved = move_target(
        connection,
        target,
        to,
        now_s=now_s,
        code=code if to is not TargetStatus.UPDATED else "",
        deadline=deadline(rollout.policy, to, now_s=now_s, interval_s=rhythm(connection, target.device_id)),
        stays_active=rollout.state not in ENDED or to in {TargetStatus.IN_FLIGHT, TargetStatus.OFFERED},
    )
    if moved is not None and to is TargetStatus.UPDATED and rollout.state is RolloutState.REVERTING:
        send_back(connection, rollout, moved, now)


def fail(connection: Connection, rollout: RolloutRecord, target: Target, code: str, now: datetime) -> None:
    """Count a target as failed, remember not to offer the release here again, and ask the stop rule."""
    now_s = int(now.timestamp())
    moved = move_target(connection, target, TargetStatus.FAILED, now_s=now_s, code=code)
    if moved is None:
        return
    connection.execute(
        "INSERT INTO device_failure(device_id, release_id, tenant_id, code, at, tries) VALUES (?, ?, ?, ?, ?, ?) "
        "ON CONFLICT(device_id, release_id) DO UPDATE SET code = excluded.code, at = excluded.at, "
        "tries = device_failure.tries + excluded.tries",
        (target.device_id, rollout.release_id, target.tenant_id, code, now_s, target.tries),
    )
    check_stop(connection, rollout.row_id, now)


def send_back(connection: Connection, rollout: RolloutRecord, target: Target, now: datetime) -> None:
    """Ask an updated device to go back at its next poll."""
    now_s = int(now.timestamp())
    until = deadline(
        rollout.policy, TargetStatus.REVERTING, now_s=now_s, interval_s=rhythm(connection, target.device_id)
    )
    move_target(connection, target, TargetStatus.REVERTING, now_s=now_s, deadline=until)


def _went_back(connection: Connection, target: Target, state: AttemptState, code: str, now: datetime) -> None:
    to = reverting_status(state)
    if to is None:
        return
    # A code beside `updated` says that going back was tried and why it did not happen.
    stays = (code or state.value) if to is TargetStatus.UPDATED else ""
    move_target(connection, target, to, now_s=int(now.timestamp()), code=stays)


def on_taken_back(
    connection: Connection, *, rollout_row: int, device_row: int, attempt_row: int, now: datetime
) -> None:
    """Skip a target whose attempt a person took back, or replaced by another release."""
    target = find_target(connection, rollout_row, device_row)
    if target is None or target.attempt_id != attempt_row:
        return
    move_target(connection, target, TargetStatus.SKIPPED, now_s=int(now.timestamp()), code=Code.OTHER_RELEASE.value)


def rhythm(connection: Connection, device_row: int) -> int | None:
    """Return how often a device asks when it has nothing to do, None before it was heard twice."""
    row = connection.execute("SELECT interval_s FROM device_seen WHERE device_id = ?", (device_row,)).fetchone()
    return None if row is None or row["interval_s"] == 0 else int(row["interval_s"])
