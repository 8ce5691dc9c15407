"""Decisions about a rollout: pure functions of counters, policy and time.

The engine reads the state, asks here, and writes what was answered; nothing else decides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from firmament.errors import Retry, error_for_code
from firmament.server.attempts.machine import AttemptState
from firmament.server.rollouts.machine import (
    COUNTS_AS_FAILED,
    COUNTS_AS_FINISHED,
    STARTED,
    TargetStatus,
    WaveState,
)
from firmament.server.rollouts.model import SILENT_INTERVALS, Advance, Counts, Policy, WaitFor, add_counts

if TYPE_CHECKING:
    from collections.abc import Sequence

RETRY_AFTER_S: Final = 900
"""A fetch that failed is tried again after this, doubled each time."""
ENOUGH: Final = 0.5
"""Of a wave whose patience is over, so much must be through before the next one opens."""
USUAL_INTERVAL_S: Final = 4 * 3600
"""Of a device that was not heard often enough to have a rhythm."""


class Code(StrEnum):
    """Why a rollout is where it is, beside the codes of errors."""

    FAILURES = "rollout/failures"
    CANNOT_PASS = "rollout/cannot-pass"  # noqa: S105 - a code
    HEALTH = "rollout/health"
    WITHDRAWN = "rollout/release-withdrawn"
    LATE_JOINERS = "rollout/late-joiners"
    WAITING_FOR_DEVICES = "rollout/waiting-for-devices"
    FEW_FINISHED = "rollout/few-finished"
    HOLD_TIME = "rollout/hold-time"
    HEALTH_UNKNOWN = "rollout/health-unknown"
    BY_HAND = "rollout/by-hand"
    FILLING = "rollout/filling"
    NO_CALL_BACK = "rollout/no-call-back"
    TOOK_TOO_LONG = "rollout/took-too-long"
    SITE = "rollout/site-did-not-commit"
    LEFT_OUT = "rollout/left-out"
    SITES = "rollout/waiting-for-sites"
    OTHER_RELEASE = "rollout/other-release"
    NOT_APPLICABLE = "rollout/not-applicable"
    NO_WAY_BACK = "rollout/no-way-back"
    OVER = "rollout/over"


@dataclass(frozen=True, slots=True)
class WaveView:
    """One wave as the decisions see it."""

    number: int
    state: WaveState
    counts: Counts
    opened_at: int | None
    hold_until: int | None
    forgiven_failed: int = 0
    forgiven_finished: int = 0
    """What somebody looked at and resumed in spite of; the stop rule counts from there."""

    @property
    def failed(self) -> int:
        """How many count as failed."""
        return self.counts.of(*COUNTS_AS_FAILED)

    @property
    def finished(self) -> int:
        """How many the ratio is of."""
        return self.counts.of(*COUNTS_AS_FINISHED)

    @property
    def new_failed(self) -> int:
        """Failed since the last resume."""
        return max(0, self.failed - self.forgiven_failed)

    @property
    def new_finished(self) -> int:
        """Finished since the last resume."""
        return max(self.new_failed, self.finished - self.forgiven_finished)


@dataclass(frozen=True, slots=True)
class Stop:
    """The stop rule fired, in which wave and why."""

    code: Code
    wave: int
    failed: int
    finished: int
    possible: int = 0
    """How many of the wave can ever be in the ratio, where that is what decided; 0 elsewhere."""


def find_stop(policy: Policy, waves: Sequence[WaveView]) -> Stop | None:
    """Return why the rollout must stop, or None.

    Per open wave and over all of them: more than the limit failed, of at least the minimum
    sample; or so many that the wave cannot keep the limit whatever the others do.
    """
    gate = policy.gate
    opened = [wave for wave in waves if wave.state is not WaveState.PENDING]
    for wave in reversed(opened):
        if _exceeds(wave.new_failed, wave.new_finished, gate.limit_ratio, gate.min_finished):
            return Stop(Code.FAILURES, wave.number, wave.new_failed, wave.new_finished)
        # Whoever declined or was skipped will never be in the ratio's denominator.
        possible = wave.counts.total - wave.counts.of(TargetStatus.DECLINED, TargetStatus.SKIPPED)
        possible -= wave.forgiven_finished
        if wave.state is not WaveState.DONE and wave.new_failed and wave.new_failed > gate.limit_ratio * possible:
            return Stop(Code.CANNOT_PASS, wave.number, wave.new_failed, wave.new_finished, possible)
    failed, finished = sum(wave.new_failed for wave in opened), sum(wave.new_finished for wave in opened)
    if opened and _exceeds(failed, finished, gate.limit_ratio, gate.min_finished):
        return Stop(Code.FAILURES, opened[-1].number, failed, finished)
    return None


def _exceeds(failed: int, finished: int, limit: float, minimum: int) -> bool:
    return finished >= minimum and failed > limit * finished


def may_fail(limit_ratio: float, possible: int) -> int:
    """Return how many devices of a wave may fail without a stop."""
    return math.floor(limit_ratio * possible)


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do now, and what is waited for."""

    code: Code
    until: int | None = None


@dataclass(frozen=True, slots=True)
class CloseWave:
    """All of the wave is through: hold it, at most until a time."""

    number: int
    hold_until: int


@dataclass(frozen=True, slots=True)
class OpenWave:
    """The next wave may start."""

    number: int


@dataclass(frozen=True, slots=True)
class Finish:
    """Nothing is left to wait for."""

    code: Code | None = None


Step = Wait | CloseWave | OpenWave | Finish


@dataclass(frozen=True, slots=True)
class Health:
    """What updated devices of a wave report about themselves."""

    ok: int = 0
    failing: int = 0
    updated: int = 0


def next_step(
    policy: Policy, waves: Sequence[WaveView], *, now_s: int, started_at: int, is_filled: bool, health: Health
) -> Step:
    """Return what a running or holding rollout does next."""
    if not is_filled:
        return Wait(Code.FILLING)
    if now_s - started_at >= policy.lifetime_s:
        return Finish(Code.OVER)
    opened = [wave for wave in waves if wave.state is not WaveState.PENDING]
    if not opened:
        return OpenWave(waves[0].number)
    last = opened[-1]
    is_final = last.number == waves[-1].number
    if last.state is WaveState.OPEN:
        waiting = _wave_waits(policy, last, opened, now_s=now_s, is_final=is_final)
        if waiting is not None:
            return waiting
        if is_final:
            return Wait(Code.LATE_JOINERS, started_at + policy.lifetime_s) if policy.dynamic else Finish()
        hold_s = policy.hold_s if last.counts.total else 0
        return CloseWave(last.number, now_s + hold_s)
    if is_final:
        return Finish()
    if policy.advance is Advance.MANUAL:
        return Wait(Code.BY_HAND)
    if last.hold_until is not None and now_s < last.hold_until:
        return Wait(Code.HOLD_TIME, last.hold_until)
    if policy.wait_for is WaitFor.HEALTHY and not _is_healthy(policy, health):
        return Wait(Code.HEALTH_UNKNOWN)
    return OpenWave(last.number + 1)


def _wave_waits(
    policy: Policy, last: WaveView, opened: Sequence[WaveView], *, now_s: int, is_final: bool
) -> Wait | None:
    """Return what an open wave still waits for, None when it is through."""
    on_the_way = add_counts([wave.counts for wave in opened]).of(*STARTED)
    if on_the_way or last.counts.of(TargetStatus.WAITING) == 0:
        return Wait(Code.WAITING_FOR_DEVICES) if on_the_way else None
    patience_ends = (last.opened_at or now_s) + policy.patience_s
    if is_final or now_s < patience_ends:
        return Wait(Code.WAITING_FOR_DEVICES, None if is_final else patience_ends)
    voters = last.counts.total - last.counts.of(*_NO_VOTE)
    enough = min(policy.gate.min_finished, math.ceil(voters * ENOUGH))
    return Wait(Code.FEW_FINISHED) if last.finished < enough else None


_NO_VOTE: Final = (TargetStatus.DECLINED, TargetStatus.POSTPONED, TargetStatus.SKIPPED)


def _is_healthy(policy: Policy, health: Health) -> bool:
    """Whether enough updated devices said how they are, and few enough said badly."""
    said = health.ok + health.failing
    if health.updated == 0:
        return True
    return said >= min(policy.gate.min_finished, health.updated) and health.failing <= policy.gate.limit_ratio * said


# --- one device ----------------------------------------------------------------------------

_CONSENT_CODE: Final = "policy/waiting-for-consent"
_OF_STATE: Final[dict[AttemptState, TargetStatus]] = {
    AttemptState.ASSIGNED: TargetStatus.OFFERED,
    AttemptState.OFFERED: TargetStatus.OFFERED,
    AttemptState.WAITING: TargetStatus.OFFERED,
    AttemptState.FETCHING: TargetStatus.IN_FLIGHT,
    AttemptState.VERIFIED: TargetStatus.IN_FLIGHT,
    AttemptState.STAGED: TargetStatus.IN_FLIGHT,
    AttemptState.TRIAL: TargetStatus.IN_FLIGHT,
    AttemptState.CONFIRMED: TargetStatus.UPDATED,
    AttemptState.REVERTED: TargetStatus.FAILED,
    AttemptState.REFUSED: TargetStatus.FAILED,
    AttemptState.FAILED: TargetStatus.FAILED,
    AttemptState.DECLINED: TargetStatus.DECLINED,
    AttemptState.CANCELLED: TargetStatus.WAITING,
}


def target_status(state: AttemptState, code: str) -> TargetStatus:
    """Return where a target is when its attempt to install is in `state`."""
    if state is AttemptState.WAITING and code == _CONSENT_CODE:
        return TargetStatus.ASKING
    return _OF_STATE[state]


def reverting_status(state: AttemptState) -> TargetStatus | None:
    """Return where a target is when its attempt to go back ended in `state`; None while it is on the way."""
    if state is AttemptState.CONFIRMED:
        return TargetStatus.WENT_BACK
    if state in {AttemptState.REVERTED, AttemptState.REFUSED, AttemptState.FAILED, AttemptState.DECLINED}:
        return TargetStatus.UPDATED
    return None


def may_retry(state: AttemptState, code: str, *, tries: int, budget: int) -> bool:
    """Whether an ended attempt is tried again by itself: only where nothing was booted and time may help."""
    if state is not AttemptState.FAILED or tries > budget:
        return False
    kind = error_for_code(code) if code else None
    return kind is None or kind.retry is not Retry.NEVER


def retry_at(now_s: int, tries: int) -> int:
    """Return when a failed fetch is offered again."""
    return now_s + int(RETRY_AFTER_S * 2 ** min(tries - 1, 10))


def silence_s(policy: Policy, interval_s: int | None) -> int:
    """Return after how long without a call a started device is silent: three of its own rounds."""
    return max(policy.gate.silence_floor_s, SILENT_INTERVALS * (interval_s or USUAL_INTERVAL_S))


def deadline(policy: Policy, status: TargetStatus, *, now_s: int, interval_s: int | None) -> int | None:
    """Return when a target that just came to `status` is looked at again; None: never by itself."""
    if status is TargetStatus.ASKING:
        return now_s + policy.answer_s
    if status in {TargetStatus.OFFERED, TargetStatus.IN_FLIGHT, TargetStatus.REVERTING}:
        return now_s + silence_s(policy, interval_s)
    return None
