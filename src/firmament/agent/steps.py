"""The seven steps of an update as people see them, with fixed weights, and why one cannot go on.

The bar is at 100 only when the new image is confirmed, however much was downloaded before
(console.md §4.6). Where bytes exist they move it; elsewhere the step does.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final

from firmament.agent.machine import State
from firmament.core.offer import size
from firmament.errors import OutsideWindowError, PreconditionError, WaitingForConsentError

if TYPE_CHECKING:
    from firmament.errors import FirmamentError


class Mark(StrEnum):
    """How a step stands."""

    DONE = "done"
    NOW = "now"
    TODO = "todo"
    FAILED = "failed"


STEPS: Final = ("check", "consent", "download", "verify", "restart", "health", "confirm")
"""Bytes are written to the other slot as they arrive, so downloading and writing are one step."""

AT: Final[dict[State, int]] = {
    # Index of the step a state is in; one past the end when all are done.
    State.IDLE: 0,
    State.OFFERED: 1,
    State.WAITING: 1,
    State.FETCHING: 2,
    State.VERIFIED: 4,
    State.STAGED: 4,
    State.TRIAL: 5,
    State.CONFIRMED: len(STEPS),
    State.REVERTED: 5,
    State.REFUSED: 0,
    State.FAILED: 2,
    State.DECLINED: 1,
}
ENDED_BADLY: Final = frozenset({State.REVERTED, State.REFUSED, State.FAILED})


def steps(state: State) -> tuple[tuple[str, Mark], ...]:
    """Return every step with its mark; none is done while idle."""
    at = AT[state]

    def mark(index: int) -> Mark:
        if index < at:
            return Mark.DONE
        if index == at and state is not State.IDLE:
            return Mark.FAILED if state in ENDED_BADLY else Mark.NOW
        return Mark.TODO

    return tuple((name, mark(index)) for index, name in enumerate(STEPS))


def blocked(version: str, state: State, error: FirmamentError) -> str:
    """Say in one sentence what a release waits for, e.g. ``2.14.0 is ready, needs mains power``."""
    where = "is ready" if state is State.VERIFIED else "is offered"
    return f"{version} {where}, {_needs(error)}"


def _needs(error: FirmamentError) -> str:
    facts = error.facts
    if isinstance(error, WaitingForConsentError):
        again = facts.get("again_at")
        return f"postponed until {again}" if again else "waits for your answer"
    if isinstance(error, OutsideWindowError):
        return f"waits for the window {facts.get('window', '')}, which opens at {facts.get('opens_at', '')}"
    if isinstance(error, PreconditionError):
        if "need_percent" in facts:
            return f"needs more battery (it has {facts.get('found_percent')} %, needs {facts['need_percent']} %)"
        if "need_bytes" in facts:
            need, free = (int(str(facts.get(name, 0))) for name in ("need_bytes", "free_bytes"))
            return f"needs more free space (there are {size(free)}, it needs {size(need)})"
        return "needs mains power" if "mains" in error.problem else "needs a link that costs nothing by volume"
    return error.problem
