"""Attacks on sealed payloads and deltas, against the real agent (trust.md §10, 51 to 55)."""

import json
import lzma
from dataclasses import replace

import pytest
from attack.hostile import make_bundle
from attack.payloads import SECRET, image_of, public_key, publish, sealed_whole
from support.world import PRODUCT

from firmament.core.digest import Digest
from firmament.core.manifest import Payload
from firmament.errors import (
    DigestMismatchError,
    KeyWrapError,
    LengthExceededError,
    MalformedPayloadError,
    SealedError,
    TruncatedError,
)
from firmament.payload import wrap
from firmament.payload.readers import BytesReader
from firmament.payload.refdelta import wire
from firmament.payload.sealed import Opener, Suite, seal
from firmament.payload.wrap import Purpose
from firmament.sim.server import Packed, delta, whole


@pytest.mark.parametrize("suite", Suite)
def test_52_a_cdn_reads_nothing_and_the_device_installs(stage, suite):
    """Whoever holds every file of the server and the CDN learns nothing of a sealed image; the device installs it."""
    packed = sealed_whole(suite=suite)
    publish(stage, packed, confidential=True)
    held = [*stage.world.image.files.values(), *stage.world.image.blobs.values()]
    assert not any(SECRET in data or SECRET[:12] in data for data in held)
    ran = stage.victim.run("all", "--yes")
    assert ran.exit_code == 0, ran.err
    assert (stage.victim.app / "current" / "recipe").read_bytes() == SECRET * 40
    stage.told.append({"code": "(nothing readable on the server)", "asked": list(stage.server.asked)})


def test_52_another_devices_wrap_does_not_open(stage):
    """The director, or whoever has its keys, gives this device the key wrap of another one."""
    publish(stage, sealed_whole(), key=wrap.generate()[1])
    stage.refused(KeyWrapError)


@pytest.mark.parametrize("other", ["device", "release", "file"])
def test_52_a_wrap_made_for_something_else_does_not_open(stage, other):
    """A wrap for this very key, but made for another device, release or file, is replayed."""
    packed = sealed_whole()
    manifest = publish(stage, packed)
    payload = packed.payloads[0]
    purpose = {
        "device": Purpose("11111111-2222-4333-8444-555555555555", manifest.release_id, payload.digest.value),
        "release": Purpose(stage.world.device_id, f"{PRODUCT}/9.9", payload.digest.value),
        "file": Purpose(stage.world.device_id, manifest.release_id, Digest.of(b"another").value),
    }[other]
    forged = wrap.wrap(packed.keys[payload.target], public_key(stage), purpose)
    stage.world.assignment = replace(stage.world.assignment, key_wrap=forged)
    stage.refused(KeyWrapError)


def test_52_a_device_cannot_read_what_was_wrapped_for_another(stage):
    """A device keeps everything another one received and tries its own key on it."""
    packed = sealed_whole()
    manifest = publish(stage, packed)
    payload = packed.payloads[0]
    mine, _ = wrap.generate()
    purpose = Purpose(stage.world.device_id, manifest.release_id, payload.digest.value)
    with pytest.raises(KeyWrapError):
        wrap.unwrap(stage.world.assignment.key_wrap, mine, purpose)
    container = packed.files[payload.target]
    with pytest.raises(SealedError):
        Opener(BytesReader(container), len(container), bytes(32), max_plain_length_bytes=1 << 30).chunk(0)
    stage.told.append({"code": KeyWrapError.code, "asked": []})


TAMPERED = {
    "truncated": lambda data: data[:-100],
    "flipped": lambda data: data[:5000] + bytes([data[5000] ^ 1]) + data[5001:],
    "swapped": lambda data: data[:64] + data[64 + 4112 : 64 + 8224] + data[64 : 64 + 4112] + data[64 + 8224 :],
    "short-header": lambda data: data[:40],
    "wrong-key": lambda data: data[:32] + bytes(32) + data[64:],
}


@pytest.mark.parametrize("kind", TAMPERED)
def test_51_a_container_that_was_changed_on_the_way(stage, kind):
    """A CDN cuts, swaps or flips parts of a sealed payload."""
    packed = sealed_whole()
    publish(stage, packed)
    blobs = stage.world.image.blobs
    name = next(name for name in blobs if name.endswith(".sealed") and "/1.1/" in name)
    blobs[name] = TAMPERED[kind](blobs[name])
    stage.refused(TruncatedError if kind in {"truncated", "short-header"} else DigestMismatchError)


def test_53_a_device_that_knows_the_content_key_forges_a_chunk(stage):
    """Every device of the fleet can make chunks that open; the signed digest is over the sealed bytes."""
    packed = sealed_whole()
    publish(stage, packed)
    payload = packed.payloads[0]
    evil, out = make_bundle("6.6"), bytearray()
    plain_length = payload.inner.length_bytes
    evil = evil.ljust(plain_length, b"\0")[:plain_length]
    seal(BytesReader(evil), plain_length, packed.keys[payload.target], out.extend, log2_chunk=12)
    blobs = stage.world.image.blobs
    name = next(name for name in blobs if name.endswith(".sealed") and "/1.1/" in name)
    assert len(out) == len(blobs[name])
    blobs[name] = bytes(out)
    stage.refused(DigestMismatchError)


def test_54_a_container_that_lies_about_its_length(stage):
    """An author is tricked into signing a container whose header promises more than the manifest allows."""
    packed = sealed_whole()
    payload = packed.payloads[0]
    small = replace(payload, facts={**payload.facts, "inner": {**payload.facts["inner"], "length_bytes": 1000}})
    publish(stage, Packed((small,), packed.files, packed.keys))
    stage.refused(SealedError)


def test_54_a_payload_that_unpacks_without_end(stage):
    """An author is tricked into signing ten kilobytes that unpack to 64 MiB: nothing beyond the signed length is written."""
    data = lzma.compress(make_bundle("1.1", extra={"zeros": bytes(64 * 1024**2)}), preset=0)
    bomb = Payload("xz", 1, f"{PRODUCT}/1.1/image.xz", len(data), Digest.of(data))
    publish(stage, Packed((bomb,), {bomb.target: data}))
    stage.refused(LengthExceededError)
    room = sum(512 * path.stat().st_blocks for path in stage.victim.directory.rglob("*") if path.is_file())
    assert room < 4 * 1024**2, "nothing of it is kept"


@pytest.mark.parametrize("where", ["the precursor", "the image"])
def test_55_a_delta_that_reaches_out_of_bounds(stage, where):
    """A delta, signed by mistake, copies from or to where nothing is; there is no other payload to fall back to."""
    old, image = make_bundle("1.0"), image_of("1.1")
    move, gap = (-1, 0) if where == "the precursor" else (0, len(image))
    head = [wire.signed_varints([move]), wire.varints([gap]), wire.varints([1]), b"", b"", b"", b""]
    frame = wire.write_group([b""] * 5)
    start = wire.MAGIC + b"\1" + wire.varints((len(old), len(image), 1, len(image), len(frame)))
    data = start + wire.write_group(head) + frame
    target = f"{PRODUCT}/1.1/evil.refdelta"
    evil = Payload("refdelta", 1, target, len(data), Digest.of(data), precursor_digest=Digest.of(old))
    publish(stage, Packed((evil,), {target: data}))
    stage.refused(MalformedPayloadError)
    assert "lies outside an image" in stage.server.reports[-1].message


def test_55_a_delta_that_makes_something_else_is_never_started(stage):
    """A delta, signed by mistake, makes another image: the device takes the whole one, in the same attempt."""
    old = make_bundle("1.0")
    wrong = delta(PRODUCT, "1.1", old, make_bundle("6.6"))
    publish(stage, whole(PRODUCT, "1.1", image_of("1.1")) + wrong)
    ran = stage.victim.run("all", "--yes")
    assert ran.exit_code == 0, ran.err
    assert stage.victim.installed == "1.1"
    last = stage.server.reports[-1]
    assert (last.status.value, next(iter(last.log))[:9]) == ("confirmed", "fell back")
    stage.told.append({"code": "(fell back to the whole image)", "asked": list(stage.server.asked)})


def test_55_a_delta_against_another_precursor_is_not_fetched(stage):
    """The director names a delta that starts from an image this device does not run."""
    wrong = delta(PRODUCT, "1.1", make_bundle("0.9"), image_of("1.1"))
    publish(stage, whole(PRODUCT, "1.1", image_of("1.1")) + wrong)
    ran = stage.refused("applicability/requirement")
    assert not any("/targets/" in line for line in stage.told[-1]["asked"]), json.dumps(ran.err)[:300]
