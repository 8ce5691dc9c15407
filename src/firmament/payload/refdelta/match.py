"""Match two images: which parts of the new one are like which parts of the old one (numpy, hdiffpatch).

Twice: first with every reference blanked, which shows how code moved; then with every reference
replaced by the label it points to, in the new image's terms, so that a call that still calls the
same function is equal although its bytes are not. A label rather than a hash of it: where the
prediction is off by a little, most bytes still agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import hdiffpatch
import numpy as np

from firmament.payload.refdelta.labels import NOWHERE, label_map, offset_map
from firmament.payload.refdelta.predict import BLOCK_LENGTH_BYTES, LEAST_ADDRESS, LEAST_DISTANCE, MOST_ADDRESS
from firmament.payload.refdelta.regions import Code
from firmament.payload.refdelta.scan import symbol_blocks
from firmament.payload.refdelta.sites import (
    Arm64,
    Ints,
    Table,
    look_up,
    page_address,
    scale_of,
    thumb_distance,
    thumb_sites,
    words_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from firmament.payload.refdelta.regions import Regions


@dataclass(slots=True)
class Copies:
    """Columns: offset in the old image, in the new one, length."""

    old: Ints
    new: Ints
    length: Ints


@dataclass(slots=True)
class Side:
    """One of the two images, with what was found in it."""

    image: bytes
    regions: Regions
    table: Table
    arm64: Arm64
    thumb: Ints
    """Half-word indexes."""

    @classmethod
    def of(cls, image: bytes, regions: Regions) -> Side:
        """Find the sites of an image."""
        halves = np.frombuffer(image, np.uint16, count=len(image) // 2)
        has_thumb = any(row.code == Code.THUMB for row in regions.rows)
        thumb = thumb_sites(halves, regions.rows) if has_thumb else np.zeros(0, np.int64)
        return cls(image, regions, Table(regions), Arm64(words_of(image), regions.rows), thumb)

    @property
    def halves(self) -> Any:
        """The image as half-words."""
        return np.frombuffer(self.image, np.uint16, count=len(self.image) // 2)


def covers(old: bytes, new: bytes) -> Copies:
    """Match byte strings with hdiffpatch and read the copies from its uncompressed diff (format HDIFF13)."""
    if not old or not new:
        empty = np.zeros(0, np.int64)
        return Copies(empty, empty, empty)
    diff = hdiffpatch.diff(old, new, compression=None, validate=False)
    place = diff.index(b"\0") + 1

    def integer(tag_bits: int = 0) -> int:
        nonlocal place
        byte = diff[place]
        place += 1
        value, more = byte & (1 << 7 - tag_bits) - 1, byte >> 7 - tag_bits & 1
        while more:
            byte = diff[place]
            place += 1
            value, more = value << 7 | byte & 0x7F, byte >> 7
        return value

    header = [integer() for _ in range(11)]
    rows = []
    old_end = new_end = 0
    for _ in range(header[2]):
        back = diff[place] >> 7
        step = integer(1)
        start = old_end - step if back else old_end + step
        at = new_end + integer()
        length = integer()
        if length:
            rows.append((start, at, length))
        old_end, new_end = start + length, at + length
    columns = np.array(rows, np.int64).reshape(-1, 3).T
    return Copies(*columns)


def matches(old: Side, new: Side, *, passes: int = 3) -> Iterator[Copies]:
    """Yield the copies between two images after each pass; the last is mostly the best."""
    if not old.regions.rows or not new.regions.rows:
        yield covers(old.image, new.image)
        return
    found = covers(_blanked(old), _blanked(new))
    yield found
    for _ in range(passes - 1):
        labels, moves = (np.asarray(column) for column in base_map(found, old, new))
        found = covers(_labelled(old, labels, moves), _labelled(new, None, None))
        yield found


def _bytes(words: Any, image: bytes) -> bytes:
    """Words as bytes, with the odd end of the image behind them; one copy, not two, if there is none."""
    rest = image[len(words) * 4 :]
    return bytes(words.tobytes() + rest if rest else words.tobytes())


def base_map(found: Copies, old: Side, new: Side) -> Any:
    """Return the map of labels before corrections, exactly as the device computes it."""
    starts, shifts = offset_map(found.old.tolist(), found.new.tolist(), found.length.tolist())
    return label_map(starts, shifts, old.regions, new.regions)


def _blanked(side: Side) -> bytes:
    words = side.arm64.words.copy()
    for at, _, keep, _ in side.arm64.distances()[:2]:
        words[at] &= keep
    words[side.arm64.page] &= 0x9F00001F
    users = side.arm64.page[side.arm64.user > 0] + side.arm64.user[side.arm64.user > 0]
    words[users] &= 0xFFC003FF
    out = _bytes(words, side.image)
    if len(side.thumb):
        halves = np.frombuffer(bytearray(out), np.uint16, count=len(out) // 2)
        halves[side.thumb] &= 0xF800
        halves[side.thumb + 1] &= 0xD000
        out = halves.tobytes() + out[len(halves) * 2 :]
    return out


def _labelled(side: Side, labels: Ints | None, moves: Ints | None) -> bytes:
    """Return the image with references replaced by their targets' labels; old targets moved first."""

    def aim(target: Ints) -> tuple[Ints, Any]:
        known = side.table.inside(target)
        if labels is None or moves is None:
            return target.astype(np.uint64), known
        shift = look_up(labels, moves, target)
        known &= shift != NOWHERE
        return (target + np.where(known, shift, 0)).astype(np.uint64), known

    words = side.arm64.words.copy()
    code = side.arm64
    touched = np.zeros(len(words), bool)
    for at, distance, keep, low in code.distances():
        touched[at] = True
        region = side.table.region(at * 4)
        address, zero = side.table.place(at * 4, region)
        mix, known = aim(zero + address + distance)
        field = ~np.uint32(keep) & np.uint32(0xFFFFFFFF)
        words[at[known]] = (
            words[at[known]] & np.uint32(keep)
            | (mix[known] >> np.uint64(2)).astype(np.uint32) << np.uint32(low) & field
        )
    region = side.table.region(code.page * 4)
    address, zero = side.table.place(code.page * 4, region)
    user = code.page + code.user
    low12 = np.where(
        code.user > 0, (code.words[user] >> 10 & 0xFFF).astype(np.int64) << scale_of(code.words[user]), 0x800
    )
    mix, known = aim(zero + page_address(code.words[code.page], address) + low12)
    at = code.page[known]
    words[at] = words[at] & 0x9F00001F | (mix[known] >> np.uint64(12)).astype(np.uint32) << np.uint32(5) & 0x60FFFFE0
    known &= code.user > 0
    words[user[known]] = words[user[known]] & 0xFFC003FF | mix[known].astype(np.uint32) << np.uint32(10) & 0x003FFC00
    touched[code.page] = True
    touched[user[code.user > 0]] = True
    for site, target, count in data_sites(side, touched):
        mix, known = aim(target)
        if count == 2:
            words[site[known]] = mix[known].astype(np.uint32)
            words[site[known] + 1] = (mix[known] >> np.uint64(32)).astype(np.uint32)
        else:
            words[site[known]] = mix[known].astype(np.uint32)
    out = _bytes(words, side.image)
    if len(side.thumb):
        out = _labelled_thumb(side, out, aim)
    return out


def data_sites(side: Side, touched: Any) -> list[tuple[Ints, Ints, int]]:
    """(word index, target label, words) of pointers and tables that look like ones, outside of references in code."""
    words, table = side.arm64.words, side.table
    found: list[tuple[Ints, Ints, int]] = []
    pairs = words[: len(words) // 2 * 2].view(np.uint64)
    busy = touched[: len(pairs) * 2].reshape(-1, 2).any(axis=1)
    pointing = np.zeros(len(words), bool)
    for index in range(len(table.offset)):
        if table.offset[index] % 8:
            continue
        first, last = int(table.offset[index]) // 8, int(table.end[index]) // 8
        value = pairs[first:last] - np.uint64(int(table.base[index]) & (1 << 64) - 1)
        hit = np.flatnonzero((value >= LEAST_ADDRESS) & (value < MOST_ADDRESS) & ~busy[first:last])
        found.append(((first + hit) * 2, int(table.object[index]) * (1 << 40) + value[hit].astype(np.int64), 2))
        pointing[(first + hit) * 2] = pointing[(first + hit) * 2 + 1] = True
    block = BLOCK_LENGTH_BYTES // 4
    count = len(words) // block
    free = (~touched & ~pointing)[: count * block].reshape(count, block)
    number = words.view(np.int32)[: count * block].reshape(count, block)
    limit = min(len(side.image), 1 << 30)
    relative = ((number <= -LEAST_ADDRESS) & (number > -limit) & free).mean(axis=1) > 0.07
    relative &= touched[: count * block].reshape(count, block).mean(axis=1) < 0.12
    candidates = (
        (_words_of_blocks(np.flatnonzero(relative)), False),
        (_words_of_blocks(symbol_blocks(words)), True),
        (_search_tables(side), True),
    )
    for among, anchored in candidates:
        at = among[~touched[among] & ~pointing[among]]
        region = table.region(at * 4)
        distance = words.view(np.int32)[at].astype(np.int64)
        kept = (region >= 0) & (np.abs(distance) >= LEAST_DISTANCE)
        at, region, distance = at[kept], region[kept], distance[kept]
        address, zero = table.place(at * 4, region)
        found.append((at, zero + distance + (table.anchor[region] if anchored else address), 1))
    return found


def _words_of_blocks(blocks: Ints) -> Ints:
    block = BLOCK_LENGTH_BYTES // 4
    return (blocks[:, None] * block + np.arange(block)).ravel()


def _search_tables(side: Side) -> Ints:
    """Word indexes of the .eh_frame_hdr tables: version 1, encodings 0x1b 0x03 0x3b, then the count at 8 (LSB)."""
    found = [np.zeros(0, np.int64)]
    for row in side.regions.rows:
        start = row.offset + row.anchor - row.address
        inside = row.offset <= start < row.offset + row.length_bytes - 12 and start % 4 == 0 and row.anchor
        if inside and side.image[start : start + 4] == b"\x01\x1b\x03\x3b":
            count = int.from_bytes(side.image[start + 8 : start + 12], "little")
            end = min(start + 12 + 8 * count, row.offset + row.length_bytes)
            found.append(np.arange(start // 4 + 3, end // 4))
    return np.concatenate(found)


def _labelled_thumb(side: Side, image: bytes, aim: Any) -> bytes:
    halves = np.frombuffer(bytearray(image), np.uint16, count=len(image) // 2)
    region = side.table.region(side.thumb * 2)
    address, zero = side.table.place(side.thumb * 2, region)
    mix, known = aim(zero + address + 4 + thumb_distance(side.halves, side.thumb))
    at = side.thumb[known]
    halves[at] = halves[at] & 0xF800 | (mix[known] >> np.uint64(1)).astype(np.uint16) & 0x7FF
    halves[at + 1] = halves[at + 1] & 0xD000 | (mix[known] >> np.uint64(12)).astype(np.uint16) & 0x2FFF
    busy = np.zeros(len(halves) + 1, bool)
    busy[side.thumb] = busy[side.thumb + 1] = True
    words = words_of(side.image).astype(np.int64)
    free = ~(busy[: len(words) * 2 : 2] | busy[1 : len(words) * 2 : 2])
    at = np.flatnonzero((words >= LEAST_ADDRESS) & free)
    mix, known = aim(words[at])
    at, mix = at[known], mix[known]
    halves[at * 2] = mix.astype(np.uint16)
    halves[at * 2 + 1] = (mix >> np.uint64(16)).astype(np.uint16)
    return halves.tobytes() + image[len(halves) * 2 :]
