"""Find the poisoned piece of a download before it is used (trust.md §4.3).

A payload's digest says that something is wrong with 300 MB, not where. The chunk list is the
SHA-256 of each piece in order, published beside the payload and itself pinned by the signed
manifest (`Payload.facts["chunks"]`), so that a partial download is checked piece by piece and only
the bad piece is fetched again.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from firmament.core.digest import Digest
from firmament.core.manifest import MAX_CHUNK_LIST_LENGTH_BYTES, ChunkPin
from firmament.errors import DigestMismatchError, MalformedError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from firmament.payload.readers import Reader

DEFAULT_CHUNK_LENGTH_BYTES: Final = 256 * 1024
# 1 GiB gives a list of 128 KiB; a bad piece costs a quarter of a megabyte (trust.md §4.3).
_DIGEST_LENGTH: Final = 32


class ChunkList:
    """The digests of a payload's pieces, checked against the pin."""

    def __init__(self, data: bytes, *, pin: ChunkPin, payload_length_bytes: int) -> None:
        pieces = -(-payload_length_bytes // pin.chunk_length_bytes)
        if len(data) != pieces * _DIGEST_LENGTH or len(data) > MAX_CHUNK_LIST_LENGTH_BYTES:
            raise MalformedError("A chunk list has the wrong length", expected=pieces * _DIGEST_LENGTH, got=len(data))
        pin.list_digest.require(Digest.of(data, pin.list_digest.algorithm), what="A chunk list")
        self._data = data
        self._length = payload_length_bytes
        self.chunk_length_bytes = pin.chunk_length_bytes
        self.count = pieces

    def check(self, index: int, piece: bytes) -> None:
        """Raise DigestMismatchError unless `piece` is the payload's piece `index`."""
        if hashlib.sha256(piece).digest() != self._data[index * _DIGEST_LENGTH : (index + 1) * _DIGEST_LENGTH]:
            raise DigestMismatchError("A piece of the payload is not the one that was signed", piece=index)

    def piece_length_bytes(self, index: int) -> int:
        """Return the length of a piece; the last one is the rest."""
        return min(self.chunk_length_bytes, self._length - index * self.chunk_length_bytes)

    def next_bad(self, whole: Reader, first: int) -> int | None:
        """Return the index of the first piece from `first` on that is not the signed one, None if all are."""
        for index in range(first, self.count):
            try:
                self.check(index, whole.read_at(index * self.chunk_length_bytes, self.piece_length_bytes(index)))
            except DigestMismatchError:
                return index
        return None

    def good_prefix_bytes(self, part: Reader, stored_bytes: int) -> int:
        """How much of a partial download is good: the offset at which to continue fetching.

        An unfinished last piece cannot be checked and is fetched again.
        """
        whole = self.count if stored_bytes >= self._length else stored_bytes // self.chunk_length_bytes
        for index in range(whole):
            start = index * self.chunk_length_bytes
            piece = part.read_at(start, self.piece_length_bytes(index))
            try:
                self.check(index, piece)
            except DigestMismatchError:
                return start
        return min(whole * self.chunk_length_bytes, self._length)


class ListMaker:
    """Makes the list of a payload that is given in pieces of any length, in order."""

    def __init__(self, chunk_length_bytes: int = DEFAULT_CHUNK_LENGTH_BYTES) -> None:
        self._chunk_length_bytes = chunk_length_bytes
        self._digests = bytearray()
        self._hasher, self._filled = hashlib.sha256(), 0

    def add(self, piece: bytes) -> None:
        """Take the next bytes."""
        view = memoryview(piece)
        while view:
            part = view[: self._chunk_length_bytes - self._filled]
            self._hasher.update(part)
            self._filled += len(part)
            view = view[len(part) :]
            if self._filled == self._chunk_length_bytes:
                self._end_piece()

    def finish(self) -> tuple[bytes, ChunkPin]:
        """Return the list and its pin."""
        if self._filled:
            self._end_piece()
        data = bytes(self._digests)
        return data, ChunkPin(self._chunk_length_bytes, Digest.of(data))

    def _end_piece(self) -> None:
        self._digests += self._hasher.digest()
        self._hasher, self._filled = hashlib.sha256(), 0


def make(pieces: Iterable[bytes], chunk_length_bytes: int = DEFAULT_CHUNK_LENGTH_BYTES) -> tuple[bytes, ChunkPin]:
    """Return the list for a payload given in pieces of any length, and its pin."""
    maker = ListMaker(chunk_length_bytes)
    for piece in pieces:
        maker.add(piece)
    return maker.finish()
