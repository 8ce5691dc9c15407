"""Parcels for the world in memory (support/world.py): whole and valid until a test breaks one thing."""

import json
from dataclasses import replace
from datetime import timedelta

from firmament.core import canonical
from firmament.core.digest import Digest
from firmament.core.manifest import CHUNKS_SUFFIX
from firmament.protocol.parcel import Parcel, ParcelKind, encode_beginning, member_of
from firmament.trust import repository
from firmament.trust.director import make_carried

PARCEL_ID = "11111111-2222-4333-8444-555555555555"


def contents(world, *, days=14, kind=ParcelKind.DIRECTOR, **changes):
    """Return member name -> bytes, in the order of the file."""
    image, now = world.image, world.clock.now()
    manifest = max(image.releases.values(), key=lambda release: release.sequence_number)
    expires_at = now + timedelta(days=days)
    version = image.versions
    longer = {
        "snapshot": repository.make_snapshot(
            version=version["snapshot"],
            expires_at=expires_at,
            versions={name: number for name, number in version.items() if name not in {"snapshot", "timestamp"}},
        ),
        "timestamp": repository.make_timestamp(
            version=version["timestamp"], expires_at=expires_at, snapshot_version=version["snapshot"]
        ),
    }
    files = dict(image.files)
    for name, metadata in longer.items():
        signed = repository.sign(metadata, image.keys[name])
        files[repository.file_name(name, metadata)] = repository.encode(signed)
    made = {}
    if kind is ParcelKind.DIRECTOR:
        made |= {f"director/{name}": data for name, data in sorted(world.director_files.items())}
        facts = {
            "device_id": world.device_id,
            "parcel_id": PARCEL_ID,
            "assignment": world.assignment,
            "now": now,
            "expires_at": expires_at,
            "version": next(world.version),
        }
        facts |= changes
        reply = make_carried(world.director_keys(), **facts)
        made[f"device/{facts['device_id']}"] = json.dumps(reply.to_json()).encode()
    made |= {f"image/{name}": data for name, data in sorted(files.items())}
    for payload in manifest.payloads:
        for target, digest in [(payload.target, payload.digest)] + (
            [(payload.target + CHUNKS_SUFFIX, payload.chunks.list_digest)] if payload.chunks else []
        ):
            prefix, _, name = target.rpartition("/")
            made[f"payload/{digest.hex}"] = image.blobs[f"{prefix}/{digest.hex}.{name}"]
    return made


def encode(world, members, *, kind=ParcelKind.DIRECTOR, **changes):
    """Return the file's bytes; the header's digests are right, whatever the members are."""
    manifest = max(world.image.releases.values(), key=lambda release: release.sequence_number)
    now = world.clock.now()
    parcel = Parcel(
        parcel_id=PARCEL_ID,
        kind=kind,
        product=manifest.product,
        target=manifest.payloads[0].target,
        created_at=now,
        expires_at=now + timedelta(days=14),
        members=tuple(member_of(name, (data,), len(data)) for name, data in members.items()),
    )
    return encode_beginning(replace(parcel, **changes)) + b"".join(members.values())


def write(path, data):
    path.write_bytes(data)
    return path


def make(world, path, **changes):
    """Write a parcel for the world's newest release."""
    return write(path, encode(world, contents(world, **changes), kind=changes.get("kind", ParcelKind.DIRECTOR)))


def split(data):
    """Return a parcel's header and its members' bytes."""
    line, _, rest = data.partition(b"\n")
    length = int(line.split()[1])
    return json.loads(rest[:length]), rest[length:]


def join(header, rest):
    """Return a parcel with a header of one's own, spelled and digested right."""
    data = canonical.encode(header)
    return b"firmament-parcel/1 %d %s\n" % (len(data), Digest.of(data).hex.encode()) + data + rest
