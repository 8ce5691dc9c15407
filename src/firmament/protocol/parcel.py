"""The parcel: one file that carries an update to devices without a network, and the receipt that comes back.

A parcel is a line, a header and members, one behind the other, and nothing else:

    firmament-parcel/1 <length of header> <sha256 of header, hex> LF
    header: canonical JSON, which lists the members in their order
    the bytes of each member

Members have roles, not paths: no name of one is ever a name on a file system. The header is not
signed and decides nothing; what counts is the signed metadata inside (docs/protocol/parcel.md).
Its digests find damage, before anything is begun.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Self

from firmament.core import canonical
from firmament.core.digest import Digest
from firmament.core.fields import Fields, format_time
from firmament.core.ids import PRODUCT, TARGET_PATH, UUID, AttemptId, DeviceId
from firmament.core.manifest import MAX_IMAGE_LENGTH_BYTES
from firmament.errors import MalformedError, TooLargeError
from firmament.protocol.status import FINAL_STATUSES, AttemptStatus

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

VERSION: Final = 1
SUFFIX: Final = ".parcel"
RECEIPT_SUFFIX: Final = ".receipt"
RECEIPT_TYPE: Final = "application/vnd.firmament.receipt+json;v=1"
MAX_FIRST_LINE_LENGTH_BYTES: Final = 128
MAX_HEADER_LENGTH_BYTES: Final = 1024 * 1024
MAX_MEMBERS: Final = 4096
# A member is about 150 bytes of header.
MAX_DEVICES: Final = 1000
# One release for one site; more sites are more sticks. A device's metadata is 2 KiB, 5 KiB with wraps.
MAX_METADATA_LENGTH_BYTES: Final = 5_000_000
# As of one TUF file (trust/client.py), which has the narrower limit of each role.
MAX_DEVICE_LENGTH_BYTES: Final = 256 * 1024
MAX_RECEIPT_LENGTH_BYTES: Final = 64 * 1024
_FIRST_LINE: Final = re.compile(rb"firmament-parcel/([1-9][0-9]{0,3}) ([1-9][0-9]{0,7}) ([0-9a-f]{64})\n")
_MEMBER: Final = re.compile(
    r"image/(?:timestamp|[1-9][0-9]{0,18}\.[a-z0-9-]{1,63})\.json"
    r"|director/[1-9][0-9]{0,18}\.root\.json"
    rf"|device/{UUID.pattern}|payload/[0-9a-f]{{64}}|provisioning"
)


class ParcelKind(StrEnum):
    """Who says that a device shall install it."""

    DIRECTOR = "director"
    """The director, for each device named; the usual kind."""
    REPOSITORY = "repository"
    """Nobody but the author: for any device of the product whose settings allow it."""


@dataclass(frozen=True, slots=True)
class Member:
    """One of the parts, by its role."""

    name: str
    length_bytes: int
    digest: Digest

    def to_json(self) -> dict[str, Any]:  # noqa: D102
        return {"name": self.name, "length_bytes": self.length_bytes, "sha256": self.digest.hex}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a member lies in the file."""

    member: Member
    offset: int


@dataclass(frozen=True, slots=True)
class Parcel:
    """The header."""

    parcel_id: str
    kind: ParcelKind
    product: str
    target: str
    """TUF path of the release's primary target; counts only without a director."""
    created_at: datetime
    expires_at: datetime
    """When its metadata expires, for people; devices judge by what is signed."""
    members: tuple[Member, ...]

    def to_json(self) -> dict[str, Any]:  # noqa: D102
        return {
            "v": VERSION,
            "parcel_id": self.parcel_id,
            "kind": self.kind.value,
            "product": self.product,
            "target": self.target,
            "created_at": format_time(self.created_at),
            "expires_at": format_time(self.expires_at),
            "members": [member.to_json() for member in self.members],
        }

    @property
    def release_id(self) -> str:
        """``<product>/<version>``."""
        return self.target.rpartition("/")[0]

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices it is for; empty: any of the product."""
        return tuple(one.name.removeprefix("device/") for one in self.members if one.name.startswith("device/"))

    def places(self, begin: int) -> dict[str, Place]:
        """Return each member's place when the first begins at offset `begin`."""
        found: dict[str, Place] = {}
        for member in self.members:
            found[member.name] = Place(member, begin)
            begin += member.length_bytes
        return found

    @property
    def content_length_bytes(self) -> int:
        """The length of all members together."""
        return sum(member.length_bytes for member in self.members)


def limit_of(name: str) -> int:
    """Return how long a member may be."""
    if name.startswith("payload/"):
        return MAX_IMAGE_LENGTH_BYTES
    return MAX_DEVICE_LENGTH_BYTES if name.startswith("device/") else MAX_METADATA_LENGTH_BYTES


def encode_beginning(parcel: Parcel) -> bytes:
    """Return the line and the header; the members follow. Raises TooLargeError."""
    header = canonical.encode(parcel.to_json())
    if len(header) > MAX_HEADER_LENGTH_BYTES:
        raise TooLargeError("The parcel has too many members", length_bytes=len(header))
    return b"firmament-parcel/%d %d %b\n" % (VERSION, len(header), Digest.of(header).hex.encode()) + header


def decode_first_line(data: bytes) -> tuple[int, int, Digest]:
    """Return where the header begins, its length and digest; raises MalformedError or TooLargeError.

    `data` is the beginning of the file, at least `MAX_FIRST_LINE_LENGTH_BYTES` of it if it has so many.
    """
    found = _FIRST_LINE.match(data[:MAX_FIRST_LINE_LENGTH_BYTES])
    if found is None:
        raise MalformedError("This is not a parcel")
    version, length = int(found[1]), int(found[2])
    if version != VERSION:
        raise MalformedError("The parcel has a version that is not known here", found=version, known=VERSION)
    if length > MAX_HEADER_LENGTH_BYTES:
        raise TooLargeError("The header of the parcel is longer than allowed", length_bytes=length)
    return found.end(), length, Digest("sha256", bytes.fromhex(found[3].decode()))


def decode_header(data: bytes, digest: Digest) -> Parcel:
    """Read the header; raises MalformedError for damage, a member without a role, or one that is there twice."""
    if Digest.of(data) != digest:
        raise MalformedError("The parcel is damaged", part="header")
    fields = Fields(canonical.decode_object(data, limit_bytes=MAX_HEADER_LENGTH_BYTES, what="parcel"), what="parcel")
    if fields.integer("v") != VERSION:
        raise MalformedError("The parcel has a version that is not known here", found=fields.integer("v"))
    members = tuple(_member(item) for item in fields.objects("members", max_items=MAX_MEMBERS))
    if len({member.name for member in members}) != len(members):
        raise MalformedError("A member is in the parcel twice")
    parcel = Parcel(
        parcel_id=fields.text("parcel_id", pattern=UUID),
        kind=fields.one_of("kind", ParcelKind),
        product=fields.text("product", pattern=PRODUCT),
        target=fields.text("target", max_length=512, pattern=TARGET_PATH),
        created_at=fields.time("created_at"),
        expires_at=fields.time("expires_at"),
        members=members,
    )
    if len(parcel.devices) > MAX_DEVICES:
        raise TooLargeError("The parcel is for too many devices", devices=len(parcel.devices), limit=MAX_DEVICES)
    return parcel


def _member(fields: Fields) -> Member:
    name = fields.text("name", max_length=128, pattern=_MEMBER)
    digest = Digest("sha256", fields.hex_bytes("sha256", length=32))
    if name.startswith("payload/") and name != f"payload/{digest.hex}":
        raise MalformedError("A payload in the parcel has another name than its digest", name=name)
    length = fields.integer("length_bytes", maximum=limit_of(name))
    return Member(name, length, digest)


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a device did with a parcel; travels inside an envelope that the device's identity key signed.

    Beside it travels the signed report of the outcome, byte for byte what the device would have sent.
    """

    device_id: DeviceId
    attempt_id: AttemptId
    release_id: str
    outcome: AttemptStatus
    report_number: int
    report_digest: Digest
    """Of the report's signed bytes: the two belong together."""
    version: str
    """Of the image that runs now, as the two below."""
    sequence_number: int
    image_digest: str
    at: datetime
    """The device's own idea of the time; information, never trusted."""

    def to_json(self) -> dict[str, Any]:  # noqa: D102
        return {
            "v": VERSION,
            "device_id": self.device_id,
            "attempt_id": self.attempt_id,
            "release_id": self.release_id,
            "outcome": self.outcome.value,
            "report_number": self.report_number,
            "report_sha256": self.report_digest.hex,
            "version": self.version,
            "sequence_number": self.sequence_number,
            "image_digest": self.image_digest,
            "at": format_time(self.at),
        }


def decode_receipt(data: bytes) -> Receipt:
    """Read the payload of a receipt envelope whose signature was verified; raises MalformedError."""
    fields = Fields(canonical.decode_object(data, limit_bytes=MAX_RECEIPT_LENGTH_BYTES, what="receipt"), what="receipt")
    outcome = fields.one_of("outcome", AttemptStatus)
    if outcome not in FINAL_STATUSES:
        raise MalformedError("A receipt says how an attempt ended", found=outcome.value)
    return Receipt(
        device_id=DeviceId(fields.text("device_id", pattern=UUID)),
        attempt_id=AttemptId(fields.text("attempt_id", pattern=UUID)),
        release_id=fields.text("release_id", max_length=128, default=""),
        outcome=outcome,
        report_number=fields.integer("report_number", minimum=1),
        report_digest=Digest("sha256", fields.hex_bytes("report_sha256", length=32)),
        version=fields.text("version", max_length=64, default=""),
        sequence_number=fields.integer("sequence_number"),
        image_digest=fields.text("image_digest", max_length=140, default=""),
        at=fields.time("at"),
    )


@dataclass(frozen=True, slots=True)
class ReceiptFile:
    """The file a device writes beside the parcel: two signed envelopes and whose they are."""

    device_id: DeviceId
    receipt: dict[str, Any]
    report: dict[str, Any]

    def to_json(self) -> dict[str, Any]:  # noqa: D102
        return {"v": VERSION, "device_id": self.device_id, "receipt": self.receipt, "report": self.report}

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Read the file's fields; the envelopes are opened with the key of the device that it names."""
        if fields.integer("v") != VERSION:
            raise MalformedError("The receipt has a version that is not known here", found=fields.integer("v"))
        return cls(
            DeviceId(fields.text("device_id", pattern=UUID)),
            fields.object("receipt").value,
            fields.object("report").value,
        )


def member_of(name: str, data: Iterable[bytes], length_bytes: int) -> Member:
    """Describe a member from its bytes; raises MalformedError for a name without a role, TooLargeError."""
    if not _MEMBER.fullmatch(name):
        raise MalformedError("A member of a parcel has a role", found=name[:80])
    if length_bytes > limit_of(name):
        raise TooLargeError("A member of the parcel is longer than allowed", name=name, length_bytes=length_bytes)
    return Member(name, length_bytes, Digest.of(data))
