"""Saying "nothing to do" again: whatever is lost or comes between, no answer goes below what a device has seen.

The device is python-tuf's own verification with floors that only rise, as the agent's; servers are
several, each with a memory and a clock of its own.
"""

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from firmament.core.digest import Digest
from firmament.core.ids import AttemptId, DeviceId
from firmament.server.versions import ReplyVersions
from firmament.trust import director
from firmament.trust.director import (
    SAY_AGAIN_S,
    Assignment,
    DirectorKeys,
    LastSaid,
    Snapshots,
    make_carried,
    make_reply,
    say_nothing_to_do,
)

START = datetime(2026, 11, 26, tzinfo=UTC)
ID = DeviceId("11111111-1111-4111-8111-111111111111")
KINDS = {"timestamp": Timestamp, "snapshot": Snapshot, "targets": Targets}
KEYS = DirectorKeys(*(CryptoSigner.generate_ed25519() for _ in KINDS))
WORK = Assignment(AttemptId("22222222-2222-4222-8222-222222222222"), "thermo/2/x", 3, Digest.of(b"abc"), "thermo/2/x")


def root():
    made = Root(expires=START + timedelta(days=99))
    for role in KINDS:
        made.add_key(getattr(KEYS, role).public_key, role)
    return made


ROOT = root()


class Server:
    def __init__(self, skew_s=0):
        self.skew_s = skew_s
        self.versions = ReplyVersions()
        self.versions.stored(2**40)
        self.last = LastSaid()
        self.snapshots = Snapshots(KEYS.snapshot)

    def number(self, now, trusted=0):
        return self.versions.next(ID, int(now.timestamp()) + self.skew_s, trusted=trusted)

    def answer(self, now, nonce, trusted, assignment):
        known = {"device_id": ID, "nonce": nonce, "now": now, "version": self.number(now, trusted), "poll_after_s": 60}
        if assignment is None:
            return say_nothing_to_do(KEYS, self.last, trusted=trusted, snapshots=self.snapshots, **known)
        self.last.forget(ID)
        return make_reply(KEYS, assignment=assignment, snapshots=self.snapshots, **known)

    def parcel(self, now):
        return make_carried(
            KEYS,
            device_id=ID,
            parcel_id="p",
            assignment=WORK,
            now=now,
            expires_at=now + timedelta(days=7),
            version=self.number(now),
        )


@dataclass
class Device:
    floors: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))

    def verify(self, reply, now, nonce=None):
        """Take an answer as the agent does; return its targets."""
        signed = {}
        for role, kind in KINDS.items():
            metadata = Metadata[kind].from_bytes(getattr(reply, role).encode())
            ROOT.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
            signed[role] = metadata.signed
            assert not metadata.signed.is_expired(now + timedelta(hours=11)), f"{role} lives too short"
            assert metadata.signed.version >= self.floors[role], f"{role} went back"
        assert signed["timestamp"].version > self.floors["timestamp"]
        assert signed["timestamp"].snapshot_meta.version == signed["snapshot"].version
        assert signed["snapshot"].meta["targets.json"].version == signed["targets"].version
        fields = signed["timestamp"].unrecognized_fields
        assert fields.get("x-nonce") == (None if nonce is None else nonce.hex())
        assert fields["x-device"] == signed["targets"].unrecognized_fields["x-device"] == ID
        self.floors = {role: found.version for role, found in signed.items()}
        return sorted(signed["targets"].targets)


def version_of(reply):
    return json.loads(reply.timestamp)["signed"]["version"]


steps = st.lists(
    st.tuples(
        st.sampled_from(["poll", "poll", "poll", "lost", "export", "import", "restart"]),
        st.integers(0, 2),  # which server
        st.booleans(),  # is there something to do
        st.sampled_from([0, 1, 1, 60, 3600, SAY_AGAIN_S - 1, SAY_AGAIN_S]),
    ),
    max_size=25,
)


A_PARCEL_BEFORE_A_LOST_ANSWER = [
    ("poll", 0, False, 0),
    ("export", 0, False, 60),
    ("lost", 0, False, 60),
    ("import", 0, False, 60),
    ("poll", 0, False, 60),
]


@example(A_PARCEL_BEFORE_A_LOST_ANSWER)
@given(steps)
def test_no_answer_goes_below_what_the_device_has_seen(story):
    now, device, servers, parcel, asked = START, Device(), [Server(0), Server(-40), Server(40)], None, 0
    for what, which, has_work, passes_s in story:
        now += timedelta(seconds=passes_s)
        server = servers[which]
        if what == "restart":
            servers[which] = Server(server.skew_s)
        elif what == "export":
            parcel = server.parcel(now)
        elif what == "import":
            if parcel is not None and version_of(parcel) > device.floors["timestamp"]:
                assert device.verify(parcel, now) == [WORK.target]
        else:
            asked += 1
            nonce = asked.to_bytes(16, "big")
            reply = server.answer(now, nonce, device.floors["timestamp"], WORK if has_work else None)
            if what != "lost":
                assert device.verify(reply, now, nonce) == ([WORK.target] if has_work else [])


@pytest.fixture
def counted(monkeypatch):
    """How many signatures were made, by role."""
    found = []
    real = director._signed

    def counting(content, signer):
        found.append(json.loads(content)["_type"])
        return real(content, signer)

    monkeypatch.setattr(director, "_signed", counting)
    return found


def poll(server, now, trusted):
    nonce = bytes(16)
    reply = server.answer(now, nonce, trusted, None)
    return version_of(reply), reply


def test_who_trusts_the_last_answer_costs_one_signature_and_who_does_not_two(counted):
    server, now = Server(), START
    version, first = poll(server, now, 0)
    assert sorted(counted) == ["snapshot", "targets", "timestamp"]
    counted.clear()
    now += timedelta(hours=1)
    version, again = poll(server, now, version)
    assert counted == ["timestamp"]
    assert (again.snapshot, again.targets) == (first.snapshot, first.targets)
    for trusted in (0, version - 1, version + 1):
        counted.clear()
        now += timedelta(hours=1)
        found, _ = poll(server, now, trusted)
        assert sorted(counted) == ["snapshot", "targets", "timestamp"]
    counted.clear()
    poll(server, now + timedelta(seconds=SAY_AGAIN_S), found)
    assert "targets" in counted, "kept for half of what it lives"


def test_the_memory_has_a_ceiling_and_those_heard_longest_ago_go_first():
    last, snapshots = LastSaid(max_devices=2), Snapshots(KEYS.snapshot)

    def ask(device, trusted=0):
        return say_nothing_to_do(
            KEYS,
            last,
            device_id=device,
            nonce=bytes(16),
            now=START,
            version=trusted + 1,
            trusted=trusted,
            poll_after_s=1,
            snapshots=snapshots,
        )

    ask("a")
    ask("b")
    ask("a", trusted=1)
    ask("c")
    assert len(last) == 2
    assert last.find("b", trusted=1, now_s=int(START.timestamp())) is None
    assert last.find("a", trusted=2, now_s=int(START.timestamp())) is not None
