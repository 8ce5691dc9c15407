"""What the agent tells while it works: typed values to any number of listeners.

Listeners are callables (the daemon's socket, hook scripts, a progress line). A listener that
raises is logged and dropped from nothing else: telling never stops an update. `percent` is 100
only once the new image is confirmed, whatever has been downloaded (house.md: honest progress).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from firmament.agent.machine import State
from firmament.log import logger

if TYPE_CHECKING:
    from firmament.core.ids import AttemptId, ReleaseId

log = logger("agent.events")

# fmt: off
PERCENT: Final[dict[State, int]] = {
    # Where the bar stands when a state is entered; the download moves it from 5 to 80.
    State.IDLE:       0,
    State.OFFERED:    1,
    State.WAITING:    2,
    State.FETCHING:   5,
    State.VERIFIED:  85,
    State.STAGED:    88,
    State.TRIAL:     92,
    State.CONFIRMED: 100,
    # These end an attempt without the new image; the bar goes back.
    State.REVERTED:   0,
    State.REFUSED:    0,
    State.FAILED:     0,
    State.DECLINED:   0,
}
# fmt: on
FETCHED_PERCENT: Final = 80


@dataclass(frozen=True, slots=True)
class StateChanged:
    """The install machine moved."""

    attempt_id: AttemptId
    release_id: ReleaseId | None
    """None when the offer was refused before its manifest could be believed."""
    before: State
    state: State
    code: str = ""
    """Error code, when this was for a reason."""
    message: str = ""

    @property
    def percent(self) -> int:
        """How far the attempt is, 0 to 100."""
        return PERCENT[self.state]


@dataclass(frozen=True, slots=True)
class Progress:
    """Payload bytes are in the slot."""

    attempt_id: AttemptId
    done_bytes: int
    total_bytes: int

    @property
    def percent(self) -> int:
        """How far the attempt is, 0 to 100; a finished download is 80."""
        start = PERCENT[State.FETCHING]
        return start + (FETCHED_PERCENT - start) * self.done_bytes // max(1, self.total_bytes)


@dataclass(frozen=True, slots=True)
class HealthChecked:
    """A round of health checks during a trial."""

    attempt_id: AttemptId
    is_healthy: bool
    check: str
    """The first check that was unhealthy, or empty."""
    detail: str
    left_s: float
    """Seconds until the deadline."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something did not work and will be tried again; the running image is untouched."""

    code: str
    message: str
    again_in_s: float | None
    """None: when somebody acts."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The owner's answer is needed."""

    attempt_id: AttemptId
    release_id: ReleaseId
    notes: dict[str, str]
    """By language tag."""
    text: str = ""
    """What the owner reads, in their language (core/offer.py)."""


AgentEvent = StateChanged | Progress | HealthChecked | Trouble | Asked
Listener = Callable[[AgentEvent], None]


class Events:
    """Tells each event to every listener."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []

    def listen(self, listener: Listener) -> None:
        """Add a listener; it hears what happens from now on."""
        self._listeners.append(listener)

    def tell(self, event: AgentEvent) -> None:
        """Call every listener."""
        for listener in self._listeners:
            try:
                listener(event)
            except Exception as error:  # noqa: BLE001 - a listener is foreign code and may do anything
                log.warning("events.listener-failed", listener=repr(listener), reason=repr(error))
