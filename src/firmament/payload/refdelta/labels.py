"""How labels moved: from the copies of a delta to "what was at this label is now that far away".

The encoder and the device both compute this from the copies and regions, with the functions here.
"""

from __future__ import annotations

import heapq
from array import array
from bisect import bisect_right
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from firmament.payload.refdelta.regions import Regions

NOWHERE: Final = 1 << 62
"""The shift of a label that lies in no region."""
GRANULE: Final = 4
"""Copies compete for the old image in granules of this many bytes."""
_COARSE: Final = 64
_SORTED_AT_ONCE: Final = 1 << 13
_MEMO: Final = 1 << 13
# A remembered label costs about 200 bytes: 1.6 MiB, emptied when full.


def offset_map(old: Sequence[int], new: Sequence[int], length: Sequence[int]) -> tuple[array[int], array[int]]:
    """Return (starts, shifts): old bytes from each start on moved by that shift.

    Where copies overlap in the old image the longest counts, of equally long ones the later.
    A copy owns the granules that begin in it. Old bytes that nothing was copied from move with
    what is before them.
    """

    def first(k: int) -> int:
        return (old[k] + GRANULE - 1) // GRANULE

    def last(k: int) -> int:
        return (old[k] + length[k] + GRANULE - 1) // GRANULE

    starts, shifts = array("q"), array("q")

    def put(granule: int, k: int) -> None:
        shift = new[k] - old[k]
        if not shifts or shifts[-1] != shift:
            starts.append(granule * GRANULE)
            shifts.append(shift)

    order = _sorted_by(old)
    index = 0
    while index < len(order):
        cluster = [order[index]]  # copies that overlap each other in the old image
        end = last(cluster[0])
        index += 1
        while index < len(order) and first(order[index]) < end:
            cluster.append(order[index])
            end = max(end, last(order[index]))
            index += 1
        if len(cluster) == 1:
            if last(cluster[0]) > first(cluster[0]):
                put(first(cluster[0]), cluster[0])
            continue
        edges = sorted({first(k) for k in cluster} | {last(k) for k in cluster})
        heap: list[tuple[int, int]] = []
        waiting = 0
        for edge in edges:
            while waiting < len(cluster) and first(cluster[waiting]) <= edge:
                k = cluster[waiting]
                waiting += 1
                if last(k) > edge:
                    heapq.heappush(heap, (-length[k], -k))
            while heap and last(-heap[0][1]) <= edge:
                heapq.heappop(heap)
            if heap:
                put(edge, -heap[0][1])
    return starts, shifts


def _sorted_by(old: Sequence[int]) -> array[int]:
    """Indexes in order of value, stable; sorted in parts, because a list of a large delta's copies takes 10 MB."""
    count = len(old)
    parts = [
        array("q", sorted(range(first, min(first + _SORTED_AT_ONCE, count)), key=old.__getitem__))
        for first in range(0, count, _SORTED_AT_ONCE)
    ]
    return array("q", heapq.merge(*parts, key=old.__getitem__)) if len(parts) > 1 else array("q", *parts)


def label_map(
    starts: Sequence[int], shifts: Sequence[int], old: Regions, new: Regions
) -> tuple[array[int], array[int]]:
    """Turn a map of offsets into one of labels: (labels, shifts), ascending.

    A label in a region without bytes, and one before anything was copied, keeps its place; a label
    outside every region is NOWHERE.
    """
    labels, moves = array("q"), array("q")

    def put(label: int, shift: int) -> None:
        if labels and labels[-1] == label:
            moves[-1] = shift
        elif not moves or moves[-1] != shift:
            labels.append(label)
            moves.append(shift)

    end = -1
    for row in sorted(old.rows, key=lambda row: (row.label, row.offset)):
        if row.label < end:
            continue  # two regions at the same label: the first counts
        if row.label > end >= 0:
            put(end, NOWHERE)
        end = row.label + row.memory_bytes
        put(row.label, 0)
        if not row.length_bytes:
            continue
        index = max(bisect_right(starts, row.offset) - 1, 0)
        offset, stop = row.offset, row.offset + row.length_bytes
        while offset < stop and index < len(starts):
            target = offset + shifts[index]
            there = new.at(target)
            if there is not None:
                label = row.label + offset - row.offset
                put(label, there.label + target - there.offset - label)
            index += 1
            if index < len(starts):
                offset = starts[index]
    if end >= 0:
        put(end, NOWHERE)
    return labels, moves


def corrected(
    labels: Sequence[int], moves: Sequence[int], keys: Sequence[int], values: Sequence[int]
) -> tuple[array[int], array[int]]:
    """Add the corrections the encoder sent: from each key on, so much more."""
    out_labels, out_moves = array("q"), array("q")
    i = j = 0
    move, value = NOWHERE, 0
    while i < len(labels) or j < len(keys):
        at = min(labels[i] if i < len(labels) else NOWHERE, keys[j] if j < len(keys) else NOWHERE)
        if i < len(labels) and labels[i] == at:
            move = moves[i]
            i += 1
        if j < len(keys) and keys[j] == at:
            value = values[j]
            j += 1
        total = NOWHERE if move == NOWHERE else move + value
        if not out_moves or out_moves[-1] != total:
            out_labels.append(at)
            out_moves.append(total)
    return out_labels, out_moves


class Labels:
    """Looks up shifts of labels; remembers the last ones, because code refers to few places often."""

    def __init__(self, labels: array[int], moves: array[int]) -> None:
        self._labels, self._moves = labels, moves
        self._coarse = labels[::_COARSE].tolist()
        self._count = len(labels)
        self.memo: dict[int, int] = {}

    def shift(self, label: int) -> int:
        """Return how far the label moved, or NOWHERE."""
        stop = bisect_right(self._coarse, label) * _COARSE
        if stop:
            count = self._count
            found = self._moves[bisect_right(self._labels, label, stop - _COARSE, min(count, stop)) - 1]
        else:
            found = NOWHERE
        memo = self.memo
        if len(memo) >= _MEMO:
            memo.clear()
        memo[label] = found
        return found

    def span(self, label: int) -> tuple[int, int, int]:
        """Return (first, end, shift) of the stretch of labels around this one that move together."""
        index = bisect_right(self._labels, label) - 1
        if index < 0:
            return 0, 0, NOWHERE
        end = self._labels[index + 1] if index + 1 < len(self._labels) else self._labels[index]
        return self._labels[index], end, self._moves[index]
