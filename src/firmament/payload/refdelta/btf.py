"""Predict a kernel's BTF from an older one (device).

BTF is the kernel's table of types: records that refer to each other by number and to names by
offset. A new kernel has nearly the same records, but in another order, and so nearly every number
and offset changed. The payload says which old record stands where in the new table, and what was
added; numbers and offsets follow.

Layout of BTF: Documentation/bpf/btf.rst of the Linux kernel, version 1, little-endian.
"""

from __future__ import annotations

import sys
from array import array
from itertools import compress
from typing import TYPE_CHECKING, Final

from firmament.errors import MalformedPayloadError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

MAGIC: Final = b"\x9f\xeb\x01\x00"
HEADER: Final = "<5I"
"""After the magic: length of the header, then offset and length of types, offset and length of names."""
HEADER_BYTES: Final = 24
MOST_BYTES: Final = 16 * 1024**2
VALUE, NAME, TYPE = b"\0", b"\1", b"\2"
_IS_NAME: Final = bytes((0, 1)) + bytes(254)
_IS_TYPE: Final = bytes((0, 0, 1)) + bytes(253)
_INT, _PTR, _ARRAY, _STRUCT, _UNION, _ENUM, _FWD, _TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _FUNC = range(1, 13)
_PROTOTYPE, _VAR, _SECTION, _FLOAT, _DECLARATION, _TAG, _ENUM64 = range(13, 20)
_REFERS: Final = {
    _PTR, _TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _FUNC, _PROTOTYPE, _VAR, _DECLARATION, _TAG,
}  # fmt: skip
_EACH: Final = {
    _STRUCT: NAME + TYPE + VALUE,
    _UNION: NAME + TYPE + VALUE,
    _ENUM: NAME + VALUE,
    _ENUM64: NAME + VALUE + VALUE,
    _PROTOTYPE: NAME + TYPE,
    _SECTION: TYPE + VALUE + VALUE,
}
_ONCE: Final = {_INT: VALUE, _ARRAY: TYPE + TYPE + VALUE, _VAR: VALUE, _DECLARATION: VALUE}


def words_of(data: bytes) -> array[int]:
    """Little-endian 32-bit words."""
    found = array("I")
    found.frombytes(data)
    if sys.byteorder == "big":
        found.byteswap()
    return found


class Records:
    """The records of a table: where each begins, and what each of its words is."""

    def __init__(self, words: array[int]) -> None:
        self.words = words
        starts, parts = array("I", (0,)), []
        known: dict[int, bytes] = {}
        at, count = 0, len(words)
        while at + 3 <= count:
            info = words[at + 1]
            shape = info & 0x1F00FFFF
            pattern = known.get(shape)
            if pattern is None:
                kind = info >> 24 & 31
                pattern = NAME + VALUE + (TYPE if kind in _REFERS else VALUE) + _ONCE.get(kind, b"")
                pattern += _EACH.get(kind, b"") * (info & 0xFFFF)
                if not _INT <= kind <= _ENUM64 or at + len(pattern) > count:
                    raise MalformedPayloadError("A delta names a table of types that is none", word=at)
                known[shape] = pattern
            parts.append(pattern)
            at += len(pattern)
            starts.append(at)
        if at != count:
            raise MalformedPayloadError("A delta names a table of types that is none", word=at)
        self.starts = starts
        self.classes = b"".join(parts)
        if len(self.classes) != count:
            raise MalformedPayloadError("A delta names a table of types that is none", word=count)

    def __len__(self) -> int:
        return len(self.starts) - 1


def runs(jumps: Sequence[int], lengths: Sequence[int], count: int) -> Iterator[range]:
    """Yield stretches of an order of `count` things: each begins `jump` after the end of the one before."""
    at = total = 0
    if len(jumps) != len(lengths):
        raise MalformedPayloadError("A delta has an impossible order", jumps=len(jumps))
    for jump, length in zip(jumps, lengths, strict=True):
        at += jump
        total += length
        if at < 0 or length <= 0 or at + length > count or total > 4 * count:
            raise MalformedPayloadError("A delta has an impossible order", at=at, length=length)
        yield range(at, at + length)
        at += length


def predict(
    words_before: array[int],
    names: bytes,
    *,
    type_runs: tuple[Sequence[int], Sequence[int]],
    name_runs: tuple[Sequence[int], Sequence[int]],
) -> bytes:
    """Return the new table: records, then names. Old words and names have what was added at their ends.

    `words_before` is emptied as soon as it is used: with it the peak of a kernel's table is 6 MB higher.
    """
    old = Records(words_before)
    count = len(old)
    words, classes, number = array("I"), bytearray(), array("I", bytes(4 * (count + 1)))
    following = 1
    for run in runs(*type_runs, count):
        first, last = old.starts[run.start], old.starts[run.stop]
        words += old.words[first:last]
        classes += old.classes[first:last]
        number[run.start + 1 : run.stop + 1] = array("I", range(following, following + len(run)))
        following += len(run)
        if len(words) > MOST_BYTES // 4:
            raise MalformedPayloadError("A delta makes too long a table of types", words=len(words))
    del old, words_before[:]
    for place in compress(range(len(words)), classes.translate(_IS_TYPE)):
        if (target := words[place]) <= count:
            words[place] = number[target]
    is_name = classes.translate(_IS_NAME)
    del classes
    used = array("I", dict.fromkeys(compress(words, is_name)))
    texts, where = _ordered(names, used, name_runs)
    limit = len(where)
    for place in compress(range(len(words)), is_name):
        words[place] = where[word] if (word := words[place]) < limit else 0
    if sys.byteorder == "big":
        words.byteswap()
    return b"".join((memoryview(words), texts))


def _ordered(
    names: bytes, used: Sequence[int], name_runs: tuple[Sequence[int], Sequence[int]]
) -> tuple[bytearray, array[int]]:
    """Names in the new order: as the records use them first, then those they do not use; with jumps.

    Also says for each old offset the new one, 0 where there is none: an array, because a kernel has 100 000 names.
    """
    known = name_order(names, used)
    where = array("I", bytes(4 * len(names)))
    texts = bytearray(1)
    for run in runs(*name_runs, len(known)):
        for start in known[run.start : run.stop]:
            where[start] = len(texts)
            texts += names[start : names.index(0, start) + 1]
            if len(texts) > MOST_BYTES:
                raise MalformedPayloadError("A delta makes too long a table of names", length=len(texts))
    return texts, where


def name_order(names: bytes, used: Iterable[int]) -> array[int]:
    """Offsets of all names: those that are used in order of their first use, then the others."""
    if not names.endswith(b"\0"):
        raise MalformedPayloadError("A delta names a table of names that is none", length=len(names))
    limit = len(names)
    seen = bytearray(limit)
    found = array("I")
    for offset in used:
        if 0 < offset < limit and not seen[offset]:
            seen[offset] = 1
            found.append(offset)
    at = names.index(0) + 1
    while at < limit:
        if not seen[at]:
            found.append(at)
        at = names.index(0, at) + 1
    return found
