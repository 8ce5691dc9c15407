"""Listeners hear everything, stop nothing, and see 100 percent only for a confirmed image."""

from firmament.agent.events import FETCHED_PERCENT, PERCENT, Events, Progress, StateChanged, Trouble
from firmament.agent.machine import State
from firmament.core.ids import AttemptId

ATTEMPT = AttemptId("0f1e2d3c-4b5a-4968-8776-655443322110")


def test_every_listener_hears_and_one_that_raises_harms_nobody():
    events, heard = Events(), []

    def broken(event):
        raise ValueError(event)

    events.listen(broken)
    events.listen(heard.append)
    event = Trouble("transfer/unreachable", "x", 5.0)
    events.tell(event)
    assert heard == [event]


def test_a_hundred_percent_means_confirmed():
    assert [state for state, percent in PERCENT.items() if percent == 100] == [State.CONFIRMED]
    changed = StateChanged(ATTEMPT, None, State.TRIAL, State.CONFIRMED)
    assert changed.percent == 100


def test_the_bar_only_grows_on_the_happy_path():
    path = [State.OFFERED, State.WAITING, State.FETCHING, State.VERIFIED, State.STAGED, State.TRIAL, State.CONFIRMED]
    assert [PERCENT[state] for state in path] == sorted({PERCENT[state] for state in path})
    assert Progress(ATTEMPT, 0, 100).percent == PERCENT[State.FETCHING]
    assert Progress(ATTEMPT, 100, 100).percent == FETCHED_PERCENT < PERCENT[State.VERIFIED]
    assert Progress(ATTEMPT, 0, 0).percent == PERCENT[State.FETCHING]
