"""Write a parcel: what the server signed for it, and the payloads, into one file that is whole or not there."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from firmament.core import canonical
from firmament.core.digest import Digest
from firmament.core.fields import Fields
from firmament.core.ids import PRODUCT, TARGET_PATH, UUID
from firmament.core.manifest import MAX_IMAGE_LENGTH_BYTES
from firmament.durable import TEMPORARY_SUFFIX, public_mode_of
from firmament.errors import ConflictError, LengthExceededError, MalformedError, TruncatedError
from firmament.protocol.parcel import (
    MAX_DEVICE_LENGTH_BYTES,
    MAX_FIRST_LINE_LENGTH_BYTES,
    MAX_METADATA_LENGTH_BYTES,
    Member,
    Parcel,
    ParcelKind,
    decode_first_line,
    decode_header,
    encode_beginning,
    member_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from firmament.durable import Disk, Reader, Writer
    from firmament.protocol.parcel import Place

MAX_FILES: Final = 600
"""Metadata files of one repository, as in one publish."""
MAX_PAYLOADS: Final = 4
PIECE_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class CarriedPayload:
    """Bytes to fetch and carry."""

    target: str
    digest: Digest
    length_bytes: int


@dataclass(frozen=True, slots=True)
class Contents:
    """What the server answered."""

    parcel: Parcel
    """Without members."""
    small: Mapping[str, bytes]
    """Members but the payloads, by name."""
    payloads: tuple[CarriedPayload, ...]


def read_contents(value: Mapping[str, Any], *, provisioning: bytes | None = None) -> Contents:
    """Read the server's answer to ``POST /api/v1/parcels``; raises MalformedError."""
    fields = Fields(dict(value), what="parcel")
    parcel = Parcel(
        parcel_id=fields.text("parcel_id", pattern=UUID),
        kind=fields.one_of("kind", ParcelKind),
        product=fields.text("product", pattern=PRODUCT),
        target=fields.text("target", max_length=512, pattern=TARGET_PATH),
        created_at=fields.time("created_at"),
        expires_at=fields.time("expires_at"),
        members=(),
    )
    small: dict[str, bytes] = {}
    for kind in ("director", "image"):
        files = fields.text_map(kind, max_items=MAX_FILES, max_length=MAX_METADATA_LENGTH_BYTES)
        small |= {f"{kind}/{name}": text.encode() for name, text in sorted(files.items())}
    devices = fields.object("devices")
    for device_id in sorted(devices.value):
        data = canonical.encode(devices.object(device_id).value)
        small[f"device/{device_id}"] = data[: MAX_DEVICE_LENGTH_BYTES + 1]
    if provisioning is not None:
        small["provisioning"] = provisioning
    payloads = tuple(
        CarriedPayload(
            item.text("target", max_length=512, pattern=TARGET_PATH),
            Digest("sha256", item.hex_bytes("sha256", length=32)),
            item.integer("length_bytes", maximum=MAX_IMAGE_LENGTH_BYTES),
        )
        for item in fields.objects("payloads", max_items=MAX_PAYLOADS, min_items=1)
    )
    return Contents(parcel, small, payloads)


def write_parcel(
    disk: Disk, path: Path, contents: Contents, fetch: Callable[[CarriedPayload], Iterable[bytes]]
) -> Parcel:
    """Write the file and return its header; raises ConflictError when there is one of this name.

    `fetch` yields a payload's bytes, whose length and digest are checked: DigestMismatchError, and
    nothing is left.
    """
    if disk.exists(path):
        raise ConflictError("There is a file of this name", path=path)
    members = [member_of(name, (data,), len(data)) for name, data in contents.small.items()]
    members += [Member(f"payload/{one.digest.hex}", one.length_bytes, one.digest) for one in contents.payloads]
    parcel = replace(contents.parcel, members=tuple(members))
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    disk.remove(temporary)
    writer = disk.open_writer(temporary, mode=public_mode_of(disk, path.parent))
    try:
        offset = _append(writer, 0, encode_beginning(parcel))
        for data in contents.small.values():
            offset = _append(writer, offset, data)
        for payload in contents.payloads:
            offset = _append_payload(writer, offset, payload, fetch(payload))
        writer.sync()
    except BaseException:
        disk.remove(temporary)
        raise
    finally:
        writer.close()
    disk.replace(temporary, path)
    disk.sync_directory(path.parent)
    return parcel


def inspect_parcel(disk: Disk, path: Path) -> Parcel:
    """Read a parcel's header and compare every member with it; raises MalformedError for damage."""
    length = disk.length_bytes(path) or 0
    reader = disk.open_reader(path)
    try:
        begin, header_length, digest = decode_first_line(reader.read_at(0, MAX_FIRST_LINE_LENGTH_BYTES))
        parcel = decode_header(reader.read_at(begin, header_length), digest)
        begin += header_length
        if length != begin + parcel.content_length_bytes:
            raise MalformedError("The parcel is cut off, or something is behind its end", length_bytes=length)
        for place in parcel.places(begin).values():
            if Digest.of(_pieces(reader, place)) != place.member.digest:
                raise MalformedError("The parcel is damaged", part=place.member.name)
    finally:
        reader.close()
    return parcel


def _pieces(reader: Reader, place: Place) -> Iterator[bytes]:
    for start in range(0, place.member.length_bytes, PIECE_BYTES):
        yield reader.read_at(place.offset + start, min(PIECE_BYTES, place.member.length_bytes - start))


def _append(writer: Writer, offset: int, data: bytes) -> int:
    writer.write_at(offset, data)
    return offset + len(data)


def _append_payload(writer: Writer, offset: int, payload: CarriedPayload, pieces: Iterable[bytes]) -> int:
    hasher, left = hashlib.sha256(), payload.length_bytes
    for piece in pieces:
        left -= len(piece)
        if left < 0:
            raise LengthExceededError("The server sent more than was signed", target=payload.target)
        hasher.update(piece)
        offset = _append(writer, offset, piece)
    if left:
        raise TruncatedError("The payload ended early", target=payload.target, missing_bytes=left)
    payload.digest.require(Digest("sha256", hasher.digest()), what=f"The payload {payload.target}")
    return offset
