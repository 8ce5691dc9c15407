"""Find tables of types (BTF) in images and how the new one is an old one in another order (author's bench)."""

from __future__ import annotations

import struct
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from firmament.errors import MalformedPayloadError
from firmament.payload.refdelta import btf

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

LEAST_BYTES: Final = 64 * 1024
_DEPTHS: Final = (4, 2, 1)
"""How far a record's surroundings must be alike; first the most."""


@dataclass(frozen=True, slots=True)
class Table:
    """Where a table of types is in an image."""

    types_at: int
    types_bytes: int
    names_at: int
    names_bytes: int


@dataclass(frozen=True, slots=True)
class Order:
    """How a new table follows from an old one."""

    type_jumps: list[int]
    type_lengths: list[int]
    name_jumps: list[int]
    name_lengths: list[int]
    added_types: bytes
    added_names: bytes


def tables(image: bytes, most: int) -> list[Table]:
    """Return the large tables of an image, in order."""
    found: list[Table] = []
    at = image.find(btf.MAGIC)
    while at >= 0 and len(found) < most:
        if at + btf.HEADER_BYTES <= len(image):
            header, types, types_bytes, names, names_bytes = struct.unpack_from(btf.HEADER, image, at + 4)
            table = Table(at + header + types, types_bytes, at + header + names, names_bytes)
            if header == btf.HEADER_BYTES and types % 4 == 0 and _is_one(image, table):
                found.append(table)
        at = image.find(btf.MAGIC, at + 4)
    return found


def _is_one(image: bytes, table: Table) -> bool:
    end = max(table.types_at + table.types_bytes, table.names_at + table.names_bytes)
    large = LEAST_BYTES <= table.types_bytes <= btf.MOST_BYTES and table.names_bytes <= btf.MOST_BYTES
    if not large or end > len(image) or table.types_bytes % 4:
        return False
    names = image[table.names_at : table.names_at + table.names_bytes]
    if names[:1] != b"\0" or names[-1:] != b"\0":
        return False
    try:
        btf.Records(btf.words_of(image[table.types_at : table.types_at + table.types_bytes]))
    except MalformedPayloadError:
        return False
    return True


class _Side:
    """A table's records with their texts, and what they look like from near and from far."""

    def __init__(self, types: bytes, names: bytes) -> None:
        self.types, self.names = types, names
        self.records = btf.Records(btf.words_of(types))
        self.words = self.records.words.tolist()
        self.starts = self.records.starts.tolist()
        self._texts: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self.records)

    def text(self, offset: int) -> bytes:
        found = self._texts.get(offset)
        if found is None:
            end = self.names.find(b"\0", offset) if offset < len(self.names) else -1
            found = self._texts[offset] = self.names[offset:end] if end >= 0 else b""
        return found

    def looks(self, depths: Sequence[int]) -> list[list[int]]:
        """For each depth a number per record, from 1 on, that is equal for records which look alike."""
        parts: list[tuple[int, tuple[int, ...], tuple[int, ...]]] = []
        classes = self.records.classes
        for number in range(len(self)):
            first, last = self.starts[number], self.starts[number + 1]
            own, refers = [], []
            for word, kind in zip(self.words[first:last], classes[first:last], strict=True):
                if kind == 2:
                    refers.append(word)
                else:
                    own.append(hash(self.text(word)) if kind else word)
            parts.append((hash(tuple(own)), tuple(own), tuple(refers)))
        found: dict[int, list[int]] = {}
        looks = [0, *(own for own, _, _ in parts)]
        for depth in range(1, max(depths) + 1):
            count = len(looks)
            looks = [
                0,
                *(
                    hash((own, *(looks[target] if target < count else target for target in refers)))
                    for own, _, refers in parts
                ),
            ]
            if depth in depths:
                found[depth] = looks
        return [found[depth] for depth in depths]

    def name(self, number: int) -> bytes:
        """Name of a record, by number from 1 on."""
        return self.text(self.words[self.starts[number - 1]])

    def info(self, number: int) -> int:
        """Kind and count of a record."""
        return self.words[self.starts[number - 1] + 1]

    def refers(self, number: int) -> list[int]:
        """Return the numbers that a record refers to."""
        first, last = self.starts[number - 1], self.starts[number]
        return [w for w, k in zip(self.words[first:last], self.records.classes[first:last], strict=True) if k == 2]


def order(old_types: bytes, old_names: bytes, new_types: bytes, new_names: bytes) -> Order:
    """Match the records of two tables; what has no like is added."""
    old, new = _Side(old_types, old_names), _Side(new_types, new_names)
    matched = [0] * (len(new) + 1)
    taken = bytearray(len(old) + 1)
    for near, far in zip(new.looks(_DEPTHS), old.looks(_DEPTHS), strict=True):
        _match(matched, taken, near.__getitem__, far.__getitem__, len(old))
    _match(matched, taken, lambda n: _named(new, n), lambda n: _named(old, n), len(old))
    for _ in range(2):  # a pointer to something that was matched by its name
        ours = partial(_nameless, new, mapped=lambda m: matched[m] if m < len(matched) else 0)
        theirs = partial(_nameless, old, mapped=lambda m: m if m <= len(old) and taken[m] else 0)
        _match(matched, taken, ours, theirs, len(old))
    added, numbers = _added(old, new, matched)
    known = {old.text(offset): offset for offset in reversed(_offsets(old_names))}
    wanted = [new.text(offset) for offset in _offsets(new_names)]
    extra = [text for text in wanted if text not in known]
    place, added_names = len(old_names), bytearray()
    for text in extra:
        known[text] = place + len(added_names)
        added_names += text + b"\0"
    words = btf.words_of(b"")
    for record in added:
        words.extend(known.get(word, 0) if isinstance(word, bytes) else word for word in record)
    types = words.tobytes()
    type_jumps, type_lengths = _runs([number - 1 for number in numbers])
    used = _used(old_types + types, type_jumps, type_lengths)
    there = {offset: index for index, offset in enumerate(btf.name_order(old_names + bytes(added_names), used))}
    name_jumps, name_lengths = _runs([there[known[text]] for text in wanted])
    return Order(type_jumps, type_lengths, name_jumps, name_lengths, types, bytes(added_names))


def _match(
    matched: list[int], taken: bytearray, ours: Callable[[int], object], theirs: Callable[[int], object], count: int
) -> None:
    """Give each new record that has none the next free old one that looks like it; runs go on first."""
    like: defaultdict[object, list[int]] = defaultdict(list)
    for number in range(count, 0, -1):
        if not taken[number]:
            like[theirs(number)].append(number)
    like.pop(None, None)
    look: object
    for number in range(1, len(matched)):
        if matched[number]:
            continue
        look = ours(number)
        free = like.get(look) if look is not None else None
        if not free:
            continue
        following = matched[number - 1] + 1
        if following <= count and not taken[following] and theirs(following) == look:
            found = following
        else:
            while free and taken[free[-1]]:
                free.pop()
            if not free:
                continue
            found = free.pop()
        matched[number] = found
        taken[found] = 1


def _named(side: _Side, number: int) -> object:
    name = side.name(number)
    return (side.info(number) >> 24 & 31, name) if name else None


def _nameless(side: _Side, number: int, mapped: Callable[[int], int]) -> object:
    if side.name(number):
        return None
    refers = [mapped(target) if target else -1 for target in side.refers(number)]
    return (side.info(number), tuple(refers)) if refers and all(refers) else None


def _added(old: _Side, new: _Side, matched: list[int]) -> tuple[list[list[int | bytes]], list[int]]:
    """Return the records without a like, with names as texts, and the old number of each new record."""
    numbers = matched[1:]
    following = len(old)
    for index, number in enumerate(numbers):
        if not number:
            following += 1
            numbers[index] = following
    rows = []
    for index, number in enumerate(numbers):
        if number > len(old):
            first, last = new.starts[index], new.starts[index + 1]
            row: list[int | bytes] = []
            for word, kind in zip(new.words[first:last], new.records.classes[first:last], strict=True):
                if kind == 1:
                    row.append(new.text(word))
                elif kind == 2:
                    row.append(numbers[word - 1] if 0 < word <= len(numbers) else word)
                else:
                    row.append(word)
            rows.append(row)
    return rows, numbers


def _offsets(names: bytes) -> list[int]:
    """Offsets of the names of a table, without the empty one it begins with."""
    found, at = [], 1
    while at < len(names):
        found.append(at)
        at = names.index(b"\0", at) + 1
    return found


def _runs(order_: Sequence[int]) -> tuple[list[int], list[int]]:
    jumps: list[int] = []
    lengths: list[int] = []
    at = 0
    for number in order_:
        if lengths and number == at:
            lengths[-1] += 1
        else:
            jumps.append(number - at)
            lengths.append(1)
        at = number + 1
    return jumps, lengths


def _used(types: bytes, jumps: list[int], lengths: list[int]) -> dict[int, None]:
    """Offsets of names in the order in which the reordered records use them."""
    records = btf.Records(btf.words_of(types))
    return dict.fromkeys(_names_in_order(records, jumps, lengths))


def _names_in_order(records: btf.Records, jumps: list[int], lengths: list[int]) -> Iterator[int]:
    for run in btf.runs(jumps, lengths, len(records)):
        first, last = records.starts[run.start], records.starts[run.stop]
        for word, kind in zip(records.words[first:last], records.classes[first:last], strict=True):
            if kind == 1:
                yield word
