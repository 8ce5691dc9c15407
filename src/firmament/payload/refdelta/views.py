"""See a precursor with its compressed streams unpacked (device).

A `Views` reader is the precursor with more behind it, each part at a multiple of 4 KiB: contents of
compressed streams, and tables made from the bytes before. Contents are unpacked as they are read;
packers cannot start in the middle, so a copy of the unpacker is kept every so often.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from typing import TYPE_CHECKING, Any, Final

from firmament.errors import MalformedPayloadError, PrecursorMismatchError

if TYPE_CHECKING:
    from firmament.payload.readers import Reader

ALIGNMENT_BYTES: Final = 4096
_CHUNK: Final = 64 * 1024
_KEPT_CHUNKS: Final = 8
_MARKS: Final = 64
"""Copies of unpackers that are kept, over all streams; each has a window and takes about 48 KiB."""


def aligned(length_bytes: int) -> int:
    """Round up to where the next part begins."""
    return -(-length_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


class Contents:
    """The contents of one raw deflate stream, at any offset."""

    def __init__(self, source: Reader, offset: int, packed_bytes: int, length_bytes: int, step_bytes: int) -> None:
        self._source, self._offset, self._end = source, offset, offset + packed_bytes
        self.length_bytes = length_bytes
        self._step = max(step_bytes // _CHUNK, 1)
        self._marks: dict[int, tuple[Any, int]] = {}
        self._kept: dict[int, bytes] = {}
        self._start()

    def _start(self) -> None:
        self._decoder, self._next, self._chunk = zlib.decompressobj(-15), self._offset, 0

    def close(self) -> None:
        """Forget what was unpacked, but not the marks."""
        self._kept.clear()
        self._start()

    def read_at(self, offset: int, length_bytes: int) -> bytes:
        """Return contents; fewer only at the end."""
        end = min(offset + length_bytes, self.length_bytes)
        parts = []
        while offset < end:
            number, skip = divmod(offset, _CHUNK)
            part = self._get(number)[skip : skip + end - offset]
            parts.append(part)
            offset += len(part)
        return b"".join(parts) if len(parts) != 1 else parts[0]

    def _get(self, number: int) -> bytes:
        found = self._kept.get(number)
        if found is not None:
            return found
        mark = number // self._step * self._step
        while mark and mark not in self._marks:
            mark -= self._step
        if number < self._chunk or mark > self._chunk:
            if mark:
                decoder, self._next = self._marks[mark]
                self._decoder, self._chunk = decoder.copy(), mark
            else:
                self._start()
        while True:
            if self._chunk and self._chunk % self._step == 0 and self._chunk not in self._marks:
                self._marks[self._chunk] = (self._decoder.copy(), self._next)
            found = self._unpack(min(_CHUNK, self.length_bytes - self._chunk * _CHUNK))
            self._chunk += 1
            if self._chunk > number:
                break
        if len(self._kept) >= _KEPT_CHUNKS:
            del self._kept[next(iter(self._kept))]
        self._kept[number] = found
        return found

    def _unpack(self, wanted: int) -> bytes:
        out = bytearray()
        decoder = self._decoder
        try:
            while len(out) < wanted:
                data = decoder.unconsumed_tail
                if not data:
                    data = self._source.read_at(self._next, min(_CHUNK // 4, self._end - self._next))
                    self._next += len(data)
                part = decoder.decompress(data, wanted - len(out))
                out += part
                if not part and (not data or decoder.eof):
                    break
        except zlib.error as error:
            raise MalformedPayloadError("A delta names a stream of the precursor that is none", reason=error) from error
        if len(out) != wanted:
            raise MalformedPayloadError("A stream of the precursor is shorter than a delta says", got=len(out))
        return bytes(out)


class Views:
    """The precursor with the unpacked parts behind it, as one reader."""

    def __init__(self, precursor: Reader, length_bytes: int) -> None:
        self._precursor = precursor
        self._precursor_bytes = length_bytes
        self.length_bytes = length_bytes
        self._begins: list[int] = []
        self._parts: list[tuple[Reader, int]] = []
        self._current: Contents | None = None

    def add(self, part: Reader, length_bytes: int) -> None:
        """Put a part behind the others."""
        begin = aligned(self.length_bytes)
        self._begins.append(begin)
        self._parts.append((part, length_bytes))
        self.length_bytes = begin + length_bytes

    def read_at(self, offset: int, length_bytes: int) -> bytes:
        """Return bytes of the precursor or of a part; between parts there are zeros."""
        if offset + length_bytes <= self._precursor_bytes:
            return self._precursor.read_at(offset, length_bytes)
        out = bytearray()
        end = min(offset + length_bytes, self.length_bytes)
        while offset < end:
            piece = self._piece(offset, end)
            out += piece
            offset += len(piece)
        return bytes(out)

    def _piece(self, offset: int, end: int) -> bytes:
        index = bisect_right(self._begins, offset) - 1
        stop = self._begins[index + 1] if index + 1 < len(self._begins) else end
        begin, length = (self._begins[index], self._parts[index][1]) if index >= 0 else (0, self._precursor_bytes)
        if offset >= begin + length:
            return bytes(min(end, stop) - offset)
        part = self._parts[index][0] if index >= 0 else self._precursor
        if isinstance(part, Contents) and part is not self._current:
            if self._current is not None:
                self._current.close()
            self._current = part
        wanted = min(end, begin + length) - offset
        found = part.read_at(offset - begin, wanted)
        if len(found) != wanted:
            raise PrecursorMismatchError("The precursor ends too early", offset=offset, got=len(found))
        return found


def step_bytes(total_bytes: int) -> int:
    """How far apart copies of unpackers are kept, for contents of so many bytes altogether."""
    return max(total_bytes // _MARKS, 8 * _CHUNK)
