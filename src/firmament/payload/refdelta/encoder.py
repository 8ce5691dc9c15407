"""Make a refdelta payload (author's bench; needs the extra ``delta``).

Time and memory: about 1 s and 10 bytes of memory per MB of image and pass for matching (hdiffpatch),
as much again for learning and compressing; docs/performance/delta.md has the measurements.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from firmament.payload.refdelta import wire
from firmament.payload.refdelta.applier import CHUNK_LENGTH_BYTES, GAP_SKIP, MAX_COPIES
from firmament.payload.refdelta.labels import Labels, corrected
from firmament.payload.refdelta.learn import corrections, modes, votes
from firmament.payload.refdelta.match import Copies, Side, base_map, matches
from firmament.payload.refdelta.predict import BLOCK_LENGTH_BYTES, Mode, predict
from firmament.payload.refdelta.regions import Regions
from firmament.payload.refdelta.scan import scan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DENSE_FROM: Final = (150, 50, 500)
"""Differences in a block from which on they are cheaper as one byte each than as gap and value; first the usual one."""
SMALL_IMAGE_BYTES: Final = 64 * 1024**2
"""Up to here several plans are tried, and the shortest payload is kept."""
TINY_IMAGE_BYTES: Final = 8 * 1024**2
SMALL_PAYLOAD_BYTES: Final = 256 * 1024
FRAME_RAW_BYTES: Final = 8 * 1024**2
FRAME_IMAGE_BYTES: Final = 64 * 1024**2
_SPAN_BYTES: Final = 16 * 1024**2
_DETOUR_BYTES: Final = 4096
"""Shorter copies may be a matcher's detour from a longer one."""
_JOINED_BYTES: Final = 512 * 1024
_FRAME_DICTIONARY_LOG2: Final = 21
_FRAME_DICTIONARIES_LOG2: Final = (16, 19, 20, 20, 21)
"""Of a large image's frames, a stream each; their sum is memory on a device that has much else to remember."""


def encode(old: bytes, new: bytes, *, progress: Callable[[str], None] = lambda _: None) -> bytes:
    """Return the payload that makes `new` from `old`.

    Small images are tried in several ways: with and without knowledge of their regions, tiny ones
    after one matching pass as well as after three.
    """
    before, after = scan(old), scan(new)
    none = Regions(())
    known = bool(before.rows and after.rows)
    small = len(new) <= SMALL_IMAGE_BYTES
    plans = [(before, after)] if known else []
    if small or not known:
        plans.append((none, none))
    best: _Attempt | None = None
    for regions in plans:
        sides = Side.of(old, regions[0]), Side.of(new, regions[1])
        passes = 3 if small else 2
        for number, copies in enumerate(matches(*sides, passes=passes), 1):
            progress(f"matched, pass {number}")
            last = number == passes or not regions[0].rows
            tiny = number == 1 and len(new) <= TINY_IMAGE_BYTES
            if len(copies.old) > MAX_COPIES or not (last or tiny):
                continue
            attempt = _Attempt(sides, copies, progress)
            attempts = [attempt]
            if small and attempt.estimate() <= SMALL_PAYLOAD_BYTES:
                attempts += [_Attempt(sides, variant, progress) for variant in _bridged(sides, copies)]
            for attempt in attempts:
                best = attempt if best is None or attempt.estimate() < best.estimate() else best
    if best is None:
        raise ValueError("the images have too little in common for a delta")
    progress("packing")
    return best.payload()


def _bridged(sides: tuple[Side, Side], copies: Copies) -> Iterator[Copies]:
    """Yield copies that go on over what lies between two of them, where that moved along.

    Short copies in between are left out. Tables of numbers that all changed by the same amount
    look like new bytes to a matcher; as differences they cost next to nothing.
    """
    kept = copies.length >= _DETOUR_BYTES
    shift = (copies.new - copies.old)[kept].tolist()
    begins = copies.new[kept].tolist()
    ends = (copies.new + copies.length)[kept].tolist()
    rows: list[list[int]] = []
    for index, (move, begin, end) in enumerate(zip(shift, begins, ends, strict=True)):
        if rows and shift[index - 1] == move:
            rows[-1][1] = end
        else:
            rows.append([begin, end, move])
    if rows and rows[0][2] == 0:
        rows[0][0] = 0
    if rows and len(sides[1].image) - rows[-1][1] == len(sides[0].image) - (rows[-1][1] - rows[-1][2]):
        rows[-1][1] = len(sides[1].image)
    if rows and len(rows) < len(copies.new):
        begin_, end_, move_ = np.array(rows, np.int64).T
        yield Copies(begin_ - move_, begin_, end_ - begin_)


class _Attempt:
    """One plan: what is predicted from these copies, and its payload."""

    def __init__(self, sides: tuple[Side, Side], copies: Copies, progress: Callable[[str], None]) -> None:
        old, new = sides
        self._old_length = len(old.image)
        keys: list[int] = []
        values: list[int] = []
        plain, covered = _copied(old.image, len(new.image), copies)
        target = np.frombuffer(new.image, np.uint8)
        self._chosen = np.zeros(-(-len(target) // BLOCK_LENGTH_BYTES), np.uint8)
        if old.regions.rows:
            progress("learning")
            labels, moves = base_map(copies, old, new)
            now = np.asarray(labels), np.asarray(moves)
            keys, values = corrections(votes(old, new, copies, now[0], now[1]), now[0], now[1])
            labels, moves = corrected(labels, moves, keys, values)
            errors = _per_block(lambda at, to: (plain[at:to] != target[at:to]) & covered[at:to], len(target))
            self._chosen = modes(old, new, copies, np.asarray(labels), np.asarray(moves), errors)
            progress("predicting")
            _predict(plain, copies, self._chosen, old.regions, new.regions, Labels(labels, moves))
        self._target, self._covered = target, covered
        difference = np.subtract(target, plain, out=plain)
        np.multiply(difference, covered, out=difference)
        self._difference = difference
        self._counts = _per_block(lambda at, to: difference[at:to] != 0, len(target))
        self._estimate: int | None = None
        ends = np.concatenate([[0], (copies.old + copies.length)[:-1]])[: len(copies.old)]
        new_ends = np.concatenate([[0], (copies.new + copies.length)[:-1]])[: len(copies.new)]
        self._head = [
            wire.signed_varints((copies.old - ends).tolist()),
            wire.varints((copies.new - new_ends).tolist()),
            wire.varints(copies.length.tolist()),
            old.regions.encode(),
            new.regions.encode(old.regions),
            wire.varints(np.diff(np.array(keys, np.int64), prepend=0).tolist()),
            wire.signed_varints(np.diff(np.array(values, np.int64), prepend=0).tolist()),
        ]

    def _modes(self, dense: int) -> Any:
        return self._chosen | np.where(self._counts > dense, int(Mode.DENSE), 0).astype(np.uint8)

    def estimate(self) -> int:
        """About how long the payload will be, in a fraction of the time that packing takes."""
        if self._estimate is None:
            frame = _frame(
                0, len(self._target), self._target, self._modes(DENSE_FROM[0]), self._difference, self._covered
            )
            self._estimate = sum(wire.quick_length(part) for part in (*self._head, *frame))
        return self._estimate

    def payload(self) -> bytes:
        """Pack; a small payload is tried with other thresholds."""
        found: bytes | None = None
        for dense in DENSE_FROM:
            chosen = self._modes(dense)
            packed = _write(self._old_length, self._target, self._head, chosen, self._difference, self._covered)
            found = packed if found is None or len(packed) < len(found) else found
            if len(packed) > SMALL_PAYLOAD_BYTES:
                break
        assert found is not None
        return found


def _copied(old: bytes, length: int, copies: Copies) -> tuple[Any, Any]:
    source = np.frombuffer(old, np.uint8)
    plain, covered = np.zeros(length, np.uint8), np.zeros(length, bool)
    for start, at, count in zip(copies.old.tolist(), copies.new.tolist(), copies.length.tolist(), strict=True):
        plain[at : at + count] = source[start : start + count]
        covered[at : at + count] = True
    return plain, covered


def _per_block(flags: Callable[[int, int], Any], length: int) -> Any:
    """Count per block; the flags are asked for in spans, so that a large image needs no second copy."""
    counts = [np.zeros(0, np.int64)]
    for at in range(0, length, _SPAN_BYTES):
        part = flags(at, min(at + _SPAN_BYTES, length))
        counts.append(np.add.reduceat(part, np.arange(0, len(part), BLOCK_LENGTH_BYTES), dtype=np.int64))
    return np.concatenate(counts)


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
    most = 256 - GAP_SKIP
    skips, rest = np.divmod(gap, GAP_SKIP)
    full, part = np.divmod(skips, most)
    count = full + (part > 0) + 1
    out = np.full(int(count.sum()), 255, np.uint8)
    last = np.cumsum(count) - 1
    out[last] = rest
    out[last[part > 0] - 1] = part[part > 0] + GAP_SKIP - 1
    return out.tobytes()


def _write(old_length: int, target: Any, head: list[bytes], chosen: Any, difference: Any, covered: Any) -> bytes:
    length = len(target)
    start = wire.MAGIC + bytes((wire.FORMAT_VERSION,)) + wire.varints((old_length, length))
    frames = [
        _frame(begin, end, target, chosen, difference, covered) for begin, end in _cut(chosen, difference, covered)
    ]
    if len(frames) <= 1:
        parts = [*head, *(frames[0] if frames else [b""] * 5)]
        if sum(map(len, parts)) <= _JOINED_BYTES or not frames:
            return start + wire.varints([0]) + wire.write_group(parts, most_log2=_FRAME_DICTIONARY_LOG2)
    most = _FRAME_DICTIONARIES_LOG2 if length > SMALL_IMAGE_BYTES else (_FRAME_DICTIONARY_LOG2,) * len(frames[0])
    packed = [wire.write_group(parts, most_log2=most) for parts in frames]
    sizes = [
        value
        for (begin, end), frame in zip(_cut(chosen, difference, covered), packed, strict=True)
        for value in (end - begin, len(frame))
    ]
    return start + wire.varints([len(packed), *sizes]) + wire.write_group(head) + b"".join(packed)


def _cut(chosen: Any, difference: Any, covered: Any) -> Iterator[tuple[int, int]]:
    """Cut the image into frames by how much they hold."""
    length = len(difference)
    dense = (chosen & int(Mode.DENSE)) > 0
    counts = _per_block(lambda at, to: difference[at:to] != 0, length)
    weight = np.where(dense, BLOCK_LENGTH_BYTES, 2 * counts) + _per_block(lambda at, to: ~covered[at:to], length)
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
