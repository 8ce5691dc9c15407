"""Where things of the old image went: from the copies themselves, and the corrections that were sent.

Two ascending tables of (old offset or address, value), eight bytes a row on the device. Both sides
build them with the code here, in the same order.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from typing import Final

NUMBER: Final = 1 << 32


class Table:
    """Rows of start and value; a start's value holds up to the next start."""

    def __init__(self) -> None:
        self.starts = array("q")
        self.values = array("q")

    def __len__(self) -> int:
        return len(self.starts)

    def find(self, at: int) -> int:
        """Return the value that holds at a place; 0 before the first start."""
        index = bisect_right(self.starts, at) - 1
        return self.values[index] if index >= 0 else 0

    def put(self, start: int, value: int) -> None:
        """Add a row where it says something new: not after an equal one, and in the place of an equal one behind it."""
        index = bisect_left(self.starts, start)
        if index < len(self.starts) and self.starts[index] == start:
            return
        if index and self.values[index - 1] == value:
            return
        if index < len(self.starts) and self.values[index] == value:
            self.starts[index] = start
            return
        self.starts.insert(index, start)
        self.values.insert(index, value)


class Moves:
    """How far what was at an address has moved; all modulo 2^32."""

    def __init__(self, address: int, precursor_length: int) -> None:
        self._address = address
        self._end = precursor_length
        self.copied = Table()
        self.corrected = Table()

    def copy(self, old: int, shift: int) -> None:
        """Note a copy: it begins at this offset of the old image and goes so far."""
        self.copied.put(old, shift)

    def shift(self, target: int) -> int:
        """Return how far an address has moved."""
        offset = target - self._address
        moved = self.copied.find(offset) if 0 <= offset < self._end else 0
        return moved + self.corrected.find(target)
