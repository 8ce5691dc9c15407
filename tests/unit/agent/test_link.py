"""A device, its server and whoever sits between them: cases 1-9, 28-29 and 41-48 of trust.md §10."""

import base64
import json
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from support.world import HARDWARE, NOON, SERVER, Answer, World, ed25519
from tuf.api.metadata import Metadata, TargetFile

from firmament.agent.link import _ReplySource
from firmament.agent.resume import TransportSource
from firmament.core.digest import Digest
from firmament.core.manifest import Payload, Requires
from firmament.errors import (
    ApplicabilityError,
    DeviceMismatchError,
    DisagreementError,
    ExpiredError,
    HardwareMismatchError,
    HttpStatusError,
    MalformedMetadataError,
    NoInstallerError,
    ProductMismatchError,
    ReplayError,
    RequirementError,
    RollbackError,
    ThresholdNotMetError,
    TransferError,
    TrustError,
    UnknownManifestError,
    UnknownTargetError,
)
from firmament.protocol.status import AttemptStatus
from firmament.protocol.v1.envelope import REPORT_TYPE, pre_authentication_encoding
from firmament.protocol.v1.messages import MAX_REPORTS, Report, decode_report
from firmament.trust import repository
from firmament.trust.client import TrustedClient
from firmament.trust.walk import Device, verify_release


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def offer(world):
    answer = world.poll()
    assert answer.offer is not None
    return answer.offer


def refused(world, error):
    with pytest.raises(error) as caught:
        world.poll()
    return caught.value


def about_the_attempt(world, error):
    found = refused(world, error)
    assert found.facts["attempt_id"] == world.assignment.attempt_id
    assert not any("/targets/" in request for request in world.requests)  # before the first payload byte
    return found


# --- the good day --------------------------------------------------------------------------


def test_nothing_assigned_costs_two_requests(world):
    answer = world.poll()
    assert answer.offer is None
    assert (answer.poll_after_s, answer.issued_at) == (300, NOON)
    assert world.requests == ["POST /v1/poll", "GET /v1/director/2.root.json"]
    assert world.floors.load().time == NOON


def test_an_assigned_release_is_offered(world):
    manifest = world.release("1.1", 2)
    found = offer(world)
    assert found.manifest == manifest
    assert found.payload == manifest.payloads[0]
    assert found.attempt_id == world.assignment.attempt_id
    assert (found.key_wrap, found.issued_at) == (None, NOON)
    assert world.requests == [
        "POST /v1/poll",
        "GET /v1/director/2.root.json",
        "GET /v1/image/metadata/2.root.json",
        "GET /v1/image/metadata/timestamp.json",
        "GET /v1/image/metadata/2.snapshot.json",
        "GET /v1/image/metadata/2.targets.json",
        "GET /v1/image/metadata/2.thermo.json",
    ]
    offer(world)
    assert len(world.requests) == 4  # poll, two roots, timestamp


def test_the_poll_says_what_runs_here(world):
    world.poll()
    assert (world.polled.version, world.polled.sequence_number) == ("1.0", 1)
    assert world.polled.methods == ("whole/1",)
    assert world.polled.attributes == {"os": "test"}


def test_each_poll_has_its_own_nonce(world):
    world.poll()
    first = world.polled.nonce
    world.poll()
    assert world.polled.nonce != first


def test_a_key_wrap_is_passed_on(world):
    world.assign(world.release("1.1", 2), key_wrap=b"w" * 1168)
    assert offer(world).key_wrap == b"w" * 1168


def test_nothing_of_the_director_is_kept_but_its_roots(world):
    world.release("1.1", 2)
    offer(world)
    kept = {path.name for path in (world.directory / "metadata" / "director").rglob("*") if path.is_file()}
    assert kept == {"root.json", "1.root.json"}


# --- the director's answer -----------------------------------------------------------------


def test_another_devices_answer_replayed(world):
    """Case 41."""
    world.on_poll = lambda request, make: make(device_id=str(uuid.uuid4()))
    refused(world, DeviceMismatchError)
    assert world.floors.load().of("director").versions == {}  # another device's versions are not ours


def test_only_the_targets_are_for_another_device(world):
    def mixed(request, make):
        other = make(device_id=str(uuid.uuid4()), version=7)
        return replace(make(version=7), targets=other.targets)

    world.on_poll = mixed
    refused(world, DeviceMismatchError)


def test_an_answer_to_another_question(world):
    """Cases 6 and 42: my own old answer, or a relay with another nonce."""
    world.on_poll = lambda request, make: make(nonce=b"\0" * 16)
    refused(world, ReplayError)


def test_my_own_old_answer_replayed(world):
    """Case 6: freeze within validity."""
    old = []
    world.on_poll = lambda request, make: old.append(make()) or old[0]
    world.poll()
    world.release("1.1", 2)
    refused(world, ReplayError)


def test_an_old_director_version(world):
    """Case 64: a restored backup looks like a rollback."""
    world.poll()
    world.on_poll = lambda request, make: make(version=5)
    refused(world, RollbackError)


def test_a_director_that_lost_its_timestamp_key_to_an_attacker_recovers(world):
    """Case 29: the stolen key pushes version and time; the new key frees both."""
    far = NOON + timedelta(days=300)
    world.on_poll = lambda request, make: make(version=2**31, now=far)
    world.poll()
    assert world.floors.load().time == far
    world.on_poll = None
    refused(world, RollbackError)
    for name in ("timestamp", "snapshot", "targets"):
        world.director[name] = ed25519()
    world.put_director_root(2)
    world.release("1.1", 2)
    assert offer(world).issued_at == NOON
    assert world.floors.load().time == NOON


def test_signed_time_beyond_the_root_is_refused(world):
    """Case 29: the root's expiry caps what a stolen timestamp key can do."""
    world.on_poll = lambda request, make: make(now=NOON + timedelta(days=366))
    refused(world, ExpiredError)
    assert world.floors.load().time is None


def test_signed_time_that_goes_back_is_refused(world):
    world.poll()
    world.on_poll = lambda request, make: make(now=NOON - timedelta(days=3))
    refused(world, RollbackError)


def test_replicas_whose_clocks_differ_by_seconds_are_fine(world):
    world.poll()
    world.on_poll = lambda request, make: make(now=NOON - timedelta(minutes=2))
    assert world.poll().offer is None
    assert world.floors.load().time == NOON


def test_a_director_signed_by_somebody_else(world):
    good = world.director["timestamp"]
    world.director["timestamp"] = ed25519()
    refused(world, ThresholdNotMetError)
    world.director["timestamp"] = good
    world.poll()


@pytest.mark.parametrize("clock", [datetime(1970, 1, 1, tzinfo=UTC), datetime(2040, 1, 1, tzinfo=UTC)])
def test_the_devices_clock_plays_no_part(world, clock):
    """Cases 7 and 8."""
    world.device_clock.set(clock)
    world.release("1.1", 2)
    offer(world)
    world.clock.advance(20 * 86_400)  # the image repository is not renewed
    refused(world, ExpiredError)


@pytest.mark.parametrize("wiped", [False, True])
def test_the_image_repository_is_rolled_back(world, wiped):
    """Cases 1 and 9."""
    old = dict(world.image.files)
    manifest = world.release("1.1", 2)
    offer(world)
    world.release("1.2", 3, assign=False)
    world.assign(manifest)
    offer(world)
    if wiped:
        for path in (world.directory / "metadata" / "image").glob("*.json"):
            path.unlink()
    world.image.files["timestamp.json"] = old["timestamp.json"]
    about_the_attempt(world, RollbackError)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"v": 2}, UnknownManifestError),
        ({"action": "wipe"}, UnknownManifestError),
        ({"device": str(uuid.uuid4())}, DeviceMismatchError),
        ({"payload": "../../etc/passwd"}, MalformedMetadataError),
        ({"attempt_id": "../x"}, MalformedMetadataError),
        ({"key_wrap": "?"}, MalformedMetadataError),
        ({"v": "1"}, MalformedMetadataError),
    ],
)
def test_an_assignment_that_is_not_understood(world, monkeypatch, change, error):
    """Case 43."""
    custom = type(world.assign(world.release("1.1", 2))).custom
    monkeypatch.setattr(type(world.assignment), "custom", lambda self, device_id: {**custom(self, device_id), **change})
    found = refused(world, error)
    if "v" in change and change["v"] == 2:
        assert found.facts["attempt_id"] == world.assignment.attempt_id


def test_an_assignment_without_custom(world, monkeypatch):
    world.release("1.1", 2)
    monkeypatch.setattr(type(world.assignment), "custom", lambda self, device_id: None)
    refused(world, MalformedMetadataError)


def test_more_than_one_release_at_once(world, monkeypatch):
    """Case 48: one release is one manifest, all or nothing."""
    world.release("1.1", 2)

    def two(request, make):
        reply = make(version=9)
        metadata = Metadata.from_bytes(reply.targets.encode())
        metadata.signed.targets["thermo/1.2/image.bin"] = TargetFile(1, {"sha256": "0" * 64}, "thermo/1.2/image.bin")
        metadata.sign(world.director["targets"])
        return replace(reply, targets=metadata.to_bytes().decode())

    world.on_poll = two
    refused(world, MalformedMetadataError)


# --- the two repositories disagree ---------------------------------------------------------


def test_the_director_names_an_unknown_image(world):
    """Case 44."""
    manifest = world.release("1.1", 2)
    world.assign(manifest, target="thermo/9.9/image.bin")
    about_the_attempt(world, UnknownTargetError)


@pytest.mark.parametrize("change", [{"digest": Digest.of(b"evil")}, {"length_bytes": 4}])
def test_the_director_describes_other_bytes(world, change):
    """Case 45."""
    world.assign(world.release("1.1", 2), **change)
    about_the_attempt(world, DisagreementError)


def test_the_director_chooses_a_payload_that_the_author_did_not_name(world):
    world.release("1.0", 1, b"old", assign=False)
    manifest = world.release("1.1", 2)
    world.assign(manifest, payload="thermo/1.0/image.bin")
    about_the_attempt(world, DisagreementError)


def test_a_stolen_director_cannot_ship_code(world):
    """Case 63: everything online is the attacker's, the author's keys are not."""
    manifest = world.release("1.1", 2)
    evil = b"evil"
    world.image.keys["thermo"] = ed25519()
    payload = replace(manifest.payloads[0], digest=Digest.of(evil), length_bytes=len(evil))
    world.image.releases["1.1"] = manifest = replace(manifest, payloads=(payload,))
    world.image.publish()
    world.image.files[f"{world.image.versions['targets']}.targets.json"] = world.image.files["2.targets.json"]
    world.assign(manifest)
    refused(world, TrustError)


# --- not for this device -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"hardware": ("cm4",)}, HardwareMismatchError),
        ({"hardware": (f"{HARDWARE}x", HARDWARE.upper())}, HardwareMismatchError),
        ({"requires": Requires(min_sequence_number=2)}, RequirementError),
        ({"requires": Requires(min_agent=2)}, RequirementError),
    ],
)
def test_a_release_that_is_not_for_this_device(world, change, error):
    """Cases 43 and 47."""
    world.release("1.1", 2, **change)
    about_the_attempt(world, error)


def test_a_release_for_another_product(world):
    """Case 43, and case 61: the manifest must speak about its own path."""
    world.link = world.make_link(product="valve")
    world.release("1.1", 2)
    about_the_attempt(world, ProductMismatchError)


def test_a_manifest_that_speaks_about_another_release(world, monkeypatch):
    manifest = world.release("1.1", 2)
    path = manifest.payloads[0].target
    lie = replace(manifest, version="9.9").to_json()
    targets = {path: TargetFile(5, manifest.image.digest.to_json(), path, {"custom": lie})}
    monkeypatch.setattr(repository, "release_targets", lambda manifest: targets)
    world.image.publish()
    about_the_attempt(world, DisagreementError)


def test_an_older_release_is_refused_after_a_newer_one_was_confirmed(world):
    """Case 46."""
    old = world.release("1.1", 2)
    world.floors.raise_sequence(3)
    found = about_the_attempt(world, RollbackError)
    assert found.facts["floor"] == 3
    world.release("1.2", 3)
    assert offer(world).manifest.sequence_number == 3
    assert old.sequence_number == 2


def test_a_method_this_device_cannot_apply(world):
    manifest = world.release("1.1", 2)
    payload = Payload("refdelta", 1, manifest.payloads[0].target, 5, manifest.image.digest)
    world.assign(world.release("1.2", 3, payloads=(replace(payload, target="thermo/1.2/image.bin"),)))
    about_the_attempt(world, NoInstallerError)


@pytest.mark.parametrize(
    ("runs", "is_offered"), [(Digest.of(b"base"), True), (Digest.of(b"other"), False), ("", False)]
)
def test_a_payload_for_another_precursor(world, runs, is_offered):
    """Case 55, first half."""
    world.running = replace(world.running, image_digest=str(runs))
    target = "thermo/1.1/image.bin"
    payload = Payload("whole", 1, target, 5, Digest.of(b"image"), Digest.of(b"base"))
    world.release("1.1", 2, payloads=(payload,))
    if is_offered:
        assert offer(world).payload == payload
    else:
        about_the_attempt(world, RequirementError)


def test_a_manifest_of_a_later_version(world, monkeypatch):
    monkeypatch.setattr("firmament.core.manifest.MANIFEST_VERSION", 2)
    world.release("1.1", 2)
    monkeypatch.undo()
    about_the_attempt(world, UnknownManifestError)


def test_a_refusal_is_of_one_of_three_kinds(world):
    world.release("1.1", 2, hardware=("cm4",))
    error = refused(world, ApplicabilityError)
    assert not isinstance(error, TrustError | TransferError)


# --- the wire ------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"", b"[]", b'{"v":1}', b"{" * 100, b'{"timestamp":"","snapshot":"","targets":1}'])
def test_an_answer_that_cannot_be_read(world, body):
    world.tap = lambda method, path, answer: Answer(200, body) if path == "/v1/poll" else answer
    refused(world, TransferError)


def test_an_answer_without_an_end(world):
    world.tap = lambda method, path, answer: Answer(200, b" " * 2_000_000)
    error = refused(world, TransferError)
    assert error.code == "transfer/length-exceeded"


def test_an_error_of_the_server_says_what_it_said(world):
    problem = json.dumps({"type": "request/forbidden", "detail": "This device was disabled", "request_id": "r-1"})
    world.tap = lambda method, path, answer: Answer(403, problem.encode(), {"retry-after": "60"})
    error = refused(world, HttpStatusError)
    assert error.facts["status"] == 403
    assert error.facts["server_code"] == "request/forbidden"
    assert error.facts["retry_after_s"] == 60


def test_payload_bytes_come_from_the_digests_name(world):
    data = bytes(range(256)) * 20
    manifest = world.release("1.1", 2, data)
    world.requests.clear()
    assert b"".join(world.link.open_payload(manifest.payloads[0], offset=0)) == data
    assert b"".join(world.link.open_payload(manifest.payloads[0], offset=5000)) == data[5000:]
    assert world.requests == [f"GET /v1/image/targets/thermo/1.1/{Digest.of(data).hex}.image.bin"] * 2


def test_the_repository_may_be_somewhere_else(world):
    world.link = world.make_link(repository_url=f"{SERVER}/mirror")
    world.release("1.1", 2)
    refused(world, HttpStatusError)
    assert world.requests[-1] == "GET /mirror/metadata/timestamp.json"


# --- reports -------------------------------------------------------------------------------


def report(world, number, **changes):
    facts = {
        "device_id": world.device_id,
        "report_number": number,
        "attempt_id": str(uuid.uuid4()),
        "status": AttemptStatus.CONFIRMED,
        "version": "1.1",
        "sequence_number": 2,
        "boot_id": "b",
        "at": NOON,
    }
    return Report(**{**facts, **changes})


def test_reports_are_signed_by_the_identity_key(world):
    sent = report(world, 7)
    assert list(world.link.send([sent])) == [7]
    (envelope,) = world.reports
    payload = base64.b64decode(envelope["payload"])
    assert decode_report(payload) == sent
    assert envelope["keyid"] == world.key.keyid
    world.key._key.public_key().verify(
        base64.b64decode(envelope["signature"]),
        pre_authentication_encoding(REPORT_TYPE, payload),
        ec.ECDSA(hashes.SHA256()),
    )


@pytest.mark.parametrize("log", [(), ("x" * 500,) * 20])
def test_many_reports_go_in_several_batches(world, log):
    numbers = list(range(1, MAX_REPORTS + 5))
    assert list(world.link.send([report(world, number, log=log) for number in numbers])) == numbers
    assert len(world.reports) == len(numbers)
    assert world.requests.count("POST /v1/report") > 1


def test_only_what_was_sent_counts_as_accepted(world):
    world.tap = lambda method, path, answer: Answer(200, b'{"v":1,"accepted":[1,2,99]}')
    assert list(world.link.send([report(world, 2)])) == [2]


def test_a_report_of_an_earlier_enrolment_stops_nothing(world):
    assert list(world.link.send([report(world, 1, device_id=str(uuid.uuid4())), report(world, 2)])) == [1, 2]
    assert len(world.reports) == 1


def test_no_reports_no_request(world):
    assert list(world.link.send([])) == []
    assert world.requests == []


# --- what remains of the walk --------------------------------------------------------------


def change_director(world, change):
    """Serve the director's answer with one role changed, signed by its own key."""

    def lie(request, make):
        reply = make(version=9)
        metadata = Metadata.from_bytes(reply.timestamp.encode())
        change(metadata.signed)
        metadata.sign(world.director["timestamp"])
        return replace(reply, timestamp=metadata.to_bytes().decode())

    world.on_poll = lie


@pytest.mark.parametrize("issued", [None, "yesterday", 5])
def test_a_director_that_does_not_say_when(world, issued):
    change_director(world, lambda signed: signed.unrecognized_fields.update({"x-issued": issued}))
    refused(world, MalformedMetadataError)


def change_target(world, monkeypatch, **changes):
    """Publish a release whose primary target is signed otherwise than its manifest says."""
    manifest = world.release("1.1", 2)
    (path, target), *_ = repository.release_targets(manifest).items()
    facts = {"length": target.length, "hashes": target.hashes, "custom": target.custom, **changes}
    targets = {
        path: TargetFile(
            facts["length"], facts["hashes"], path, {} if facts["custom"] is None else {"custom": facts["custom"]}
        )
    }
    monkeypatch.setattr(repository, "release_targets", lambda manifest: targets)
    world.image.publish()
    return manifest


@pytest.mark.parametrize("custom", [None, {"v": 1}, {"v": "1"}])
def test_a_target_without_a_manifest(world, monkeypatch, custom):
    change_target(world, monkeypatch, custom=custom)
    about_the_attempt(world, MalformedMetadataError)


def test_a_manifest_and_a_target_that_differ(world, monkeypatch):
    manifest = change_target(world, monkeypatch, length=6)
    world.assign(manifest, length_bytes=6)
    about_the_attempt(world, DisagreementError)


def test_a_target_path_outside_the_grammar(world):
    world.assign(world.release("1.1", 2), target="thermo/../image.bin")
    about_the_attempt(world, MalformedMetadataError)


def test_a_weak_digest_on_both_sides(world, monkeypatch):
    """Case 27."""
    manifest = change_target(world, monkeypatch, hashes={"md5": "0" * 32})

    def agree(request, make):
        reply = make(version=9)
        metadata = Metadata.from_bytes(reply.targets.encode())
        for target in metadata.signed.targets.values():
            target.hashes = {"md5": "0" * 32}
        metadata.sign(world.director["targets"])
        return replace(reply, targets=metadata.to_bytes().decode())

    world.on_poll = agree
    assert manifest.version == "1.1"
    about_the_attempt(world, MalformedMetadataError)


def test_the_image_repository_alone(world):
    """What a small fleet or a USB stick would use: the same walk without its first nine steps."""
    manifest = world.release("1.1", 2, assign=False)
    client = TrustedClient(
        disk=world.disk,
        directory=world.directory / "stick",
        anchor=world.image.files["1.root.json"],
        source=TransportSource(world, world.device_clock, payload_deadline_s=60),
        floors=world.floors,
        metadata_url=f"{SERVER}/v1/image/metadata/",
        reference_time=NOON,
    )
    device = Device(world.device_id, "thermo", HARDWARE, 1, frozenset({"whole/1"}), 1, 0)
    target = manifest.payloads[0].target
    found = verify_release(client, target, payload=target, device=device)
    assert (found.manifest, found.payload) == (manifest, manifest.payloads[0])


def test_the_director_has_no_targets_to_fetch(world):
    source = _ReplySource(world.make(nonce=b"0" * 16), TransportSource(world, world.clock, payload_deadline_s=1))
    with pytest.raises(RuntimeError):
        source.stream("https://x", offset=0, length_bytes=1)
