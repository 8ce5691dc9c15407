"""What the director signs, read back with the unmodified TUF library."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from securesystemslib.formats import encode_canonical
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from firmament.core.consent import Mode
from firmament.core.digest import Digest
from firmament.core.ids import AttemptId, DeviceId
from firmament.errors import MalformedError
from firmament.trust.director import MAX_SNAPSHOTS, Assignment, DirectorKeys, Snapshots, make_reply
from firmament.trust.walk import read_assignment

NOW = datetime(2026, 11, 20, 12, 0, 0, 999, tzinfo=UTC)
DEVICE = DeviceId("11111111-1111-4111-8111-111111111111")
ATTEMPT = AttemptId("22222222-2222-4222-8222-222222222222")
NONCE = bytes(range(16))


@pytest.fixture(scope="module")
def keys():
    return DirectorKeys(*(CryptoSigner.generate_ed25519() for _ in range(3)))


def ask(keys, **changes):
    asked = {
        "device_id": DEVICE,
        "nonce": NONCE,
        "assignment": None,
        "now": NOW,
        "version": 1_790_000_000,
        "poll_after_s": 60,
    }
    return make_reply(keys, **(asked | changes))


def assignment(**changes):
    given = {
        "attempt_id": ATTEMPT,
        "target": "thermo/1.1/firmware.img",
        "length_bytes": 3,
        "digest": Digest.of(b"abc"),
        "payload": "thermo/1.1/firmware.img",
    }
    return Assignment(**(given | changes))


def test_every_file_verifies_under_its_own_role_only(keys):
    reply = ask(keys, assignment=assignment())
    root = Root(expires=NOW + timedelta(days=1))
    for role in ("timestamp", "snapshot", "targets"):
        root.add_key(getattr(keys, role).public_key, role)
    for role, kind in (("timestamp", Timestamp), ("snapshot", Snapshot), ("targets", Targets)):
        metadata = Metadata[kind].from_bytes(getattr(reply, role).encode())
        assert isinstance(metadata.signed, kind)
        root.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
        assert metadata.signed.version == 1_790_000_000
        assert metadata.signed.expires == NOW.replace(microsecond=0) + timedelta(hours=24)
        assert list(metadata.signatures) == [getattr(keys, role).public_key.keyid]


def test_the_reply_is_for_this_device_this_nonce_this_moment(keys):
    reply = ask(keys)
    timestamp = json.loads(reply.timestamp)["signed"]
    assert (timestamp["x-nonce"], timestamp["x-device"], timestamp["x-issued"]) == (
        NONCE.hex(),
        DEVICE,
        "2026-11-20T12:00:00Z",
    )
    targets = json.loads(reply.targets)["signed"]
    assert (targets["x-device"], targets["targets"]) == (DEVICE, {})
    assert reply.poll_after_s == 60


def test_an_assignment_is_the_primary_target_and_names_attempt_and_payload(keys):
    reply = ask(keys, assignment=assignment(payload="thermo/1.1/from-1.0.delta", key_wrap=b"wrapped"))
    targets = json.loads(reply.targets)["signed"]["targets"]
    assert targets == {
        "thermo/1.1/firmware.img": {
            "length": 3,
            "hashes": {"sha256": Digest.of(b"abc").hex},
            "custom": {
                "v": 1,
                "device": DEVICE,
                "attempt_id": ATTEMPT,
                "action": "install",
                "payload": "thermo/1.1/from-1.0.delta",
                "key_wrap": "d3JhcHBlZA==",
            },
        }
    }


def test_the_bytes_are_those_that_tuf_itself_makes(keys):
    reply = ask(keys, assignment=assignment(key_wrap=bytes(range(256)), target="thermo/1.1/a+b_c.img"))
    for role, kind in (("timestamp", Timestamp), ("snapshot", Snapshot), ("targets", Targets)):
        text = getattr(reply, role)
        metadata = Metadata[kind].from_bytes(text.encode())
        canonical = encode_canonical(json.loads(text)["signed"]).encode()
        assert metadata.signed_bytes == canonical
        assert text.endswith(f'"signed":{canonical.decode()}}}')
        assert json.loads(metadata.to_bytes()) == json.loads(text)


def test_replies_of_one_second_share_a_snapshot_and_nothing_else(keys):
    snapshots = Snapshots(keys.snapshot)
    mine = ask(keys, snapshots=snapshots)
    other = ask(keys, snapshots=snapshots, device_id="33333333-3333-4333-8333-333333333333", nonce=bytes(16))
    assert mine.snapshot is other.snapshot
    assert mine.snapshot == ask(keys).snapshot  # Ed25519 signs the same bytes the same way
    assert (mine.timestamp, mine.targets) != (other.timestamp, other.targets)
    assert mine.targets != other.targets
    assert mine.timestamp != ask(keys, snapshots=snapshots, nonce=bytes(16)).timestamp


def test_a_snapshot_is_not_taken_for_another_version_or_expiry(keys):
    snapshots = Snapshots(keys.snapshot)
    for version, now in ((1, NOW), (2, NOW), (1, NOW + timedelta(seconds=1))):
        signed = json.loads(ask(keys, snapshots=snapshots, version=version, now=now).snapshot)["signed"]
        assert signed["version"] == signed["meta"]["targets.json"]["version"] == version
        assert signed["expires"] == (now + timedelta(hours=24)).strftime("%Y-%m-%dT%H:%M:%SZ")


def test_few_snapshots_are_kept(keys):
    signed = []

    class Counting:
        def sign(self, payload):
            signed.append(payload)
            return keys.snapshot.sign(payload)

    snapshots = Snapshots(Counting())
    for version in (*range(1, MAX_SNAPSHOTS + 2), MAX_SNAPSHOTS, 1):
        ask(keys, snapshots=snapshots, version=version)
    assert len(signed) == MAX_SNAPSHOTS + 2  # only the first was forgotten


def test_the_reply_is_written_as_any_json(keys):
    reply = ask(keys, assignment=assignment())
    assert json.loads(reply.encode()) == reply.to_json()
    assert reply.encode() == json.dumps(reply.to_json(), separators=(",", ":"), ensure_ascii=False).encode()


@pytest.mark.parametrize("nonce", [b"", bytes(15), bytes(17)])
def test_a_nonce_of_the_wrong_length_is_refused(keys, nonce):
    with pytest.raises(MalformedError):
        ask(keys, nonce=nonce)


@pytest.mark.parametrize(
    ("word", "read"), [(None, Mode.AUTOMATIC), ("ask", Mode.ASK), ("manual", Mode.MANUAL), ("perhaps", Mode.ASK)]
)
def test_what_the_operator_asks_is_signed_and_a_word_of_a_later_server_is_the_stricter_one(keys, word, read):
    made = assignment() if word is None else assignment(consent=Mode(word) if word in set(Mode) else Mode.ASK)
    document = json.loads(ask(keys, assignment=made).targets)["signed"]
    (target,) = document["targets"].values()
    assert ("consent" in target["custom"]) == (word is not None)
    if word is not None:
        target["custom"]["consent"] = word
    document.pop("_type")
    found = read_assignment(Targets.from_dict({"_type": "targets", **document}), device_id=DEVICE)
    assert found.consent is read
