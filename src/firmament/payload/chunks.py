"""Find the poisoned piece of a download before it is used (trust.md §4.3).

A payload's digest says that something is wrong with 300 MB, not where. The chunk list is the
SHA-256 of each piece in order, published beside the payload and itself pinned by the signed
manifest (`Payload.facts["chunks"]`), so that a partial download is checked piece by piece and only
the bad piece is fetched again.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from firmament.core.digest import Digest
from firmament.errors import DigestMismatchError, MalformedError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from firmament.core.fields import Fields
    from firmament.payload.readers import Reader

DEFAULT_CHUNK_LENGTH_BYTES: Final = 256 * 1024
# 1 GiB gives a list of 128 KiB; a bad piece costs a quarter of a megabyte (trust.md §4.3).
MIN_CHUNK_LENGTH_BYTES: Final = 4 * 1024
MAX_CHUNK_LENGTH_BYTES: Final = 16 * 1024**2
MAX_LIST_LENGTH_BYTES: Final = 4 * 1024**2
_DIGEST_LENGTH: Final = 32


@dataclass(frozen=True, slots=True)
class ChunkPin:
    """What the signed manifest says about the list."""

    chunk_length_bytes: int
    list_digest: Digest

    def to_json(self) -> dict[str, Any]:
        """Return the value of `Payload.facts["chunks"]`."""
        return {"length_bytes": self.chunk_length_bytes, "list": self.list_digest.to_json()}

    @classmethod
    def from_fields(cls, fields: Fields) -> ChunkPin:
        """Read it; raises MalformedError."""
        return cls(
            fields.integer("length_bytes", minimum=MIN_CHUNK_LENGTH_BYTES, maximum=MAX_CHUNK_LENGTH_BYTES),
            Digest.from_json(fields.object("list").value, what=f"{fields.what}.list"),
        )


class ChunkList:
    """The digests of a payload's pieces, checked against the pin."""

    def __init__(self, data: bytes, *, pin: ChunkPin, payload_length_bytes: int) -> None:
        pieces = -(-payload_length_bytes // pin.chunk_length_bytes)
        if len(data) != pieces * _DIGEST_LENGTH or len(data) > MAX_LIST_LENGTH_BYTES:
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

    def good_prefix_bytes(self, part: Reader, stored_bytes: int) -> int:
        """How much of a partial download is good: the offset at which to continue fetching.

        An unfinished last piece cannot be checked and is fetched again.
        """
        whole = self.count if stored_bytes >= self._length else stored_bytes // self.chunk_length_bytes
        for index in range(whole):
            start = index * self.chunk_length_bytes
            piece = part.read_at(start, min(self.chunk_length_bytes, self._length - start))
            try:
                self.check(index, piece)
            except DigestMismatchError:
                return start
        return min(whole * self.chunk_length_bytes, self._length)


def make(pieces: Iterable[bytes], chunk_length_bytes: int = DEFAULT_CHUNK_LENGTH_BYTES) -> tuple[bytes, ChunkPin]:
    """Return the list for a payload given in pieces of any length, and its pin."""
    digests = bytearray()
    hasher, filled = hashlib.sha256(), 0
    for piece in pieces:
        view = memoryview(piece)
        while view:
            part = view[: chunk_length_bytes - filled]
            hasher.update(part)
            filled += len(part)
            view = view[len(part) :]
            if filled == chunk_length_bytes:
                digests += hasher.digest()
                hasher, filled = hashlib.sha256(), 0
    if filled:
        digests += hasher.digest()
    data = bytes(digests)
    return data, ChunkPin(chunk_length_bytes, Digest.of(data))
