"""The bytes of a refdelta payload: integers, compressed streams, and groups of streams.

Everything is decoded through `Cursor` and `Stream`, which raise MalformedPayloadError for whatever
does not fit; no length from a payload is used before it was compared with a ceiling.
"""

from __future__ import annotations

import lzma
import zlib
from array import array
from typing import TYPE_CHECKING, Final, Protocol

from firmament.errors import MalformedPayloadError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from firmament.payload.readers import Reader

MAGIC: Final = b"FRD"
FORMAT_VERSION: Final = 1
RAW, DEFLATE, LZMA = 0, 1, 2
MAX_DICTIONARY_LOG2: Final = 22
MAX_DICTIONARIES_BYTES: Final = 12 * 1024**2
# All streams of a frame are open at the same time, so their windows add up (docs/protocol/refdelta.md, memory).
MAX_SOLID_BYTES: Final = 1024**2
MAX_COLUMN_BYTES: Final = 24 * 1024**2
"""A column of integers is held in memory while it is decoded."""
_PIECE: Final = 16 * 1024
_MAX_VARINT_BYTES: Final = 9
_MAX_PROPERTIES: Final = 225


class Cursor:
    """Reads the small parts of a payload in order, a piece at a time."""

    def __init__(self, source: Reader, offset: int, end: int) -> None:
        self._source = source
        self.offset = offset
        self.end = end
        self._piece = b""
        self._start = offset

    def byte(self) -> int:
        """Return the next byte."""
        if self.offset >= self.end:
            raise MalformedPayloadError("A delta ends too early", offset=self.offset)
        place = self.offset - self._start
        if not 0 <= place < len(self._piece):
            self._piece = self._source.read_at(self.offset, min(_PIECE, self.end - self.offset))
            self._start, place = self.offset, 0
            if not self._piece:
                raise MalformedPayloadError("A delta ends too early", offset=self.offset)
        self.offset += 1
        return self._piece[place]

    def varint(self, most: int, what: str) -> int:
        """Return an unsigned integer of at most `most`: 7 bits a byte, least significant first."""
        value = shift = 0
        for _ in range(_MAX_VARINT_BYTES):
            found = self.byte()
            value |= (found & 0x7F) << shift
            if found < 0x80:
                if value > most:
                    raise MalformedPayloadError("A number in a delta is too large", what=what, found=value, most=most)
                return value
            shift += 7
        raise MalformedPayloadError("A number in a delta does not end", what=what)


def varints(values: Iterable[int]) -> bytes:
    """Encode unsigned integers."""
    out = bytearray()
    for value in values:
        rest = value
        while rest > 0x7F:
            out.append(rest & 0x7F | 0x80)
            rest >>= 7
        out.append(rest)
    return bytes(out)


def signed_varints(values: Iterable[int]) -> bytes:
    """Encode signed integers, zigzag first."""
    return varints((value << 1) ^ (value >> 63) for value in values)


def read_varints(data: bytes) -> array[int]:
    """Decode a column of unsigned integers below 2**63; an array, because a list takes five times the memory."""
    out = array("q")
    append = out.append
    value = shift = 0
    for found in data:
        if found < 0x80:
            append(value | found << shift)
            value = shift = 0
        else:
            value |= (found & 0x7F) << shift
            shift += 7
            if shift > 56:
                raise MalformedPayloadError("A number in a delta does not end")
    if shift:
        raise MalformedPayloadError("A column of a delta ends within a number")
    return out


def read_signed_varints(data: bytes) -> array[int]:
    """Decode a column of signed integers."""
    values = read_varints(data)
    for index, value in enumerate(values):
        values[index] = (value >> 1) ^ -(value & 1)
    return values


class _Decoder(Protocol):
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Deflate:
    """zlib's decompressor with the calling convention of lzma's."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(-15)

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


class _Stored:
    def __init__(self) -> None:
        self._kept = b""

    def decompress(self, data: bytes, max_length: int) -> bytes:
        data = self._kept + data
        self._kept = data[max_length:]
        return data[:max_length]


class Stream:
    """One compressed stream, decompressed as it is read; memory is its window and two pieces."""

    def __init__(self, source: Reader, start: int, end: int, decoder: _Decoder, length_bytes: int) -> None:
        self._source, self._next, self._end, self._decoder = source, start, end, decoder
        self._left = length_bytes
        self._ready = b""
        self._place = 0

    @property
    def left_bytes(self) -> int:
        """How much is still to be read."""
        return self._left

    def read(self, length_bytes: int) -> bytes:
        """Return exactly so many bytes; MalformedPayloadError if the stream has fewer."""
        if length_bytes > self._left:
            raise MalformedPayloadError(
                "A delta's stream is shorter than its use", needed=length_bytes, left=self._left
            )
        self._left -= length_bytes
        end = self._place + length_bytes
        if end <= len(self._ready):
            start, self._place = self._place, end
            return self._ready[start:end]
        parts = [self._ready[self._place :]]
        missing = length_bytes - len(parts[0])
        while missing > 0:
            piece = self._more(max(missing, _PIECE) if missing + _PIECE <= self._left + missing else missing)
            parts.append(piece[:missing])
            self._ready, self._place = piece, min(missing, len(piece))
            missing -= len(piece)
        return b"".join(parts)

    def _more(self, most: int) -> bytes:
        """Decompress between 1 and `most` bytes."""
        for _ in range(3 + (self._end - self._next) // _PIECE):
            data = b""
            if self._next < self._end:
                data = self._source.read_at(self._next, min(_PIECE, self._end - self._next))
                self._next += len(data)
                if not data:
                    break
            try:
                out = self._decoder.decompress(data, most)
            except (lzma.LZMAError, zlib.error, EOFError) as error:
                raise MalformedPayloadError("A delta's stream does not decompress", reason=error) from error
            if out:
                return out
            if not data and self._next >= self._end:
                break
        raise MalformedPayloadError("A delta's stream ends too early")


class _Memory:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def read_at(self, offset: int, length_bytes: int) -> bytes:
        return self._data[offset : offset + length_bytes]


def open_group(source: Reader, cursor: Cursor, count: int, *, most_bytes: int) -> list[Stream]:
    """Open the streams of a group and move the cursor behind it.

    `most_bytes` bounds each stream's decompressed length; the windows together are bounded by
    MAX_DICTIONARIES_BYTES.
    """
    packs: list[tuple[_Decoder, int, list[int]]] = []
    windows = found = 0
    while found < count:
        together = cursor.byte()
        if not 1 <= together <= count - found:
            raise MalformedPayloadError("A delta has an impossible group of streams", together=together)
        most = most_bytes if together == 1 else MAX_SOLID_BYTES
        lengths = [cursor.varint(most, "a stream's length") for _ in range(together)]
        decoder, packed, window = _stream_header(cursor) if any(lengths) else (_Stored(), 0, 0)
        windows += window
        packs.append((decoder, packed, lengths))
        found += together
    if windows > MAX_DICTIONARIES_BYTES:
        raise MalformedPayloadError(
            "A delta needs more memory than allowed", windows=windows, most=MAX_DICTIONARIES_BYTES
        )
    streams: list[Stream] = []
    for decoder, packed, lengths in packs:
        total = sum(lengths)
        if len(lengths) > 1 and total > MAX_SOLID_BYTES:
            raise MalformedPayloadError("Streams of a delta that are packed together are too long", length=total)
        stream = Stream(source, cursor.offset, cursor.offset + packed, decoder, total)
        _skip(cursor, packed)
        if len(lengths) == 1:
            streams.append(stream)
            continue
        joined, start = _Memory(stream.read(total)), 0
        for length in lengths:
            streams.append(Stream(joined, start, start + length, _Stored(), length))
            start += length
    return streams


def _skip(cursor: Cursor, length_bytes: int) -> None:
    if length_bytes > cursor.end - cursor.offset:
        raise MalformedPayloadError(
            "A delta ends within a stream", needed=length_bytes, left=cursor.end - cursor.offset
        )
    cursor.offset += length_bytes


def _stream_header(cursor: Cursor) -> tuple[_Decoder, int, int]:
    """Return decoder, packed length and window."""
    codec = cursor.byte()
    decoder: _Decoder
    window = 0
    if codec == LZMA:
        properties, log2 = cursor.byte(), cursor.byte()
        if properties >= _MAX_PROPERTIES or not 12 <= log2 <= MAX_DICTIONARY_LOG2:
            raise MalformedPayloadError("A delta has impossible LZMA properties", properties=properties, log2=log2)
        window = 1 << log2
        try:
            decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[lzma_filter(properties, log2)])
        except (lzma.LZMAError, ValueError) as error:
            raise MalformedPayloadError("A delta has impossible LZMA properties", reason=error) from error
    elif codec == DEFLATE:
        decoder = _Deflate()
    elif codec == RAW:
        decoder = _Stored()
    else:
        raise MalformedPayloadError("A delta has a stream of an unknown codec", codec=codec)
    return decoder, cursor.varint(1 << 40, "a packed length"), window


def lzma_filter(properties: int, log2: int, preset: int | None = None) -> dict[str, int]:
    """Return the LZMA2 filter for a properties byte, (pb * 5 + lp) * 9 + lc, and a window."""
    rest, lc = divmod(properties, 9)
    pb, lp = divmod(rest, 5)
    found = {"id": lzma.FILTER_LZMA2, "dict_size": 1 << log2, "lc": lc, "lp": lp, "pb": pb}
    if preset is not None:
        found["preset"] = preset
    return found


# --- writing ---------------------------------------------------------------------------------

_JOIN_BYTES: Final = 128 * 1024
_SAMPLE_BYTES: Final = 4 * 1024**2
_CHOICES: Final = tuple(
    (pb * 5 + lp) * 9 + lc for lc, lp, pb in ((3, 0, 2), (0, 2, 2), (0, 0, 0), (1, 2, 2), (2, 2, 2), (3, 0, 0))
)


def pack(data: bytes, *, most_log2: int = MAX_DICTIONARY_LOG2) -> tuple[bytes, bytes]:
    """Compress with each codec; return (stream header, packed bytes) of the smallest."""
    best = (bytes((RAW,)), data)
    if data:
        deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9)
        candidates = [(bytes((DEFLATE,)), deflate.compress(data) + deflate.flush())]
        log2 = min(most_log2, max(12, (len(data) - 1).bit_length()))
        choices = _CHOICES
        if len(data) > _SAMPLE_BYTES:  # choose on a part: each trial of all the data would take seconds per MB
            middle = len(data) // 2
            sample = data[middle : middle + _SAMPLE_BYTES // 4]
            tried = [
                (len(lzma.compress(sample, format=lzma.FORMAT_RAW, filters=[lzma_filter(p, log2, 6)])), p)
                for p in choices
            ]
            choices = (min(tried)[1],)
        for properties in choices:
            filters = [lzma_filter(properties, log2, 9 | lzma.PRESET_EXTREME)]
            packed = lzma.compress(data, format=lzma.FORMAT_RAW, filters=filters)
            candidates.append((bytes((LZMA, properties, log2)), packed))
        best = min([best, *candidates], key=lambda pair: len(pair[0]) + len(pair[1]))
    return best[0] + varints([len(best[1])]), best[1]


def quick_length(data: bytes) -> int:
    """About how long a stream packs to."""
    if not data:
        return 3
    filters = [lzma_filter((2 * 5 + 2) * 9, 20, 3 if len(data) > _SAMPLE_BYTES else 6)]
    return min(len(data), len(lzma.compress(data, format=lzma.FORMAT_RAW, filters=filters))) + 5


def write_group(parts: Sequence[bytes], *, most_log2: int | Sequence[int] = MAX_DICTIONARY_LOG2) -> bytes:
    """Write streams, each compressed in the way that suits it; small neighbours together where that is shorter.

    `most_log2` bounds the windows, each or one by one.
    """
    most = [most_log2] * len(parts) if isinstance(most_log2, int) else most_log2
    packs = [_write_pack((part,), limit) for part, limit in zip(parts, most, strict=True)]
    spans = [(index, index + 1) for index in range(len(parts))]
    if sum(map(len, parts)) <= _JOIN_BYTES:
        joined: dict[tuple[int, int], tuple[bytes, bytes]] = {}
        while len(spans) > 1:
            gains = []
            for index in range(len(spans) - 1):
                span = spans[index][0], spans[index + 1][1]
                if span not in joined:
                    joined[span] = _write_pack(parts[slice(*span)], max(most))
                apart = sum(map(len, packs[index] + packs[index + 1]))
                gains.append((apart - sum(map(len, joined[span])), index))
            gain, index = max(gains)
            if gain <= 0:
                break
            span = spans[index][0], spans[index + 1][1]
            spans[index : index + 2] = [span]
            packs[index : index + 2] = [joined[span]]
    return b"".join(head for head, _ in packs) + b"".join(data for _, data in packs)


def _write_pack(parts: Sequence[bytes], most_log2: int) -> tuple[bytes, bytes]:
    head = bytes((len(parts),)) + varints(map(len, parts))
    if not any(parts):
        return head, b""
    codec, data = pack(b"".join(parts), most_log2=most_log2)
    return head + codec, data
