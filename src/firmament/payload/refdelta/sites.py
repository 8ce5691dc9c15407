"""Where an image refers to itself: the encoder's tables of reference sites (numpy).

The device finds sites cell by cell (`predict`); the encoder needs them all at once, to match images
and to learn how labels moved. The two need not agree to the last site: what is sent is computed
with `predict` itself, so a difference costs bytes and never correctness.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from firmament.payload.refdelta.labels import NOWHERE
from firmament.payload.refdelta.predict import LOOK_AHEAD
from firmament.payload.refdelta.regions import OBJECT_SPAN, Code

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from firmament.payload.refdelta.regions import Region, Regions

Ints = Any  # NDArray[np.int64]: numpy's arithmetic widens types faster than mypy follows


@dataclass(slots=True)
class Kind:
    """One kind of site: where (byte offset), the words or halves, and their targets as labels."""

    at: Ints
    label: Ints


class Table:
    """Regions as arrays, for looking up many offsets or labels at once."""

    def __init__(self, regions: Regions) -> None:
        rows = [row for row in regions.rows if row.length_bytes]
        self.offset = np.array([row.offset for row in rows], np.int64)
        self.end = self.offset + np.array([row.length_bytes for row in rows], np.int64)
        self.address = np.array([row.address for row in rows], np.int64)
        self.object = np.array([row.object for row in rows], np.int64)
        self.base = np.array([row.link_base for row in rows], np.int64)
        self.anchor = np.array([row.anchor for row in rows], np.int64)
        spans = sorted((row.label, row.label + row.memory_bytes) for row in regions.rows)
        self._first = np.array([first for first, _ in spans], np.int64)
        self._last = np.array([last for _, last in spans], np.int64)

    def region(self, offsets: Ints) -> Ints:
        """Index of the region that holds each offset, or -1."""
        if not len(self.offset):
            return np.full(len(offsets), -1)
        found = np.searchsorted(self.offset, offsets, side="right") - 1
        return np.where((found >= 0) & (offsets < self.end[np.maximum(found, 0)]), found, -1)

    def place(self, offsets: Ints, region: Ints) -> tuple[Ints, Ints]:
        """(address, label of address 0) of offsets in known regions."""
        return self.address[region] + offsets - self.offset[region], self.object[region] * OBJECT_SPAN

    def inside(self, labels: Ints) -> Any:
        """Whether each label lies in some region."""
        if not len(self._first):
            return np.zeros(len(labels), bool)
        found = np.searchsorted(self._first, labels, side="right") - 1
        return (found >= 0) & (labels < self._last[np.maximum(found, 0)])


def signed(values: Ints, bits: int) -> Ints:
    """Sign-extend."""
    wide = values.astype(np.int64)
    return (wide ^ (1 << (bits - 1))) - (1 << (bits - 1))


def words_of(image: bytes) -> NDArray[np.uint32]:
    """Return the image's aligned words."""
    return np.frombuffer(image, np.uint32, count=len(image) // 4)


class Arm64:
    """All references of an image's ARM64 regions, by word index."""

    def __init__(self, words: NDArray[np.uint32], rows: Sequence[Region]) -> None:
        self.words = words
        branch, condition, test, page, user = [], [], [], [], []
        for row in rows:
            if row.code != Code.ARM64 or row.offset % 4:
                continue
            first, last = row.offset // 4, (row.offset + row.length_bytes) // 4
            for start in range(first, last, 1 << 22):
                stop = min(last, start + (1 << 22))
                part = words[start:stop]
                branch.append(start + np.flatnonzero((part & 0x7C000000) == 0x14000000))
                condition.append(
                    start + np.flatnonzero(((part & 0xFF000000) == 0x54000000) | ((part & 0x7E000000) == 0x34000000))
                )
                test.append(start + np.flatnonzero((part & 0x7E000000) == 0x36000000))
                found = np.flatnonzero((part & 0x9F000000) == 0x90000000)
                page.append(start + found)
                user.append(_users(part, found))
        self.branch, self.condition, self.test, self.page, self.user = (
            np.concatenate(parts) if parts else np.zeros(0, np.int64) for parts in (branch, condition, test, page, user)
        )

    def distances(self) -> list[tuple[Ints, Ints, int, int]]:
        """(word index, target - site in bytes, mask of the other bits, lowest bit) of each kind of branch."""
        words = self.words
        return [
            (self.branch, signed(words[self.branch] & 0x3FFFFFF, 26) * 4, 0xFC000000, 0),
            (self.condition, signed(words[self.condition] >> 5 & 0x7FFFF, 19) * 4, 0xFF00001F, 5),
            (self.test, signed(words[self.test] >> 5 & 0x3FFF, 14) * 4, 0xFFF8001F, 5),
        ]


def _users(part: NDArray[np.uint32], pages: Ints) -> Ints:
    """For each ADRP the distance in words of its first user, or 0."""
    register = part[pages] & 31
    user = np.zeros(len(pages), np.int64)
    open_ = np.ones(len(pages), bool)
    for step in range(1, LOOK_AHEAD + 1):
        at = pages + step
        inside = open_ & (at < len(part))
        word = part[np.where(inside, at, 0)]
        uses = inside & ((word >> 5 & 31) == register)
        uses &= ((word & 0xFFC00000) == 0x91000000) | ((word & 0x3B000000) == 0x39000000)
        user[uses] = step
        open_ &= ~uses & ~(inside & ((word & 0x9F00001F) == (0x90000000 | register)))
    return user


def scale_of(word: NDArray[np.uint32]) -> Ints:
    """log2 of what the 12-bit offset of an ADD or LDR/STR counts."""
    vector = (word & 0xC4800000) == 0x04800000
    return np.where((word & 0xFFC00000) == 0x91000000, 0, np.where(vector, 4, (word >> 30).astype(np.int64)))


def page_address(word: NDArray[np.uint32], address: Ints) -> Ints:
    """Address of the page that ADRPs at these addresses name."""
    return ((address >> 12) + signed(word >> 29 & 3 | word >> 3 & 0x1FFFFC, 21)) << 12


def thumb_sites(halves: NDArray[np.uint16], rows: Sequence[Region]) -> Ints:
    """Half-word indexes of BL and B.W, none overlapping another."""
    first, second = halves[:-1], halves[1:]
    form = second & 0xD000
    found = np.flatnonzero(((first & 0xF800) == 0xF000) & ((form == 0xD000) | (form == 0x9000)))
    keep = np.zeros(len(found), bool)
    for row in rows:
        if row.code == Code.THUMB:
            keep |= (found * 2 >= row.offset) & (found * 2 + 4 <= row.offset + row.length_bytes)
    found = found[keep]
    if not len(found):
        return found
    starts = np.flatnonzero(np.concatenate([[True], np.diff(found) != 1]))  # of runs that may overlap
    run = np.repeat(starts, np.diff(np.concatenate([starts, [len(found)]])))
    return found[(np.arange(len(found)) - run) % 2 == 0]


def thumb_distance(halves: NDArray[np.uint16], at: Ints) -> Ints:
    """Target less address of the instruction after, in bytes."""
    first, second = halves[at].astype(np.int64), halves[at + 1].astype(np.int64)
    sign = first >> 10 & 1
    high = (second >> 13 & 1) ^ sign ^ 1
    low = (second >> 11 & 1) ^ sign ^ 1
    return (high << 23 | low << 22 | (first & 0x3FF) << 12 | (second & 0x7FF) << 1 | sign << 24) - (sign << 25)


def look_up(labels: Ints, moves: Ints, wanted: Ints) -> Ints:
    """Return the shift of each label, or NOWHERE."""
    found = np.searchsorted(labels, wanted, side="right") - 1
    return np.where(found >= 0, moves[np.maximum(found, 0)], NOWHERE) if len(labels) else np.full(len(wanted), NOWHERE)
