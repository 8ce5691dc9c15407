"""How the attempt is going, beside where it is: the second, tiny machine (after Mender).

Two small truths instead of one product of states. *open* until something decides; a decision is
never taken back, except that a trial which was to be reverted ends as whatever the boot control
then really runs. The install machine reads nothing from here but "was it decided to go back?".
"""

from __future__ import annotations

from typing import Final

from firmament.agent.machine import Event, State
from firmament.protocol.status import Outcome

# fmt: off
DECIDES: Final[dict[Event, Outcome]] = {
    Event.OFFER_REFUSED:        Outcome.REFUSED,
    Event.IMAGE_REJECTED:       Outcome.REFUSED,
    Event.STORAGE_GAVE_UP:      Outcome.FAILED,
    Event.BOOT_CONTROL_GAVE_UP: Outcome.FAILED,
    Event.OWNER_DECLINED:       Outcome.DECLINED,
    Event.HEALTH_PASSED:        Outcome.CONFIRMED,
    Event.HEALTH_FAILED:        Outcome.REVERTED,
    Event.REVERT_ASKED:         Outcome.REVERTED,
    Event.BOOTED_PREVIOUS:      Outcome.REVERTED,
    # Withdrawn before anything was booted: there is nothing to tell, the server did it.
    Event.OFFER_WITHDRAWN:      Outcome.OPEN,
}
# fmt: on
"""Events that decide; all others leave the outcome as it is."""

POSSIBLE: Final[dict[State, frozenset[Outcome]]] = {
    # Which outcome each state may be seen with; the journal refuses any other pair.
    State.IDLE: frozenset({Outcome.OPEN}),
    State.OFFERED: frozenset({Outcome.OPEN}),
    State.WAITING: frozenset({Outcome.OPEN}),
    State.FETCHING: frozenset({Outcome.OPEN}),
    State.VERIFIED: frozenset({Outcome.OPEN}),
    State.STAGED: frozenset({Outcome.OPEN}),
    State.TRIAL: frozenset({Outcome.OPEN, Outcome.REVERTED}),
    State.CONFIRMED: frozenset({Outcome.CONFIRMED}),
    State.REVERTED: frozenset({Outcome.REVERTED}),
    State.REFUSED: frozenset({Outcome.REFUSED}),
    State.FAILED: frozenset({Outcome.FAILED}),
    State.DECLINED: frozenset({Outcome.DECLINED}),
}


def decide(outcome: Outcome, event: Event) -> Outcome:
    """Return the outcome after `event`; settling opens it for the next attempt."""
    if event is Event.SETTLED:
        return Outcome.OPEN
    return DECIDES.get(event, outcome)
