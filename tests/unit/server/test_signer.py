"""The signer's memory: up, never down, whatever it is asked."""

import socket
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmament.core import canonical
from firmament.core.clock import FixedClock
from firmament.durable import RealDisk
from firmament.errors import (
    CorruptStateError,
    KeyFileError,
    MalformedError,
    RollbackError,
    SettingError,
    TornPublishError,
)
from firmament.server import signer as module
from firmament.server.keys import make_key
from firmament.server.signer import MAX_CATCH_UP, OnlineSigner, answer, become, receive, send

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
FIRST = int(NOW.timestamp())
"""Versions are never below the clock."""


@pytest.fixture
def directory(tmp_path):
    for role in ("snapshot", "timestamp"):
        make_key(RealDisk(), tmp_path / f"{role}.pem")
    return tmp_path


@pytest.fixture
def clock():
    return FixedClock(NOW)


@pytest.fixture
def signer(directory, clock):
    return OnlineSigner(RealDisk(), directory, clock)


def test_versions_rise_with_every_publish_and_survive_a_restart(signer, directory, clock):
    assert signer.publish({"targets": 1})["snapshot_version"] == FIRST
    assert signer.publish({"targets": 1, "thermo": 4})["snapshot_version"] == FIRST + 1
    again = OnlineSigner(RealDisk(), directory, clock)
    with pytest.raises(RollbackError):
        again.publish({"targets": 1, "thermo": 3})
    with pytest.raises(RollbackError):
        again.publish({"targets": 1})  # a role may not disappear
    found = again.publish({"targets": 1, "thermo": 4})
    assert (found["snapshot_version"], found["timestamp_version"]) == (FIRST + 2, FIRST + 2)


def test_it_renews_daily_and_the_snapshot_before_it_expires(signer, clock):
    signer.publish({"targets": 1})
    assert signer.refresh(FIRST, {"targets": 1})["files"] == {}
    clock.advance(timedelta(days=1).total_seconds())
    assert set(signer.refresh(FIRST, {"targets": 1})["files"]) == {"timestamp.json"}
    clock.advance(timedelta(days=6).total_seconds())
    week_later = int(clock.now().timestamp())
    assert set(signer.refresh(FIRST, {"targets": 1})["files"]) == {f"{week_later}.snapshot.json", "timestamp.json"}


def test_nothing_is_signed_before_the_first_publish(signer):
    assert signer.refresh(0, {})["files"] == {}


def test_a_publish_that_was_cut_short_is_not_repaired_backwards(signer):
    signer.publish({"targets": 1, "thermo": 1})
    signer.publish({"targets": 1, "thermo": 2})  # signed, and then the server died
    with pytest.raises(TornPublishError):
        signer.refresh(FIRST, {"targets": 1, "thermo": 1})
    found = signer.refresh(FIRST, {"targets": 1, "thermo": 2})
    assert found["snapshot_version"] == FIRST + 2


def test_a_server_restored_as_a_whole_is_ahead_of_what_devices_saw(directory, clock):
    """Case 64: the backup holds the signer's own memory as well; only the clock knows better."""
    signer = OnlineSigner(RealDisk(), directory, clock)
    signer.publish({"targets": 1})
    backup = (directory / "state.json").read_bytes()
    clock.advance(3600)
    seen = [signer.publish({"targets": 1, "thermo": number}) for number in (1, 2, 3)][-1]
    (directory / "state.json").write_bytes(backup)
    clock.advance(60)
    restored = OnlineSigner(RealDisk(), directory, clock)
    found = restored.publish({"targets": 1, "thermo": 4})
    assert found["snapshot_version"] > seen["snapshot_version"]
    assert found["timestamp_version"] > seen["timestamp_version"]


def test_a_clock_that_is_behind_costs_nothing_but_its_help(signer, clock):
    signer.publish({"targets": 1})
    clock.set(datetime(1970, 1, 2, tzinfo=UTC))
    assert signer.publish({"targets": 1, "thermo": 1})["snapshot_version"] == FIRST + 1


def test_a_restored_signer_goes_on_above_what_is_served_but_not_for_ever(signer):
    signer.publish({"targets": 1})
    signer.adopt(FIRST + 7, FIRST + 9)
    found = signer.publish({"targets": 1})
    assert (found["snapshot_version"], found["timestamp_version"]) == (FIRST + 8, FIRST + 10)
    signer.adopt(2**40, 2**40)
    assert signer.publish({"targets": 1})["snapshot_version"] == FIRST + 8 + MAX_CATCH_UP + 1


def test_the_number_is_recorded_before_the_signature_leaves(signer, directory, monkeypatch):
    def cut(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module.repository, "sign", cut)
    with pytest.raises(KeyboardInterrupt):
        signer.publish({"targets": 5})
    assert module.decode_state((directory / "state.json").read_bytes()).versions == {"targets": 5}


def test_a_damaged_memory_is_an_error_not_a_new_start(signer, directory, clock):
    signer.publish({"targets": 1})
    for data in (b"", b"{}", b"[]", b'{"v":1}', (directory / "state.json").read_bytes()[:-5]):
        (directory / "state.json").write_bytes(data)
        with pytest.raises(CorruptStateError):
            OnlineSigner(RealDisk(), directory, clock)


def test_keys_that_others_may_read_are_refused(directory, clock):
    (directory / "snapshot.pem").chmod(0o604)
    with pytest.raises(KeyFileError):
        OnlineSigner(RealDisk(), directory, clock)


@given(st.binary(max_size=200))
def test_any_message_gets_an_answer(tmp_path_factory, data):
    directory = tmp_path_factory.getbasetemp() / "signer"
    if not directory.exists():
        directory.mkdir()
        for role in ("snapshot", "timestamp"):
            make_key(RealDisk(), directory / f"{role}.pem")
    found = answer(OnlineSigner(RealDisk(), directory, FixedClock(NOW)), data)
    assert "error" in found


@pytest.mark.parametrize(
    "question",
    [
        {"op": "other"},
        {"op": "publish"},
        {"op": "publish", "versions": {"../x": 1}, "snapshot": 0, "timestamp": 0},
        {"op": "publish", "versions": {"targets": 0}, "snapshot": 0, "timestamp": 0},
        {"op": "publish", "versions": {"targets": "1"}, "snapshot": 0, "timestamp": 0},
    ],
)
def test_wrong_questions_change_nothing(signer, directory, question):
    assert answer(signer, canonical.encode(question))["error"].startswith("request/")
    assert not (directory / "state.json").exists()


def test_frames_have_a_ceiling_and_an_end():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        send(ours, b"hello")
        assert receive(theirs) == b"hello"
        ours.sendall((2**31).to_bytes(4))
        with pytest.raises(Exception, match="too long"):
            receive(theirs)
        ours.close()
        assert receive(theirs) is None


def test_an_unknown_user_is_refused():
    with pytest.raises(SettingError):
        become("no-such-user-here")


def test_a_parcel_gets_what_is_served_with_a_longer_life_and_nothing_else(signer, directory, clock):
    signer.publish({"targets": 1, "thermo": 1})
    before = (directory / "state.json").read_bytes()
    clock.advance(60)
    served = (FIRST, FIRST, {"targets": 1, "thermo": 1})
    files = signer.carried(served, 14 * 86_400)["files"]
    for text in files.values():
        signed = canonical.decode_object(text.encode(), limit_bytes=100_000, what="metadata")["signed"]
        assert signed["version"] == FIRST
        assert signed["expires"] == "2026-12-04T12:01:00Z"
    assert set(files) == {f"{FIRST}.snapshot.json", "timestamp.json"}
    assert (directory / "state.json").read_bytes() == before
    with pytest.raises(MalformedError):
        signer.carried(served, 31 * 86_400)
    another_servers = (FIRST + 30, FIRST + 40, {"targets": 2, "thermo": 3})
    assert set(signer.carried(another_servers, 3600)["files"]) == {f"{FIRST + 30}.snapshot.json", "timestamp.json"}
    far = FIRST + 60 + MAX_CATCH_UP + 1
    for other in (
        (FIRST - 1, *served[1:]),
        (FIRST, FIRST - 1, served[2]),
        (FIRST, FIRST, {"targets": 1}),
        (far, FIRST, served[2]),
        (FIRST, far, served[2]),
    ):
        with pytest.raises(TornPublishError):
            signer.carried(other, 3600)


def test_nothing_is_signed_for_a_parcel_before_the_first_publish(signer):
    question = {"op": "carried", "snapshot": 0, "timestamp": 0, "versions": {}, "lifetime_s": 3600}
    assert answer(signer, canonical.encode(question))["error"] == TornPublishError.code
