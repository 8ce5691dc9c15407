"""Say what a file is, and how two releases differ; verifies nothing."""

from __future__ import annotations

import uuid
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from firmament.core import canonical
from firmament.core.bundle import Entry, EntryKind
from firmament.core.fields import format_time
from firmament.core.manifest import decode as decode_manifest
from firmament.errors import FileError, FirmamentError, UnsafeArchiveError
from firmament.payload import mcuboot, sealed
from firmament.payload.sealing import SUITES
from firmament.release import bundle
from firmament.release.store import chunks, digest_of
from firmament.trust import repository
from firmament.trust.roles import TOP_LEVEL

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from firmament.core.manifest import Manifest
    from firmament.durable import Disk

MAX_JSON_LENGTH_BYTES: Final = repository.MAX_METADATA_LENGTH_BYTES["targets"]
MAX_LISTED: Final = 10_000
_KINDS: Final = {kind.type: kind for kind in (Root, Targets, Snapshot, Timestamp)}


def inspect(disk: Disk, path: Path) -> dict[str, Any]:
    """Describe a file: TUF metadata, release.json, a bundle, an MCUboot image, a sealed payload, or just bytes.

    Raises FileError if it cannot be read.
    """
    length_bytes = disk.length_bytes(path)
    if length_bytes is None:
        raise FileError("The file does not exist", path=path)
    facts: dict[str, Any] = {"path": str(path), "length_bytes": length_bytes, "digest": str(digest_of(disk, path))}
    head = next(chunks(disk, path), b"")
    if mcuboot.has_magic(head):
        return facts | {"kind": "mcuboot", **_mcuboot(disk, path, length_bytes)}
    if head.startswith(sealed.MAGIC):
        return facts | {"kind": "sealed", **_sealed(head, length_bytes)}
    if head[:1] == b"{" and length_bytes <= MAX_JSON_LENGTH_BYTES:
        return facts | _json(b"".join(chunks(disk, path)))
    if head[257:263] == b"ustar\0" or not any(head[:1024]):
        return facts | _bundle(chunks(disk, path))
    return facts | {"kind": "file"}


def diff(old: Manifest, new: Manifest) -> dict[str, list[Any]]:
    """Return the fields of two manifests that differ, ``{"class": [old, new]}``."""
    before, after = old.to_json(), new.to_json()
    return {
        name: [before.get(name), after.get(name)]
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    }


def diff_bundles(disk: Disk, old: Path, new: Path) -> dict[str, list[str]]:
    """Return the paths that were added, removed and changed between two bundles."""
    before, after = _contents(disk, old), _contents(disk, new)
    return {
        "added": sorted(set(after) - set(before)),
        "removed": sorted(set(before) - set(after)),
        "changed": sorted(path for path in set(before) & set(after) if before[path] != after[path]),
    }


def _contents(disk: Disk, path: Path) -> dict[str, tuple[Entry, bytes]]:
    from hashlib import sha256

    from firmament.core.bundle import Reader

    reader, hashers, entries = Reader(), {}, {}
    current = ""
    for piece in chunks(disk, path):
        for item in reader.feed(piece):
            if isinstance(item, Entry):
                current = item.path
                entries[current], hashers[current] = item, sha256()
            else:
                hashers[current].update(item)
    reader.finish()
    return {name: (entry, hashers[name].digest()) for name, entry in entries.items()}


def _mcuboot(disk: Disk, path: Path, length_bytes: int) -> dict[str, Any]:
    try:
        with closing(disk.open_reader(path)) as reader:
            found = mcuboot.read_image(reader, length_bytes)
    except FirmamentError as error:
        return {"problem": error.problem, "facts": error.facts}
    return {
        "version": found.version,
        "security_counter": found.security_counter,
        "dependencies": [f"{item.image}:{item.version}" for item in found.dependencies],
        "vendor_id": None if found.vendor_id is None else str(uuid.UUID(bytes=found.vendor_id)),
        "class_id": None if found.class_id is None else str(uuid.UUID(bytes=found.class_id)),
        "is_encrypted": found.is_encrypted,
        "header_length_bytes": found.header_length_bytes,
        "body_length_bytes": found.body_length_bytes,
        "tlvs": [
            {"type": mcuboot.name_of(tlv), "length_bytes": tlv.length_bytes, "is_protected": tlv.is_protected}
            for tlv in found.tlvs
        ],
    }


def _sealed(head: bytes, length_bytes: int) -> dict[str, Any]:
    try:
        header = sealed.Header.decode(head[: sealed.HEADER_LENGTH_BYTES], max_plain_length_bytes=length_bytes)
    except FirmamentError as error:
        return {"problem": error.problem, "facts": error.facts}
    return {
        "suite": next(name for name, suite in SUITES.items() if suite is header.suite),
        "plain_length_bytes": header.plain_length_bytes,
        "chunk_length_bytes": header.chunk_length_bytes,
        "chunks": header.chunk_count,
        "file_id": header.file_id.hex(),
        **({} if header.sealed_length_bytes == length_bytes else {"problem": "it is cut short or longer than it says"}),
    }


def _bundle(pieces: Iterator[bytes]) -> dict[str, Any]:
    try:
        found = bundle.check(pieces)
    except UnsafeArchiveError as error:
        return {"kind": "archive", "problem": f"not a bundle: {error.problem}", "facts": error.facts}
    entries = [entry for entry, _ in found]
    return {
        "kind": "bundle",
        "members": len(entries),
        "content_length_bytes": sum(entry.length_bytes for entry in entries),
        "listing": [
            f"{entry.mode:o} {entry.length_bytes} {entry.path}"
            + (f" -> {entry.link}" if entry.kind is EntryKind.SYMLINK else "")
            for entry in entries[:MAX_LISTED]
        ],
    }


def _json(data: bytes) -> dict[str, Any]:
    try:
        value = canonical.decode_object(data, limit_bytes=MAX_JSON_LENGTH_BYTES, what="The file")
        if isinstance(value.get("signed"), dict):
            kind = _KINDS.get(str(value["signed"].get("_type")))
            if kind is not None:
                return _metadata(repository.read(data, kind, what="The file"))
        if "manifest" in value:
            manifest = decode_manifest(value["manifest"])
            return {"kind": "release", "release": manifest.release_id, "manifest": manifest.to_json()}
    except FirmamentError as error:
        return {"kind": "json", "problem": error.problem, "facts": error.facts}
    return {"kind": "json", "keys": sorted(value)[:50]}


def _metadata(metadata: Metadata[Any]) -> dict[str, Any]:
    signed = metadata.signed
    facts: dict[str, Any] = {
        "kind": signed.type,
        "version": signed.version,
        "expires_at": format_time(signed.expires),
        "signed_by": sorted(metadata.signatures),
    }
    if isinstance(signed, Root):
        roles = {role: repository.role_keys(signed, role) for role in TOP_LEVEL}
        facts["roles"] = {
            role: {
                "threshold": keys.threshold,
                "hybrid_minimum": keys.hybrid_minimum,
                "keyids": [key.keyid for key in keys.keys],
            }
            for role, keys in roles.items()
        }
    elif isinstance(signed, Targets):
        facts["releases"] = sorted(repository.releases_of(signed))
        facts["delegations"] = sorted((signed.delegations.roles or {}) if signed.delegations is not None else {})
    elif isinstance(signed, Snapshot):
        facts["versions"] = {name: meta.version for name, meta in sorted(signed.meta.items())}
    elif isinstance(signed, Timestamp):
        facts["snapshot_version"] = signed.snapshot_meta.version
    return facts
