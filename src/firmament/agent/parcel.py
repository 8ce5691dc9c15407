"""A parcel on the device: read strictly, believed as little as a server (docs/protocol/parcel.md).

`ParcelFile` reads members by role; nothing in the file is ever a name on the storage. `read_offer`
takes the same verification walk as a poll, over the parcel's metadata instead of the net's, and
reads every byte that an update would need before it says yes: what is damaged is found while
nothing has been begun.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from firmament.agent.ports import Answer, Offer
from firmament.core.digest import Digest
from firmament.core.ids import AttemptId
from firmament.core.manifest import CHUNKS_SUFFIX
from firmament.errors import (
    DeviceMismatchError,
    FileError,
    ForbiddenError,
    HttpStatusError,
    LengthExceededError,
    MalformedError,
    ProductMismatchError,
    TruncatedError,
)
from firmament.protocol.parcel import (
    MAX_FIRST_LINE_LENGTH_BYTES,
    ParcelKind,
    decode_first_line,
    decode_header,
)
from firmament.protocol.v1.messages import decode_poll_reply
from firmament.trust.client import CarriedClient, DirectorClient
from firmament.trust.walk import BEGINNING, verify_carried, verify_carried_release, verify_image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from firmament.agent.link import Relation
    from firmament.core.manifest import Payload
    from firmament.durable import Disk
    from firmament.protocol.parcel import Parcel, Place
    from firmament.protocol.v1.messages import PollReply
    from firmament.trust.floors import Floors, FloorValues
    from firmament.trust.walk import Device

NOT_FOUND: Final = 404
PIECE_BYTES: Final = 64 * 1024
BASE: Final = "parcel:/"
BEGINNING_OF_FILE: Final = b"firmament-parcel/"


class ParcelFile:
    """An open parcel; raises FileError, MalformedError or TooLargeError for one that cannot be used."""

    def __init__(self, disk: Disk, path: Path) -> None:
        length = disk.length_bytes(path)
        if length is None:
            raise FileError("There is no such parcel", path=path)
        self._path = path
        self._reader = disk.open_reader(path)
        try:
            self.parcel, begin = self._read_header(length)
        except BaseException:
            self._reader.close()
            raise
        self._places = self.parcel.places(begin)

    def _read_header(self, length_bytes: int) -> tuple[Parcel, int]:
        """Return the header and where the first member begins."""
        beginning = self._reader.read_at(0, MAX_FIRST_LINE_LENGTH_BYTES)
        begin, header_length, digest = decode_first_line(beginning)
        parcel = decode_header(self._reader.read_at(begin, header_length), digest)
        begin += header_length
        if length_bytes != begin + parcel.content_length_bytes:
            raise MalformedError(
                "The parcel is cut off, or something is behind its end",
                length_bytes=length_bytes,
                expected=begin + parcel.content_length_bytes,
            )
        return parcel, begin

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._reader.close()

    def __contains__(self, name: str) -> bool:
        """Whether there is such a member."""
        return name in self._places

    def length_bytes(self, name: str) -> int | None:
        """Return how long a member is, None if there is none."""
        place = self._places.get(name)
        return None if place is None else place.member.length_bytes

    def names(self, prefix: str) -> Iterator[str]:
        """Yield the members that begin so, without the prefix."""
        return (name.removeprefix(prefix) for name in self._places if name.startswith(prefix))

    def read(self, name: str, *, limit_bytes: int) -> bytes:
        """Return a small member; raises MalformedError for damage, LengthExceededError above the limit."""
        place = self._places[name]
        if place.member.length_bytes > limit_bytes:
            raise LengthExceededError("A member of the parcel is longer than allowed", name=name, limit=limit_bytes)
        data = self._reader.read_at(place.offset, place.member.length_bytes)
        _require_whole(place, Digest.of(data), len(data))
        return data

    def stream(self, name: str, *, offset: int, end: int, piece_bytes: int = PIECE_BYTES) -> Iterator[bytes]:
        """Yield the bytes of a member from `offset` to `end`; raises TruncatedError when the storage ends early."""
        place = self._places[name]
        while offset < end:
            piece = self._reader.read_at(place.offset + offset, min(piece_bytes, end - offset))
            if not piece:
                raise TruncatedError("The parcel ended early", path=self._path, got=offset)
            offset += len(piece)
            yield piece

    def check(self, name: str) -> None:
        """Read a member to its end; raises MalformedError for damage."""
        place = self._places[name]
        pieces = self.stream(name, offset=0, end=place.member.length_bytes)
        _require_whole(place, Digest.of(pieces), place.member.length_bytes)


def _require_whole(place: Place, found: Digest, length_bytes: int) -> None:
    if (found, length_bytes) != (place.member.digest, place.member.length_bytes):
        raise MalformedError("The parcel is damaged", part=place.member.name)


class _Members:
    """`trust.client.Source` over the members with one prefix."""

    def __init__(self, file: ParcelFile, prefix: str, reply: PollReply | None = None) -> None:
        self._file = file
        self._prefix = prefix
        self._reply: dict[str, str] = {}
        if reply is not None:
            self._reply = {"timestamp": reply.timestamp, "snapshot": reply.snapshot, "targets": reply.targets}

    def fetch(self, url: str, *, limit_bytes: int) -> bytes:
        """Return a metadata file by the last element of its address."""
        last = url.rpartition("/")[2]
        role = last.removesuffix(".json").rpartition(".")[2]
        if role in self._reply:
            return self._reply[role].encode()
        name = f"{self._prefix}/{last}"
        if name not in self._file:
            raise HttpStatusError("The parcel does not hold this metadata", status=NOT_FOUND, url=name)
        return self._file.read(name, limit_bytes=limit_bytes)

    def stream(self, url: str, *, offset: int, length_bytes: int) -> Iterator[bytes]:
        """Refuse: payloads do not go through the client."""
        message = f"payloads are read by their digest: {url} {offset} {length_bytes}"
        raise RuntimeError(message)


@dataclass(frozen=True, slots=True)
class Around:
    """What the walk needs beside the parcel."""

    relation: Relation
    disk: Disk
    floors: Floors
    now: datetime
    takes_repository_parcels: bool
    device_of: Callable[[FloorValues], Device]
    """What the device runs now, given the floors as they are after the director's word."""


def read_offer(path: Path, around: Around) -> Answer:
    """Verify a parcel for this device; raises TrustError, ApplicabilityError, or what is wrong with the file.

    Floors are raised by what is verified, as by a poll; nothing else changes.
    """
    with ParcelFile(around.disk, path) as file:
        parcel, relation = file.parcel, around.relation
        if parcel.product != relation.product:
            raise ProductMismatchError("The parcel is for another product", device=relation.product, got=parcel.product)
        mine = f"device/{relation.device_id}"
        for name in file.names(""):
            if name == mine or not name.startswith("device/"):
                file.check(name)
        answer = _from_director(file, around) if parcel.kind is ParcelKind.DIRECTOR else _from_author(file, around)
        assert answer.offer is not None
        payload = answer.offer.payload
        for name, length in _needed(payload):
            if file.length_bytes(name) != length:
                raise MalformedError("The parcel does not hold the payload as it was signed", part=name)
        return answer


def _needed(payload: Payload) -> Iterator[tuple[str, int]]:
    yield f"payload/{payload.digest.hex}", payload.length_bytes
    if payload.chunks is not None:
        yield (
            f"payload/{payload.chunks.list_digest.hex}",
            payload.chunks.list_length_bytes(payload.length_bytes),
        )


def _from_director(file: ParcelFile, around: Around) -> Answer:
    relation = around.relation
    name = f"device/{relation.device_id}"
    if name not in file:
        raise DeviceMismatchError("The parcel is not for this device", device_id=relation.device_id)
    reply = decode_poll_reply(file.read(name, limit_bytes=512 * 1024))
    director = DirectorClient(
        disk=around.disk,
        directory=relation.metadata_directory / "director",
        anchor=relation.director_root,
        source=_Members(file, "director", reply),
        floors=around.floors,
        metadata_url=f"{BASE}director/",
        reference_time=BEGINNING,
    )
    issued_at, moment, assignment = verify_carried(
        director, parcel_id=file.parcel.parcel_id, device_id=relation.device_id, now=around.now
    )
    release = verify_image(_image(file, around, moment), assignment, device=around.device_of(around.floors.load()))
    offer = Offer.of(assignment, release, issued_at)
    return Answer(offer, 0, issued_at)


def _from_author(file: ParcelFile, around: Around) -> Answer:
    if not around.takes_repository_parcels:
        raise ForbiddenError(
            "This device takes parcels from its director only", setting="policy.repository_parcels", way="export for it"
        )
    values = around.floors.load()
    moment = max(filter(None, (values.time, around.now)))
    carried = frozenset(file.names("payload/"))
    release = verify_carried_release(
        _image(file, around, moment), file.parcel.target, carried=carried, device=around.device_of(values)
    )
    # Made here, and the same whenever this parcel comes again.
    seed = f"{around.relation.device_id}/{file.parcel.parcel_id}/{release.manifest.release_id}"
    attempt_id = AttemptId(str(uuid.uuid5(uuid.NAMESPACE_URL, seed)))
    return Answer(Offer(attempt_id, release.manifest, release.payload, None, moment, is_local=True), 0, moment)


def _image(file: ParcelFile, around: Around, moment: datetime) -> CarriedClient:
    return CarriedClient(
        disk=around.disk,
        directory=around.relation.metadata_directory / "image",
        anchor=around.relation.image_root,
        source=_Members(file, "image"),
        floors=around.floors,
        metadata_url=f"{BASE}image/",
        targets_url=f"{BASE}payload/",
        reference_time=moment,
    )


def provisioning_in(disk: Disk, path: Path, *, limit_bytes: int) -> bytes | None:
    """Return the provisioning file that a parcel holds; None for any other file. Raises FileError, MalformedError."""
    length = disk.length_bytes(path)
    if length is None:
        raise FileError("The file does not exist", path=path)
    reader = disk.open_reader(path)
    try:
        is_parcel = reader.read_at(0, len(BEGINNING_OF_FILE)) == BEGINNING_OF_FILE
    finally:
        reader.close()
    if not is_parcel:
        return None
    with ParcelFile(disk, path) as file:
        if "provisioning" not in file:
            raise MalformedError("The parcel holds no provisioning file", path=path)
        return file.read("provisioning", limit_bytes=limit_bytes)


def open_payload(
    disk: Disk, path: Path, payload: Payload, *, offset: int, end: int, piece_bytes: int = PIECE_BYTES
) -> Iterator[bytes]:
    """Yield payload bytes from a parcel; raises FileError or a MalformedError when it is not there any more."""
    with ParcelFile(disk, path) as file:
        name = f"payload/{payload.digest.hex}"
        if name not in file:
            raise MalformedError("The parcel does not hold the payload", part=name)
        yield from file.stream(name, offset=offset, end=end, piece_bytes=piece_bytes)


def fetch_chunk_list(disk: Disk, path: Path, payload: Payload) -> bytes:
    """Return the payload's chunk list from a parcel; raises as `open_payload`."""
    assert payload.chunks is not None
    with ParcelFile(disk, path) as file:
        name = f"payload/{payload.chunks.list_digest.hex}"
        if name not in file:
            raise MalformedError("The parcel does not hold the chunk list", part=payload.target + CHUNKS_SUFFIX)
        return file.read(name, limit_bytes=payload.chunks.list_length_bytes(payload.length_bytes))
