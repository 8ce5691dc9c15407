"""Properties of the install machine, its journal and the windows."""

from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from support import records

from firmament.agent.journal import COPIES, Journal
from firmament.agent.machine import FINAL, TRANSITIONS, Event, IllegalTransitionError, State, step
from firmament.agent.outcome import POSSIBLE, decide
from firmament.agent.record import Record, record_from, with_report
from firmament.core import canonical
from firmament.core.consent import Window
from firmament.errors import FirmamentError
from firmament.protocol.status import Outcome
from firmament.sim.disk import SimDisk
from firmament.sim.faults import Cut, PowerCut, Survives

HOME = Path("/state")


@given(st.lists(st.sampled_from(Event), max_size=60))
def test_illegal_events_never_move_the_machine(events):
    state = State.IDLE
    for event in events:
        if event in TRANSITIONS[state]:
            state = step(state, event)
            continue
        with pytest.raises(IllegalTransitionError) as caught:
            step(state, event)
        assert {event, state} <= set(str(caught.value).replace(";", "").split())


@given(st.lists(st.sampled_from(Event), max_size=60))
def test_machine_and_outcome_stay_together(events):
    state, outcome = State.IDLE, Outcome.OPEN
    for event in events:
        if event not in TRANSITIONS[state] or (event is Event.HEALTH_PASSED and outcome is not Outcome.OPEN):
            continue
        state, outcome = step(state, event), decide(outcome, event)
        outcome = Outcome.OPEN if state is State.IDLE else outcome
        assert outcome in POSSIBLE[state]


@given(records.records())
@settings(max_examples=40, deadline=None)
def test_a_record_survives_the_journal(record):
    assert (
        record_from(canonical.decode_object(canonical.encode(record.to_json()), limit_bytes=10**6, what="x")) == record
    )


@given(records.records(), records.records(), st.integers(0, 4000), st.integers(1, 255), st.integers(0, 1))
@settings(max_examples=20, deadline=None)
def test_a_damaged_byte_never_makes_a_record_that_was_not_stored(first, second, offset, change, copy):
    disk = SimDisk()
    disk.make_directory(HOME)
    journal = Journal(disk, HOME)
    journal.store(first)
    journal.store(second)
    path = HOME / COPIES[copy]
    data = bytearray(disk.get(path))
    data[offset] ^= change
    disk.put(path, bytes(data))
    assert loaded(disk) in (first, second, "state/journal", "state/corrupt")


@given(st.binary(max_size=300))
@settings(max_examples=60, deadline=None)
def test_any_bytes_are_a_journal_or_one_of_our_errors(data):
    disk = SimDisk()
    for name in COPIES:
        disk.put(HOME / name, data)
    assert loaded(disk) in ("state/journal", "state/corrupt")


def loaded(disk):
    try:
        return Journal(disk, HOME).load()
    except FirmamentError as error:
        return error.code


@given(records.records(), st.lists(records.reports, max_size=30))
@settings(max_examples=30, deadline=None)
def test_the_outbox_keeps_its_order_and_its_bound(record, reports):
    for report in reports:
        record = with_report(record, report)
        assert record.outbox[-1] is report
        assert len(record.outbox) <= 16


times = st.times().map(lambda t: t.replace(second=0, microsecond=0))
moments = st.integers(1_700_000_000, 1_800_000_000).map(lambda seconds: datetime.fromtimestamp(seconds, UTC))
zones = st.sampled_from(["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "UTC"])


@given(times, times, moments, zones)
@settings(max_examples=60, deadline=None)
def test_a_window_opens_when_it_says(start, end, now, name):
    if start == end:
        return
    window, zone = Window(start, end), ZoneInfo(name)
    opens = window.opens_at(now, zone)
    assert now <= opens <= now + timedelta(hours=49)
    assert window.is_open(opens, zone)
    if opens > now:
        wall = opens.astimezone(zone).time()
        # The first minute: either the start itself, or later because the clock jumped over it.
        assert not window.is_open(opens - timedelta(minutes=1), zone)
        assert wall >= start or (start > end and wall < end)


@given(moments, zones)
@settings(max_examples=30, deadline=None)
def test_complementary_windows_are_never_both_open_or_both_closed(now, name):
    zone = ZoneInfo(name)
    night, day = Window(time(22), time(6)), Window(time(6), time(22))
    assert night.is_open(now, zone) != day.is_open(now, zone)


class JournalUnderCuts(RuleBasedStateMachine):
    """Store, cut the power in any way, start again: the record is the last one stored, or the one being stored."""

    def __init__(self):
        super().__init__()
        self.disk = SimDisk()
        self.disk.make_directory(HOME)
        self.disk.lose_power(Survives.ORDERED)
        self.journal = Journal(self.disk, HOME)
        self.record = None
        self.number = 0

    @rule()
    def store(self):
        self.number += 1
        self.record = Record(report_number=self.number)
        self.journal.store(self.record)

    @rule(survives=st.sampled_from(Survives))
    def restart(self, survives):
        self.disk.lose_power(survives)
        self.journal = Journal(self.disk, HOME)
        assert self.journal.load() == self.record

    @precondition(lambda self: self.number > 0)
    @rule(after=st.integers(0, 8), survives=st.sampled_from(Survives))
    def store_with_a_cut(self, after, survives):
        self.number += 1
        record = Record(report_number=self.number)
        self.disk.cut = Cut(self.disk.operations + after, survives)
        try:
            self.journal.store(record)
        except PowerCut:
            self.disk.lose_power(survives)
            self.journal = Journal(self.disk, HOME)
            found = self.journal.load()
            assert found in (self.record, record)
            self.record = found
        else:
            self.record = record
        self.disk.cut = None

    @invariant()
    def another_reader_sees_the_same(self):
        if self.record is not None:
            assert Journal(self.disk, HOME).load() == self.record


JournalUnderCuts.TestCase.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
TestJournalUnderCuts = JournalUnderCuts.TestCase


def test_final_states_are_those_of_the_wire():
    assert {state.value for state in FINAL} == {"confirmed", "reverted", "refused", "failed", "declined"}
