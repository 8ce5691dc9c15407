"""Releases with payloads of other kinds than whole ones, signed by the honest author, for stories about them."""

import hashlib

from attack.hostile import make_bundle
from support.world import PRODUCT

from firmament.agent.identity import CURRENT, HPKE_KEY
from firmament.payload import wrap
from firmament.payload.sealed import Suite
from firmament.payload.wrap import Purpose
from firmament.sim.server import Packed, delta, sealed, whole
from firmament.trust import repository

SECRET = b"the recipe that nobody may read"
EXTRA = {"recipe": SECRET * 40, "zeros": hashlib.shake_128(b"noise").digest(300_000)}


def image_of(version):
    return make_bundle(version, extra=EXTRA)


def public_key(stage) -> bytes:
    return wrap.public_of((stage.victim.state / CURRENT / HPKE_KEY).read_bytes())


def publish(stage, packed: Packed, version="1.1", *, chosen=-1, key=None, device_id=None, confidential=False):
    """Publish a release with these payloads and let the director name one, with its key and a fallback's."""
    world = stage.world
    image = image_of(version)
    manifest = world.release(version, 2, image, assign=False, payloads=packed.payloads, confidential=confidential)
    world.image.blobs = {name: data for name, data in world.image.blobs.items() if f"/{version}/" not in name}
    for path, target in repository.release_targets(manifest).items():
        world.image.blobs[repository.target_file_name(target)] = packed.files[path]

    def wrapped(payload):
        if payload.target not in packed.keys:
            return None
        purpose = Purpose(device_id or world.device_id, manifest.release_id, payload.digest.value)
        return wrap.wrap(packed.keys[payload.target], key or public_key(stage), purpose)

    payload, first = packed.payloads[chosen], packed.payloads[0]
    other = {"fallback": first.target, "fallback_wrap": wrapped(first)} if payload is not first else {}
    world.assign(manifest, payload=payload.target, key_wrap=wrapped(payload), **other)
    return manifest


def sealed_whole(version="1.1", suite=Suite.AES_256_GCM) -> Packed:
    return sealed(whole(PRODUCT, version, image_of(version)), suite=suite)


def delta_and_whole(version="1.1") -> Packed:
    """A delta from what the victim runs, which the director names, beside the whole image."""
    image = image_of(version)
    return whole(PRODUCT, version, image) + delta(PRODUCT, version, make_bundle("1.0"), image)
