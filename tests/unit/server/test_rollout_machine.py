"""The three tables of rollouts are total, and every open state says what it waits for."""

import pytest

from firmament.server.rollouts.machine import (
    COUNTS_AS_FAILED,
    COUNTS_AS_FINISHED,
    ENDED,
    LIVE,
    MAY_START_DEVICES,
    NEVER_A_FAILURE,
    STARTED,
    TARGET_TRANSITIONS,
    THROUGH,
    TRANSITIONS,
    WAITS_FOR,
    WANTS_SOMETHING,
    RolloutEvent,
    RolloutState,
    TargetStatus,
    after,
    move,
)


def test_every_rollout_state_has_a_row_and_says_what_it_waits_for():
    assert set(TRANSITIONS) == set(WAITS_FOR) == set(RolloutState)
    for state in RolloutState:
        assert (WAITS_FOR[state] == "") == (state in ENDED)


def test_every_event_is_used_and_every_state_is_reached():
    used = {event for row in TRANSITIONS.values() for event in row}
    reached = {state for row in TRANSITIONS.values() for state in row.values()}
    assert used == set(RolloutEvent)
    assert reached | {RolloutState.DRAFT} == set(RolloutState)


def test_every_open_state_can_end():
    ends = set(ENDED)
    while True:
        more = {state for state, row in TRANSITIONS.items() if set(row.values()) & ends} | ends
        if more == ends:
            break
        ends = more
    assert ends == set(RolloutState)


def test_a_stop_is_possible_wherever_devices_can_fail():
    for state in MAY_START_DEVICES | {RolloutState.PAUSED}:
        assert after(state, RolloutEvent.STOP) is RolloutState.HALTED
    assert after(RolloutState.HALTED, RolloutEvent.START) is None


def test_nothing_but_a_decision_leaves_the_end():
    for state in ENDED:
        assert set(TRANSITIONS[state]) <= {RolloutEvent.REVERT}
        assert state not in LIVE


def test_every_target_status_has_a_row():
    assert set(TARGET_TRANSITIONS) == set(TargetStatus)
    for status, row in TARGET_TRANSITIONS.items():
        assert status not in row
        assert row, status


@pytest.mark.parametrize("status", TargetStatus)
def test_a_target_moves_only_by_the_table(status):
    for to in TargetStatus:
        assert move(status, to) is (to if to in TARGET_TRANSITIONS[status] else None)


def test_consent_is_in_no_failure_count():
    assert not NEVER_A_FAILURE & COUNTS_AS_FINISHED
    assert COUNTS_AS_FAILED < COUNTS_AS_FINISHED
    assert STARTED | {TargetStatus.SILENT, TargetStatus.REVERTING} < WANTS_SOMETHING
    assert THROUGH | STARTED | {TargetStatus.WAITING} == set(TargetStatus)


def test_a_failed_device_is_not_tried_again_by_itself():
    assert TARGET_TRANSITIONS[TargetStatus.FAILED] == {TargetStatus.WAITING}
    assert TargetStatus.FAILED not in WANTS_SOMETHING
