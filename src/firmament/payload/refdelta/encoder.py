"""Make a refdelta payload (author's bench; needs the extra ``delta``).

Time and memory: about 1 s and 10 bytes of memory per MB of image and pass for matching (hdiffpatch),
as much again for learning and compressing; docs/performance/delta.md has the measurements.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from firmament.payload.refdelta import wire
from firmament.payload.refdelta.applier import CHUNK_LENGTH_BYTES, GAP_SKIP, MAX_COPIES
from firmament.payload.refdelta.labels import Labels, corrected
from firmament.payload.refdelta.learn import corrections, modes, votes
from firmament.payload.refdelta.match import Copies, Side, base_map, match
from firmament.payload.refdelta.predict import BLOCK_LENGTH_BYTES, Mode, predict
from firmament.payload.refdelta.regions import Regions
from firmament.payload.refdelta.scan import scan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DENSE_FROM: Final = 150
"""Differences in a block from which on they are cheaper as one byte each than as gap and value."""
FRAME_RAW_BYTES: Final = 8 * 1024**2
FRAME_IMAGE_BYTES: Final = 64 * 1024**2
_JOINED_BYTES: Final = 512 * 1024
_FRAME_DICTIONARY_LOG2: Final = 21


def encode(old: bytes, new: bytes, *, progress: Callable[[str], None] = lambda _: None) -> bytes:
    """Return the payload that makes `new` from `old`."""
    before, after = scan(old), scan(new)
    if not before.rows or not after.rows:
        before = after = Regions(())
    sides = Side.of(old, before), Side.of(new, after)
    progress("matching")
    copies = match(*sides)
    if len(copies.old) > MAX_COPIES:
        raise ValueError("too many copies")
    progress("learning")
    keys: list[int] = []
    values: list[int] = []
    labels = Labels(array("q"), array("q"))
    plain, covered = _copied(sides[0].image, len(new), copies)
    target = np.frombuffer(new, np.uint8)
    chosen = np.zeros(-(-len(new) // BLOCK_LENGTH_BYTES), np.uint8)
    if before.rows:
        base = base_map(copies, *sides)
        arrays = tuple(np.asarray(column) for column in base)
        keys, values = corrections(votes(*sides, copies, *arrays), *arrays)
        final = corrected(*base, keys, values)
        labels = Labels(*final)
        errors = _per_block((plain != target) & covered)
        chosen = modes(*sides, copies, *(np.asarray(column) for column in final), errors)
        progress("predicting")
        _predict(plain, copies, chosen, before, after, labels)
    progress("packing")
    difference = target - plain
    difference[~covered] = 0
    chosen |= np.where(_per_block(difference != 0) > DENSE_FROM, int(Mode.DENSE), 0).astype(np.uint8)
    head = [
        wire.signed_varints(np.diff(copies.old, prepend=0) - np.concatenate([[0], copies.length])[: len(copies.old)]),
        wire.varints((copies.new - np.concatenate([[0], (copies.new + copies.length)[:-1]])[: len(copies.new)]).tolist()),
        wire.varints(copies.length.tolist()),
        before.encode(),
        after.encode(),
        wire.varints(np.diff(np.array(keys, np.int64), prepend=0).tolist()),
        wire.signed_varints(np.diff(np.array(values, np.int64), prepend=0).tolist()),
    ]
    return _write(len(old), target, head, chosen, difference, covered)


def _copied(old: bytes, length: int, copies: Copies) -> tuple[Any, Any]:
    source = np.frombuffer(old, np.uint8)
    plain, covered = np.zeros(length, np.uint8), np.zeros(length, bool)
    for start, at, count in zip(copies.old.tolist(), copies.new.tolist(), copies.length.tolist(), strict=True):
        plain[at : at + count] = source[start : start + count]
        covered[at : at + count] = True
    return plain, covered


def _per_block(flags: Any) -> Any:
    if not len(flags):
        return np.zeros(0, np.int64)
    return np.add.reduceat(flags, np.arange(0, len(flags), BLOCK_LENGTH_BYTES), dtype=np.int64)


def _predict(plain: Any, copies: Copies, chosen: Any, before: Regions, after: Regions, labels: Labels) -> None:
    """Predict every cell of a block with a mode, with the function the device uses."""
    view = memoryview(plain)
    for start, at, count in zip(copies.old.tolist(), copies.new.tolist(), copies.length.tolist(), strict=True):
        first, last = at // BLOCK_LENGTH_BYTES, (at + count - 1) // BLOCK_LENGTH_BYTES
        for block in (first + np.flatnonzero(chosen[first : last + 1])).tolist():
            begin = max(at, block * BLOCK_LENGTH_BYTES)
            end = min(at + count, (block + 1) * BLOCK_LENGTH_BYTES)
            cell = bytearray(view[begin:end])
            predict(cell, start + begin - at, begin, int(chosen[block]), before, after, labels)
            view[begin:end] = cell


def _gaps(places: Any, begin: int) -> bytes:
    """Encode the distances between differences, one byte each; GAP_SKIP moves on only."""
    gap = np.diff(places, prepend=begin - 1) - 1
    skips = gap // GAP_SKIP
    out = np.full(int(len(gap) + skips.sum()), GAP_SKIP, np.uint8)
    out[np.cumsum(skips + 1) - 1] = gap % GAP_SKIP
    return out.tobytes()


def _write(old_length: int, target: Any, head: list[bytes], chosen: Any, difference: Any, covered: Any) -> bytes:
    length = len(target)
    start = wire.MAGIC + bytes((wire.FORMAT_VERSION,)) + wire.varints((old_length, length))
    frames = [_frame(begin, end, target, chosen, difference, covered) for begin, end in _cut(chosen, difference, covered)]
    if len(frames) <= 1:
        parts = [*head, *(frames[0] if frames else [b""] * 5)]
        if sum(map(len, parts)) <= _JOINED_BYTES or not frames:
            return start + wire.varints([0]) + wire.write_group(parts, most_log2=_FRAME_DICTIONARY_LOG2)
    packed = [wire.write_group(parts, most_log2=_FRAME_DICTIONARY_LOG2) for parts in frames]
    sizes = [value for (begin, end), frame in zip(_cut(chosen, difference, covered), packed, strict=True) for value in (end - begin, len(frame))]
    return start + wire.varints([len(packed), *sizes]) + wire.write_group(head) + b"".join(packed)


def _cut(chosen: Any, difference: Any, covered: Any) -> Iterator[tuple[int, int]]:
    """Cut the image into frames by how much they hold."""
    length = len(difference)
    dense = (chosen & int(Mode.DENSE)) > 0
    weight = np.where(dense, BLOCK_LENGTH_BYTES, 2 * _per_block(difference != 0)) + _per_block(~covered)
    step = CHUNK_LENGTH_BYTES // BLOCK_LENGTH_BYTES
    begin = total = 0
    for block in range(0, len(weight), step):
        at = block * BLOCK_LENGTH_BYTES
        more = int(weight[block : block + step].sum())
        if at > begin and (total + more > FRAME_RAW_BYTES or at - begin >= FRAME_IMAGE_BYTES):
            yield begin, at
            begin, total = at, 0
        total += more
    if length:
        yield begin, length


def _frame(begin: int, end: int, target: Any, chosen: Any, difference: Any, covered: Any) -> list[bytes]:
    blocks = chosen[begin // BLOCK_LENGTH_BYTES : -(-end // BLOCK_LENGTH_BYTES)]
    dense = np.repeat((blocks & int(Mode.DENSE)) > 0, BLOCK_LENGTH_BYTES)[: end - begin]
    part, inside = difference[begin:end], covered[begin:end]
    places = np.flatnonzero((part != 0) & ~dense)
    return [
        blocks.tobytes(),
        _gaps(places + begin, begin),
        part[places].tobytes(),
        part[dense & inside].tobytes(),
        target[begin:end][~inside].tobytes(),
    ]


