"""Regions: where in an image the things that are linked together lie.

An image is bytes; a reference is an address. A region ties the two: so many bytes of the image,
at this address, of this object. Objects are what a linker made in one go (one ELF file in a file
system image, one kernel, one microcontroller image); addresses of different objects have nothing
to do with each other, so each object has its own span of labels.

    label = object * 2**40 + address
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import astuple, dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from firmament.errors import MalformedPayloadError
from firmament.payload.refdelta.wire import read_signed_varints, signed_varints

if TYPE_CHECKING:
    from collections.abc import Sequence

OBJECT_SPAN: Final = 1 << 40
MAX_OBJECTS: Final = 1 << 20
MAX_REGIONS: Final = 1 << 16
# A root file system of 255 packages has 1 900 regions (docs/performance/delta.md).
_COLUMNS: Final = 8


class Code(IntEnum):
    """Whose instructions a region holds."""

    NONE = 0
    ARM64 = 1
    THUMB = 2


@dataclass(frozen=True, slots=True)
class Region:
    """`length_bytes` of the image at `offset` are linked at `address`; memory may go on without bytes (.bss)."""

    offset: int
    length_bytes: int
    address: int
    memory_bytes: int
    object: int
    code: int
    link_base: int
    """Added to an address in stored pointers (kernels are linked high)."""
    anchor: int
    """Address that the region's anchored tables count from (.eh_frame_hdr, kallsyms)."""

    @property
    def label(self) -> int:
        """Label of the first byte."""
        return self.object * OBJECT_SPAN + self.address


class Regions:
    """The regions of one image in order of offset."""

    def __init__(self, rows: Sequence[Region]) -> None:
        self.rows = tuple(rows)
        stored = [row for row in self.rows if row.length_bytes]
        self._stored = stored
        self._offsets = [row.offset for row in stored]

    def at(self, offset: int) -> Region | None:
        """Return the region that holds an offset of the image."""
        index = bisect_right(self._offsets, offset) - 1
        if index < 0:
            return None
        row = self._stored[index]
        return row if offset < row.offset + row.length_bytes else None

    def steps(self) -> list[int]:
        """Return the table column by column, each value as the difference from the row before."""
        columns = zip(*(astuple(row) for row in self.rows), strict=True)
        return [value - before for column in columns for value, before in zip(column, (0, *column[:-1]), strict=True)]

    def encode(self, like: Regions | None = None) -> bytes:
        """Write the table; as differences from another image's, of as many rows, if that is shorter."""
        steps = self.steps()
        plain = b"\0" + signed_varints(steps) if steps else b""
        if like is None or len(like.rows) != len(self.rows):
            return plain
        close = b"\1" + signed_varints(a - b for a, b in zip(steps, like.steps(), strict=True))
        return min(plain, close.rstrip(b"\0") or b"\1", key=len)

    @classmethod
    def decode(cls, data: bytes, *, image_length_bytes: int, like: Regions | None = None) -> Regions:
        """Read regions; MalformedPayloadError unless they lie in the image, apart and in order."""
        values = list(read_signed_varints(data[1:]))
        if data[:1] == b"\1" and like is not None:
            known = like.steps()
            if len(values) > len(known):
                raise MalformedPayloadError("A delta has an impossible table of regions", values=len(values))
            values += [0] * (len(known) - len(values))
            values = [value + step for value, step in zip(values, known, strict=True)]
        elif data and data[0]:
            raise MalformedPayloadError("A delta has an impossible table of regions", kind=data[0])
        count, rest = divmod(len(values), _COLUMNS)
        if rest or count > MAX_REGIONS:
            raise MalformedPayloadError("A delta has an impossible table of regions", values=len(values))
        rows = []
        for column in range(_COLUMNS):
            total = 0
            for place in range(column * count, (column + 1) * count):
                total += values[place]
                values[place] = total
        end = 0
        for index in range(count):
            row = Region(*values[index::count])
            fits = (
                row.length_bytes >= 0
                and (row.length_bytes == 0 or end <= row.offset <= image_length_bytes - row.length_bytes)
                and 0 <= row.address <= row.address + row.memory_bytes <= OBJECT_SPAN
                and row.memory_bytes >= row.length_bytes
                and 0 <= row.object < MAX_OBJECTS
                and 0 <= row.code <= max(Code)
                and abs(row.anchor) <= OBJECT_SPAN
                and abs(row.link_base) < 1 << 63
            )
            if not fits:
                raise MalformedPayloadError(
                    "A region of a delta lies outside the image or in another region", region=index
                )
            if row.length_bytes:
                end = row.offset + row.length_bytes
            rows.append(row)
        return cls(rows)
