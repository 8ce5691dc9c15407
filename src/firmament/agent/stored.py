"""The payload on the device's own storage: fetched durably, checked, then read at random by its applier.

One file beside the journal, for the attempt in hand. What of it is durable is the journal's
`Attempt.stored`, which follows `checkpoint` and never leads it (house rule 3): after a power cut
the fetch goes on there. Bytes beyond it mean nothing and are cut off. Only `whole/1` needs no
such file: its bytes go straight into the slot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from firmament.core.digest import Digest
from firmament.durable import PRIVATE_MODE
from firmament.errors import DiskFullError, TooLargeError, TruncatedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from firmament.core.manifest import Payload
    from firmament.durable import Disk, Reader, Writer
    from firmament.payload.chunks import ChunkList

NAME: Final = "payload"
PIECE_BYTES: Final = 256 * 1024
KEEP_FREE_BYTES: Final = 1024 * 1024
# The journal needs no space (journal.py); a mebibyte is for the metadata caches and other programs.


class StoredPayload:
    """The file; errors are TransferError or FileError."""

    def __init__(self, disk: Disk, directory: Path, *, limit_bytes: int = 0) -> None:
        self._disk = disk
        self._path = directory / NAME
        self._limit_bytes = limit_bytes
        self._writer: Writer | None = None

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self._path

    def kept_bytes(self, stored: int) -> int:
        """Return how much of what the journal says is stored is there."""
        return min(stored, self._disk.length_bytes(self._path) or 0)

    def require_room(self, payload: Payload) -> None:
        """Raise TooLargeError above the device's own limit, DiskFullError while there is no room."""
        if self._limit_bytes and payload.length_bytes > self._limit_bytes:
            raise TooLargeError(
                "The payload is longer than this device stores",
                payload=payload.target,
                length_bytes=payload.length_bytes,
                limit_bytes=self._limit_bytes,
            )
        free = self._disk.free_bytes(self._path.parent) + (self._disk.length_bytes(self._path) or 0)
        if free < payload.length_bytes + KEEP_FREE_BYTES:
            raise DiskFullError(
                "There is no room to store the payload",
                payload=payload.target,
                length_bytes=payload.length_bytes,
                free_bytes=free,
            )

    def open(self, stored: int) -> None:
        """Begin to write behind the first `stored` bytes; the rest is cut off."""
        self.close()
        self._writer = self._disk.open_writer(self._path, mode=PRIVATE_MODE)
        if (self._disk.length_bytes(self._path) or 0) > stored:
            self._writer.truncate(stored)

    def write(self, offset: int, data: bytes) -> None:
        """Write at an offset; durable after the next `checkpoint`."""
        assert self._writer is not None
        self._writer.write_at(offset, data)

    def checkpoint(self) -> None:
        """Make durable what was written, and the name of the file."""
        assert self._writer is not None
        self._writer.sync()
        self._disk.sync_directory(self._path.parent)

    def close(self) -> None:
        """Release the file."""
        if self._writer is not None:
            self._writer.close()
        self._writer = None

    def reader(self) -> Reader:
        """Open it for reading; the caller closes."""
        return self._disk.open_reader(self._path)

    def next_bad_chunk(self, chunks: ChunkList, first: int) -> int | None:
        """Return the index of the first piece from `first` on that is not the signed one, None if all are."""
        reader = self.reader()
        try:
            return chunks.next_bad(reader, first)
        finally:
            reader.close()

    def verify(self, payload: Payload) -> None:
        """Raise DigestMismatchError unless the file holds the signed bytes."""
        payload.digest.require(
            Digest.of(self._pieces(payload.length_bytes), payload.digest.algorithm), what="The stored payload"
        )

    def clear(self) -> None:
        """Remove the file: nothing needs it any more."""
        self.close()
        if self._disk.exists(self._path):
            self._disk.remove(self._path)

    def _pieces(self, length_bytes: int) -> Iterator[bytes]:
        reader = self.reader()
        try:
            offset = 0
            while offset < length_bytes:
                piece = reader.read_at(offset, min(PIECE_BYTES, length_bytes - offset))
                if not piece:
                    raise TruncatedError("The stored payload became shorter", got=offset, expected=length_bytes)
                offset += len(piece)
                yield piece
        finally:
            reader.close()
