"""Learn from two matched images how labels really moved, and which blocks a prediction helps (numpy)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from firmament.payload.refdelta.labels import NOWHERE
from firmament.payload.refdelta.match import Copies, Side, data_sites
from firmament.payload.refdelta.predict import (
    BLOCK_LENGTH_BYTES,
    LEAST_ADDRESS,
    LEAST_DISTANCE,
    LEAST_FRAME,
    MOST_ADDRESS,
    Mode,
)
from firmament.payload.refdelta.regions import OBJECT_SPAN, Code
from firmament.payload.refdelta.sites import Ints, look_up, page_address, scale_of, thumb_distance

if TYPE_CHECKING:
    from collections.abc import Iterator

WRONG_COST: Final = 1.0
"""Bytes that a wrong prediction costs, about."""
BREAK_COST: Final = 6.0
"""Bytes that a correction costs, about: where it starts and by how much."""
_MOST_STATES: Final = 32
_NEAR: Final = 1 << 20
"""A pointer that seems to have moved further than this from the prediction says nothing."""
_LEAST_HITS: Final = 8
_SPAN_WORDS: Final = 1 << 21


@dataclass(slots=True)
class Votes:
    """What references say: label in the old image, label it has in the new one, where the reference is."""

    label: Ints
    actual: Ints


def expand(sites: Ints, width: int, copies: Copies, align: int) -> tuple[Ints, Ints]:
    """(index of the site, its new offset) for every copy of every site; `sites` are ascending byte offsets."""
    fit = (copies.new - copies.old) % align == 0
    old, move, length = copies.old[fit], (copies.new - copies.old)[fit], copies.length[fit]
    first = np.searchsorted(sites, old)
    count = np.maximum(np.searchsorted(sites, old + length - width + 1) - first, 0)
    total = np.cumsum(count)
    index = np.repeat(first - (total - count), count) + np.arange(int(total[-1]) if len(total) else 0)
    return index, sites[index] + np.repeat(move, count)


def _both(old: Side, new: Side, here: Ints, there: Ints) -> tuple[Any, Ints, Ints, Ints, Ints]:
    """(mask of sites in regions of both, old address, old zero, new address, new zero)."""
    before, after = old.table.region(here), new.table.region(there)
    known = (before >= 0) & (after >= 0)
    return (known, *old.table.place(here[known], before[known]), *new.table.place(there[known], after[known]))


@dataclass(slots=True)
class Branches:
    """Copies of branches of one kind."""

    here: Ints
    there: Ints
    """Word indexes in the old and the new image."""
    label: Ints
    distance: Ints
    turn: Ints
    keep: int
    low: int
    actual: Ints
    alike: Any


def branches(old: Side, new: Side, copies: Copies) -> Iterator[Branches]:
    """Yield the copies of each kind of branch."""
    for at, distance, keep, low in old.arm64.distances():
        index, offset = expand(at * 4, 4, copies, 4)
        here = at[index] * 4
        known, old_address, old_zero, new_address, new_zero = _both(old, new, here, offset)
        here, there, moved = here[known] // 4, offset[known] // 4, distance[index][known]
        word = new.arm64.words[there]
        bits = 26 if low == 0 else 19 if keep == 0xFF00001F else 14
        field = (word >> low & (1 << bits) - 1).astype(np.int64)
        found = ((field ^ 1 << bits - 1) - (1 << bits - 1)) * 4
        alike = (word & keep) == (old.arm64.words[here] & keep)
        yield Branches(
            here, there, old_zero + old_address + moved, moved,
            (old_zero - new_zero) - (new_address - old_address), keep, low, new_zero + new_address + found, alike,
        )  # fmt: skip


@dataclass(slots=True)
class Pages:
    """Copies of ADRPs and their users."""

    here: Ints
    there: Ints
    user: Ints
    """Distance in words, 0 if there is none in the same block and copy."""
    label: Ints
    target: Ints
    turn: Ints
    new_address: Ints
    actual: Ints
    alike: Any


def pages(old: Side, new: Side, copies: Copies) -> Pages:
    """Return the copies of ADRPs."""
    index, offset = expand(old.arm64.page * 4, 4, copies, 4)
    here = old.arm64.page[index] * 4
    known, old_address, old_zero, new_address, new_zero = _both(old, new, here, offset)
    here, there, user = here[known] // 4, offset[known] // 4, old.arm64.user[index][known]
    end = (copies.new + copies.length)[np.searchsorted(copies.new, there * 4, side="right") - 1]
    last = np.minimum(end, (there * 4 // BLOCK_LENGTH_BYTES + 1) * BLOCK_LENGTH_BYTES)
    user = np.where((there + user) * 4 + 4 <= last, user, 0)
    words, now = old.arm64.words, new.arm64.words
    other, found = words[here + user], now[there + user]
    low12 = np.where(user > 0, (other >> 10 & 0xFFF).astype(np.int64) << scale_of(other), 0x800)
    page = page_address(words[here], old_address)
    actual = page_address(now[there], new_address) + ((found >> 10 & 0xFFF).astype(np.int64) << scale_of(found))
    alike = (user > 0) & ((words[here] & 0x9F00001F) == (now[there] & 0x9F00001F))
    alike &= (other & 0xFFC003FF) == (found & 0xFFC003FF)
    return Pages(
        here,
        there,
        user,
        old_zero + page + low12,
        page + low12,
        old_zero - new_zero,
        new_address,
        new_zero + actual,
        alike,
    )


def votes(old: Side, new: Side, copies: Copies, labels: Ints, moves: Ints) -> Votes:
    """Collect what all references say about where labels went."""
    found: list[tuple[Ints, Ints]] = []
    touched = np.zeros(len(old.arm64.words), bool)
    for group in branches(old, new, copies):
        found.append((group.label[group.alike], group.actual[group.alike]))
        touched[group.here] = True
    aim = pages(old, new, copies)
    found.append((aim.label[aim.alike], aim.actual[aim.alike]))
    touched[aim.here] = touched[aim.here + aim.user] = True
    now = new.arm64.words
    for sites, targets, count in data_sites(old, touched):
        order = np.argsort(sites, kind="stable")
        index, offset = expand(sites[order] * 4, 4 * count, copies, 4 * count)
        here, label = sites[order][index] * 4, targets[order][index]
        known, _, _, new_address, new_zero = _both(old, new, here, offset)
        here, there, label = here[known], offset[known] // 4, label[known]
        if count == 2:
            value = now[there].astype(np.uint64) | now[there + 1].astype(np.uint64) << np.uint64(32)
            actual = new_zero + (value - new.table.base[new.table.region(there * 4)].astype(np.uint64)).astype(np.int64)
        else:
            anchored = target_is_anchored(old, here, label)
            anchor = new.table.anchor[new.table.region(there * 4)]
            actual = new_zero + np.where(anchored, anchor, new_address) + now[there].view(np.int32)
        found.append(_believable(label, actual, there, labels, moves))
    if len(old.thumb):
        found += _thumb_votes(old, new, copies, labels, moves)
    label, actual = (np.concatenate([pair[side] for pair in found]) for side in (0, 1))
    shift = look_up(labels, moves, label)
    known = (shift != NOWHERE) & (np.abs(actual - label - shift) < OBJECT_SPAN)  # not into another object
    return Votes(label[known], actual[known])


def target_is_anchored(side: Side, here: Ints, label: Ints) -> Any:
    """Whether a table word was read as counting from the anchor rather than from itself."""
    region = side.table.region(here)
    address, zero = side.table.place(here, region)
    value = side.arm64.words[here // 4].view(np.int32).astype(np.int64)
    return (zero + address + value != label) & (side.table.anchor[region] != 0)


def _believable(label: Ints, actual: Ints, there: Ints, labels: Ints, moves: Ints) -> tuple[Ints, Ints]:
    """Keep votes of blocks where several words move just as predicted: others are no tables of references."""
    shift = look_up(labels, moves, label)
    wrong = actual - label - shift
    near = (shift != NOWHERE) & (np.abs(wrong) < _NEAR)
    block = there * 4 // BLOCK_LENGTH_BYTES
    hits = np.bincount(block[near & (wrong == 0)], minlength=int(block.max(initial=0)) + 1)
    near &= hits[block] >= _LEAST_HITS
    return label[near], actual[near]


def thumb_copies(old: Side, new: Side, copies: Copies) -> tuple[Ints, Ints, Ints, Ints, Ints, Ints]:
    """Return (old, new half-word index, label, distance, turn, actual label) of the copies of BL and B.W."""
    index, offset = expand(old.thumb * 2, 4, copies, 2)
    here = old.thumb[index] * 2
    known, old_address, old_zero, new_address, new_zero = _both(old, new, here, offset)
    here, there = here[known] // 2, offset[known] // 2
    distance = thumb_distance(old.halves, here)
    actual = new_zero + new_address + 4 + thumb_distance(new.halves, there)
    label = old_zero + old_address + 4 + distance
    return here, there, label, distance, old_zero - new_zero - (new_address - old_address), actual


def thumb_pointers(old: Side, new: Side, copies: Copies) -> tuple[Ints, Ints, Ints]:
    """Return (new word index, old value, new value) of copied words that may be pointers."""
    words = old.arm64.words.astype(np.int64)
    at = np.flatnonzero((words >= LEAST_ADDRESS) & old.table.inside(words))
    index, offset = expand(at * 4, 4, copies, 4)
    return offset // 4, words[at[index]], new.arm64.words[offset // 4].astype(np.int64)


def _thumb_votes(old: Side, new: Side, copies: Copies, labels: Ints, moves: Ints) -> list[tuple[Ints, Ints]]:
    here, there, label, _, _, actual = thumb_copies(old, new, copies)
    alike = (old.halves[here] & 0xF800) == (new.halves[there] & 0xF800)
    alike &= (old.halves[here + 1] & 0xD000) == (new.halves[there + 1] & 0xD000)
    _, before, after = thumb_pointers(old, new, copies)
    shift = look_up(labels, moves, before)
    near = (shift != NOWHERE) & (np.abs(after - before - shift) < 1 << 16)
    return [(label[alike], actual[alike]), (before[near], after[near])]


def corrections(found: Votes, labels: Ints, moves: Ints) -> tuple[list[int], list[int]]:
    """Fit the least costly corrections: from each key on, add this value to the shift.

    A shortest path over the labels in order: staying with a value costs WRONG_COST for each vote
    against it, changing it BREAK_COST.
    """
    if not len(found.label):
        return [], []
    wrong = found.actual - found.label - look_up(labels, moves, found.label)
    order = np.lexsort((wrong, found.label))
    label, wrong = found.label[order], wrong[order]
    starts = np.flatnonzero(np.concatenate([[True], (np.diff(label) != 0) | (np.diff(wrong) != 0)]))
    counts = np.diff(np.concatenate([starts, [len(label)]]))
    at, value = label[starts].tolist(), wrong[starts].tolist()
    weight = counts.tolist()
    # Costs are kept relative: every state pays for all votes, and gets those back that agree with it.
    states: dict[int, tuple[float, Any]] = {0: (0.0, None)}
    best = 0
    index = 0
    while index < len(at):
        here = at[index]
        cost, path = states[best]
        while index < len(at) and at[index] == here:
            voted, gain = value[index], WRONG_COST * weight[index]
            change = cost + BREAK_COST
            stay = states.get(voted)
            if stay is not None and stay[0] <= change:
                states[voted] = (stay[0] - gain, stay[1])
            else:
                states[voted] = (change - gain, (voted, here, path))
            index += 1
        best = min(states, key=lambda state: states[state][0])
        least = states[best][0]
        if len(states) > 1:
            states = {state: kept for state, kept in states.items() if kept[0] < least + BREAK_COST}
            if len(states) > _MOST_STATES:
                states = dict(sorted(states.items(), key=lambda item: item[1][0])[:_MOST_STATES])
    keys, values = [], []
    path = states[best][1]
    while path is not None:
        voted, here, path = path
        keys.append(here)
        values.append(voted)
    keys.reverse()
    values.reverse()
    kept = [i for i in range(len(keys)) if values[i] != (values[i - 1] if i else 0)]
    return [keys[i] for i in kept], [values[i] for i in kept]


def wrong_bytes(one: Any, other: Any) -> Ints:
    """How many bytes of each word differ."""
    mixed = one ^ other
    return sum(((mixed >> shift & 0xFF) != 0).astype(np.int64) for shift in (0, 8, 16, 24))


def modes(old: Side, new: Side, copies: Copies, labels: Ints, moves: Ints, errors: Ints) -> Any:
    """Choose each block's mode by how many wrong bytes it saves; `errors` has the wrong bytes of a plain copy."""
    count = len(errors)
    gains = {
        kind: np.zeros(count)
        for kind in (Mode.CODE, Mode.POINTERS, Mode.RELATIVE, Mode.OFFSETS, Mode.ANCHORED, Mode.FRAMES)
    }
    words, now = old.arm64.words, new.arm64.words
    per_block = BLOCK_LENGTH_BYTES // 4

    def add(kind: Mode, there: Ints, before: Any, after: Any) -> None:
        saved = wrong_bytes(before, now[there]) - wrong_bytes(after, now[there])
        gains[kind] += np.bincount(there // per_block, weights=saved, minlength=count)[:count]

    for group in branches(old, new, copies):
        shift = look_up(labels, moves, group.label)
        known = shift != NOWHERE
        distance = (group.distance[known] >> 2) + (shift[known] + group.turn[known] >> 2)
        before = words[group.here[known]]
        field = ~np.uint32(group.keep) & np.uint32(0xFFFFFFFF)
        add(
            Mode.CODE,
            group.there[known],
            before,
            before & np.uint32(group.keep) | (distance << group.low).astype(np.uint32) & field,
        )
    aim = pages(old, new, copies)
    shift = look_up(labels, moves, aim.label)
    known = shift != NOWHERE
    address = aim.target + shift + aim.turn
    step = (address >> 12) - (aim.new_address >> 12)
    before = words[aim.here]
    after = before & 0x9F00001F | ((step & 3) << 29 | (step >> 2 & 0x7FFFF) << 5).astype(np.uint32)
    add(Mode.CODE, aim.there[known], before[known], after[known])
    known &= aim.user > 0
    before = words[aim.here + aim.user]
    after = before & 0xFFC003FF | ((address & 0xFFF) >> scale_of(before) << 10).astype(np.uint32)
    add(Mode.CODE, (aim.there + aim.user)[known], before[known], after[known])
    if len(old.thumb):
        _thumb_gains(old, new, copies, labels, moves, gains)
    for start in range(0, len(now), _SPAN_WORDS):
        _table_gains(old, new, copies, labels, moves, errors, gains, start)
    return _choose(gains, errors)


def _choose(gains: dict[Mode, Any], errors: Ints) -> Any:
    chosen = np.where((gains[Mode.CODE] > 2) & (errors > 0), int(Mode.CODE), 0)
    tables = (Mode.POINTERS, Mode.RELATIVE, Mode.FRAMES, Mode.OFFSETS, Mode.ANCHORED)
    best = np.stack([gains[kind] for kind in tables])
    which = np.argmax(best, axis=0)
    worth = (best.max(axis=0) > 2) & (errors > 0)
    chosen |= np.where(worth, np.array([int(kind) for kind in tables])[which], 0)
    both = worth & ((which == 1) | (which == 2)) & (gains[Mode.POINTERS] > 2)
    return (chosen | np.where(both, int(Mode.POINTERS), 0)).astype(np.uint8)


def _thumb_gains(old: Side, new: Side, copies: Copies, labels: Ints, moves: Ints, gains: dict[Mode, Any]) -> None:
    _, there, label, _, _, actual = thumb_copies(old, new, copies)
    count = len(gains[Mode.CODE])
    shift = look_up(labels, moves, label)
    right = np.where(shift == NOWHERE, 0, np.where(label + shift == actual, 1, -1))
    moved = thumb_distance(new.halves, there) != 0
    gains[Mode.CODE] += np.bincount(there * 2 // BLOCK_LENGTH_BYTES, weights=right * moved, minlength=count)[:count]
    there, before, after = thumb_pointers(old, new, copies)
    shift = look_up(labels, moves, before)
    known = shift != NOWHERE
    guess = (before + shift)[known] & 0xFFFFFFFF
    saved = wrong_bytes(before[known], after[known]) - wrong_bytes(guess, after[known])
    gains[Mode.POINTERS] += np.bincount(there[known] * 4 // BLOCK_LENGTH_BYTES, weights=saved, minlength=count)[:count]


def _table_gains(
    old: Side, new: Side, copies: Copies, labels: Ints, moves: Ints, errors: Ints, gains: dict[Mode, Any], start: int
) -> None:
    """Try every kind of table on the copied words of blocks that a plain copy gets wrong."""
    per_block = BLOCK_LENGTH_BYTES // 4
    words, now, count = old.arm64.words, new.arm64.words, len(errors)
    stop = min(len(now), start + _SPAN_WORDS)
    source = np.full(stop - start, -1, np.int64)
    first = max(int(np.searchsorted(copies.new, start * 4, side="right")) - 1, 0)
    last = int(np.searchsorted(copies.new, stop * 4))
    columns = (copies.old[first:last].tolist(), copies.new[first:last].tolist(), copies.length[first:last].tolist())
    for before, after, length in zip(*columns, strict=True):
        if (after - before) % 4 == 0:
            low, high = max((after + 3) // 4, start), min((after + length) // 4, stop)
            if low < high:
                source[low - start : high - start] = np.arange(low, high) + (before - after) // 4
    there = start + np.flatnonzero((source >= 0) & (errors[np.arange(start, stop) // per_block] > 0))
    here = source[there - start]
    region, target = old.table.region(here * 4), new.table.region(there * 4)
    known = (region >= 0) & (target >= 0)
    there, here, region, target = there[known], here[known], region[known], target[known]
    if not len(there):
        return
    old_address, old_zero = old.table.place(here * 4, region)
    new_address, new_zero = new.table.place(there * 4, target)
    word = words[here]
    value = word.view(np.int32).astype(np.int64)
    turn = old_zero - new_zero

    def add(kind: Mode, label: Ints, change: Ints, wanted: Any, sign: int = 1) -> None:
        shift = look_up(labels, moves, label[wanted])
        fits = shift != NOWHERE
        at = there[wanted][fits]
        guess = (value[wanted][fits] + sign * (shift[fits] + change[wanted][fits])).astype(np.uint32)
        saved = wrong_bytes(word[wanted][fits], now[at]) - wrong_bytes(guess, now[at])
        gains[kind] += np.bincount(at // per_block, weights=saved, minlength=count)[:count]

    wide = np.abs(value) >= LEAST_DISTANCE
    step = turn - (new_address - old_address)
    add(Mode.RELATIVE, old_zero + old_address + value, step, wide)
    add(Mode.FRAMES, old_zero + old_address + value, step, value <= -LEAST_DISTANCE)
    add(Mode.FRAMES, old_zero + old_address - value, step, value >= LEAST_FRAME, -1)
    add(Mode.OFFSETS, old_zero + value, turn, value >= LEAST_ADDRESS)
    anchor = old.table.anchor[region]
    add(Mode.ANCHORED, old_zero + anchor + value, turn + anchor - new.table.anchor[target], wide & (anchor != 0))
    both = Words(there, here, region, target, old_zero, turn)
    for place, saved in _pointer_gains(old, new, both, labels, moves):
        gains[Mode.POINTERS] += np.bincount(place // per_block, weights=saved, minlength=count)[:count]


@dataclass(slots=True)
class Words:
    """Copied words: where in both images, in which regions, and what turns labels."""

    there: Ints
    here: Ints
    region: Ints
    target: Ints
    old_zero: Ints
    turn: Ints


def _pointer_gains(old: Side, new: Side, both: Words, labels: Ints, moves: Ints) -> Iterator[tuple[Ints, Ints]]:
    """Yield (new word index, wrong bytes saved) of aligned pairs of words read as pointers."""
    there, here, region = both.there, both.here, both.region
    words, now = old.arm64.words, new.arm64.words
    pair = (there[:-1] % 2 == 0) & (here[:-1] % 2 == 0) & (np.diff(there) == 1) & (np.diff(here) == 1)
    pair &= np.array([row.code != Code.THUMB for row in old.regions.rows if row.length_bytes])[region[:-1]]
    at = np.flatnonzero(pair)
    whole = words[here[at]].astype(np.uint64) | words[here[at] + 1].astype(np.uint64) << np.uint64(32)
    address = whole - old.table.base[region[at]].astype(np.uint64)
    pointing = (address >= LEAST_ADDRESS) & (address < MOST_ADDRESS)
    at, whole, address = at[pointing], whole[pointing], address[pointing].astype(np.int64)
    shift = look_up(labels, moves, both.old_zero[at] + address)
    fits = shift != NOWHERE
    at, whole, address, shift = at[fits], whole[fits], address[fits], shift[fits]
    guess = (address + shift + both.turn[at]).astype(np.uint64) + new.table.base[both.target[at]].astype(np.uint64)
    for half in (0, 1):
        bits = np.uint64(32 * half)
        place = there[at] + half
        saved = wrong_bytes((whole >> bits).astype(np.uint32), now[place]) - wrong_bytes(
            (guess >> bits).astype(np.uint32), now[place]
        )
        yield place, saved
