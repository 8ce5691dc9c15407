"""The manifest: the author's signed statement about one release.

It travels as the `custom` of a TUF target (architecture.md decision 4; RFC 9124 information
elements in brackets). The TUF target that carries it is the release's *primary* target: its
length and hashes are those of the payload named first. Further payloads (deltas, sealed forms)
are TUF targets of their own, named by `Payload.target`.

`decode(manifest.to_json())` gives the manifest back; a `v` this code does not know raises
UnknownManifestError, unknown fields are ignored. JSON Schema: protocol/schemas/manifest-1.json.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Self

from firmament.core import canonical
from firmament.core.digest import Digest
from firmament.core.fields import MAX_INTEGER, Fields, format_time
from firmament.core.ids import HARDWARE, PRODUCT, TARGET_PATH, VERSION, ReleaseId, release_id
from firmament.errors import MalformedError, TooLargeError, UnknownManifestError

if TYPE_CHECKING:
    from datetime import datetime

MANIFEST_VERSION: Final = 1
MAX_MANIFEST_LENGTH_BYTES: Final = 64 * 1024
# 20 languages of notes at 2 KiB and 16 payloads at 400 B come to 47 KiB.
# Precedents: python-tuf timestamp 16 KiB, targets 5 MB (ngclient/config.py).
MAX_IMAGE_LENGTH_BYTES: Final = 64 * 1024**3
# No device in scope has a slot above 64 GiB; the bound keeps arithmetic and progress honest.
MAX_PAYLOADS: Final = 16
MAX_HARDWARE: Final = 64
MAX_NOTES_LENGTH: Final = 2048
_LANGUAGE: Final = re.compile(r"[a-z]{2,3}(?:-[A-Za-z0-9]{2,8})?")
_INSTALLER: Final = re.compile(r"[a-z][a-z0-9-]{0,31}")
_METHOD: Final = re.compile(r"[a-z][a-z0-9-]{0,31}")
SEALED: Final = "sealed"
"""Payload method of a sealed payload; what is inside, and how it is applied, is in its facts."""
MIN_CHUNK_LENGTH_BYTES: Final = 4 * 1024
MAX_CHUNK_LENGTH_BYTES: Final = 16 * 1024**2
MAX_CHUNK_LIST_LENGTH_BYTES: Final = 4 * 1024**2
CHUNKS_SUFFIX: Final = ".chunks"
"""Added to a payload's target path, it names the target that is its chunk list."""
_DIGEST_LENGTH_BYTES: Final = 32


class UpdateClass(StrEnum):
    """What kind of update this is for the owner; consent policies differ by it (console.md §1.4)."""

    SECURITY = "security"
    FEATURE = "feature"


@dataclass(frozen=True, slots=True)
class Image:
    """The bytes that will sit in a slot and boot [RFC 9124: Payload Digest, Size]."""

    digest: Digest
    length_bytes: int

    def to_json(self) -> dict[str, Any]:  # noqa: D102 - inverse of the reader below
        return {"digest": self.digest.to_json(), "length_bytes": self.length_bytes}


@dataclass(frozen=True, slots=True)
class ChunkPin:
    """What a payload's facts say about its chunk list (docs/protocol/sealed.md)."""

    chunk_length_bytes: int
    list_digest: Digest

    def to_json(self) -> dict[str, Any]:
        """Return the value of `Payload.facts["chunks"]`."""
        return {"length_bytes": self.chunk_length_bytes, "list": self.list_digest.to_json()}

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Read it; raises MalformedError."""
        return cls(
            fields.integer("length_bytes", minimum=MIN_CHUNK_LENGTH_BYTES, maximum=MAX_CHUNK_LENGTH_BYTES),
            Digest.from_json(fields.object("list").value, what=f"{fields.what}.list"),
        )

    def list_length_bytes(self, payload_length_bytes: int) -> int:
        """Return the length of the list of a payload: 32 bytes for each piece."""
        return -(-payload_length_bytes // self.chunk_length_bytes) * _DIGEST_LENGTH_BYTES


@dataclass(frozen=True, slots=True)
class Inner:
    """What is inside a sealed payload."""

    method: str
    method_version: int
    length_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Return the value of `Payload.facts["inner"]`."""
        return {"method": self.method, "method_version": self.method_version, "length_bytes": self.length_bytes}


@dataclass(frozen=True, slots=True)
class Payload:
    """The bytes that travel: how they were made, and the TUF target that names their digest."""

    method: str
    """Row of the payload table, e.g. ``whole`` or ``refdelta``."""
    method_version: int
    target: str
    """TUF target path of the payload."""
    length_bytes: int
    digest: Digest
    precursor_digest: Digest | None = None
    """The image a delta applies to [RFC 9124: Precursor Image Digest]."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What only the method understands (e.g. compression, window); signed with the rest."""

    @property
    def is_sealed(self) -> bool:
        """Whether only devices with a wrapped content key can read it."""
        return self.method == SEALED

    @property
    def inner(self) -> Inner:
        """What is applied: of a sealed payload what is inside, else the payload itself."""
        if not self.is_sealed:
            return Inner(self.method, self.method_version, self.length_bytes)
        fields = Fields(self.facts, what="payload.facts").object("inner")
        return Inner(
            method=fields.text("method", pattern=_METHOD),
            method_version=fields.integer("method_version", minimum=1, maximum=255),
            length_bytes=fields.integer("length_bytes", maximum=MAX_IMAGE_LENGTH_BYTES),
        )

    @property
    def needs(self) -> tuple[str, ...]:
        """Every method that a device must know to apply it, as ``<method>/<version>``."""
        own = (f"{self.method}/{self.method_version}",)
        return (*own, f"{self.inner.method}/{self.inner.method_version}") if self.is_sealed else own

    @property
    def chunks(self) -> ChunkPin | None:
        """The pin of its chunk list, if it has one."""
        facts = Fields(self.facts, what="payload.facts")
        return ChunkPin.from_fields(facts.object("chunks")) if "chunks" in facts else None

    def to_json(self) -> dict[str, Any]:  # noqa: D102
        value: dict[str, Any] = {
            "method": self.method,
            "method_version": self.method_version,
            "target": self.target,
            "length_bytes": self.length_bytes,
            "digest": self.digest.to_json(),
        }
        if self.precursor_digest is not None:
            value["precursor_digest"] = self.precursor_digest.to_json()
        if self.facts:
            value["facts"] = self.facts
        return value


@dataclass(frozen=True, slots=True)
class Requires:
    """Conditions on what the device already runs [RFC 9124: Required Image Version List]."""

    min_sequence_number: int = 0
    """The stepping stone: devices below it need another release first."""
    min_agent: int = 0
    """Lowest `AGENT_LEVEL` (protocol/v1/messages.py) that can install this."""

    def to_json(self) -> dict[str, Any]:  # noqa: D102
        return {"min_sequence_number": self.min_sequence_number, "min_agent": self.min_agent}


@dataclass(frozen=True, slots=True)
class Preconditions:
    """What must hold at the moment of installing; the device waits until it does."""

    free_bytes: int = 0
    battery_percent: int = 0
    mains_power: bool = False
    unmetered_link: bool = False

    def to_json(self) -> dict[str, Any]:  # noqa: D102
        return {
            "free_bytes": self.free_bytes,
            "battery_percent": self.battery_percent,
            "mains_power": self.mains_power,
            "unmetered_link": self.unmetered_link,
        }


@dataclass(frozen=True, slots=True)
class Manifest:
    """One release, as its author signed it."""

    product: str
    version: str
    """A label for people; never compared for security."""
    sequence_number: int
    """May never go down on a device [RFC 9124: Monotonic Sequence Number]."""
    hardware: tuple[str, ...]
    """Exact names, no patterns [RFC 9124: Class ID]."""
    installer: str
    """Installer type, e.g. ``bundle``, ``image``, ``mcuboot``."""
    image: Image
    payloads: tuple[Payload, ...]
    """The first is the primary target's; the smallest that a device can apply is chosen."""
    created_at: datetime
    update_class: UpdateClass = UpdateClass.FEATURE
    requires: Requires = Requires()
    preconditions: Preconditions = Preconditions()
    notes: dict[str, str] = field(default_factory=dict)
    """Release notes for owners, by language tag."""
    sbom_digest: Digest | None = None
    provenance_digest: Digest | None = None
    allow_downgrade: bool = False
    """An approved downgrade: an older version label under a higher sequence number."""
    revertible_to: int | None = None
    """A device that confirmed this release may be taken back to what its other slot holds, if that has
    at least this sequence number; None: never (ADR-0018)."""
    confidential: bool = False
    """Only sealed payloads of it exist; one that is not sealed is refused by whoever reads the manifest."""

    @property
    def release_id(self) -> ReleaseId:
        """``<product>/<version>``."""
        return release_id(self.product, self.version)

    def to_json(self) -> dict[str, Any]:
        """Return the value that becomes `custom`; canonical once encoded."""
        value: dict[str, Any] = {
            "v": MANIFEST_VERSION,
            "product": self.product,
            "version": self.version,
            "sequence_number": self.sequence_number,
            "hardware": list(self.hardware),
            "installer": self.installer,
            "class": self.update_class.value,
            "image": self.image.to_json(),
            "payloads": [payload.to_json() for payload in self.payloads],
            "requires": self.requires.to_json(),
            "preconditions": self.preconditions.to_json(),
            "notes": self.notes,
            "created_at": format_time(self.created_at),
        }
        if self.sbom_digest is not None:
            value["sbom_digest"] = self.sbom_digest.to_json()
        if self.provenance_digest is not None:
            value["provenance_digest"] = self.provenance_digest.to_json()
        if self.allow_downgrade:
            value["allow_downgrade"] = True
        if self.revertible_to is not None:
            value["revertible_to"] = self.revertible_to
        if self.confidential:
            value["confidential"] = True
        return value


def decode(value: object) -> Manifest:
    """Read a manifest from a TUF target's `custom`.

    Raises UnknownManifestError for a major version this code does not know, TooLargeError above
    MAX_MANIFEST_LENGTH_BYTES and MalformedError for anything that is not a manifest of version 1.
    An empty list of hardware or payloads is refused: it must never come to mean "any".
    """
    fields = Fields(value, what="manifest")
    version = fields.integer("v")
    if version != MANIFEST_VERSION:
        raise UnknownManifestError("The manifest has a version this agent does not know", found=version, known=1)
    length_bytes = len(canonical.encode(fields.value))
    if length_bytes > MAX_MANIFEST_LENGTH_BYTES:
        raise TooLargeError(
            "The manifest is longer than allowed", length_bytes=length_bytes, limit_bytes=MAX_MANIFEST_LENGTH_BYTES
        )
    requires = fields.object("requires", optional=True)
    conditions = fields.object("preconditions", optional=True)
    confidential = fields.boolean("confidential", default=False)
    payloads = tuple(_payload(item) for item in fields.objects("payloads", min_items=1, max_items=MAX_PAYLOADS))
    if confidential and not all(payload.is_sealed for payload in payloads):
        raise MalformedError("A confidential release has a payload that is not sealed")
    return Manifest(
        product=fields.text("product", pattern=PRODUCT),
        version=fields.text("version", pattern=VERSION),
        sequence_number=fields.integer("sequence_number", minimum=1),
        hardware=fields.texts("hardware", min_items=1, max_items=MAX_HARDWARE, pattern=HARDWARE),
        installer=fields.text("installer", pattern=_INSTALLER),
        update_class=fields.one_of("class", UpdateClass, default=UpdateClass.FEATURE),
        image=_image(fields.object("image")),
        payloads=payloads,
        requires=Requires(
            min_sequence_number=requires.integer("min_sequence_number", default=0),
            min_agent=requires.integer("min_agent", default=0),
        ),
        preconditions=Preconditions(
            free_bytes=conditions.integer("free_bytes", maximum=MAX_INTEGER, default=0),
            battery_percent=conditions.integer("battery_percent", maximum=100, default=0),
            mains_power=conditions.boolean("mains_power", default=False),
            unmetered_link=conditions.boolean("unmetered_link", default=False),
        ),
        notes=_notes(fields),
        sbom_digest=_digest(fields, "sbom_digest"),
        provenance_digest=_digest(fields, "provenance_digest"),
        allow_downgrade=fields.boolean("allow_downgrade", default=False),
        revertible_to=fields.integer("revertible_to", minimum=1) if "revertible_to" in fields else None,
        confidential=confidential,
        created_at=fields.time("created_at"),
    )


def _image(fields: Fields) -> Image:
    return Image(
        digest=Digest.from_json(fields.object("digest").value, what=f"{fields.what}.digest"),
        length_bytes=fields.integer("length_bytes", maximum=MAX_IMAGE_LENGTH_BYTES),
    )


def _payload(fields: Fields) -> Payload:
    payload = Payload(
        method=fields.text("method", pattern=_METHOD),
        method_version=fields.integer("method_version", minimum=1, maximum=255),
        target=fields.text("target", max_length=512, pattern=TARGET_PATH),
        length_bytes=fields.integer("length_bytes", maximum=MAX_IMAGE_LENGTH_BYTES),
        digest=Digest.from_json(fields.object("digest").value, what=f"{fields.what}.digest"),
        precursor_digest=_digest(fields, "precursor_digest"),
        facts=fields.object("facts", optional=True).value,
    )
    # Read once here, so that what they say is well formed later.
    _ = payload.inner, payload.chunks
    return payload


def _digest(fields: Fields, name: str) -> Digest | None:
    return Digest.from_json(fields.object(name).value, what=f"{fields.what}.{name}") if name in fields else None


def _notes(fields: Fields) -> dict[str, str]:
    notes = fields.text_map("notes", max_items=32, max_length=MAX_NOTES_LENGTH, optional=True)
    for language in notes:
        Fields({"language": language}, what="manifest.notes").text("language", pattern=_LANGUAGE)
    return notes
