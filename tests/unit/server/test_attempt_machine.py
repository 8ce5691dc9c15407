"""The table of attempt states, and who may say that an update succeeded."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmament.core.ids import AttemptId, DeviceId
from firmament.protocol.status import FINAL_STATUSES, AttemptStatus
from firmament.protocol.v1.messages import Report
from firmament.server.attempts.machine import FINAL, TRANSITIONS, AttemptState, is_credible, move

ENDS = {AttemptState(status.value) for status in FINAL_STATUSES}


def test_every_state_has_a_row_and_every_word_of_the_wire_is_a_state():
    assert set(TRANSITIONS) == set(AttemptState)
    assert {status.value for status in AttemptStatus} <= {state.value for state in AttemptState}


def test_ends_are_ends_and_reachable_from_everywhere_else():
    for end in ENDS:
        assert TRANSITIONS[end] == frozenset()
    for state in set(AttemptState) - ENDS:
        assert TRANSITIONS[state] & ENDS
        assert state not in TRANSITIONS[state]


def test_an_open_attempt_can_always_be_cancelled_and_nothing_returns_to_assigned():
    for state, following in TRANSITIONS.items():
        assert (AttemptState.CANCELLED in following) == (state not in FINAL)
        assert AttemptState.ASSIGNED not in following


def test_from_the_trial_there_are_two_ways_out():
    assert TRANSITIONS[AttemptState.TRIAL] & ENDS == {AttemptState.CONFIRMED, AttemptState.REVERTED}


def test_a_cancelled_attempt_still_hears_how_it_ended():
    assert TRANSITIONS[AttemptState.CANCELLED] == ENDS


@given(st.lists(st.sampled_from(AttemptState), max_size=12))
def test_whatever_is_reported_an_end_stays_an_end(reported):
    state = AttemptState.ASSIGNED
    ended = None
    for to in reported:
        state = move(state, to) or state
        if ended is not None:
            assert state is ended
        if state in ENDS:
            ended = state


def report(**changes):
    given_ = {
        "device_id": DeviceId("d"),
        "report_number": 1,
        "attempt_id": AttemptId("a"),
        "status": AttemptStatus.CONFIRMED,
        "version": "2.0",
        "sequence_number": 2,
        "boot_id": "new",
        "at": datetime(2026, 1, 1, tzinfo=UTC),
    }
    return Report(**{**given_, **changes})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"boot_id": "old"}, False),
        ({"boot_id": ""}, False),
        ({"version": "1.0"}, False),
        ({"sequence_number": 1}, False),
        ({"status": AttemptStatus.REVERTED, "version": "1.0", "boot_id": "old"}, True),
    ],
)
def test_confirmed_is_believed_only_from_the_new_image_after_a_new_boot(changes, expected):
    assert is_credible(report(**changes), version="2.0", sequence_number=2, boot_id_before="old") is expected
