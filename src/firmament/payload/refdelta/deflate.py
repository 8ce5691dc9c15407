"""Deflate streams (RFC 1951) down to their tokens: read blocks, read tokens, write tokens.

Only what zlib does not tell: where blocks begin and end, and which matches a packer chose. A token
is (length, distance); a literal byte is (1, 0), because whoever asks has the content.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from firmament.errors import MalformedPayloadError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

STORED, FIXED, DYNAMIC = 0, 1, 2
MOST_STORED_BYTES: Final = 65535
_EXTRA_LENGTH: Final = (0,) * 8 + tuple(bits for bits in range(1, 6) for _ in range(4)) + (0,)
_EXTRA_DISTANCE: Final = (0, 0, *(bits for bits in range(14) for _ in range(2)))
_ORDER: Final = (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15)
_END: Final = 256
_FIRST_LENGTH: Final = 257


def _bases(first: int, extra: Sequence[int]) -> list[int]:
    found = []
    for bits in extra:
        found.append(first)
        first += 1 << bits
    return found


_LENGTH: Final = (*_bases(3, _EXTRA_LENGTH[:-1]), 258)
_DISTANCE: Final = tuple(_bases(1, _EXTRA_DISTANCE))
_LENGTH_SYMBOL: Final = tuple(
    max(index for index, base in enumerate(_LENGTH) if base <= length) for length in range(3, 259)
)
_FIXED_LENGTHS: Final = ((8,) * 144 + (9,) * 112 + (7,) * 24 + (8,) * 8, (5,) * 30)


@dataclass(frozen=True, slots=True)
class Block:
    """Where a block is, in bits of the stream and bytes of the content."""

    kind: int
    is_final: bool
    begin_bit: int
    first_bit: int
    """Of the first token, after the description of the codes."""
    end_bit: int
    start: int
    end: int
    literal_lengths: Sequence[int]
    distance_lengths: Sequence[int]


class Bits:
    """Reads bits, least significant first; beyond the end they are refused."""

    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data, self.at = data, at
        self._end = 8 * len(data)

    def take(self, count: int) -> int:
        """Return the next `count` bits, at most 32, as a number."""
        first = self.at >> 3
        value = int.from_bytes(self.data[first : first + 5], "little") >> (self.at & 7) & (1 << count) - 1
        self.at += count
        if self.at > self._end:
            raise MalformedPayloadError("A deflate stream ends within a block", bit=self.at)
        return value


def _decoding(lengths: Sequence[int], bits: int) -> list[int]:
    """Table of 2**bits entries: symbol * 16 + length of its code; 0 is no code."""
    table = [0] * (1 << bits)
    for symbol, (code, length) in enumerate(codes(lengths)):
        if 0 < length <= bits:
            entry = symbol << 4 | length
            count = 1 << bits - length
            table[code :: 1 << length] = [entry] * count
    return table


def codes(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """(code, length) of each symbol, the code with its first bit lowest; refused if there are too many."""
    count = [0] * 17
    for length in lengths:
        count[length] += 1
    count[0] = 0
    following, code = [0] * 17, 0
    for bits in range(1, 16):
        code = code + count[bits - 1] << 1
        following[bits] = code
        if code + count[bits] > 1 << bits:
            raise MalformedPayloadError("A deflate block has an impossible code", bits=bits)
    found = []
    for length in lengths:
        if length:
            found.append((int(f"{following[length]:0{length}b}"[::-1], 2), length))
            following[length] += 1
        else:
            found.append((0, 0))
    return found


def read_lengths(bits: Bits) -> tuple[Sequence[int], Sequence[int]]:
    """Read a dynamic block's description of its codes: lengths for literals, for distances."""
    literals, distances, described = bits.take(5) + 257, bits.take(5) + 1, bits.take(4) + 4
    small = [0] * 19
    for index in range(described):
        small[_ORDER[index]] = bits.take(3)
    table = _decoding(small, 7)
    lengths: list[int] = []
    while len(lengths) < literals + distances:
        place = bits.at
        entry = table[int.from_bytes(bits.data[place >> 3 : (place >> 3) + 2], "little") >> (place & 7) & 127]
        if not entry:
            raise MalformedPayloadError("A deflate block has an impossible code", bit=place)
        bits.take(entry & 15)
        symbol = entry >> 4
        if symbol < 16:
            lengths.append(symbol)
        elif symbol == 16:
            if not lengths:
                raise MalformedPayloadError("A deflate block repeats a length before the first", bit=place)
            lengths += [lengths[-1]] * (3 + bits.take(2))
        else:
            lengths += [0] * (3 + bits.take(3) if symbol == 17 else 11 + bits.take(7))
    if len(lengths) != literals + distances or literals > 286 or distances > 30:
        raise MalformedPayloadError("A deflate block has an impossible code", lengths=len(lengths))
    return lengths[:literals], lengths[literals:]


def read_tokens(
    bits: Bits, literal_lengths: Sequence[int], distance_lengths: Sequence[int]
) -> Iterator[tuple[int, int]]:
    """Yield a block's tokens; afterwards `bits` stands behind its end."""
    literals, distances = _decoding(literal_lengths, 15), _decoding(distance_lengths, 15)
    data = bits.data
    byte = bits.at >> 3
    held = int.from_bytes(data[byte : byte + 64], "little") >> (bits.at & 7)
    count = 512 - (bits.at & 7)
    byte += 64
    last = 8 * len(data)
    literal = (1, 0)
    while True:
        if count < 64:
            if 8 * byte - count > last:
                raise MalformedPayloadError("A deflate stream ends within a block", bit=last)
            held |= int.from_bytes(data[byte : byte + 128], "little") << count
            count += 1024
            byte += 128
        entry = literals[held & 32767]
        size = entry & 15
        if not size:
            raise MalformedPayloadError("A deflate block has an impossible code", bit=8 * byte - count)
        held >>= size
        count -= size
        symbol = entry >> 4
        if symbol < _END:
            yield literal
            continue
        if symbol == _END:
            break
        symbol -= _FIRST_LENGTH
        if symbol >= len(_LENGTH):
            raise MalformedPayloadError("A deflate block has an impossible length", symbol=symbol)
        extra = _EXTRA_LENGTH[symbol]
        length = _LENGTH[symbol] + (held & (1 << extra) - 1)
        held >>= extra
        count -= extra
        entry = distances[held & 32767]
        size = entry & 15
        if not size:
            raise MalformedPayloadError("A deflate block has an impossible code", bit=8 * byte - count)
        held >>= size
        extra = _EXTRA_DISTANCE[entry >> 4]
        yield length, _DISTANCE[entry >> 4] + (held & (1 << extra) - 1)
        held >>= extra
        count -= size + extra
    bits.at = 8 * byte - count
    if bits.at > last:
        raise MalformedPayloadError("A deflate stream ends within a block", bit=last)


def blocks(data: bytes) -> Iterator[Block]:
    """Walk a stream block by block to its final one; tokens are read and dropped."""
    bits = Bits(data)
    start = 0
    while True:
        begin = bits.at
        final, kind = bits.take(1), bits.take(2)
        lengths: tuple[Sequence[int], Sequence[int]] = ((), ())
        if kind == STORED:
            bits.at = bits.at + 7 & ~7
            count = bits.take(16)
            bits.take(16)
            first = bits.at
            bits.at += 8 * count
        elif kind in {FIXED, DYNAMIC}:
            lengths = _FIXED_LENGTHS if kind == FIXED else read_lengths(bits)
            first = bits.at
            count = sum(length for length, _ in read_tokens(bits, *lengths))
        else:
            raise MalformedPayloadError("A deflate stream has a block of an unknown kind", bit=begin)
        yield Block(kind, bool(final), begin, first, bits.at, start, start + count, *lengths)
        start += count
        if final:
            return


def fixed_or_described(header: bytes) -> tuple[Sequence[int], Sequence[int]]:
    """Code lengths that a block's header (its first bit at bit 0) describes; refused for a stored block."""
    bits = Bits(header, 1)
    kind = bits.take(2)
    if kind == FIXED:
        return _FIXED_LENGTHS
    if kind != DYNAMIC:
        raise MalformedPayloadError("A deflate block without codes has no tokens", kind=kind)
    return read_lengths(bits)


class TokenWriter:
    """Writes tokens with given codes; a token that has no code is refused."""

    def __init__(self, lengths: tuple[Sequence[int], Sequence[int]]) -> None:
        self._literals, self._distances = codes(lengths[0]), codes(lengths[1])
        self._out = bytearray()
        self._held = self._count = 0

    def _put(self, value: int, count: int) -> None:
        self._held |= value << self._count
        self._count += count
        if self._count >= 256:
            self._out += (self._held & (1 << 256) - 1).to_bytes(32, "little")
            self._held >>= 256
            self._count -= 256

    def _symbol(self, table: list[tuple[int, int]], symbol: int) -> None:
        code, length = table[symbol] if symbol < len(table) else (0, 0)
        if not length:
            raise MalformedPayloadError("A deflate token has no code", symbol=symbol)
        self._put(code, length)

    def literal(self, byte: int) -> None:
        """Write one byte."""
        self._symbol(self._literals, byte)

    def match(self, length: int, distance: int) -> None:
        """Write a match: 3 to 258 bytes, from 1 to 32768 bytes before."""
        if not (3 <= length <= 258 and 1 <= distance <= 32768):
            raise MalformedPayloadError("A deflate token is out of range", length=length, distance=distance)
        symbol = _LENGTH_SYMBOL[length - 3]
        self._symbol(self._literals, _FIRST_LENGTH + symbol)
        self._put(length - _LENGTH[symbol], _EXTRA_LENGTH[symbol])
        low, high = 0, len(_DISTANCE)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if _DISTANCE[middle] <= distance else (low, middle)
        self._symbol(self._distances, low)
        self._put(distance - _DISTANCE[low], _EXTRA_DISTANCE[low])

    def end(self) -> tuple[int, int]:
        """Write the end of the block; return all bits as a number, and how many they are."""
        self._symbol(self._literals, _END)
        value = int.from_bytes(self._out, "little") | self._held << 8 * len(self._out)
        return value, 8 * len(self._out) + self._count
