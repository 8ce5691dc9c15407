"""The operations of a payload, block after block: read and checked here for the device and the encoder alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from firmament.errors import MalformedPayloadError
from firmament.payload.inplace.predict import MODES
from firmament.payload.inplace.wire import CELL_LENGTH_BYTES, MAX_OPERATIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from firmament.payload.inplace.moves import Moves
    from firmament.payload.inplace.wire import Header, Stream

MAX_CORRECTION: Final = 1 << 32


class What(IntEnum):
    """What happens to a block."""

    KEPT = 0
    """It is in its place already; nothing is erased."""
    WRITTEN = 1
    SAVED = 2
    """Written, after its old content was put into the ring, because copies need it."""


@dataclass(frozen=True, slots=True)
class Operation:
    """So many new bytes, then so many copied from the old image; offsets in the images."""

    new: int
    literal: int
    copy: int
    old: int


@dataclass(slots=True)
class Window:
    """What makes one window of the image."""

    start: int
    length: int
    mode: int
    operations: list[Operation]
    differences: int
    """How many gaps follow in the stream of operations."""


@dataclass(slots=True)
class Ring:
    """Whose old content is in which slot, by the order of saving; the same for the encoder."""

    size: int
    owners: list[int] = field(default_factory=list)
    """Number of the block in each slot, the newest last."""
    saved: int = 0

    def save(self, block: int) -> int:
        """Take the next slot for a block; return its number."""
        slot = self.saved % self.size
        self.saved += 1
        self.owners = [*self.owners, block][-self.size :]
        return slot

    def slot(self, block: int) -> int | None:
        """Return the slot with a block's old content."""
        for back, owner in enumerate(reversed(self.owners)):
            if owner == block:
                return (self.saved - 1 - back) % self.size
        return None


class Script:
    """Reads the stream of operations from its beginning; every offset is checked before it is used."""

    def __init__(self, header: Header, stream: Stream) -> None:
        self.header = header
        self._stream = stream
        self._shift = 0

    def corrections(self, moves: Moves) -> None:
        """Read the table of corrections into `moves`; raises MalformedPayloadError."""
        key = value = 0
        for index in range(self.header.corrections):
            step = self._stream.varint()
            key, value = key + step, value + self._stream.signed()
            if (index and not step) or key >= MAX_CORRECTION or abs(value) >= MAX_CORRECTION:
                raise MalformedPayloadError("A correction is out of order or out of range", key=key)
            moves.corrected.starts.append(key)
            moves.corrected.values.append(value)

    def what(self) -> What:
        """Read what happens to the next block."""
        found = self._stream.varint()
        if found > What.SAVED:
            raise MalformedPayloadError("Something unknown is to happen to a block", what=found)
        return What(found)

    def windows(self, block: int) -> Iterator[Window]:
        """Yield the windows of a block, ascending; the gaps of each must be read before the next."""
        header = self.header
        start = block * header.block
        end = min(start + header.block, header.image_length)
        while start < end:
            yield self._window(start, min(header.window, end - start))
            start += header.window

    def gap(self) -> int:
        """Read how many copied bytes lie before the next one that differs."""
        return self._stream.varint()

    def end(self) -> None:
        """Raise MalformedPayloadError when operations are left."""
        self._stream.end()

    def _window(self, start: int, length: int) -> Window:
        count, mode = divmod(self._stream.varint(), MODES + 1)
        if not 0 < count <= MAX_OPERATIONS:
            raise MalformedPayloadError("A window has no operations or too many", operations=count)
        place, end, found, copied = start, start + length, [], 0
        for _ in range(count):
            literal, told = self._stream.varint(), self._stream.varint()
            copy = end - place - literal if told == 0 else told - 1
            if literal + max(copy, 0) > end - place or copy < 0:
                raise MalformedPayloadError("An operation goes beyond its window", start=start)
            if copy:
                self._shift += self._stream.signed()
            old = place + literal - self._shift
            if copy and not 0 <= old <= self.header.precursor_length - copy:
                raise MalformedPayloadError("A copy is not in the old image", offset=old, length=copy)
            found.append(Operation(place, literal, copy, old))
            place += literal + copy
            copied += copy
        if place != end:
            raise MalformedPayloadError("Operations do not fill their window", start=start)
        differences = self._stream.varint()
        if differences > copied:
            raise MalformedPayloadError("There are more differences than copied bytes", start=start)
        return Window(start, length, mode, found, differences)


def cells(operation: Operation) -> Iterator[tuple[int, int, int]]:
    """Yield (old offset, image offset, length) of the cells that a copy is predicted in."""
    new = operation.new + operation.literal
    old, left = operation.old, operation.copy
    while left:
        length = min(left, CELL_LENGTH_BYTES - new % CELL_LENGTH_BYTES)
        yield old, new, length
        old, new, left = old + length, new + length, left - length


def is_there(header: Header, block: int, what: What, ring: Ring, old: int, length: int) -> bool:
    """Whether old bytes can still be read while a block is made, and again after a cut: untouched, or in the ring."""
    for number in range(old // header.block, (old + length - 1) // header.block + 1):
        is_ahead = number < block if header.is_descending else number > block
        is_beyond = number >= header.blocks
        if number == block and what is not What.SAVED:
            return False
        if not is_ahead and not is_beyond and ring.slot(number) is None:
            return False
    return True
