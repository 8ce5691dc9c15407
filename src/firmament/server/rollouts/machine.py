"""Where a rollout, its waves and its targets are: three tables, and no other place decides.

A pair that is not in a table changes nothing: `after` and `move` return None. Every state says
what it waits for in `WAITS_FOR`, so that no rollout is ever open without a reason.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class RolloutState(StrEnum):
    """Where a rollout is; route, database and console say these words."""

    DRAFT = "draft"
    AWAITING_APPROVAL = "awaiting-approval"
    """A second person must agree; never its creator."""
    DENIED = "denied"
    SCHEDULED = "scheduled"
    """Waits for its start time."""
    RUNNING = "running"
    """Targets are being written, or a wave is open."""
    HOLDING = "holding"
    """Between two waves: the hold time, the health or a person decides."""
    PAUSED = "paused"
    """A person stopped new starts."""
    HALTED = "halted"
    """The stop rule stopped new starts."""
    REVERTING = "reverting"
    """Updated devices are being brought back to the slot they still hold."""
    REVERTED = "reverted"
    ABORTED = "aborted"
    FINISHED = "finished"


class RolloutEvent(StrEnum):
    """What can happen to a rollout."""

    ASK_APPROVAL = "ask-approval"
    APPROVE = "approve"
    DENY = "deny"
    SCHEDULE = "schedule"
    START = "start"
    HOLD = "hold"
    OPEN_WAVE = "open-wave"
    PAUSE = "pause"
    RESUME = "resume"
    STOP = "stop"
    ABORT = "abort"
    REVERT = "revert"
    WENT_BACK = "went-back"
    FINISH = "finish"


_R: Final = RolloutState
_E: Final = RolloutEvent

TRANSITIONS: Final[dict[RolloutState, dict[RolloutEvent, RolloutState]]] = {
    _R.DRAFT: {_E.ASK_APPROVAL: _R.AWAITING_APPROVAL, _E.SCHEDULE: _R.SCHEDULED, _E.ABORT: _R.ABORTED},
    _R.AWAITING_APPROVAL: {_E.APPROVE: _R.SCHEDULED, _E.DENY: _R.DENIED, _E.ABORT: _R.ABORTED},
    _R.DENIED: {},
    _R.SCHEDULED: {_E.START: _R.RUNNING, _E.PAUSE: _R.PAUSED, _E.ABORT: _R.ABORTED},
    _R.RUNNING: {
        _E.HOLD: _R.HOLDING,
        _E.OPEN_WAVE: _R.RUNNING,
        _E.PAUSE: _R.PAUSED,
        _E.STOP: _R.HALTED,
        _E.ABORT: _R.ABORTED,
        _E.REVERT: _R.REVERTING,
        _E.FINISH: _R.FINISHED,
    },
    _R.HOLDING: {
        _E.OPEN_WAVE: _R.RUNNING,
        _E.PAUSE: _R.PAUSED,
        _E.STOP: _R.HALTED,
        _E.ABORT: _R.ABORTED,
        _E.REVERT: _R.REVERTING,
        _E.FINISH: _R.FINISHED,
    },
    _R.PAUSED: {_E.RESUME: _R.RUNNING, _E.STOP: _R.HALTED, _E.ABORT: _R.ABORTED, _E.REVERT: _R.REVERTING},
    _R.HALTED: {_E.RESUME: _R.RUNNING, _E.ABORT: _R.ABORTED, _E.REVERT: _R.REVERTING},
    _R.REVERTING: {_E.WENT_BACK: _R.REVERTED, _E.ABORT: _R.ABORTED},
    _R.REVERTED: {},
    # Found bad after the end: what was updated can still be brought back.
    _R.ABORTED: {_E.REVERT: _R.REVERTING},
    _R.FINISHED: {_E.REVERT: _R.REVERTING},
}

MAY_START_DEVICES: Final = frozenset({_R.RUNNING, _R.HOLDING})
"""While holding, devices of open waves that were late still start."""
ENDED: Final = frozenset({_R.DENIED, _R.REVERTED, _R.ABORTED, _R.FINISHED})
LIVE: Final = frozenset({_R.SCHEDULED, _R.RUNNING, _R.HOLDING, _R.PAUSED, _R.HALTED, _R.REVERTING})
"""What the loops look at."""

WAITS_FOR: Final[dict[RolloutState, str]] = {
    _R.DRAFT: "somebody to start it",
    _R.AWAITING_APPROVAL: "a second person's approval",
    _R.DENIED: "",
    _R.SCHEDULED: "its start time",
    _R.RUNNING: "devices of the open waves",
    _R.HOLDING: "the hold time, health or a person, before the next wave",
    _R.PAUSED: "somebody to resume or abort it",
    _R.HALTED: "somebody to resume, abort or revert it",
    _R.REVERTING: "updated devices to go back",
    _R.REVERTED: "",
    _R.ABORTED: "",
    _R.FINISHED: "",
}
"""What an open rollout waits for; empty for one that has ended."""


def after(state: RolloutState, event: RolloutEvent) -> RolloutState | None:
    """Return the next state, or None when the event cannot happen now."""
    return TRANSITIONS[state].get(event)


class WaveState(StrEnum):
    """Where one wave is."""

    PENDING = "pending"
    OPEN = "open"
    """Its devices may start."""
    HELD = "held"
    """All its devices are through; the hold time or the health is waited for."""
    HALTED = "halted"
    """The stop rule fired here."""
    DONE = "done"


class TargetStatus(StrEnum):
    """Where one device is with one rollout."""

    WAITING = "waiting"
    """Not started; safe."""
    OFFERED = "offered"
    """The director names the release to it, or its own window or precondition is waited for."""
    ASKING = "asking"
    """Its owner was asked; never a failure."""
    POSTPONED = "postponed"
    """Its owner said later; never a failure."""
    DECLINED = "declined"
    """Its owner said no; never a failure."""
    IN_FLIGHT = "in-flight"
    """From the first byte to the end of the trial."""
    UPDATED = "updated"
    """Confirmed: the new image proved itself."""
    FAILED = "failed"
    """Reverted, refused or failed by itself."""
    SILENT = "silent"
    """Has not called back past its deadline; counts as failed until it does."""
    SKIPPED = "skipped"
    """Not applicable any more: runs it already, or something newer, or was disabled."""
    REVERTING = "reverting"
    """Was updated and is asked to go back to the slot it still holds."""
    WENT_BACK = "went-back"
    """Runs the release from before again, because the rollout asked."""


_T: Final = TargetStatus
_ENDS: Final = (_T.UPDATED, _T.FAILED, _T.DECLINED)
_NOT_STARTED: Final = (_T.WAITING, _T.POSTPONED, _T.SKIPPED)
_ON_THE_WAY: Final = (_T.OFFERED, _T.ASKING, _T.IN_FLIGHT)

TARGET_TRANSITIONS: Final[dict[TargetStatus, frozenset[TargetStatus]]] = {
    # A device can be ahead of what the server heard: ends are reachable from everywhere.
    _T.WAITING: frozenset({*_ON_THE_WAY, *_ENDS, _T.POSTPONED, _T.SKIPPED}),
    _T.OFFERED: frozenset({*_ON_THE_WAY, *_ENDS, *_NOT_STARTED, _T.SILENT}) - {_T.OFFERED},
    _T.ASKING: frozenset({*_ON_THE_WAY, *_ENDS, *_NOT_STARTED, _T.SILENT}) - {_T.ASKING},
    _T.IN_FLIGHT: frozenset({*_ON_THE_WAY, *_ENDS, *_NOT_STARTED, _T.SILENT}) - {_T.IN_FLIGHT},
    _T.POSTPONED: frozenset({*_ON_THE_WAY, *_ENDS, _T.WAITING, _T.SKIPPED}),
    _T.SILENT: frozenset({*_ON_THE_WAY, *_ENDS, _T.WAITING, _T.SKIPPED}),
    # A person may clear these and try again.
    _T.FAILED: frozenset({_T.WAITING}),
    _T.DECLINED: frozenset({_T.WAITING}),
    _T.SKIPPED: frozenset({_T.WAITING}),
    _T.UPDATED: frozenset({_T.REVERTING}),
    # A device that cannot go back keeps what it has, and says why.
    _T.REVERTING: frozenset({_T.WENT_BACK, _T.UPDATED}),
    _T.WENT_BACK: frozenset({_T.WAITING}),
}

COUNTS_AS_FAILED: Final = frozenset({_T.FAILED, _T.SILENT})
COUNTS_AS_FINISHED: Final = frozenset({_T.UPDATED, _T.FAILED, _T.SILENT, _T.REVERTING, _T.WENT_BACK})
"""The gate's denominator. Consent is in neither set: it never moves a failure rate."""
NEVER_A_FAILURE: Final = frozenset({_T.ASKING, _T.POSTPONED, _T.DECLINED})
STARTED: Final = frozenset(_ON_THE_WAY)
WANTS_SOMETHING: Final = frozenset({_T.WAITING, _T.POSTPONED, *_ON_THE_WAY, _T.SILENT, _T.REVERTING})
"""Targets with `active` set: the device's poll looks at them."""
THROUGH: Final = frozenset(set(_T) - set(_ON_THE_WAY) - {_T.WAITING})
"""A wave waits for none of these; a postponed device may come later."""


def move(status: TargetStatus, to: TargetStatus) -> TargetStatus | None:
    """Return the new status, or None when the table does not allow it (staying is not a move)."""
    return to if to in TARGET_TRANSITIONS[status] else None
