"""What a device believes of a file that somebody carried to it: as little as of a server."""

import json
import os
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import parcels
from support.world import World

from firmament.agent.parcel import ParcelFile
from firmament.core.digest import Digest
from firmament.durable import RealDisk
from firmament.errors import (
    DeviceMismatchError,
    ExpiredError,
    FirmamentError,
    ForbiddenError,
    HardwareMismatchError,
    LengthExceededError,
    MalformedError,
    NoInstallerError,
    ProductMismatchError,
    ReplayError,
    RollbackError,
    ThresholdNotMetError,
    TooLargeError,
    TrustError,
)
from firmament.protocol.parcel import ParcelKind
from firmament.protocol.v1.messages import decode_poll_reply

IMAGE = b"image in a parcel" * 100


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path / "device")
    made.floors.create()
    made.release("1.1", 2, IMAGE)
    return made


def carry(world, path):
    world.requests.clear()
    answer = world.link.carry(path, world.running)
    assert world.requests == [], "nothing is asked of anybody"
    return answer


def refused(world, path, code):
    with pytest.raises(code) as caught:
        carry(world, path)
    return caught.value


def test_a_parcel_says_what_a_poll_would(world, tmp_path):
    path = parcels.make(world, tmp_path / "p")
    offer = carry(world, path).offer
    asked = world.poll().offer
    assert replace(offer, issued_at=asked.issued_at) == asked
    got = world.link.open_payload(offer.payload, offset=7, parcel=str(path))
    assert b"".join(got) == IMAGE[7:]
    assert not offer.is_local


def test_bytes_come_over_the_net_when_the_stick_was_pulled(world, tmp_path):
    path = parcels.make(world, tmp_path / "p")
    payload = carry(world, path).offer.payload
    path.unlink()
    assert b"".join(world.link.open_payload(payload, offset=0, parcel=str(path))) == IMAGE


def test_a_parcel_for_another_device_and_of_another_one(world, tmp_path):
    other = "99999999-2222-4333-8444-555555555555"
    path = parcels.make(world, tmp_path / "p", device_id=other)
    refused(world, path, DeviceMismatchError)
    # The other device's word under this device's name.
    members = parcels.contents(world, device_id=other)
    renamed = {name.replace(other, world.device_id): data for name, data in members.items()}
    refused(world, parcels.write(path, parcels.encode(world, renamed)), DeviceMismatchError)


def test_an_answer_to_a_poll_opens_no_parcel_and_a_parcel_answers_no_poll(world, tmp_path):
    members = parcels.contents(world)
    name = f"device/{world.device_id}"
    carried = json.loads(members[name])
    members[name] = json.dumps(world.make(nonce=bytes(16)).to_json()).encode()
    refused(world, parcels.write(tmp_path / "p", parcels.encode(world, members)), ReplayError)
    other = parcels.encode(world, parcels.contents(world), parcel_id="00000000-2222-4333-8444-555555555555")
    refused(world, parcels.write(tmp_path / "q", other), ReplayError)
    world.on_poll = lambda request, make: decode_poll_reply(json.dumps(carried).encode())
    with pytest.raises(ReplayError):
        world.poll()


def test_an_expired_parcel(world, tmp_path):
    path = parcels.make(world, tmp_path / "p", days=14)
    world.device_clock.set(world.clock.now() + timedelta(days=15))
    assert refused(world, path, ExpiredError).facts["repository"] == "director"
    world.device_clock.set(world.clock.now() + timedelta(days=13))
    assert carry(world, path).offer is not None


def test_a_device_without_a_clock_judges_by_its_floor(world, tmp_path):
    path = parcels.make(world, tmp_path / "p", days=2)
    world.device_clock.set(world.clock.now() - timedelta(days=20_000))
    assert carry(world, path).offer is not None, "at the parcel's own signed time, at least"
    world.clock.set(world.clock.now() + timedelta(days=3))
    world.image.publish()
    world.poll()
    refused(world, path, TrustError)


def test_a_word_from_the_director_since_makes_an_older_parcel_useless(world, tmp_path):
    older = parcels.make(world, tmp_path / "older")
    newer = parcels.make(world, tmp_path / "newer")
    carry(world, newer)
    carry(world, newer)
    refused(world, older, RollbackError)


def test_an_older_release_than_was_confirmed(world, tmp_path):
    path = parcels.make(world, tmp_path / "p")
    world.floors.raise_sequence(3)
    refused(world, path, RollbackError)


def test_a_longer_life_is_for_parcels_only(world, tmp_path):
    """The parcel's timestamp has the served version: what the device caches of the net stays as it was."""
    world.poll()
    carry(world, parcels.make(world, tmp_path / "p"))
    world.clock.set(world.clock.now() + timedelta(days=1))
    world.image.publish()
    assert world.poll().offer is not None


def test_metadata_that_nobody_signed(world, tmp_path):
    members = parcels.contents(world)
    name = f"image/{world.image.versions['thermo']}.thermo.json"
    changed = json.loads(members[name])
    changed["signed"]["expires"] = "2030-01-01T00:00:00Z"
    members[name] = json.dumps(changed).encode()
    refused(world, parcels.write(tmp_path / "p", parcels.encode(world, members)), ThresholdNotMetError)


def test_a_payload_that_nobody_signed(world, tmp_path):
    members = parcels.contents(world)
    name = next(one for one in members if one.startswith("payload/"))
    good = parcels.encode(world, members)
    evil = good.replace(IMAGE, b"x" + IMAGE[1:])
    refused(world, parcels.write(tmp_path / "p", evil), MalformedError)
    # With a header of the attacker's own, the name still is the digest that was signed.
    del members[name]
    refused(world, parcels.write(tmp_path / "q", parcels.encode(world, members)), MalformedError)
    # What is read later, from a stick that was exchanged meanwhile, the slot compares with the signed digest.
    parcels.write(tmp_path / "r", evil)
    payload = world.image.releases["1.1"].payloads[0]
    found = Digest.of(world.link.open_payload(payload, offset=0, parcel=str(tmp_path / "r")))
    assert found != payload.digest


@pytest.mark.parametrize(
    ("changes", "code"),
    [({"product": "other"}, ProductMismatchError), ({"hardware": "pi1"}, HardwareMismatchError)],
)
def test_another_product_or_hardware(world, tmp_path, changes, code):
    path = parcels.make(world, tmp_path / "p")
    world.link = world.make_link(**changes)
    refused(world, path, code)


# --- without a director --------------------------------------------------------------------


def test_a_parcel_without_a_director(world, tmp_path):
    path = parcels.make(world, tmp_path / "p", kind=ParcelKind.REPOSITORY)
    refused(world, path, ForbiddenError)
    world.link.takes_repository_parcels = True
    offer = carry(world, path).offer
    assert offer.is_local
    assert offer.manifest.version == "1.1"
    assert carry(world, path).offer.attempt_id == offer.attempt_id, "the same parcel is the same attempt"
    world.device_clock.set(world.clock.now() + timedelta(days=15))
    refused(world, path, ExpiredError)


def test_a_parcel_without_a_director_and_without_a_payload_that_fits(world, tmp_path):
    world.link.takes_repository_parcels = True
    members = parcels.contents(world, kind=ParcelKind.REPOSITORY)
    members = {name: data for name, data in members.items() if not name.startswith("payload/")}
    data = parcels.encode(world, members, kind=ParcelKind.REPOSITORY)
    refused(world, parcels.write(tmp_path / "p", data), NoInstallerError)


# --- the file ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "image/../x.json",
        "payload/x",
        "device/../x",
        "image/1.a/b.json",
        "",
        "PAYLOAD",
    ],
)
def test_members_have_roles_not_paths(world, tmp_path, name):
    data = parcels.encode(world, parcels.contents(world))
    header, rest = parcels.split(data)
    header["members"][0]["name"] = name
    refused(world, parcels.write(tmp_path / "p", parcels.join(header, rest)), MalformedError)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda header: header["members"].append(header["members"][0]), MalformedError),
        (lambda header: header["members"][0].update(length_bytes=6_000_000), MalformedError),
        (lambda header: header.update(v=2), MalformedError),
        (lambda header: header.update(kind="anything"), MalformedError),
        (lambda header: header.update(members=header["members"] * 2000), TooLargeError),
    ],
    ids=["twice", "long", "version", "kind", "many"],
)
def test_headers_that_cannot_be(world, tmp_path, change, code):
    header, rest = parcels.split(parcels.encode(world, parcels.contents(world)))
    change(header)
    refused(world, parcels.write(tmp_path / "p", parcels.join(header, rest)), code)


def test_a_huge_file_is_not_read(world, tmp_path):
    """A header that promises what is not there, and a file that goes on for ever, are told by their lengths."""
    path = parcels.make(world, tmp_path / "p")
    os.truncate(path, 1 << 40)
    refused(world, path, MalformedError)
    path.write_bytes(b"firmament-parcel/1 99999999 " + b"0" * 64 + b"\n")
    refused(world, path, TooLargeError)


def test_a_member_longer_than_its_role_is_not_taken_into_memory(world, tmp_path):
    path = parcels.make(world, tmp_path / "p")
    with ParcelFile(RealDisk(), path) as file, pytest.raises(LengthExceededError):
        file.read(f"device/{world.device_id}", limit_bytes=100)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """A device and a good parcel for it, for many examples."""
    directory = tmp_path_factory.mktemp("damage")
    made = World(directory / "device")
    made.floors.create()
    made.release("1.1", 2, IMAGE)
    good = parcels.encode(made, parcels.contents(made))
    return made, directory / "p", good


def state(world):
    return {
        str(path.relative_to(world.directory)): path.read_bytes()
        for path in sorted(world.directory.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_a_clear_error_and_changes_nothing(damaged, data):
    world, path, good = damaged
    at = data.draw(st.integers(0, len(good) - 1))
    how = data.draw(st.sampled_from(["flip", "cut", "insert", "remove", "append"]))
    bad = {
        "flip": lambda: good[:at] + bytes([good[at] ^ data.draw(st.integers(1, 255))]) + good[at + 1 :],
        "cut": lambda: good[:at],
        "insert": lambda: good[:at] + b"\0" + good[at:],
        "remove": lambda: good[:at] + good[at + 1 :],
        "append": lambda: good + good[: at + 1],
    }[how]()
    before = state(world)
    with pytest.raises(FirmamentError) as caught:
        world.link.carry(parcels.write(path, bad), world.running)
    assert caught.value.code.startswith(("request/", "local/", "transfer/")), caught.value
    assert state(world) == before
