"""Bytes by their SHA-256: received in chunks, durable before they are acknowledged.

A blob is written beside its place, synced, and renamed once its digest is known to be right: a
cut-short upload leaves a file that `sweep` removes, never a blob with wrong bytes.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import TYPE_CHECKING, Final

from firmament.core.digest import Digest
from firmament.core.fields import Fields
from firmament.durable import Disk, RealDisk, mapped_errors
from firmament.errors import DigestMismatchError, DiskFullError, TooLargeError

if TYPE_CHECKING:
    from pathlib import Path

    from firmament.durable import Writer

INCOMING: Final = "incoming"
_READ_BYTES: Final = 1024 * 1024


class ServerDisk(RealDisk):
    """`RealDisk` and the one thing more that the server asks of a file system: hard links."""

    def link(self, source: Path, destination: Path) -> None:
        """Give a file a second name; `destination` must not exist."""
        with mapped_errors(destination):
            destination.hardlink_to(source)


class BlobStore:
    """Uploaded bytes below one directory."""

    def __init__(self, disk: Disk, directory: Path, *, max_length_bytes: int, min_free_bytes: int) -> None:
        self._disk = disk
        self._directory = directory
        self._max_length_bytes = max_length_bytes
        self._min_free_bytes = min_free_bytes

    def path(self, digest: Digest) -> Path:
        """Return where these bytes lie, or would."""
        return self._directory / digest.hex[:2] / digest.hex

    def length_bytes(self, digest: Digest) -> int | None:
        """Return a blob's length, None if there is none."""
        return self._disk.length_bytes(self.path(digest))

    def is_intact(self, digest: Digest) -> bool:
        """Read a blob and compare its digest (blocking)."""
        if self.length_bytes(digest) is None:
            return False
        return file_digest(self._disk, self.path(digest)) == digest

    def receive(self, digest: Digest, *, expected_bytes: int | None) -> Upload:
        """Begin an upload; raises TooLargeError or DiskFullError before a byte is taken."""
        if expected_bytes is not None and expected_bytes > self._max_length_bytes:
            raise TooLargeError(
                "The payload is longer than allowed", length_bytes=expected_bytes, limit_bytes=self._max_length_bytes
            )
        incoming = self._directory / INCOMING
        self._disk.make_directory(incoming)
        free = self._disk.free_bytes(incoming)
        if free - (expected_bytes or 0) < self._min_free_bytes:
            raise DiskFullError("Too little space would stay free", free_bytes=free, length_bytes=expected_bytes)
        return Upload(self._disk, self, digest, incoming, self._max_length_bytes)

    def sweep(self) -> None:
        """Remove what cut-short uploads left; called at start, when none is running."""
        incoming = self._directory / INCOMING
        for name in self._disk.list(incoming):
            self._disk.remove(incoming / name)


class Upload:
    """One upload in progress; all methods block."""

    def __init__(self, disk: Disk, store: BlobStore, digest: Digest, incoming: Path, limit_bytes: int) -> None:
        self._disk = disk
        self._store = store
        self._digest = digest
        self._limit_bytes = limit_bytes
        self._path = incoming / f"{digest.hex}.{secrets.token_hex(8)}"
        self._hasher = hashlib.sha256()
        self._length = 0
        self._writer: Writer | None = disk.open_writer(self._path)

    def write(self, data: bytes) -> None:
        """Take the next bytes; raises TooLargeError."""
        assert self._writer is not None
        if self._length + len(data) > self._limit_bytes:
            raise TooLargeError("The payload is longer than allowed", limit_bytes=self._limit_bytes)
        self._writer.write_at(self._length, data)
        self._hasher.update(data)
        self._length += len(data)

    def finish(self) -> int:
        """Make the blob durable under its name; return its length. Raises DigestMismatchError."""
        assert self._writer is not None
        self._digest.require(Digest("sha256", self._hasher.digest()), what="The payload")
        self._writer.sync()
        self._close()
        final = self._store.path(self._digest)
        self._disk.make_directory(final.parent)
        self._disk.replace(self._path, final)
        self._disk.sync_directory(final.parent)
        self._disk.sync_directory(final.parent.parent)
        return self._length

    def abandon(self) -> None:
        """Remove what was received; fine after `finish`."""
        self._close()
        self._disk.remove(self._path)

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def digest_of_hex(text: str) -> Digest:
    """Read a lower-case hexadecimal SHA-256; raises MalformedError."""
    return Digest("sha256", Fields({"sha256": text}, what="blob").hex_bytes("sha256", length=32))


def file_digest(disk: Disk, path: Path) -> Digest:
    """Digest a file in chunks."""
    hasher = hashlib.sha256()
    reader = disk.open_reader(path)
    try:
        offset = 0
        while chunk := reader.read_at(offset, _READ_BYTES):
            hasher.update(chunk)
            offset += len(chunk)
    finally:
        reader.close()
    return Digest("sha256", hasher.digest())


def require_blob(store: BlobStore, digest: Digest, length_bytes: int, *, target: str) -> None:
    """Raise DigestMismatchError unless the bytes of a target are here, whole and right (blocking)."""
    found = store.length_bytes(digest)
    if found != length_bytes:
        raise DigestMismatchError(
            "The bytes of a target were not uploaded", target=target, expected_bytes=length_bytes, found_bytes=found
        )
    if not store.is_intact(digest):
        raise DigestMismatchError("The bytes of a target were changed on the server's disk", target=target)
