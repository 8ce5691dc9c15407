"""Attacks on metadata (trust.md §10, 1 to 29), played against the real agent over HTTPS."""

import json
import shutil
from datetime import timedelta
from urllib.parse import quote

import pytest
from attack.forge import (
    PRODUCT,
    ed25519,
    edit,
    name_of,
    new_root,
    nothing,
    point_snapshot_at,
    point_timestamp_at,
    swap_key,
)
from securesystemslib.signer import CryptoSigner
from support.world import Answer
from tuf.api.metadata import Metadata, MetaFile

from firmament.errors import (
    ExpiredError,
    LengthExceededError,
    MalformedMetadataError,
    ReplayError,
    RollbackError,
    ThresholdNotMetError,
    UnknownTargetError,
)

IMAGE = "GET /v1/image/metadata/"


def test_01_timestamp_rollback(stage):
    """The image repository serves yesterday's timestamp again, correctly signed."""
    old = dict(stage.image.files)
    stage.server.release("1.1", 2)
    assert stage.victim.run("check").exit_code == 0
    stage.server.release("1.2", 3)
    stage.image.files["timestamp.json"] = old["timestamp.json"]
    stage.refused(RollbackError, "check")
    assert stage.asked_before_refusing()[-1] == f"{IMAGE}timestamp.json"


def test_02_snapshot_rollback_under_a_new_timestamp(stage):
    """With the timestamp key stolen: a fresh timestamp names an old snapshot."""
    before = stage.image.versions["snapshot"]
    stage.server.release("1.1", 2)
    assert stage.victim.run("check").exit_code == 0
    stage.server.release("1.2", 3)
    point_timestamp_at(stage.image, before)
    stage.refused(RollbackError, "check")
    assert not any("targets" in line for line in stage.asked_before_refusing())


def test_03_targets_rollback_with_stolen_timestamp_and_snapshot_keys(stage):
    """With the timestamp and snapshot keys stolen: a fresh snapshot names old targets of the product."""
    before = stage.image.versions[PRODUCT]
    stage.server.release("1.1", 2)
    assert stage.victim.run("check").exit_code == 0
    stage.server.release("1.2", 3)
    point_snapshot_at(stage.image, PRODUCT, before)
    stage.refused(RollbackError, "check")


def test_04_mix_and_match(stage):
    """Old targets are served under the name that a new snapshot gives."""
    old = stage.image.files[name_of(stage.image, PRODUCT)]
    stage.server.release("1.1", 2)
    stage.image.files[name_of(stage.image, PRODUCT)] = old
    stage.refused(RollbackError)


def test_05_freeze_by_expired_metadata(stage):
    """The image repository is never renewed; the director's signed time says so."""
    stage.server.release("1.1", 2)
    stage.world.clock.advance(20 * 86_400)
    stage.refused(ExpiredError)


def test_06_freeze_within_validity(stage):
    """Whoever sits on the line repeats the director's earlier answer, still valid by its dates."""
    old = []
    stage.world.on_poll = lambda request, make: old.append(make()) or old[0]
    assert stage.victim.run("check").exit_code == 5
    stage.server.release("1.1", 2)
    stage.refused(ReplayError)
    assert stage.asked_before_refusing()[0] == "POST /v1/poll"


def _with_clock(date: str) -> dict:
    assert shutil.which("faketime"), "scripts/debian.sh installs faketime"
    return {"prefix": ("faketime", date)}


@pytest.mark.parametrize("date", ["1970-01-02 00:00:00", "2040-01-01 00:00:00"])
def test_07_08_freeze_with_a_clock_that_is_wrong(stage, date):
    """The device believes that it is 1970, or 2040: expired metadata is refused all the same."""
    stage.server.release("1.1", 2)
    stage.world.clock.advance(20 * 86_400)
    stage.refused(ExpiredError, **_with_clock(date))


@pytest.mark.parametrize("wiped", ["truncated", "removed"])
def test_09_rollback_after_the_cache_was_lost(stage, wiped):
    """Power loss emptied the metadata cache; the old repository is served again."""
    old = dict(stage.image.files)
    manifest = stage.server.release("1.1", 2)
    assert stage.victim.run("check").exit_code == 0
    stage.world.assign(manifest)
    cached = [path for path in stage.victim.state.rglob("*.json") if "image" in path.parts and not path.is_symlink()]
    assert cached
    for path in cached:
        if "root_history" in path.parts:
            continue
        path.write_bytes(b"") if wiped == "truncated" else path.unlink()
    stage.image.files = old
    stage.refused(RollbackError, "check")


def test_10_a_root_signed_by_an_attacker(stage):
    """A new root names the attacker's keys and is signed by them alone."""
    stage.server.release("1.1", 2)
    mine = ed25519()
    new_root(stage.image, swap_key("root", mine, stage.image.keys["root"]), mine)
    stage.refused(ThresholdNotMetError)
    assert stage.asked_before_refusing()[-1] == f"{IMAGE}2.root.json"


def test_11_a_root_that_skips_a_version(stage):
    """``2.root.json`` holds version 3."""
    stage.server.release("1.1", 2)
    root = stage.image.keys["root"]

    def third(signed):
        signed.version = 3

    edit(stage.image, "1.root.json", third, root, as_name="2.root.json")
    stage.refused(MalformedMetadataError)


@pytest.mark.parametrize("signed_by", ["old", "new"])
def test_12_a_rotated_root_with_half_of_its_signatures(stage, signed_by):
    """The root is rotated, but only the old or only the new keys have signed."""
    stage.server.release("1.1", 2)
    old, new = stage.image.keys["root"], ed25519()
    new_root(stage.image, swap_key("root", new, old), old if signed_by == "old" else new)
    stage.refused(ThresholdNotMetError)


@pytest.mark.parametrize("status", [403, 404])
def test_13_a_withheld_root_rotation(stage, status):
    """The new root is withheld until the old one has expired: the device stops, it does not go on."""
    stage.server.release("1.1", 2)
    stage.world.tap = lambda method, path, answer: Answer(status) if path.endswith("2.root.json") else answer
    stage.world.clock.advance(366 * 86_400)
    stage.image.publish()
    stage.refused(ExpiredError)


def test_14_an_endless_chain_of_roots(stage):
    """Valid roots without end: the walk stops at its ceiling and goes on with what it has."""
    stage.server.release("1.1", 2)
    root = stage.image.keys["root"]
    for version in range(2, 301):
        new_root(stage.image, nothing, root, version=version, of=1)
    ran = stage.victim.run("check")
    roots = [line for line in stage.server.asked if line.startswith(IMAGE) and line.endswith(".root.json")]
    assert len(roots) == 256
    assert ran.exit_code == 0
    stage.still("1.0")
    stage.told.append({"code": "(256 roots, then no more)", "asked": roots[-1:]})


def test_15_one_signature_counted_twice(stage):
    """The threshold is two; one key's signature is there twice."""
    image = stage.image

    def two_keys(signed):
        signed.add_key(ed25519().public_key, "timestamp")
        signed.roles["timestamp"].threshold = 2

    new_root(image, two_keys, image.keys["root"])
    stage.server.release("1.1", 2)
    value = json.loads(image.files["timestamp.json"])
    value["signatures"] *= 2
    image.files["timestamp.json"] = json.dumps(value).encode()
    stage.refused(MalformedMetadataError)


def test_15_one_key_under_two_keyids(stage):
    """The threshold is two; one key is listed under two names and signs under both."""
    image = stage.image
    key = image.keys["timestamp"]
    twin = CryptoSigner(key._private_key, type(key.public_key)("0" * 64, "ed25519", "ed25519", key.public_key.keyval))

    def twins(signed):
        signed.add_key(twin.public_key, "timestamp")
        signed.roles["timestamp"].threshold = 2

    new_root(image, twins, image.keys["root"])
    stage.server.release("1.1", 2)
    edit(image, "timestamp.json", nothing, key, twin)
    assert len(json.loads(image.files["timestamp.json"])["signatures"]) == 2
    stage.refused(MalformedMetadataError)


def test_16_a_threshold_of_zero(stage):
    """A root, correctly signed, asks for no signature at all."""
    image = stage.image
    value = json.loads(image.files["1.root.json"])
    value["signed"]["version"] = 2
    value["signed"]["roles"]["timestamp"]["threshold"] = 0
    image.files["2.root.json"] = json.dumps(value).encode()
    stage.server.release("1.1", 2)
    stage.refused(MalformedMetadataError)


@pytest.mark.parametrize("missing", ["ed25519", "ml-dsa"])
def test_17_half_of_a_hybrid_role(stage, missing):
    """The product's role is hybrid, threshold two; only one class of key has signed."""
    image = stage.image
    pair = {"ed25519": ed25519(), "ml-dsa": CryptoSigner.generate_mldsa()}

    def hybrid(signed):
        signed.revoke_key(image.keys["targets"].public_key.keyid, "targets")
        for signer in pair.values():
            signed.add_key(signer.public_key, "targets")
        signed.roles["targets"].threshold = 2

    new_root(image, hybrid, image.keys["root"])
    stage.server.release("1.1", 2)
    signers = [signer for kind, signer in pair.items() if kind != missing]
    edit(image, name_of(image, "targets"), nothing, *signers)
    stage.refused(ThresholdNotMetError)
    edit(image, name_of(image, "targets"), nothing, *pair.values())
    stage.accepted("1.1")


def test_18_a_foreign_signature_under_a_post_quantum_keyid(stage):
    """An Ed25519 signature is filed under the keyid of an ML-DSA key."""
    image, quantum = stage.image, CryptoSigner.generate_mldsa()
    new_root(image, swap_key("targets", quantum, image.keys["targets"]), image.keys["root"])
    stage.server.release("1.1", 2)
    name = name_of(image, "targets")
    value = json.loads(image.files[name])
    value["signatures"][0]["keyid"] = quantum.public_key.keyid
    image.files[name] = json.dumps(value).encode()
    stage.refused(ThresholdNotMetError)


def test_19_an_unknown_kind_of_key_in_root(stage):
    """A root lists a key of a scheme that nobody knows: no crash, the old state is kept."""
    image = stage.image
    value = json.loads(image.files["1.root.json"])
    value["signed"]["version"] = 2
    next(iter(value["signed"]["keys"].values()))["scheme"] = "telepathy"
    image.files["2.root.json"] = json.dumps(value).encode()
    stage.server.release("1.1", 2)
    stage.refused(MalformedMetadataError)
    del image.files["2.root.json"]
    stage.accepted("1.1")


def test_20_targets_signed_by_another_roles_key(stage):
    """The snapshot key signs targets."""
    stage.server.release("1.1", 2)
    edit(stage.image, name_of(stage.image, "targets"), nothing, stage.image.keys["snapshot"])
    stage.refused(ThresholdNotMetError)


def test_20_a_snapshot_served_as_timestamp(stage):
    """The right key, the wrong kind of file."""
    stage.server.release("1.1", 2)
    stage.image.files["timestamp.json"] = stage.image.files[name_of(stage.image, "snapshot")]
    stage.refused(MalformedMetadataError)


def test_21_a_cached_delegation_after_its_keys_were_revoked(stage):
    """The product's keys were replaced; its cached, formerly valid metadata must not count any more."""
    image = stage.image
    stage.server.release("1.1", 2)
    assert stage.victim.run("check").exit_code == 0
    stolen = image.keys[PRODUCT]
    image.keys[PRODUCT] = ed25519()
    image.publish()
    version = image.versions[PRODUCT]
    edit(image, f"{version}.{PRODUCT}.json", nothing, stolen)
    stage.refused(ThresholdNotMetError, "check")


def test_22_a_delegation_that_the_snapshot_does_not_know(stage):
    """With the online keys stolen: the snapshot leaves the product's role out."""
    image = stage.image
    stage.server.release("1.1", 2)
    number = image.versions["snapshot"]

    def without(signed):
        del signed.meta[f"{PRODUCT}.json"]

    edit(image, f"{number}.snapshot.json", without, image.keys["snapshot"])
    stage.refused(MalformedMetadataError)


def test_23_a_role_signs_outside_its_paths(stage):
    """The product's keys sign a target of another product."""
    image = stage.image
    manifest = stage.server.release("1.1", 2)

    def elsewhere(signed):
        target = signed.targets.pop(manifest.payloads[0].target)
        target.path = "valve/1.1/image.bin"
        signed.targets[target.path] = target

    edit(image, name_of(image, PRODUCT), elsewhere, image.keys[PRODUCT])
    stage.world.assign(manifest, target="valve/1.1/image.bin")
    stage.refused(UnknownTargetError)


@pytest.mark.parametrize("name", ["../../../escaped", "?", "#x"])
def test_24_role_names_that_are_paths(stage, name):
    """A delegated role is called like a path out of the cache, and its file is a forgery."""
    image = stage.image
    stage.server.release("1.1", 2)

    def rename(signed):
        role = signed.delegations.roles.pop(PRODUCT)
        role.name = name
        signed.delegations.roles[name] = role

    def list_it(signed):
        signed.meta[f"{name}.json"] = signed.meta[f"{PRODUCT}.json"]

    edit(image, name_of(image, "targets"), rename, image.keys["targets"])
    edit(image, name_of(image, "snapshot"), list_it, image.keys["snapshot"])
    forged = f"{image.versions[PRODUCT]}.{quote(name, safe='')}.json"
    edit(image, name_of(image, PRODUCT), nothing, ed25519(), as_name=forged)
    outside = {path for path in stage.victim.directory.parent.rglob("*") if stage.victim.state not in path.parents}
    stage.refused(ThresholdNotMetError, "check")
    assert stage.asked_before_refusing()[-1] == IMAGE + forged
    after = {path for path in stage.victim.directory.parent.rglob("*") if stage.victim.state not in path.parents}
    assert {path for path in after - outside if "escaped" in path.name} == set()


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 16_000,
        b'{"signed":' + b"9" * 9000 + b"}",
        b'{"signed":{},"signed":{},"signatures":[]}',
        b"\xff\xfe\x00",
        b"\xef\xbb\xbf{}",
        b'{"signed":1.5,"signatures":[]}',
        b"",
    ],
    ids=["nested", "huge-number", "duplicate-keys", "not-utf-8", "byte-order-mark", "fraction", "empty"],
)
def test_25_bytes_that_are_no_metadata(stage, data):
    """What is served as timestamp is made to break a reader."""
    stage.server.release("1.1", 2)
    stage.image.files["timestamp.json"] = data
    stage.refused(MalformedMetadataError)


def test_26_endless_metadata(stage):
    """The timestamp has no end."""
    stage.server.release("1.1", 2)

    def endless(handler, path, answer):
        if not path.endswith("/timestamp.json"):
            return False
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        for _ in range(10_000):
            handler.wfile.write(b" " * 65_536)
        return True

    stage.server.send = endless
    stage.refused(LengthExceededError)


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "telepathy"])
def test_27_weak_or_unknown_hashes_however_well_signed(stage, algorithm):
    """Author and director agree, and name a digest that proves nothing."""
    image = stage.image
    manifest = stage.server.release("1.1", 2)
    path = manifest.payloads[0].target

    def weak(signed):
        signed.targets[path].hashes = {algorithm: "0" * 32}

    edit(image, name_of(image, PRODUCT), weak, image.keys[PRODUCT])

    def agree(request, make):
        from dataclasses import replace

        reply = make()
        metadata = Metadata.from_bytes(reply.targets.encode())
        weak(metadata.signed)
        metadata.signatures.clear()
        metadata.sign(stage.world.director["targets"])
        return replace(reply, targets=metadata.to_bytes().decode())

    stage.world.on_poll = agree
    stage.refused(MalformedMetadataError)


def test_28_fast_forward_and_recovery_by_new_keys(stage):
    """A stolen timestamp key pushes the version to 2^31; new keys free the device."""
    image = stage.image
    manifest = stage.server.release("1.1", 2)

    def far(signed):
        signed.version = 2**31

    edit(image, "timestamp.json", far, image.keys["timestamp"])
    assert stage.victim.run("check").exit_code == 0
    image.publish()
    stage.world.assign(manifest)
    stage.refused(RollbackError, "check")
    new = ed25519()
    new_root(image, swap_key("timestamp", new, image.keys["timestamp"]), image.keys["root"])
    image.keys["timestamp"] = new
    image.publish()
    stage.accepted("1.1")


def test_29_time_fast_forward_by_a_stolen_timestamp_key(stage):
    """The director's stolen key signs a time beyond its root's expiry: refused, no floor moves."""
    now = stage.world.clock.now()
    stage.server.release("1.1", 2)
    stage.world.on_poll = lambda request, make: make(now=now + timedelta(days=366))
    stage.refused(ExpiredError)
    stage.world.on_poll = None
    stage.accepted("1.1")


def test_65_every_role_rotated_while_the_device_was_off(stage):
    """Three rotations of every key later the device comes back, follows the chain, and installs."""
    image = stage.image
    for version in (2, 3, 4):
        new = {name: ed25519() for name in ("root", "targets", "snapshot", "timestamp")}
        old = dict(image.keys)

        def all_new(signed, new=new, old=old):
            for name, signer in new.items():
                swap_key(name, signer, old[name])(signed)

        new_root(image, all_new, old["root"], new["root"], version=version, of=version - 1)
        image.keys |= new
    image.keys[PRODUCT] = ed25519()
    stage.server.release("1.1", 2)
    # The thief of every old key cannot use them any more.
    honest = dict(image.files)
    edit(image, name_of(image, "targets"), nothing, old["targets"])
    stage.refused(ThresholdNotMetError)
    image.files = honest
    stage.accepted("1.1")


def test_04_a_snapshot_that_forgets_what_it_knew(stage):
    """With the online keys stolen: a snapshot names an older top-level targets file."""
    image = stage.image
    before = image.versions["targets"]
    stage.server.release("1.1", 2)
    assert stage.victim.run("check").exit_code == 0
    number = image.versions["snapshot"]

    def forget(signed):
        signed.version = number + 1
        signed.meta["targets.json"] = MetaFile(before)

    edit(image, f"{number}.snapshot.json", forget, image.keys["snapshot"], as_name=f"{number + 1}.snapshot.json")
    point_timestamp_at(image, number + 1)
    stage.refused(RollbackError, "check")
