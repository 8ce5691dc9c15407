"""The install and outcome machines are total, come home, and say what could have happened."""

import pytest

from firmament.agent import outcome
from firmament.agent.events import PERCENT
from firmament.agent.ledger import MAX_JOURNAL_WRITES
from firmament.agent.machine import (
    FINAL,
    RESUME_AT,
    TRANSITIONS,
    Event,
    IllegalTransitionError,
    State,
    diagram,
    longest_path,
    step,
)
from firmament.protocol.status import AttemptStatus, Outcome


def test_every_state_has_a_row_a_resume_rule_an_outcome_and_a_percentage():
    assert set(TRANSITIONS) == set(State) == set(RESUME_AT) == set(outcome.POSSIBLE) == set(PERCENT)


def test_every_event_is_used():
    assert {event for row in TRANSITIONS.values() for event in row} == set(Event)


def test_states_are_the_words_of_the_wire():
    assert {state.value for state in State} == {status.value for status in AttemptStatus} | {"idle"}
    assert State.TRIAL.status is AttemptStatus.TRIAL
    assert State.IDLE.status is None


def test_idle_is_reachable_from_every_state():
    for start in State:
        seen, todo = set(), [start]
        while todo:
            state = todo.pop()
            if state not in seen:
                seen.add(state)
                todo += TRANSITIONS[state].values()
        assert State.IDLE in seen, f"{start} never comes home"


def test_nothing_but_settling_follows_a_final_state():
    assert {state: set(TRANSITIONS[state]) for state in FINAL} == {state: {Event.SETTLED} for state in FINAL}


def test_only_the_trial_confirms_and_only_after_health_passed():
    into = {(state, event) for state, row in TRANSITIONS.items() for event, to in row.items() if to is State.CONFIRMED}
    assert into == {(State.TRIAL, Event.HEALTH_PASSED)}


def test_a_decision_to_go_back_keeps_the_machine_where_the_image_runs():
    assert step(State.TRIAL, Event.HEALTH_FAILED) is State.TRIAL
    assert outcome.decide(Outcome.OPEN, Event.HEALTH_FAILED) is Outcome.REVERTED
    assert outcome.decide(Outcome.REVERTED, Event.SETTLED) is Outcome.OPEN
    assert outcome.decide(Outcome.OPEN, Event.CONDITIONS_MET) is Outcome.OPEN


def test_every_step_leads_to_a_possible_outcome():
    for state, row in TRANSITIONS.items():
        for event, target in row.items():
            for before in outcome.POSSIBLE[state]:
                if (state, event, before) == (State.TRIAL, Event.HEALTH_PASSED, Outcome.REVERTED):
                    continue  # the agent never asks for health after a decision to go back
                assert target is State.IDLE or outcome.decide(before, event) in outcome.POSSIBLE[target]


def test_the_refusal_names_the_missing_cell():
    with pytest.raises(IllegalTransitionError) as caught:
        step(State.STAGED, Event.HEALTH_PASSED)
    assert str(caught.value) == (
        "health-passed cannot happen while staged; "
        "expected one of: trial-booted, booted-previous, boot-control-gave-up, owner-declined"
    )


def test_the_bound_on_journal_writes_is_derived_from_the_longest_path():
    # offered, waiting, fetching, verified, staged, trial, two decisions, reverted, idle
    assert longest_path() == 10
    assert longest_path() < MAX_JOURNAL_WRITES < 100


def test_the_diagram_is_drawn_from_the_table():
    text = diagram()
    assert text.startswith("stateDiagram-v2\n")
    drawn = {line.split(": ")[0].strip() for line in text.splitlines()[2:]}
    assert drawn == {f"{state} --> {target}" for state, row in TRANSITIONS.items() for target in row.values()}
