"""Pack contents again so that the stream has exactly the bytes it had (device).

zlib packs the contents with the parameters that the payload names. A stream that zlib made comes out
as it was. For others (GNU gzip) the payload says where their blocks ended; zlib is made to end its
blocks there too, most of which then are the same, and for the rest the payload has the few tokens
that differ, or the block's bits.

What zlib makes is the same for every release of it; zlib-ng and others make other streams.
`deflate_is_classic` tells, and a device without it does not offer this method.
"""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final

from firmament.errors import MalformedPayloadError
from firmament.payload.refdelta.deflate import (
    MOST_STORED_BYTES,
    STORED,
    Bits,
    TokenWriter,
    fixed_or_described,
    read_lengths,
    read_tokens,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from firmament.payload.refdelta.wire import Stream

SAME, AS_STORED, EDITED, GIVEN = range(4)
"""How a block is made: as zlib makes it, stored, from zlib's with other tokens, from given bits."""
MOST_BLOCK_BYTES: Final = 16 * 1024**2
"""Of contents: a block has at most 32767 tokens of at most 258 bytes."""
MOST_PACKED_BYTES: Final = 1024**2
_PIECE: Final = 64 * 1024
_MARK_BYTES: Final = 4
"""What a synchronising flush adds after 3 bits and the rest of their byte: a stored block without bytes."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """zlib's, for a stream; the window is always 32 KiB."""

    level: int
    memory: int
    strategy: int

    def packer(self) -> zlib._Compress:
        """Return a new packer; refused if there is no such one."""
        if not (0 <= self.level <= 9 and 1 <= self.memory <= 9 and 0 <= self.strategy <= 4):
            raise MalformedPayloadError("A delta packs with impossible parameters", level=self.level)
        return zlib.compressobj(self.level, zlib.DEFLATED, -15, self.memory, self.strategy)


@dataclass(frozen=True, slots=True)
class Recipe:
    """The streams of a payload that say how to pack: see docs/protocol/refdelta.md."""

    numbers: Callable[[], int]
    """The next number of the blocks' column."""
    edits: Callable[[], int]
    """The next number of the edits' column."""
    bits: Stream


class BitWriter:
    """Joins bits to bytes."""

    def __init__(self) -> None:
        self._held = self._count = 0

    @property
    def odd_bits(self) -> int:
        """How many bits wait for their byte to be full."""
        return self._count

    def put(self, value: int, count: int) -> bytes:
        """Add bits; return the bytes that are complete."""
        self._held |= value << self._count
        self._count += count
        whole = self._count // 8
        out = (self._held & (1 << 8 * whole) - 1).to_bytes(whole, "little")
        self._held >>= 8 * whole
        self._count -= 8 * whole
        return out

    def end(self) -> bytes:
        """Return the last byte, filled up with zeros."""
        return self.put(0, -self._count % 8)


class BlockPacker:
    """Packs one stream's contents block by block, as zlib would end them."""

    def __init__(self, parameters: Parameters) -> None:
        self._packer = parameters.packer()

    def pack(self, pieces: Iterator[bytes]) -> bytes:
        """Return what zlib makes of a block's contents, ended by a synchronising flush."""
        out = bytearray()
        for piece in pieces:
            out += self._packer.compress(piece)
            if len(out) > MOST_PACKED_BYTES:
                raise MalformedPayloadError("A packed block of a delta is too long", length=len(out))
        out += self._packer.flush(zlib.Z_SYNC_FLUSH)
        return bytes(out)


def packed_bits(packed: bytes, odd: int) -> tuple[int, int]:
    """Return what zlib made of a block, without the flush: a number and how many bits it has; `odd` are filler."""
    count = 8 * (len(packed) - _MARK_BYTES) - 3 - odd
    if count <= 0:
        raise MalformedPayloadError("A block of a delta is shorter than its end", bits=count)
    return int.from_bytes(packed, "little") & (1 << count) - 1, count


def tokens_of(packed: bytes) -> Iterator[tuple[int, int]]:
    """Yield the tokens that zlib chose, across its own blocks, up to the flush's."""
    bits = Bits(packed)
    while True:
        bits.take(1)
        kind = bits.take(2)
        if kind == STORED:
            bits.at = bits.at + 7 & ~7
            count = bits.take(16)
            bits.take(16)
            if not count:
                return
            bits.at += 8 * count
            yield from ((1, 0) for _ in range(count))
        else:
            header = bits.at
            lengths = read_lengths(bits) if kind == 2 else fixed_or_described(b"\x02")
            yield from read_tokens(bits, *lengths)
            if bits.at <= header:
                raise MalformedPayloadError("A deflate stream ends within a block", bit=bits.at)


def pack(
    contents: Callable[[int], Iterator[bytes]], length_bytes: int, parameters: Parameters, count: int, recipe: Recipe
) -> Iterator[bytes]:
    """Yield the packed stream. `contents(n)` yields the next `n` bytes of the contents in pieces.

    With no blocks (`count`) zlib packs everything at once.
    """
    if not count:
        packer = parameters.packer()
        for piece in contents(length_bytes):
            yield packer.compress(piece)
        yield packer.flush()
        return
    by_block, out = BlockPacker(parameters), BitWriter()
    left = length_bytes
    for number in range(count):
        length, how = recipe.numbers(), recipe.numbers()
        kind, odd = how & 3, how >> 2
        if length > min(left, MOST_BLOCK_BYTES) or odd > 7:
            raise MalformedPayloadError("A block of a delta is longer than its stream", block=number, length=length)
        left -= length
        yield _block(by_block, out, contents, length, (kind, odd), recipe, is_final=number == count - 1)
    if left:
        raise MalformedPayloadError("The blocks of a delta are shorter than their stream", left=left)
    yield out.end()


def _block(
    packer: BlockPacker,
    out: BitWriter,
    contents: Callable[[int], Iterator[bytes]],
    length: int,
    how: tuple[int, int],
    recipe: Recipe,
    *,
    is_final: bool,
) -> bytes:
    kind, odd = how
    if kind in {AS_STORED, EDITED}:
        if kind == AS_STORED and length > MOST_STORED_BYTES:
            raise MalformedPayloadError("A stored block of a delta is too long", length=length)
        data = b"".join(contents(length))
        packed = packer.pack(iter((data,)))
        if kind == AS_STORED:
            header = out.put(int(is_final), 3) + out.end()
            return header + length.to_bytes(2, "little") + (length ^ 0xFFFF).to_bytes(2, "little") + data
        return out.put(*_edited(data, packed, recipe))
    packed = packer.pack(contents(length))
    if kind == SAME:
        value, bits = packed_bits(packed, odd)
        return out.put(value | is_final, bits)
    return out.put(*_given(recipe))


def _given(recipe: Recipe) -> tuple[int, int]:
    count = recipe.edits()
    if count > 8 * MOST_PACKED_BYTES:
        raise MalformedPayloadError("A given block of a delta is too long", bits=count)
    value = int.from_bytes(recipe.bits.read(-(-count // 8)), "little")
    return value & (1 << count) - 1, count


def _edited(data: bytes, packed: bytes, recipe: Recipe) -> tuple[int, int]:
    """Bits of a block: given codes, zlib's tokens with some replaced."""
    header, header_bits = _given(recipe)
    writer = TokenWriter(fixed_or_described(header.to_bytes(-(-header_bits // 8) or 1, "little")))
    theirs = tokens_of(packed)
    place = at = 0  # of the image's tokens, of zlib's

    def put(length: int, distance: int) -> None:
        if distance:
            writer.match(length, distance)
        elif place < len(data):
            writer.literal(data[place])
        else:
            raise MalformedPayloadError("The tokens of a delta are longer than their block", place=place)

    for _ in range(recipe.edits()):
        for _ in range(recipe.edits()):
            length, distance = next(theirs, (0, 0))
            put(length, distance)
            place += length
            at = place
        for _ in range(recipe.edits()):
            length = recipe.edits()
            put(length, recipe.edits() if length > 1 else 0)
            place += length
        while at < place:
            skipped = next(theirs, (0, 0))[0]
            if not skipped:
                break
            at += skipped
        if at != place:
            raise MalformedPayloadError("The tokens of a delta do not meet zlib's again", place=place, theirs=at)
    for length, distance in theirs:
        put(length, distance)
        place += length
    if place != len(data):
        raise MalformedPayloadError("The tokens of a delta are shorter than their block", place=place)
    value, bits = writer.end()
    return header | value << header_bits, header_bits + bits


@cache
def deflate_is_classic() -> bool:
    """Whether this machine's zlib packs as zlib does: a known text gives the known stream."""
    found = hashlib.sha256()
    text = probe()
    for level, memory in ((9, 9), (9, 8), (6, 8), (1, 8)):
        packer = zlib.compressobj(level, zlib.DEFLATED, -15, memory)
        half = len(text) // 3
        found.update(packer.compress(text[:half]) + packer.flush(zlib.Z_SYNC_FLUSH))
        found.update(packer.compress(text[half:]) + packer.flush())
    return found.hexdigest() == _CLASSIC


def probe() -> bytes:
    """Make 200 kB that pack to several blocks with long and short matches; a linear congruential generator chooses."""
    out, state = bytearray(), 1
    while len(out) < 200_000:
        state = (state * 1103515245 + 12345) & 0x7FFFFFFF
        if len(out) > 64 and state >> 28 < 5:
            distance = 1 + (state >> 8) % min(len(out), 40_000)
            start = len(out) - distance
            out += out[start : start + 3 + (state >> 4) % 40]
        else:
            out += (state >> 12 & 0xFFFF).to_bytes(2, "little")
    return bytes(out)


_CLASSIC: Final = "158d933d06640e1489fa0cb74d16b52a7efae0a4c03a75715b1cc10d9b464b40"
