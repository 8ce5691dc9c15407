"""Find compressed streams in an image, and how each of them can be packed again (author's bench)."""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from firmament.errors import MalformedPayloadError
from firmament.payload.refdelta import repack
from firmament.payload.refdelta.deflate import MOST_STORED_BYTES, STORED, Bits, Block, blocks, read_tokens
from firmament.payload.refdelta.repack import BlockPacker, Parameters, packed_bits, tokens_of

if TYPE_CHECKING:
    from collections.abc import Iterator

LEAST_CONTENTS_BYTES: Final = 4096
_SAMPLE_BYTES: Final = 4 * 1024**2
_MOST_LOST: Final = 0.5
"""A stream whose recipe takes more than this part of it stays packed."""
_STARTS: Final = re.compile(
    rb"\x1f\x8b\x08[\x00-\x1f]|PK\x03\x04..[\x00-\x0f].\x08\x00|\x78[\x01\x5e\x9c\xda]", re.DOTALL
)
_LIKELY: Final = tuple(Parameters(level, memory, 0) for level in (9, 6) for memory in (8, 9))
_POSSIBLE: Final = tuple(Parameters(level, memory, 0) for level in (8, 7, 5, 4, 3, 2, 1) for memory in (8, 9))


@dataclass(frozen=True, slots=True)
class Found:
    """A raw deflate stream in an image."""

    offset: int
    packed_bytes: int
    contents: bytes


@dataclass(slots=True)
class Recipe:
    """How to pack it again: the numbers and bits that `repack.pack` reads."""

    parameters: Parameters
    blocks: int = 0
    numbers: list[int] = field(default_factory=list)
    edits: list[int] = field(default_factory=list)
    bits: bytearray = field(default_factory=bytearray)

    def cost_bytes(self) -> int:
        """About how long it is."""
        return len(self.numbers) + 2 * len(self.edits) + len(self.bits)

    def give(self, value: int, count: int) -> None:
        """Add bits that nothing predicts."""
        self.edits.append(count)
        self.bits += value.to_bytes(-(-count // 8), "little")


def streams(image: bytes) -> Iterator[Found]:
    """Yield the deflate streams of an image in order: gzip files, zlib streams, members of ZIP archives."""
    end = 0
    for match in _STARTS.finditer(image):
        if match.start() < end:
            continue
        at = _raw_start(image, match.start())
        if at is None:
            continue
        decoder = zlib.decompressobj(-15)
        try:
            contents = decoder.decompress(image[at : at + 65536], LEAST_CONTENTS_BYTES)  # most candidates are none
            if len(contents) < LEAST_CONTENTS_BYTES:
                continue
            decoder = zlib.decompressobj(-15)
            contents = decoder.decompress(memoryview(image)[at:])
        except zlib.error:
            continue
        if decoder.eof:
            packed = len(image) - at - len(decoder.unused_data)
            end = at + packed
            yield Found(at, packed, contents)


def _raw_start(image: bytes, at: int) -> int | None:
    """Where the deflate stream behind a header begins (RFC 1950, RFC 1952, APPNOTE 4.3.7)."""
    if image[at] == 0x78:
        return at + 2 if (image[at] << 8 | image[at + 1]) % 31 == 0 else None
    if image[at] == 0x50:
        names, extra = struct.unpack("<HH", image[at + 26 : at + 30].ljust(4, b"\0"))
        return int(at + 30 + names + extra)
    flags, place = image[at + 3], at + 10
    if flags & 4:
        place += 2 + int.from_bytes(image[place : place + 2], "little")
    for flag in (8, 16):
        if flags & flag:
            place = image.find(0, place) + 1
            if not place:
                return None
    return place + (2 if flags & 2 else 0)


def recipe(packed: bytes, contents: bytes) -> Recipe | None:
    """Return how to make `packed` from `contents` again, or None if that takes too much."""
    for parameters in _LIKELY + _POSSIBLE:
        if _made_at_once(packed, contents, parameters):
            return Recipe(parameters)
    try:
        walked = list(blocks(packed))
    except MalformedPayloadError:
        return None
    if walked[-1].end != len(contents) or (walked[-1].end_bit + 7) // 8 != len(packed):
        return None
    sample = [block for block in walked if block.end <= _SAMPLE_BYTES] or walked[:1]
    tried = [_by_blocks(packed, contents, sample, parameters) for parameters in _LIKELY]
    best = min(tried, key=Recipe.cost_bytes)
    if best.cost_bytes() > _MOST_LOST / 4 * sample[-1].end_bit / 8:
        tried += [_by_blocks(packed, contents, sample, parameters) for parameters in _POSSIBLE]
        best = min(tried, key=Recipe.cost_bytes)
    found = best if len(sample) == len(walked) else _by_blocks(packed, contents, walked, best.parameters)
    return found if found.cost_bytes() < _MOST_LOST * len(packed) else None


def _made_at_once(packed: bytes, contents: bytes, parameters: Parameters) -> bool:
    """Whether zlib makes just this; a wrong guess is mostly seen after the first block."""
    packer, at = parameters.packer(), 0
    for start in range(0, len(contents), 1 << 18):
        made = packer.compress(contents[start : start + (1 << 18)])
        if packed[at : at + len(made)] != made:
            return False
        at += len(made)
    return packed[at:] == packer.flush()


def _by_blocks(packed: bytes, contents: bytes, walked: list[Block], parameters: Parameters) -> Recipe:
    """Let zlib end its blocks where the stream's end; note what differs."""
    found = Recipe(parameters, blocks=len(walked))
    packer = BlockPacker(parameters)
    for block in walked:
        data = contents[block.start : block.end]
        made = packer.pack(iter((data,))) if len(data) else packer.pack(iter(()))
        wanted, count = _bits(packed, block.begin_bit, block.end_bit)
        how, odd = _how(made, data, block, wanted, count)
        found.numbers += [len(data), how | odd << 2]
        if how == repack.GIVEN:
            found.give(wanted, count)
        elif how == repack.EDITED:
            _edit(found, packed, made, block)
    return found


def _how(made: bytes, data: bytes, block: Block, wanted: int, count: int) -> tuple[int, int]:
    odd = 8 * (len(made) - 4) - 3 - count
    if 0 <= odd <= 7 and packed_bits(made, odd)[0] | block.is_final == wanted:
        return repack.SAME, odd
    if block.kind == STORED:
        return (repack.AS_STORED if len(data) <= MOST_STORED_BYTES else repack.GIVEN), 0
    return (repack.EDITED if data else repack.GIVEN), 0


def _bits(data: bytes, begin: int, end: int) -> tuple[int, int]:
    value = int.from_bytes(data[begin >> 3 : end + 7 >> 3], "little") >> (begin & 7)
    return value & (1 << end - begin) - 1, end - begin


def _edit(found: Recipe, packed: bytes, made: bytes, block: Block) -> None:
    """Note a block's codes, and where its tokens are not zlib's."""
    found.give(*_bits(packed, block.begin_bit, block.first_bit))
    ours = list(read_tokens(Bits(packed, block.first_bit), block.literal_lengths, block.distance_lengths))
    theirs = list(tokens_of(made))
    steps: list[tuple[int, list[tuple[int, int]]]] = []
    i = j = same = 0
    while i < len(ours):
        if j < len(theirs) and ours[i] == theirs[j]:
            i, j, same = i + 1, j + 1, same + 1
            continue
        own, place, there = [], 0, 0
        while True:  # up to where both packers begin a token at the same byte
            if place <= there and i < len(ours):
                own.append(ours[i])
                place += ours[i][0]
                i += 1
            elif j < len(theirs):
                there += theirs[j][0]
                j += 1
            if place == there or (i >= len(ours) and j >= len(theirs)):
                break
        steps.append((same, own))
        same = 0
    found.edits.append(len(steps))
    for same, own in steps:
        found.edits += [same, len(own)]
        for length, distance in own:
            found.edits += [length, distance] if length > 1 else [length]
