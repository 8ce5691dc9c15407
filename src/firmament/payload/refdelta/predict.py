"""Predict a cell: the bytes that one copy gives to one 4 KiB block of the new image.

A cell is predicted from its own old bytes, from where it was and where it goes, and from how
labels moved; from nothing else. So any cell can be predicted alone, in any order, after a power
cut, in constant memory. The block's mode says which kinds of references to look for.

The loops are the hot path of the device: `bytes.translate` and `itertools.compress` find the
instructions at the speed of C, Python only sees those that refer to something.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from itertools import compress
from typing import TYPE_CHECKING, Final

from firmament.payload.refdelta.labels import NOWHERE, Labels
from firmament.payload.refdelta.regions import OBJECT_SPAN, Code

if TYPE_CHECKING:
    from firmament.payload.refdelta.regions import Regions


class Mode(IntEnum):
    """What to look for in a block; the byte that the payload holds is the sum.

    Plain numbers: the arithmetic of enum flags would cost the device more time than the prediction.
    """

    CODE = 1
    """Instructions of the region's processor."""
    POINTERS = 2
    """Aligned pointers: 8 bytes, or 4 in a Thumb object."""
    RELATIVE = 4
    """4-byte words that count from their own address."""
    OFFSETS = 8
    """4-byte words that are addresses in the object."""
    ANCHORED = 16
    """4-byte words that count from the region's anchor."""
    FRAMES = 32
    """Exception frames: negative words as RELATIVE, positive ones count backwards from themselves."""
    DENSE = 128
    """The block's differences are in the dense stream (no prediction)."""


KNOWN_MODES: Final = Mode.CODE | Mode.POINTERS | Mode.RELATIVE | Mode.OFFSETS | Mode.ANCHORED | Mode.FRAMES | Mode.DENSE
PREDICTING: Final = KNOWN_MODES & ~Mode.DENSE
BLOCK_LENGTH_BYTES: Final = 4096
LEAST_ADDRESS: Final = 0x1000
"""Words below are numbers, not addresses."""
LEAST_DISTANCE: Final = 64
LEAST_FRAME: Final = 16
MOST_ADDRESS: Final = 1 << 36
_64: Final = (1 << 64) - 1


def _table(*tops: int) -> bytes:
    return bytes(int(top in tops) for top in range(256))


_BRANCH: Final = _table(*(top for top in range(256) if top & 0x7C == 0x14))  # B, BL: imm26
_CONDITION: Final = _table(0x54, *(top for top in range(256) if top & 0x7E == 0x34))  # B.cond, CBZ, CBNZ: imm19
_TEST: Final = _table(*(top for top in range(256) if top & 0x7E == 0x36))  # TBZ, TBNZ: imm14
_PAGE: Final = _table(*(top for top in range(256) if top & 0x9F == 0x90))  # ADRP: imm21
_THUMB_FIRST: Final = _table(*range(0xF0, 0xF8))
LOOK_AHEAD: Final = 8
"""An ADRP's other half is among so many instructions after it."""


@dataclass(frozen=True, slots=True)
class Site:
    """Where a cell was and where it goes."""

    old_address: int
    new_address: int
    old_label: int
    """Label of address 0 of the old object."""
    turn: int
    """Old label of address 0 less the new one: shift of a label + turn = change of the address."""
    old_base: int
    new_base: int
    anchor_change: int
    old_anchor: int
    new_offset: int


def predict(
    cell: bytearray, old_offset: int, new_offset: int, mode: int, old: Regions, new: Regions, labels: Labels
) -> None:
    """Replace the references in a cell of old bytes by what they should be in the new image."""
    skip = -new_offset % 4
    before = old.at(old_offset + skip)
    after = new.at(new_offset + skip)
    if before is None or after is None:
        return
    here, there = old_offset + skip, new_offset + skip
    room = min(before.offset + before.length_bytes - here, after.offset + after.length_bytes - there)
    end = min(len(cell), skip + room)
    site = Site(
        old_address=before.address + here - before.offset,
        new_address=after.address + there - after.offset,
        old_label=before.object * OBJECT_SPAN,
        turn=(before.object - after.object) * OBJECT_SPAN,
        old_base=before.link_base,
        new_base=after.link_base,
        anchor_change=before.anchor - after.anchor,
        old_anchor=before.anchor,
        new_offset=there,
    )
    aligned = (old_offset - new_offset) % 4 == 0
    words = (end - skip) // 4 * 4
    old_bytes = bytes(cell[skip:end])
    out = memoryview(cell)
    if before.code == Code.THUMB:
        if mode & Mode.CODE and (old_offset - new_offset) % 2 == 0:
            start = -new_offset % 2  # Thumb instructions are 2-byte aligned: do not lose the first one
            _thumb(bytes(cell[start:end]), out[start:end], site, start - skip, labels)
        if mode & Mode.POINTERS and aligned:
            _pointers32(old_bytes[:words], out[skip : skip + words], site, labels)
    elif aligned and words:
        target = out[skip : skip + words]
        if mode & Mode.CODE and before.code == Code.ARM64:
            _arm64(old_bytes[:words], target.cast("I"), site, labels)
        if mode & Mode.POINTERS and (old_offset - new_offset) % 8 == 0:
            extra = -site.new_offset % 8
            stop = extra + (words - extra) // 8 * 8
            if stop > extra:
                _pointers64(old_bytes[extra:stop], target[extra:stop].cast("Q"), site, labels)
    if aligned and words and mode & (Mode.RELATIVE | Mode.OFFSETS | Mode.ANCHORED | Mode.FRAMES):
        _tables(old_bytes[:words], out[skip : skip + words].cast("I"), mode, site, labels)


def _arm64(data: bytes, out: memoryview, site: Site, labels: Labels) -> None:
    words = memoryview(data).cast("I")
    count = len(words)
    tops = data[3::4]
    recall, lookup = labels.memo.get, labels.shift
    origin = site.old_label + site.old_address
    turn = site.turn - (site.new_address - site.old_address)  # shift + turn: change of a distance
    first, end, own = labels.span(origin)
    if own + turn:
        first = end = 0  # the cell itself moves otherwise than its label: no short cut
    low, high = (first - origin) >> 2, (end - origin) >> 2
    numbers = range(count)
    for i in compress(numbers, tops.translate(_BRANCH)):
        word = words[i]
        distance = ((word & 0x3FFFFFF) ^ 0x2000000) - 0x2000000
        if low <= i + distance < high:
            continue
        label = origin + ((i + distance) << 2)
        if (shift := recall(label)) is None:
            shift = lookup(label)
        if shift != NOWHERE and shift + turn:
            out[i] = word & 0xFC000000 | distance + ((shift + turn) >> 2) & 0x3FFFFFF
    for i in compress(numbers, tops.translate(_CONDITION)):
        word = words[i]
        distance = (word >> 5 & 0x7FFFF ^ 0x40000) - 0x40000
        if low <= i + distance < high:
            continue
        shift = lookup(origin + ((i + distance) << 2))
        if shift != NOWHERE and shift + turn:
            out[i] = word & 0xFF00001F | (distance + ((shift + turn) >> 2) & 0x7FFFF) << 5
    for i in compress(numbers, tops.translate(_TEST)):
        word = words[i]
        distance = (word >> 5 & 0x3FFF ^ 0x2000) - 0x2000
        if low <= i + distance < high:
            continue
        shift = lookup(origin + ((i + distance) << 2))
        if shift != NOWHERE and shift + turn:
            out[i] = word & 0xFFF8001F | (distance + ((shift + turn) >> 2) & 0x3FFF) << 5
    _arm64_pages(words, tops.translate(_PAGE), out, site, labels)


def _arm64_pages(words: memoryview, is_page: bytes, out: memoryview, site: Site, labels: Labels) -> None:
    """Predict ADRPs, each with the ADD, LDR or STR that adds the low 12 bits."""
    count = len(words)
    recall, lookup = labels.memo.get, labels.shift
    old_page, new_page = site.old_address, site.new_address
    shift: int | None
    for i in compress(range(count), is_page):
        word = words[i]
        register = word & 31
        page = (word >> 29 & 3 | word >> 3 & 0x1FFFFC ^ 0x100000) - 0x100000 + (old_page + 4 * i >> 12) << 12
        user = scale = 0
        low12 = 0x800
        for j in range(i + 1, min(i + 1 + LOOK_AHEAD, count)):
            other = words[j]
            if other >> 5 & 31 == register:
                if other & 0xFFC00000 == 0x91000000:  # ADD immediate, 64 bits
                    user, scale = j, 0
                    break
                if other & 0x3B000000 == 0x39000000:  # LDR/STR unsigned offset, of any width
                    user, scale = j, other >> 30
                    if other & 0xC4800000 == 0x04800000:  # 128 bits
                        scale = 4
                    break
            if other & 0x9F00001F == 0x90000000 | register:
                break
        if user:
            low12 = (other >> 10 & 0xFFF) << scale
        label = site.old_label + page + low12
        if (shift := recall(label)) is None:
            shift = lookup(label)
        if shift == NOWHERE:
            continue
        address = page + low12 + shift + site.turn
        pages = (address >> 12) - (new_page + 4 * i >> 12)
        out[i] = word & 0x9F00001F | (pages & 3) << 29 | (pages >> 2 & 0x7FFFF) << 5
        if user:
            out[user] = other & 0xFFC003FF | ((address & 0xFFF) >> scale) << 10


def _thumb(data: bytes, out: memoryview, site: Site, start: int, labels: Labels) -> None:
    halves = memoryview(data[: len(data) // 2 * 2]).cast("H")
    count = len(halves)
    if count < 2:
        return
    target = out[: 2 * count].cast("H")
    recall, lookup = labels.memo.get, labels.shift
    origin = site.old_label + site.old_address + start + 4
    turn = site.turn - (site.new_address - site.old_address)
    done = -1
    for i in compress(range(count - 1), data[1::2].translate(_THUMB_FIRST)):
        second = halves[i + 1]
        if i <= done or second & 0xD000 not in {0xD000, 0x9000}:  # BL, B.W
            continue
        done = i + 1
        first = halves[i]
        sign = first >> 10 & 1
        distance = (
            (sign << 24)
            | ((second >> 13 & 1 ^ sign ^ 1) << 23)
            | ((second >> 11 & 1 ^ sign ^ 1) << 22)
            | ((first & 0x3FF) << 12)
            | ((second & 0x7FF) << 1)
        ) - (sign << 25)
        label = origin + 2 * i + distance
        if (shift := recall(label)) is None:
            shift = lookup(label)
        if shift != NOWHERE and shift + turn:
            distance += shift + turn
            sign = distance >> 24 & 1
            target[i] = first & 0xF800 | sign << 10 | distance >> 12 & 0x3FF
            target[i + 1] = (
                second & 0xD000
                | (distance >> 23 & 1 ^ sign ^ 1) << 13
                | (distance >> 22 & 1 ^ sign ^ 1) << 11
                | distance >> 1 & 0x7FF
            )


def _pointers64(data: bytes, out: memoryview, site: Site, labels: Labels) -> None:
    recall, lookup = labels.memo.get, labels.shift
    base, label, change = site.old_base, site.old_label, site.turn + site.new_base
    words = memoryview(data).cast("Q")
    tops = bytearray(256)
    tops[base >> 56 & 255] = tops[base + MOST_ADDRESS >> 56 & 255] = 1
    for i in compress(range(len(words)), data[7::8].translate(tops)):
        address = words[i] - base & _64
        if LEAST_ADDRESS <= address < MOST_ADDRESS:
            if (shift := recall(label + address)) is None:
                shift = lookup(label + address)
            if shift != NOWHERE:
                out[i] = address + shift + change & _64


def _pointers32(data: bytes, out: memoryview, site: Site, labels: Labels) -> None:
    recall, lookup = labels.memo.get, labels.shift
    label = site.old_label
    target = out.cast("I")
    for i, address in enumerate(memoryview(data).cast("I")):
        if address >= LEAST_ADDRESS:
            # bit 0 of a code pointer says Thumb: it is no part of the address, but moves along unharmed
            if (shift := recall(label + address)) is None:
                shift = lookup(label + address)
            if shift != NOWHERE:
                target[i] = address + shift + site.turn & 0xFFFFFFFF


def _tables(data: bytes, out: memoryview, mode: int, site: Site, labels: Labels) -> None:
    recall, lookup = labels.memo.get, labels.shift
    words = memoryview(data).cast("i")
    if mode & Mode.RELATIVE:
        origin = site.old_label + site.old_address
        change = site.turn - (site.new_address - site.old_address)
        for i, word in enumerate(words):
            if word >= LEAST_DISTANCE or word <= -LEAST_DISTANCE:
                label = origin + 4 * i + word
                if (shift := recall(label)) is None:
                    shift = lookup(label)
                if shift != NOWHERE:
                    out[i] = word + shift + change & 0xFFFFFFFF
    if mode & Mode.FRAMES:
        origin = site.old_label + site.old_address
        change = site.turn - (site.new_address - site.old_address)
        for i, word in enumerate(words):
            if word <= -LEAST_DISTANCE:
                label = origin + 4 * i + word
                if (shift := recall(label)) is None:
                    shift = lookup(label)
                if shift != NOWHERE:
                    out[i] = word + shift + change & 0xFFFFFFFF
            elif word >= LEAST_FRAME:
                label = origin + 4 * i - word
                if (shift := recall(label)) is None:
                    shift = lookup(label)
                if shift != NOWHERE:
                    out[i] = word - shift - change & 0xFFFFFFFF
    if mode & (Mode.OFFSETS | Mode.ANCHORED):
        anchored = mode & Mode.ANCHORED
        origin = site.old_label + (site.old_anchor if anchored else 0)
        change = site.turn + (site.anchor_change if anchored else 0)
        least = LEAST_DISTANCE if anchored else LEAST_ADDRESS
        for i, word in enumerate(words):
            if word >= least or (anchored and word <= -least):
                if (shift := recall(origin + word)) is None:
                    shift = lookup(origin + word)
                if shift != NOWHERE:
                    out[i] = word + shift + change & 0xFFFFFFFF
