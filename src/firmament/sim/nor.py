"""A NOR flash in memory: erased in blocks, written in units, and cut by the power at any operation.

    power = Power(cut_at=17)
    slot = NorFlash(bytes(old), block_length_bytes=4096, power=power)

What a cut leaves: an erase and a write are half done, and at the edge some bytes are neither old
nor new. Writing what is not erased is an error of whoever writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from firmament.sim.faults import PowerCut

ERASED: Final = 0xFF


@dataclass(slots=True)
class Power:
    """Shared by the parts of one flash; counts what changes it."""

    cut_at: int | None = None
    """Before which operation is done the power goes; None: never."""
    operations: int = 0
    torn: float = 0.5
    """How much of the operation was done then, 0 to 1."""

    def spend(self, length: int) -> int | None:
        """Count one operation; return how many of its bytes are done when the power goes, None if it stays."""
        number = self.operations
        self.operations += 1
        return int(length * self.torn) if number == self.cut_at else None


class NorFlash:
    """See payload/inplace/applier.py for the port."""

    def __init__(self, data: bytes, *, block_length_bytes: int, power: Power, write_unit_bytes: int = 8) -> None:
        self.data = bytearray(data)
        self.block_length_bytes = block_length_bytes
        self.write_unit_bytes = write_unit_bytes
        self.power = power
        self.erases = [0] * (len(data) // block_length_bytes)
        """How often each block was erased: wear."""

    @classmethod
    def of(cls, length_bytes: int, data: bytes = b"", *, block: int, power: Power, unit: int = 8) -> NorFlash:
        """Make an erased flash with some bytes at its beginning."""
        whole = data.ljust(length_bytes, b"\xff")
        return cls(whole, block_length_bytes=block, power=power, write_unit_bytes=unit)

    @property
    def length_bytes(self) -> int:
        """Size."""
        return len(self.data)

    def read_at(self, offset: int, length_bytes: int) -> bytes:
        """Return bytes; RuntimeError beyond the end."""
        if offset < 0 or offset + length_bytes > len(self.data):
            raise RuntimeError("read beyond the flash")
        return bytes(self.data[offset : offset + length_bytes])

    def erase(self, block: int) -> None:
        """Erase a block; a cut leaves its second part as it was, and a byte between that is nothing."""
        size = self.block_length_bytes
        done = self.power.spend(size)
        self.erases[block] += 1
        end = size if done is None else done
        self.data[block * size : block * size + end] = bytes((ERASED,)) * end
        if done is not None:
            if end < size:
                self.data[block * size + end] &= 0x5A
            raise PowerCut

    def write(self, offset: int, data: bytes) -> None:
        """Write whole units; RuntimeError when they are not erased."""
        unit = self.write_unit_bytes
        if offset % unit or len(data) % unit or offset + len(data) > len(self.data):
            raise RuntimeError("a write is not in whole units of the flash")
        if self.data[offset : offset + len(data)].strip(bytes((ERASED,))):
            raise RuntimeError("a write to flash that is not erased")
        done = self.power.spend(len(data))
        end = len(data) if done is None else done
        self.data[offset : offset + end] = data[:end]
        if done is not None:
            if end < len(data):
                self.data[offset + end] = data[end] | 0xA5
            raise PowerCut
