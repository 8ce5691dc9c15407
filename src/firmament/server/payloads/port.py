"""What the server asks of the place where payload bytes lie: a directory, or an S3-compatible store.

Bytes are named by their SHA-256 alone. Whatever the store says, devices compare every byte with a
signed digest: a store that lies or breaks can keep an update back, it cannot change one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from firmament.core.digest import Digest
from firmament.core.fields import Fields
from firmament.errors import DigestMismatchError
from firmament.payload.readers import Reader

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from datetime import datetime


class Upload(Protocol):
    """One upload in progress; all methods block."""

    def write(self, data: bytes) -> None:
        """Take the next bytes; raises TooLargeError."""

    def finish(self) -> int:
        """Make the blob durable under its name; return its length. Raises DigestMismatchError."""

    def abandon(self) -> None:
        """Remove what was received; fine after `finish`."""


class Source(Protocol):
    """A published target that is open for one answer."""

    @property
    def length_bytes(self) -> int:
        """Its whole length."""

    @property
    def etag(self) -> str:
        """A strong entity tag, quoted."""

    @property
    def descriptor(self) -> int | None:
        """The open file that its bytes lie in, from the first; None when they lie elsewhere."""

    def read(self, offset: int, end: int) -> AsyncIterator[bytes]:
        """Yield the bytes of ``[offset, end)`` in chunks; raises OverloadedError when the store is away."""

    def close(self) -> None:
        """Let go of it."""


class BlobReader(Reader, Protocol):
    """A blob that is open; all methods block."""

    @property
    def length_bytes(self) -> int:
        """Its whole length."""

    def close(self) -> None:
        """Let go of it."""


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """One blob as a listing tells it."""

    digest: Digest
    length_bytes: int
    stored_at: datetime
    """When its bytes were written last, aware UTC."""


@dataclass(frozen=True, slots=True)
class StoredTarget:
    """One published name as a listing tells it."""

    name: str
    """Below ``targets/``: ``product/version/<64 hex>.file``."""
    digest: Digest
    stored_at: datetime


class BlobStore(Protocol):
    """Where bytes lie. Methods without `async` block; all raise OverloadedError while the store is away."""

    def length_bytes(self, digest: Digest) -> int | None:
        """Return a blob's length, None if there is none."""

    def is_intact(self, digest: Digest) -> bool:
        """Read a blob and compare its digest."""

    def open_blob(self, digest: Digest) -> BlobReader:
        """Open a blob for reading here and there; raises NotFoundError."""

    def receive(self, digest: Digest, *, expected_bytes: int | None) -> Upload:
        """Begin an upload; raises TooLargeError or DiskFullError before a byte is taken."""

    def publish(self, name: str, digest: Digest) -> None:
        """Let a stored blob be fetched under a target's file name; doing it again changes nothing."""

    def target_length_bytes(self, name: str) -> int | None:
        """Return the length of a published target, None if there is none."""

    async def open_target(self, name: str) -> Source:
        """Open a published target; raises NotFoundError."""

    def redirect(self, name: str) -> str:
        """Return where a front server finds a published target itself, without a leading slash."""

    def blobs(self) -> Iterator[StoredBlob]:
        """List what is stored."""

    def targets(self) -> Iterator[StoredTarget]:
        """List what is published."""

    def remove(self, digest: Digest, names: tuple[str, ...]) -> None:
        """Remove a blob, its published names first; what is not there already is fine."""

    def unpublish(self, names: tuple[str, ...]) -> None:
        """Remove published names whose bytes stay."""

    def stored_at(self, digest: Digest) -> datetime | None:
        """Return when a blob was written last, None if there is none."""

    def clean(self, before: datetime, *, pretend: bool) -> int:
        """Remove what uploads left that were cut short before a moment; return how many. Never removes a blob."""

    def sweep(self) -> None:
        """Remove what cut-short uploads left on this machine; called at start, when none is running."""

    def check(self) -> None:
        """Raise SettingError when the store can never work as it is set up; OverloadedError when it is away."""


def digest_of_hex(text: str) -> Digest:
    """Read a lower-case hexadecimal SHA-256; raises MalformedError."""
    return Digest("sha256", Fields({"sha256": text}, what="blob").hex_bytes("sha256", length=32))


def digest_of_name(name: str) -> Digest:
    """Return the digest that stands in a target's file name; raises MalformedError."""
    return digest_of_hex(name.rpartition("/")[2].partition(".")[0])


def require_blob(store: BlobStore, digest: Digest, length_bytes: int, *, target: str) -> None:
    """Raise DigestMismatchError unless the bytes of a target are here, whole and right (blocking)."""
    found = store.length_bytes(digest)
    if found != length_bytes:
        raise DigestMismatchError(
            "The bytes of a target were not uploaded", target=target, expected_bytes=length_bytes, found_bytes=found
        )
    if not store.is_intact(digest):
        raise DigestMismatchError("The bytes of a target were changed where the server keeps them", target=target)
