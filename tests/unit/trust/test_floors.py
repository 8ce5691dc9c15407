from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from firmament.durable import RealDisk, read_file, replace_durably
from firmament.errors import CorruptStateError, RollbackError, TooLargeError
from firmament.trust.floors import COPIES, DIRECTOR, IMAGE, MAX_ROLES, Floors, FloorValues

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
KEYS = {"root": ["r1"], "timestamp": ["t1"], "snapshot": ["s1"], "targets": ["g1"], "thermo": ["p1", "p2"]}
VERSIONS = {"root": 3, "timestamp": 40, "snapshot": 30, "targets": 20, "thermo": 10}


@pytest.fixture
def floors(tmp_path):
    return Floors(RealDisk(), tmp_path / "floors")


@pytest.fixture
def stored(floors):
    floors.store_roles(IMAGE, versions=VERSIONS, keyids=KEYS)
    return floors


def files(floors):
    return [floors._directory / name for name in COPIES]


def test_a_new_device_has_no_floors(floors):
    assert floors.load() == FloorValues()
    assert not floors.exist()


def test_provisioning_writes_two_copies_once(floors):
    floors.create()
    floors.raise_sequence(7)
    floors.create()
    assert floors.exist()
    assert floors.load().sequence_number == 7
    assert files(floors)[0].read_bytes() == files(floors)[1].read_bytes()


def test_the_sequence_number_never_goes_down(floors):
    floors.raise_sequence(42)
    floors.raise_sequence(42)
    with pytest.raises(RollbackError) as caught:
        floors.raise_sequence(41)
    assert caught.value.facts == {"floor": 42, "got": 41}
    assert floors.load().sequence_number == 42


def test_time_only_moves_forward(floors):
    floors.raise_time(NOON)
    floors.raise_time(NOON - timedelta(days=1))
    assert floors.load().time == NOON


@pytest.mark.parametrize("damaged", [0, 1])
@pytest.mark.parametrize("damage", [b"", b"firmament-floors/1 00000000\n{}", b"\xff" * 100, b"x" * 300_000])
def test_one_damaged_copy_loses_nothing(stored, damaged, damage):
    stored.raise_sequence(5)
    files(stored)[damaged].write_bytes(damage)
    assert stored.load().sequence_number == 5
    assert stored.load().of(IMAGE).versions == VERSIONS
    stored.raise_sequence(6)  # and the next write mends it
    assert files(stored)[0].read_bytes() == files(stored)[1].read_bytes()


def test_a_flipped_bit_is_noticed(stored):
    data = bytearray(files(stored)[0].read_bytes())
    for path in files(stored):
        path.write_bytes(data.replace(b'"thermo":10', b'"thermo":11'))
    with pytest.raises(CorruptStateError):
        stored.load()


def test_two_damaged_copies_are_an_error_and_never_zero(stored):
    for path in files(stored):
        path.write_bytes(b"")
    for use in (stored.load, lambda: stored.raise_sequence(9), lambda: stored.raise_time(NOON)):
        with pytest.raises(CorruptStateError) as caught:
            use()
    assert caught.value.facts["damaged"] == "floors.a floors.b"


def test_one_damaged_and_one_missing_copy_are_an_error(stored):
    files(stored)[0].write_bytes(b"")
    files(stored)[1].unlink()
    with pytest.raises(CorruptStateError):
        stored.load()


def test_of_two_good_copies_the_later_holds(stored):
    before = files(stored)[1].read_bytes()
    stored.raise_sequence(8)
    files(stored)[1].write_bytes(before)  # the power went after the first copy
    assert stored.load().sequence_number == 8


def test_what_a_later_agent_added_is_kept(floors):
    floors.create()
    for path in files(floors):
        body = path.read_bytes().partition(b"\n")[2].replace(b"{", b'{"added":[1],', 1)
        import zlib

        replace_durably(RealDisk(), path, b"firmament-floors/1 %08x\n" % zlib.crc32(body) + body)
    floors.raise_sequence(3)
    assert b'"added":[1]' in read_file(RealDisk(), files(floors)[0], limit_bytes=10_000)


def test_a_lower_version_is_refused(stored):
    for role, version in VERSIONS.items():
        with pytest.raises(RollbackError) as caught:
            stored.store_roles(IMAGE, versions={role: version - 1}, keyids=KEYS)
        assert caught.value.facts["role"] == role
    assert stored.load().of(IMAGE).versions == VERSIONS


def test_repositories_do_not_mix(stored):
    stored.store_roles(DIRECTOR, versions={"timestamp": 1}, keyids=KEYS)
    assert stored.load().of(IMAGE).versions["timestamp"] == 40


def test_the_same_again_is_not_written(stored):
    before = stored.load().generation
    stored.store_roles(IMAGE, versions=VERSIONS, keyids=KEYS)
    assert stored.load().generation == before


@pytest.mark.parametrize(
    ("revoked", "freed"),
    [
        ("timestamp", {"timestamp", "snapshot"}),
        ("snapshot", {"snapshot", "targets", "thermo"}),
        ("targets", {"targets"}),
        ("thermo", {"thermo"}),
        ("root", set()),
    ],
)
def test_a_revoked_key_frees_exactly_what_it_could_fast_forward(stored, revoked, freed):
    now = {**KEYS, revoked: ["new"]}
    known = stored.load().of(IMAGE)
    assert {role for role in VERSIONS if known.lowest(role, now) == 0} == freed


def test_an_added_key_frees_nothing(stored):
    now = {role: [*ids, "new"] for role, ids in KEYS.items()}
    known = stored.load().of(IMAGE)
    assert {role: known.lowest(role, now) for role in VERSIONS} == VERSIONS


def test_after_recovery_the_low_version_is_the_floor(stored):
    now = {**KEYS, "timestamp": ["t2"], "snapshot": ["s2"]}
    low = {"root": 4, "timestamp": 2, "snapshot": 2, "targets": 2}
    stored.store_roles(IMAGE, versions=low, keyids=now)
    assert stored.load().of(IMAGE).versions == low
    with pytest.raises(RollbackError):
        stored.store_roles(IMAGE, versions={"timestamp": 1}, keyids=now)


def test_recovery_survives_a_repository_that_breaks_half_way(stored):
    now = {**KEYS, "timestamp": ["t2"]}
    stored.store_roles(IMAGE, versions={"root": 4}, keyids=now)  # nothing but the root arrived
    stored.store_roles(IMAGE, versions={"timestamp": 1, "snapshot": 1}, keyids=now)
    assert stored.load().of(IMAGE).versions["timestamp"] == 1


def test_the_time_floor_goes_with_the_directors_timestamp_key(floors):
    far = NOON + timedelta(days=300)
    floors.store_roles(DIRECTOR, versions={"timestamp": 9}, keyids=KEYS, time=far)
    floors.store_roles(IMAGE, versions={"timestamp": 9}, keyids={**KEYS, "timestamp": ["t2"]})
    assert floors.load().time == far
    floors.store_roles(DIRECTOR, versions={"timestamp": 1}, keyids={**KEYS, "timestamp": ["t2"]}, time=NOON)
    assert floors.load().time == NOON


def test_more_roles_than_a_device_remembers_are_refused(floors):
    with pytest.raises(TooLargeError):
        floors.store_roles(IMAGE, versions={f"r{n}": 1 for n in range(MAX_ROLES + 1)}, keyids={})


def test_values_are_immutable(stored):
    with pytest.raises(AttributeError):
        stored.load().sequence_number = 0
    assert replace(stored.load(), sequence_number=1).sequence_number == 1


def test_floors_that_do_not_fit_their_file_are_refused(floors):
    with pytest.raises(TooLargeError):
        floors.store_roles(IMAGE, versions={"x" * 300_000: 1}, keyids={})
    assert not floors.exist()
