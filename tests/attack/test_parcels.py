"""Attacks by a stick: what is carried to a device by hand is believed as little as a server (docs/protocol/parcel.md).

The numbers are those of the same attacks over the net (trust.md §10).
"""

import json
from datetime import UTC, datetime

import pytest
from attack.hostile import make_bundle
from support import parcels

from firmament.errors import (
    DeviceMismatchError,
    ExpiredError,
    HardwareMismatchError,
    MalformedError,
    ReplayError,
    RollbackError,
    ThresholdNotMetError,
    TooLargeError,
)


@pytest.fixture
def stick(stage, tmp_path):
    """Write a parcel for 1.1 with changes; returns its path. What the agent asks for meanwhile is evidence."""
    stage.server.release("1.1", 2)
    stage.world.clock.set(datetime.now(UTC).replace(microsecond=0))

    def write(change=None, *, raw=None, **changes):
        members = parcels.contents(stage.world, **changes)
        if change is not None:
            change(members)
        data = parcels.encode(stage.world, members)
        return str(parcels.write(tmp_path / "site.parcel", data if raw is None else raw(data)))

    return write


def refuses(stage, path, code):
    stage.refused(code, "install", path, "--yes")
    assert stage.asked_before_refusing() == [], "a stick makes the device ask nobody"


def test_05_an_expired_parcel(stage, stick):
    """The stick lay in a drawer until its time was over, by the device's own clock."""
    refuses(stage, stick(days=1e-9), ExpiredError)


def test_06_an_older_parcel_than_the_last_word(stage, stick):
    """An operator made a newer parcel, or the device spoke with its server since: the older one is a replay."""
    older = stick(version=1_000_000)
    refuses(stage, older, RollbackError)


def test_10_metadata_that_nobody_signed(stage, stick):
    """Whoever has the stick writes a release of his own into the product's role, with the digests all right."""

    def change(members):
        name = f"image/{stage.image.versions['thermo']}.thermo.json"
        signed = json.loads(members[name])
        next(iter(signed["signed"]["targets"].values()))["length"] = 1
        members[name] = json.dumps(signed).encode()

    refuses(stage, stick(change), ThresholdNotMetError)


def test_38_a_payload_that_nobody_signed(stage, stick):
    """Another image of the same length, under the digest of the signed one."""
    good, evil = make_bundle("1.1"), make_bundle("6.6")
    refuses(stage, stick(raw=lambda data: data.replace(good, evil)), MalformedError)


def test_41_another_devices_word(stage, stick):
    """A parcel for another device, also under this one's name."""
    other = "99999999-2222-4333-8444-555555555555"
    refuses(stage, stick(device_id=other), DeviceMismatchError)

    def rename(members):
        members[f"device/{stage.world.device_id}"] = members.pop(f"device/{other}")

    refuses(stage, stick(rename, device_id=other), DeviceMismatchError)


def test_42_an_answer_to_a_poll_in_a_parcel(stage, stick):
    """Somebody recorded the director's answer to a poll and carries it to the device later."""

    def change(members):
        reply = stage.world.make(nonce=bytes(16))
        members[f"device/{stage.world.device_id}"] = json.dumps(reply.to_json()).encode()

    refuses(stage, stick(change), ReplayError)


def test_43_a_release_for_other_hardware(stage, stick):
    """The director was made to name a release for other hardware."""
    stage.server.release("1.2", 3, hardware=("rpi9",))
    refuses(stage, stick(), HardwareMismatchError)


def test_32_a_parcel_that_ends_early(stage, stick):
    """The copy broke off."""
    refuses(stage, stick(raw=lambda data: data[:-1000]), MalformedError)


def test_26_a_parcel_that_promises_without_end(stage, stick):
    """A header of a hundred megabytes."""
    endless = b"firmament-parcel/1 99999999 " + b"0" * 64 + b"\n"
    refuses(stage, stick(raw=lambda data: endless + data), TooLargeError)


def test_56_a_member_that_names_a_place(stage, stick):
    """A member is called like a file of the device, or leads out of where it belongs."""

    def change(data):
        header, rest = parcels.split(data)
        header["members"][-1]["name"] = "../../../../tmp/escaped"
        return parcels.join(header, rest)

    refuses(stage, stick(raw=change), MalformedError)


def test_the_honest_parcel_is_installed(stage, stick):
    """The same device, the same stick, and nobody in between: installed with no server asked for a byte."""
    path = stick()
    stage.server.asked.clear()
    ran = stage.victim.run("install", path, "--yes")
    assert ran.exit_code == 0, ran.err
    assert stage.victim.installed == "1.1"
    assert [line for line in stage.server.asked if not line.startswith(("POST /v1/report", "POST /v1/consent"))] == []
