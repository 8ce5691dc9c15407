"""The journal keeps the newest whole record through cuts, damage, full disks and newer agents."""

from dataclasses import replace
from pathlib import Path

import pytest
from support.records import largest_record

from firmament.agent.journal import COPIES, COPY_LENGTH_BYTES, SHORT_MESSAGE_LENGTH, Journal
from firmament.agent.machine import State
from firmament.agent.record import MAX_HISTORY, MAX_OUTBOX, Attempt, Reason, Record, with_ended, with_report
from firmament.core import canonical
from firmament.core.ids import AttemptId
from firmament.core.manifest import MAX_MANIFEST_LENGTH_BYTES
from firmament.errors import CorruptStateError, FileError, JournalError, MalformedError, ReadOnlyError
from firmament.protocol.status import AttemptStatus, Outcome
from firmament.sim.disk import SimDisk
from firmament.sim.faults import BrokenDisk, Cut, DiskFull, PowerCut, ReadOnlyDisk, Survives

HOME = Path("/state")
A, B = (HOME / name for name in COPIES)


@pytest.fixture
def disk():
    disk = SimDisk()
    disk.make_directory(HOME)
    disk.lose_power(Survives.ORDERED)
    return disk


def number(n: int) -> Record:
    return Record(report_number=n)


def stored(disk) -> int:
    record = Journal(disk, HOME).load()
    assert record is not None
    return record.report_number


def opened(disk) -> Journal:
    journal = Journal(disk, HOME)
    journal.load()
    return journal


def test_nothing_stored_is_none(disk):
    assert Journal(disk, HOME).load() is None


def test_the_last_one_stored_is_loaded(disk):
    journal = opened(disk)
    for n in range(5):
        journal.store(number(n))
        assert stored(disk) == n
    assert disk.length_bytes(A) == disk.length_bytes(B) == COPY_LENGTH_BYTES


@pytest.mark.parametrize("survives", Survives)
@pytest.mark.parametrize("stores_before", range(4))
def test_a_cut_anywhere_leaves_the_old_record_or_the_new_one(survives, stores_before):
    cuts = 0
    while True:
        disk = SimDisk()
        disk.make_directory(HOME)
        disk.lose_power(Survives.ORDERED)
        journal = opened(disk)
        for n in range(stores_before):
            journal.store(number(n))
        disk.cut = Cut(disk.operations + cuts, survives)
        try:
            journal.store(number(99))
        except PowerCut:
            disk.lose_power(survives)
            record = Journal(disk, HOME).load()
            old = stores_before - 1 if stores_before else None
            assert (record.report_number if record else None) in {old, 99}
            opened(disk).store(number(100))
            assert stored(disk) == 100
            cuts += 1
        else:
            break
    assert cuts >= 2


def test_after_a_failed_write_the_record_before_holds_and_the_next_store_works(disk):
    journal = opened(disk)
    for n in range(3):
        journal.store(number(n))
    disk.faults[:] = [BrokenDisk(under=B, reads=False), BrokenDisk(under=A, reads=False)]
    with pytest.raises(FileError):
        journal.store(number(50))
    assert stored(disk) == 2
    disk.faults.clear()
    journal.store(number(3))
    journal.store(number(4))
    assert stored(disk) == 4


def test_a_full_disk_does_not_keep_it_from_storing(disk):
    journal = opened(disk)
    journal.store(number(1))
    journal.store(number(2))
    disk.faults[:] = [DiskFull()]
    journal.store(largest_record())
    journal.store(number(4))
    assert stored(disk) == 4


def test_a_read_only_disk_says_so(disk):
    journal = opened(disk)
    journal.store(number(1))
    disk.faults[:] = [ReadOnlyDisk()]
    with pytest.raises(ReadOnlyError):
        journal.store(number(2))
    assert stored(disk) == 1


@pytest.mark.parametrize("rubbish", [b"", b"rubbish", b"\0" * COPY_LENGTH_BYTES, b"firmament-journal/1 9 2 0\n{}"])
def test_one_damaged_copy_costs_at_most_the_last_record_and_two_are_an_error(disk, rubbish):
    journal = opened(disk)
    journal.store(number(1))
    journal.store(number(2))
    disk.put(B if b" 2 " in disk.get(A)[:24] else A, rubbish)
    assert stored(disk) == 2
    before = disk.fingerprint()
    disk.put(A, rubbish)
    disk.put(B, rubbish)
    with pytest.raises(CorruptStateError) as caught:
        Journal(disk, HOME).load()
    assert caught.value.facts["damaged"] == "journal.a journal.b"
    assert disk.fingerprint() != before


def test_a_flipped_bit_is_damage(disk):
    journal = opened(disk)
    journal.store(number(1))
    data = bytearray(disk.get(A))
    data[data.index(b"report_number")] ^= 1
    disk.put(A, bytes(data))
    with pytest.raises(CorruptStateError):
        Journal(disk, HOME).load()


def test_a_newer_agents_journal_is_refused_not_guessed(disk):
    """The older copy is readable, but it may not know of a trial that the newer one began."""
    journal = opened(disk)
    journal.store(number(1))
    journal.store(number(2))
    disk.put(B, disk.get(B).replace(b"firmament-journal/1 ", b"firmament-journal/2 "))
    with pytest.raises(JournalError) as caught:
        Journal(disk, HOME).load()
    assert caught.value.facts["found"] == 2


def test_what_a_later_agent_wrote_is_kept(disk):
    journal = opened(disk)
    journal.store(Record(unknown={"later": {"x": 1}}))
    record = Journal(disk, HOME).load()
    journal.store(replace(record, report_number=7))
    assert Journal(disk, HOME).load().unknown == {"later": {"x": 1}}


def test_the_largest_record_fits(disk):
    """All bounds at once is more than a copy holds: what only people read is shortened, and nothing else is lost."""
    largest = largest_record()
    assert len(canonical.encode(largest.to_json())) > COPY_LENGTH_BYTES
    assert len(canonical.encode(largest.attempt.manifest.to_json())) > 0.98 * MAX_MANIFEST_LENGTH_BYTES
    kept = opened(disk).store(largest)
    assert Journal(disk, HOME).load() == kept
    assert {len(ended.message) for ended in kept.history} == {SHORT_MESSAGE_LENGTH}
    assert replace(kept, history=largest.history) == largest
    assert len(canonical.encode(kept.to_json())) < 0.9 * COPY_LENGTH_BYTES, "room for what a later agent adds"


def test_a_record_that_fits_is_kept_as_it_is(disk):
    smaller = replace(largest_record(), outbox=())
    assert opened(disk).store(smaller) == smaller


def test_a_record_that_cannot_be_is_refused(disk):
    for make in (
        lambda: Record(state=State.IDLE, outcome=Outcome.CONFIRMED),
        lambda: Record(state=State.FETCHING),
        lambda: Record(attempt=Attempt(AttemptId("x"))),
    ):
        with pytest.raises(MalformedError):
            make()


def test_reasons_are_bounded_and_printable():
    reason = Reason("slot/health", "m" * 9000 + "\n", tuple(f"line {n} \x1b[31m" + "x" * 999 for n in range(99)))
    assert len(reason.message) == 500
    assert len(reason.log) == 20
    assert reason.log[-1].startswith("line 98 \N{REPLACEMENT CHARACTER}[31m")
    assert all(len(line) == 200 and line.isprintable() for line in reason.log)


def report(n: int, status: AttemptStatus, attempt: str = "x"):
    return replace(largest_record().outbox[0], report_number=n, status=status, attempt_id=AttemptId(attempt))


def test_a_newer_report_replaces_intermediate_ones_of_its_attempt_only():
    record = Record()
    for n, (status, attempt) in enumerate(
        [("fetching", "x"), ("verified", "x"), ("fetching", "y"), ("confirmed", "x"), ("refused", "x")], start=1
    ):
        record = with_report(record, report(n, AttemptStatus(status), attempt))
    assert [item.report_number for item in record.outbox] == [3, 4, 5]
    assert record.report_number == 5


def test_a_full_outbox_gives_up_intermediate_reports_first_then_the_oldest():
    record = Record()
    record = with_report(record, report(1, AttemptStatus.CONFIRMED, "first"))
    record = with_report(record, report(2, AttemptStatus.WAITING, "second"))
    for n in range(3, MAX_OUTBOX + 2):
        record = with_report(record, report(n, AttemptStatus.FAILED, f"a{n}"))
    assert [item.report_number for item in record.outbox] == [1, *range(3, MAX_OUTBOX + 2)]
    record = with_report(record, report(99, AttemptStatus.FAILED, "z"))
    assert [item.report_number for item in record.outbox] == [*range(3, MAX_OUTBOX + 2), 99]


def test_the_history_is_bounded():
    record, ended = Record(), largest_record().history[0]
    for n in range(MAX_HISTORY + 5):
        record = with_ended(record, replace(ended, attempt_id=AttemptId(f"a{n}")))
    assert len(record.history) == MAX_HISTORY
    assert record.has_ended(AttemptId("a4")) is None
    assert record.has_ended(AttemptId("a5")) is not None


def test_a_record_that_does_not_fit_is_refused_and_the_one_before_holds(disk):
    journal = opened(disk)
    journal.store(number(1))
    with pytest.raises(JournalError):
        journal.store(Record(unknown={"later": "x" * COPY_LENGTH_BYTES}))
    assert stored(disk) == 1
