"""Make an in-place payload (author's bench; needs the extra ``delta``).

Matching is refdelta's, with references blanked or replaced by their labels. Then copies whose
source would be written over before they are made are given up: made from the image's end down, that
is a few bytes where code grew. What is left is what the device computes too: how things moved,
what that makes of references, and the differences that remain.

Time: about 6 s of CPU and 60 MiB of memory for an image of 0.4 MB.
"""

from __future__ import annotations

import itertools
import lzma
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from firmament.errors import MalformedPayloadError, TooLargeError
from firmament.payload.inplace.applier import Maker
from firmament.payload.inplace.blocks import Operation, Ring, What, cells, is_there
from firmament.payload.inplace.moves import Moves
from firmament.payload.inplace.predict import MODES, predict
from firmament.payload.inplace.wire import (
    MAX_IMAGE_LENGTH_BYTES,
    MAX_OPERATIONS,
    MAX_RAM_BYTES,
    Header,
    Packing,
    signed,
    varint,
)
from firmament.payload.readers import BytesReader
from firmament.payload.refdelta.labels import NOWHERE
from firmament.payload.refdelta.learn import corrections, votes
from firmament.payload.refdelta.match import Copies, Side, matches
from firmament.payload.refdelta.regions import Code, Regions
from firmament.payload.refdelta.scan import scan

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LEAST_COPY_BYTES: Final = 12
"""Shorter copies cost more than the bytes they give, unless they go on where the one before did."""
_PACKINGS: Final = tuple(
    Packing(lc, lp, pb, log2)
    for log2 in (12, 13)
    for lc in range(4)
    for lp in range(2)
    for pb in range(3)
    if lc + lp < 4  # noqa: PLR2004 - the tables double with each
)


@dataclass(frozen=True, slots=True)
class Shape:
    """The flash of the devices that a payload is for."""

    memory_bytes: int = 0
    """Of the slot; 0: as many blocks as the longer image needs."""
    log2_block: int = 12
    """Of an erase block."""
    ring_blocks: int = 1
    """For old content that is still needed: the scratch area."""
    max_ram_bytes: int = MAX_RAM_BYTES


def is_for(old: bytes, new: bytes) -> bool:
    """Whether both are images of a microcontroller: Thumb code, and of a size that such devices have."""
    if max(len(old), len(new)) > MAX_IMAGE_LENGTH_BYTES:
        return False
    return all(any(row.code == Code.THUMB for row in scan(image).rows) for image in (old, new))


def encode(old: bytes, new: bytes, shape: Shape | None = None) -> bytes:
    """Return the payload that turns `old` into `new` in place; raises TooLargeError, MalformedPayloadError.

    It was read back by the device's own code, and its memory is within `shape.max_ram_bytes`.
    """
    shape = shape or Shape()
    block = 1 << shape.log2_block
    longest = max(len(old), len(new))
    memory = shape.memory_bytes or -(-longest // block) * block
    if longest > min(memory, MAX_IMAGE_LENGTH_BYTES):
        raise TooLargeError("The images do not fit the memory", longest=longest, memory_bytes=memory)
    before, after = scan(old), scan(new)
    if not (before.rows and after.rows):
        before = after = Regions(())
    sides = Side.of(old, before), Side.of(new, after)
    address = next((row.address for row in before.rows if row.length_bytes), 0)
    if address + memory > 1 << 32:
        address = 0
    best: bytes | None = None
    found = list(matches(*sides, passes=3))
    for is_descending in (True, False):
        head = Header(
            len(old), len(new), memory, shape.log2_block, shape.ring_blocks, is_descending, address, 0, 0,
            (Packing(), Packing()), (0, 0), (0, 0),
        )  # fmt: skip
        for copies in (found[0], found[-1]) if len(found) > 1 else found:
            made = _Attempt(sides, copies, head).payload(shape.max_ram_bytes)
            best = made if best is None or len(made) < len(best) else best
    assert best is not None
    maker = Maker(BytesReader(best), len(best), max_ram_bytes=shape.max_ram_bytes)
    maker.rehearse()
    if maker.ledger.peak_bytes > shape.max_ram_bytes:
        raise MalformedPayloadError("The payload would need too much memory", needs=maker.ledger.peak_bytes)
    return best


class _Attempt:
    """One set of copies in one direction."""

    def __init__(self, sides: tuple[Side, Side], copies: Copies, head: Header) -> None:
        self._sides = sides
        self._old, self._new = sides[0].image, sides[1].image
        self._head = head
        self._source = _sources(copies, len(self._new))
        self._whats: dict[int, What] = {}
        self._plan()
        self._windows: dict[int, list[tuple[int, int, list[Operation]]]] = {}
        self._moves = Moves(head.address, len(self._old))
        for number in head.order():
            if self._whats[number] is not What.KEPT:
                self._windows[number] = list(self._cut(number))
                for _, _, operations in self._windows[number]:
                    for one in operations:
                        if one.copy:
                            self._moves.copy(one.old, one.new + one.literal - one.old)
        self._learn()

    def _bounds(self, number: int) -> tuple[int, int]:
        start = number * self._head.block
        return start, min(start + self._head.block, len(self._new))

    def _plan(self) -> None:
        """Decide what happens to each block, and give up the sources that would be gone."""
        head = self._head
        order = list(head.order())
        wanted = {}
        for number in order:
            start, end = self._bounds(number)
            if self._old[start:end] == self._new[start:end]:
                self._whats[number] = What.KEPT
            else:
                source = self._source[start:end]
                wanted[number] = set((source[source >= 0] // head.block).tolist())
        busy = [number for number in order if number in wanted]
        ring = Ring(head.ring_blocks)
        for index, number in enumerate(busy):
            users = busy[index : index + head.ring_blocks]
            is_needed = any(number in wanted[user] for user in users)
            self._whats[number] = What.SAVED if is_needed else What.WRITTEN
            if is_needed:
                ring.save(number)
            start, end = self._bounds(number)
            part = self._source[start:end]
            held = part // head.block
            for old_block in wanted[number]:
                if not is_there(head, number, self._whats[number], ring, old_block * head.block, 1):
                    part[held == old_block] = -1

    def _cut(self, number: int) -> Iterator[tuple[int, int, list[Operation]]]:
        """Turn a block's sources into operations, window by window."""
        block_start, block_end = self._bounds(number)
        for start in range(block_start, block_end, self._head.window):
            end = min(start + self._head.window, block_end)
            yield start, end - start, _operations(self._source[start:end], start)

    def _learn(self) -> None:
        """Fit corrections to what references say, and choose each window's mode."""
        old, new = self._sides
        self._corrections: list[tuple[int, int]] = []
        if old.regions.rows:
            rows = [one for windows in self._windows.values() for _, _, found in windows for one in found if one.copy]
            rows.sort(key=lambda one: one.new)
            columns = np.array([(one.old, one.new + one.literal, one.copy) for one in rows], np.int64).reshape(-1, 3).T
            labels, moves = self._labels()
            keys, values = corrections(votes(old, new, Copies(*columns), labels, moves), labels, moves)
            self._corrections = _within(old.regions, keys, values)
            for key, value in self._corrections:
                self._moves.corrected.starts.append(key)
                self._moves.corrected.values.append(value)

    def _labels(self) -> tuple[Any, Any]:
        """Return the moves as refdelta's learning wants them: nothing outside of a region has moved anywhere."""
        labels, moves = [0], [NOWHERE]
        table, head = self._moves.copied, self._head
        for row in sorted(self._sides[0].regions.rows, key=lambda row: row.address):
            labels.append(row.address)
            moves.append(0)
            if row.length_bytes:
                labels += [head.address + start for start in table.starts]
                moves += list(table.values)
            labels.append(row.address + row.memory_bytes)
            moves.append(NOWHERE)
        return np.array(labels, np.int64), np.array(moves, np.int64)

    def payload(self, max_ram_bytes: int) -> bytes:
        """Write both streams and pack them."""
        operations, values, shift = bytearray(_table(self._corrections)), bytearray(), 0
        for number in self._head.order():
            operations += varint(self._whats[number])
            for start, length, found in self._windows.get(number, ()):
                shift = self._window(start, length, found, shift, operations, values)
        return _pack(
            replace(self._head, moves=len(self._moves.copied), corrections=len(self._corrections)),
            bytes(operations), bytes(values), max_ram_bytes,
        )  # fmt: skip

    def _window(
        self, start: int, length: int, found: list[Operation], shift: int, operations: bytearray, values: bytearray
    ) -> int:
        mode, guessed = self._guess(found)
        operations += varint(len(found) * (MODES + 1) + mode)
        end, copied = start + length, 0
        gaps: list[int] = []
        last = -1
        for one, guess in zip(found, guessed, strict=True):
            at = one.new + one.literal
            operations += varint(one.literal)
            operations += varint(0 if at + one.copy == end else one.copy + 1)
            if one.copy:
                operations += signed(at - one.old - shift)
                shift = at - one.old
            values += self._new[one.new : at]
            wanted = self._new[at : at + one.copy]
            for place in np.flatnonzero(np.frombuffer(guess, np.uint8) != np.frombuffer(wanted, np.uint8)).tolist():
                gaps.append(copied + place - last - 1)
                last = copied + place
                values.append((wanted[place] - guess[place]) & 0xFF)
            copied += one.copy
        operations += varint(len(gaps))
        for gap in gaps:
            operations += varint(gap)
        return shift

    def _guess(self, found: Sequence[Operation]) -> tuple[int, list[bytes]]:
        """Return the mode that leaves the fewest differences, and what it predicts."""
        best: tuple[int, int, list[bytes]] | None = None
        for mode in range(MODES + 1) if self._head.address else (0,):
            guessed = []
            wrong = 0
            for one in found:
                guess = b"".join(
                    predict(self._old[old : old + length], old, new, mode, self._moves, self._head.address)
                    for old, new, length in cells(one)
                )
                at = one.new + one.literal
                wanted = np.frombuffer(self._new, np.uint8, one.copy, at) if one.copy else np.zeros(0, np.uint8)
                wrong += int((np.frombuffer(guess, np.uint8) != wanted).sum())
                guessed.append(guess)
            if best is None or wrong < best[0]:
                best = wrong, mode, guessed
        assert best is not None
        return best[1], best[2]


def _sources(copies: Copies, length: int) -> Any:
    """For each byte of the image the old offset it is copied from, or -1."""
    found = np.full(length, -1, np.int64)
    for old, new, count in zip(copies.old.tolist(), copies.new.tolist(), copies.length.tolist(), strict=True):
        found[new : new + count] = np.arange(old, old + count)
    return found


def _operations(source: Any, start: int) -> list[Operation]:
    """Return the operations of one window; short copies become new bytes."""
    edges = np.flatnonzero(np.diff(source) != 1) + 1
    bounds = [0, *edges.tolist(), len(source)]
    runs = [
        (at, to - at, int(source[at]))
        for at, to in itertools.pairwise(bounds)
        if source[at] >= 0 and to - at >= LEAST_COPY_BYTES
    ]
    runs = sorted(sorted(runs, key=lambda run: -run[1])[: MAX_OPERATIONS - 1])
    found, place = [], 0
    for at, count, old in runs:
        found.append(Operation(start + place, at - place, count, old))
        place = at + count
    if place < len(source) or not found:
        found.append(Operation(start + place, len(source) - place, 0, 0))
    return found


def _within(regions: Regions, keys: list[int], values: list[int]) -> list[tuple[int, int]]:
    """Cut corrections at the ends of regions: what lies outside of every region does not move."""
    edges = sorted({*keys, *(edge for row in regions.rows for edge in (row.address, row.address + row.memory_bytes))})
    table = sorted(zip(keys, values, strict=True))
    found: list[tuple[int, int]] = []
    index, value = 0, 0
    for edge in edges:
        while index < len(table) and table[index][0] <= edge:
            value = table[index][1]
            index += 1
        is_inside = any(row.address <= edge < row.address + row.memory_bytes for row in regions.rows)
        now = value if is_inside else 0
        if now != (found[-1][1] if found else 0) and edge < 1 << 32:
            found.append((edge, now))
    return found


def _table(rows: Sequence[tuple[int, int]]) -> bytes:
    out = bytearray()
    key = value = 0
    for one in rows:
        out += varint(one[0] - key) + signed(one[1] - value)
        key, value = one
    return bytes(out)


def _pack(head: Header, operations: bytes, values: bytes, max_ram_bytes: int) -> bytes:
    """Pack both streams in the way that is shortest within the memory; raises MalformedPayloadError."""
    tried = [sorted(_packed(part), key=lambda one: (len(one[1]), one[0].ram_bytes)) for part in (operations, values)]
    best: bytes | None = None
    for one, first in tried[0]:
        for two, second in tried[1]:
            found = replace(
                head, packings=(one, two), packed=(len(first), len(second)), plain=(len(operations), len(values))
            )
            if found.ram_bytes <= max_ram_bytes:
                made = found.encode() + first + second
                best = made if best is None or len(made) < len(best) else best
                break
    if best is None:
        raise MalformedPayloadError("The images differ in more ways than the memory can hold", limit=max_ram_bytes)
    return best


def _packed(data: bytes) -> Iterator[tuple[Packing, bytes]]:
    for packing in _PACKINGS:
        yield packing, lzma.compress(data, format=lzma.FORMAT_RAW, filters=packing.filters)
