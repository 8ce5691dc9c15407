"""The install machine of the agent, as data.

Rule 1: every state, every event and every transition is a row in this file.
Rule 2: nothing here does I/O, reads a clock or knows which slot is A.

Theory of operation. One attempt at a time travels from *idle* through the happy path and back
to *idle*; how it is going is told by the second, tiny machine in outcome.py. The two together
say everything: a trial whose outcome is already *reverted* is on its way back to the previous
image, and becomes *reverted* here only when the boot control says that the previous image runs.

States are the words of `protocol.status.AttemptStatus`, with *idle* for "no attempt": journal,
wire, database and screen spell them alike. Events are facts about the world, never "success".
Rows are total: an event that a state does not list cannot happen there, `step` says so and
changes nothing.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Final

from firmament.protocol.status import FINAL_STATUSES, AttemptStatus


class State(StrEnum):
    """Where the device is with the attempt in hand; see `AttemptStatus` for each word."""

    IDLE = "idle"
    OFFERED = "offered"
    WAITING = "waiting"
    FETCHING = "fetching"
    VERIFIED = "verified"
    STAGED = "staged"
    TRIAL = "trial"
    CONFIRMED = "confirmed"
    REVERTED = "reverted"
    REFUSED = "refused"
    FAILED = "failed"
    DECLINED = "declined"

    @property
    def status(self) -> AttemptStatus | None:
        """The word on the wire; None while idle."""
        return None if self is State.IDLE else AttemptStatus(self.value)


class Event(StrEnum):
    """What was found to be true."""

    OFFER_VERIFIED = "offer-verified"
    """Both repositories vouch for a release that is meant for this device."""
    OFFER_REFUSED = "offer-refused"
    """The director named a release that no author signed, or that is not for this device."""
    OFFER_WITHDRAWN = "offer-withdrawn"
    """The director no longer names the release, or names another."""
    CONDITIONS_MISSING = "conditions-missing"
    """Consent, the window or a precondition is missing."""
    CONDITIONS_MET = "conditions-met"
    OWNER_DECLINED = "owner-declined"
    IMAGE_VERIFIED = "image-verified"
    """The payload had the signed digest, and so had the slot when it was read back."""
    IMAGE_LOST = "image-lost"
    """The slot was read once more before arming and no longer holds the image."""
    IMAGE_REJECTED = "image-rejected"
    """The payload that arrived is not the one that was signed."""
    STORAGE_GAVE_UP = "storage-gave-up"
    """The image cannot be fetched or stored here, however often it is tried."""
    TRIAL_ARMED = "trial-armed"
    """The boot control will try the other slot once."""
    BOOT_CONTROL_GAVE_UP = "boot-control-gave-up"
    """The boot control could not be armed, or does not restart."""
    TRIAL_BOOTED = "trial-booted"
    """The armed slot is booted."""
    BOOTED_PREVIOUS = "booted-previous"
    """The previous slot is booted and nothing is armed any more."""
    HEALTH_PASSED = "health-passed"
    HEALTH_FAILED = "health-failed"
    """A check found the image unhealthy, or the deadline passed first."""
    REVERT_ASKED = "revert-asked"
    """A person at the device wants the previous image."""
    SETTLED = "settled"
    """Floors are raised, the outcome is in the history and its report in the outbox."""


# fmt: off
TRANSITIONS: Final[dict[State, dict[Event, State]]] = {
    State.IDLE: {
        Event.OFFER_VERIFIED:       State.OFFERED,
        Event.OFFER_REFUSED:        State.REFUSED,
    },
    State.OFFERED: {
        Event.CONDITIONS_MET:       State.FETCHING,
        Event.CONDITIONS_MISSING:   State.WAITING,
        Event.OFFER_WITHDRAWN:      State.IDLE,
        Event.OFFER_REFUSED:        State.REFUSED,
        Event.OWNER_DECLINED:       State.DECLINED,
    },
    State.WAITING: {
        Event.CONDITIONS_MET:       State.FETCHING,
        Event.OFFER_WITHDRAWN:      State.IDLE,
        Event.OFFER_REFUSED:        State.REFUSED,
        Event.OWNER_DECLINED:       State.DECLINED,
    },
    State.FETCHING: {
        Event.IMAGE_VERIFIED:       State.VERIFIED,
        Event.IMAGE_REJECTED:       State.REFUSED,
        Event.STORAGE_GAVE_UP:      State.FAILED,
        Event.OFFER_WITHDRAWN:      State.IDLE,
        Event.OFFER_REFUSED:        State.REFUSED,
        Event.OWNER_DECLINED:       State.DECLINED,
    },
    State.VERIFIED: {
        Event.TRIAL_ARMED:          State.STAGED,
        Event.IMAGE_LOST:           State.FETCHING,
        Event.STORAGE_GAVE_UP:      State.FAILED,
        Event.BOOT_CONTROL_GAVE_UP: State.FAILED,
        Event.OFFER_WITHDRAWN:      State.IDLE,
        Event.OFFER_REFUSED:        State.REFUSED,
        Event.OWNER_DECLINED:       State.DECLINED,
    },
    State.STAGED: {
        Event.TRIAL_BOOTED:         State.TRIAL,
        # The one try was spent and did not come up: the boot loader gave the previous image back.
        Event.BOOTED_PREVIOUS:      State.REVERTED,
        # Armed, but not restarted; disarmed again, so nothing new was booted.
        Event.BOOT_CONTROL_GAVE_UP: State.FAILED,
        Event.OWNER_DECLINED:       State.DECLINED,
    },
    State.TRIAL: {
        Event.HEALTH_PASSED:        State.CONFIRMED,
        # These two only decide: the new image still runs, the outcome machine remembers.
        Event.HEALTH_FAILED:        State.TRIAL,
        Event.REVERT_ASKED:         State.TRIAL,
        Event.BOOTED_PREVIOUS:      State.REVERTED,
    },
    State.CONFIRMED:                {Event.SETTLED: State.IDLE},
    State.REVERTED:                 {Event.SETTLED: State.IDLE},
    State.REFUSED:                  {Event.SETTLED: State.IDLE},
    State.FAILED:                   {Event.SETTLED: State.IDLE},
    State.DECLINED:                 {Event.SETTLED: State.IDLE},
}

RESUME_AT: Final[dict[State, str]] = {
    # After a power cut the journal says X: what is true of the world, and what is done about it.
    State.IDLE:      "nothing in hand; confirm the booted slot again, for boot loaders that count starts",
    State.OFFERED:   "nothing was done yet: look at the conditions again",
    State.WAITING:   "nothing was done yet: look at the conditions again",
    State.FETCHING:  "the slot holds at least the journalled offset: read it back up to there, fetch the rest",
    State.VERIFIED:  "the slot holds the image; it may be armed already, and even be booted: "
                     "arm again or go on to the trial",
    State.STAGED:    "ask the boot control: the new slot is booted (trial), still armed (restart), "
                     "or its try is spent (reverted)",
    State.TRIAL:     "ask the boot control: the new slot is booted (examine again, or go back if that was decided) "
                     "or the previous one (reverted)",
    State.CONFIRMED: "the boot control keeps the new slot: raise the floors again, twice is once",
    State.REVERTED:  "the previous image runs and nothing is armed: settle",
    State.REFUSED:   "nothing was booted: settle",
    State.FAILED:    "nothing was booted and nothing is armed: settle",
    State.DECLINED:  "nothing was booted: settle",
}
# fmt: on

BEFORE_TRIAL: Final = frozenset({State.OFFERED, State.WAITING, State.FETCHING, State.VERIFIED})
"""States in which the server may still withdraw the release, and the owner decline it."""
BEFORE_FETCH: Final = frozenset({State.OFFERED, State.WAITING})
"""States in which nothing of the release was begun."""
FINAL: Final = frozenset(State(status.value) for status in FINAL_STATUSES)
"""Nothing but `SETTLED` follows these."""


class IllegalTransitionError(RuntimeError):
    """The missing cell of the table; a mistake in the agent, so not one of the house's errors."""

    def __init__(self, state: State, event: Event) -> None:
        allowed = ", ".join(TRANSITIONS[state])
        super().__init__(f"{event} cannot happen while {state}; expected one of: {allowed}")
        self.state = state
        self.event = event


def step(state: State, event: Event) -> State:
    """Return the next state; raises IllegalTransitionError, naming what could have happened."""
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        raise IllegalTransitionError(state, event) from None


def longest_path() -> int:
    """Return how many transitions the longest attempt takes from idle back to idle.

    Each row of the table is used at most once; rows that may repeat are bounded where they are
    decided (`trial.MAX_RESTARTS`, `install.MAX_STARTS_OVER`).
    """

    def walk(state: State, used: frozenset[tuple[State, Event]]) -> float:
        if state is State.IDLE and used:
            return 0
        lengths = [
            1 + walk(target, used | {(state, event)})
            for event, target in TRANSITIONS[state].items()
            if (state, event) not in used
        ]
        return max(lengths, default=-math.inf)  # a walk that does not come home does not count

    return int(walk(State.IDLE, frozenset()))


def diagram() -> str:
    """Return the machine as a Mermaid state diagram; docs/ holds this text and a test compares it."""
    lines = ["stateDiagram-v2", f"    [*] --> {State.IDLE}"]
    for state, row in TRANSITIONS.items():
        by_target: dict[State, list[Event]] = {}
        for event, target in row.items():
            by_target.setdefault(target, []).append(event)
        lines += [f"    {state} --> {target}: {', '.join(events)}" for target, events in by_target.items()]
    return "\n".join(lines) + "\n"
