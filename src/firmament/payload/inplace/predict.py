"""What the references in copied Thumb code become: from their own old bytes, where they were, and how things moved.

A cell is predicted alone, in constant memory. Fields wrap at their width, as the instructions do.
"""

from __future__ import annotations

import struct
from enum import IntFlag
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from firmament.payload.inplace.moves import Moves


class Mode(IntFlag):
    """What to look for in a window."""

    BRANCHES = 1
    """BL and B.W."""
    POINTERS = 2
    """Aligned words that are addresses of what has moved."""


MODES: Final = Mode.BRANCHES | Mode.POINTERS
_FIRST, _FIRST_MASK = 0xF000, 0xF800
_SECOND: Final = frozenset({0x9000, 0xB000, 0xD000, 0xF000})
"""The top four bits of the second half-word: bit 15 and bit 12 set."""


def predict(data: bytes, old: int, new: int, mode: int, moves: Moves, address: int) -> bytes:
    """Return the bytes that a cell is predicted to be; `old` and `new` are its offsets in the two images."""
    out = bytearray(data)
    taken: set[int] = set()
    if mode & Mode.BRANCHES and (new - old) % 2 == 0:
        place = new % 2
        while place + 4 <= len(data):
            first, second = struct.unpack_from("<HH", data, place)
            if first & _FIRST_MASK != _FIRST or second & 0xF000 not in _SECOND:
                place += 2
                continue
            target = address + old + place + 4 + _distance(first, second)
            moved = target + moves.shift(target % (1 << 32))
            struct.pack_into("<HH", out, place, *_aimed(first, second, moved - address - new - place - 4))
            taken.update((place, place + 2))
            place += 4
    if mode & Mode.POINTERS and (new - old) % 4 == 0:
        for place in range(-new % 4, len(data) - 3, 4):
            if place in taken or place + 2 in taken:
                continue
            (word,) = struct.unpack_from("<I", data, place)
            shift = moves.shift(word)
            if shift:
                struct.pack_into("<I", out, place, (word + shift) % (1 << 32))
    return bytes(out)


def _distance(first: int, second: int) -> int:
    """Return the signed distance of BL or B.W: S, I1, I2, imm10, imm11, 0."""
    sign = first >> 10 & 1
    one, two = ~(second >> 13 ^ sign) & 1, ~(second >> 11 ^ sign) & 1
    value = one << 23 | two << 22 | (first & 0x3FF) << 12 | (second & 0x7FF) << 1
    return value - (sign << 24)


def _aimed(first: int, second: int, distance: int) -> tuple[int, int]:
    """Put a distance into the two half-words of a BL or B.W."""
    sign = distance >> 24 & 1
    one, two = ~(distance >> 23 ^ sign) & 1, ~(distance >> 22 ^ sign) & 1
    return (
        first & 0xF800 | sign << 10 | distance >> 12 & 0x3FF,
        second & 0xD000 | one << 13 | two << 11 | distance >> 1 & 0x7FF,
    )
