"""A target follows its attempt, in the same transaction; a failure may stop the whole rollout there and then.

Decisions only: whether the targets are looked up and moved row by row or as a set is the book's (book.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from firmament.server.rollouts.book import DirectBook
from firmament.server.rollouts.decide import (
    Code,
    deadline,
    may_retry,
    retry_at,
    reverting_status,
    target_status,
)
from firmament.server.rollouts.machine import ENDED, RolloutState, TargetStatus
from firmament.server.rollouts.targets import find_target, move_target

if TYPE_CHECKING:
    from datetime import datetime

    from firmament.server.attempts.machine import AttemptState
    from firmament.server.database.port import Connection
    from firmament.server.rollouts.book import Book
    from firmament.server.rollouts.store import RolloutRecord
    from firmament.server.rollouts.targets import Target


def on_attempt(  # what one report changed
    book: Book,
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
    target = book.find(rollout_row, device_row)
    if target is None or target.attempt_id != attempt_row:
        return
    if is_way_back:
        _went_back(book, target, state, code, now)
    else:
        _installed(book, book.rollout(rollout_row), target, state, code, now)


def _installed(
    book: Book, rollout: RolloutRecord, target: Target, state: AttemptState, code: str, now: datetime
) -> None:
    now_s = int(now.timestamp())
    to = target_status(state, code)
    if to is TargetStatus.FAILED:
        if may_retry(state, code, tries=target.tries, budget=rollout.policy.retry_budget):
            again = retry_at(now_s, target.tries)
            book.move(
                target,
                TargetStatus.WAITING,
                now_s=now_s,
                code=code,
                not_before=again,
                stays_active=rollout.state not in ENDED,
            )
            return
        _fail(book, rollout, target, code or state.value, now)
        return
    moved = book.move(
        target,
        to,
        now_s=now_s,
        code=code if to is not TargetStatus.UPDATED else "",
        deadline=deadline(rollout.policy, to, now_s=now_s, interval_s=book.rhythm(target)),
        stays_active=rollout.state not in ENDED or to in {TargetStatus.IN_FLIGHT, TargetStatus.OFFERED},
    )
    if moved is not None and to is TargetStatus.UPDATED and rollout.state is RolloutState.REVERTING:
        _send_back(book, rollout, moved, now)


def fail(connection: Connection, rollout: RolloutRecord, target: Target, code: str, now: datetime) -> None:
    """Count a target as failed, remember not to offer the release here again, and ask the stop rule."""
    _fail(DirectBook(connection), rollout, target, code, now)


def _fail(book: Book, rollout: RolloutRecord, target: Target, code: str, now: datetime) -> None:
    now_s = int(now.timestamp())
    moved = book.move(target, TargetStatus.FAILED, now_s=now_s, code=code)
    if moved is None:
        return
    book.note_failure(target, rollout.release_id, code, now_s)
    book.check_stop(rollout.row_id, now)


def send_back(connection: Connection, rollout: RolloutRecord, target: Target, now: datetime) -> None:
    """Ask an updated device to go back at its next poll."""
    _send_back(DirectBook(connection), rollout, target, now)


def _send_back(book: Book, rollout: RolloutRecord, target: Target, now: datetime) -> None:
    now_s = int(now.timestamp())
    until = deadline(rollout.policy, TargetStatus.REVERTING, now_s=now_s, interval_s=book.rhythm(target))
    book.move(target, TargetStatus.REVERTING, now_s=now_s, deadline=until)


def _went_back(book: Book, target: Target, state: AttemptState, code: str, now: datetime) -> None:
    to = reverting_status(state)
    if to is None:
        return
    # A code beside `updated` says that going back was tried and why it did not happen.
    stays = (code or state.value) if to is TargetStatus.UPDATED else ""
    book.move(target, to, now_s=int(now.timestamp()), code=stays)


def on_taken_back(
    connection: Connection, *, rollout_row: int, device_row: int, attempt_row: int, now: datetime
) -> None:
    """Skip a target whose attempt a person took back, or replaced by another release."""
    target = find_target(connection, rollout_row, device_row)
    if target is None or target.attempt_id != attempt_row:
        return
    move_target(connection, target, TargetStatus.SKIPPED, now_s=int(now.timestamp()), code=Code.OTHER_RELEASE.value)
