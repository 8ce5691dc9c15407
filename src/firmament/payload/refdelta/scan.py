"""Find the regions of an image: ELF files and kernels inside it, or a flat microcontroller image.

Only the encoder looks into images; what it finds is sent. A region that is missed or wrong makes a
longer delta, never a wrong image.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from firmament.payload.refdelta.regions import MAX_OBJECTS, MAX_REGIONS, OBJECT_SPAN, Code, Region, Regions
from firmament.payload.refdelta.sites import Arm64, signed, words_of

if TYPE_CHECKING:
    from collections.abc import Iterator

_ELF: Final = b"\x7fELF\x02\x01"
_AARCH64: Final = 183
_ALIGNMENT: Final = 512
"""ELF files and kernels start at sectors, in file systems and archives alike."""
_LOAD, _EH_FRAME_HEADER, _EXECUTABLE = 1, 0x6474E550, 1
_KERNEL_SLACK: Final = 1 << 26
MCUBOOT_MAGIC: Final = 0x96F3B83D
_RAM: Final = (0x20000000, 1 << 20)
"""Cortex-M: SRAM by the architecture's memory map."""


def scan(image: bytes) -> Regions:
    """Return the regions of an image; none if nothing that is known was found."""
    rows = [*_kernels(image)]
    taken = [(row.offset, row.offset + row.length_bytes) for row in rows]
    count = len(rows)
    for file in _elf_files(image):
        if not any(
            first < row.offset + row.length_bytes and row.offset < last for row in file for first, last in taken
        ):
            rows += [_with_object(row, count) for row in file]
            count += 1
    if not rows:
        rows = _cortex_m(image) or _flat_arm64(image)
    kept, end = [], 0
    for row in sorted(rows, key=lambda row: row.offset):
        if not row.length_bytes or row.offset >= end:
            kept.append(row)
            end = max(end, row.offset + row.length_bytes)
    if len(kept) > MAX_REGIONS or count > MAX_OBJECTS:
        kept = []
    return Regions(kept)


def _with_object(row: Region, number: int) -> Region:
    return Region(
        row.offset, row.length_bytes, row.address, row.memory_bytes, number, row.code, row.link_base, row.anchor
    )


def _elf_files(image: bytes) -> Iterator[list[Region]]:
    at = image.find(_ELF)
    while at >= 0:
        if at % _ALIGNMENT == 0 and at + 64 <= len(image):
            kind, machine = struct.unpack_from("<HH", image, at + 16)
            if kind in {2, 3} and machine == _AARCH64:
                rows = _elf_segments(image, at)
                if rows:
                    yield rows
        at = image.find(_ELF, at + 1)


def _elf_segments(image: bytes, at: int) -> list[Region]:
    table = at + struct.unpack_from("<Q", image, at + 32)[0]
    size, count = struct.unpack_from("<HH", image, at + 54)
    rows, anchor = [], 0
    for number in range(min(count, 64)):
        header = table + number * size
        if size < 56 or header + 56 > len(image):
            break
        kind, flags, offset, address, _, length, memory, _ = struct.unpack_from("<IIQQQQQQ", image, header)
        if kind == _EH_FRAME_HEADER and address < OBJECT_SPAN:
            anchor = address
        if (
            kind == _LOAD
            and 0 < length <= memory
            and at + offset + length <= len(image)
            and address + memory < OBJECT_SPAN
        ):
            code = Code.ARM64 if flags & _EXECUTABLE else Code.NONE
            rows.append((at + offset, length, address, memory, code))
    return [Region(*row[:4], 0, row[4], 0, anchor) for row in rows]


def _kernels(image: bytes) -> Iterator[Region]:
    """ARM64 Linux images: "MZ" first, "ARMd" at 56 (Documentation/arch/arm64/booting.rst)."""
    at = image.find(b"ARMd")
    number = 0
    while at >= 0:
        start = at - 56
        if start >= 0 and start % _ALIGNMENT == 0 and image[start : start + 2] == b"MZ":
            (size,) = struct.unpack_from("<Q", image, start + 16)
            length = min(size, len(image) - start) // 4 * 4
            base = _link_base(image, start, length)
            row = Region(start, length, 0, length + _KERNEL_SLACK, number, Code.ARM64, base, 0)
            anchor = _symbol_anchor(image, row) if base else 0
            yield Region(start, length, 0, length + _KERNEL_SLACK, number, Code.ARM64, base, anchor)
            number += 1
            at = start + length
        at = image.find(b"ARMd", at + 4)


def _link_base(image: bytes, start: int, length: int) -> int:
    """Guess where a kernel is linked from the pointers in it (0xffff80...)."""
    if start % 8:
        return 0
    values = np.frombuffer(image, np.int64, count=length // 8, offset=start)
    pointers = values[(values >> 40) == -128]
    return int(np.percentile(pointers, 1)) >> 25 << 25 if len(pointers) > 10_000 else 0


def symbol_blocks(words: Any) -> Any:
    """Whether each 4 KiB block is an ascending table of offsets, as kallsyms is."""
    count = len(words) // 1024
    rows = words[: count * 1024].reshape(count, 1024)
    rising = (rows[:, 1:] >= rows[:, :-1]).mean(axis=1) > 0.97
    distinct = (rows[:, 1:] != rows[:, :-1]).mean(axis=1) > 0.3
    inside = ((rows >= 0x1000) & (rows < len(words) * 8)).mean(axis=1) > 0.9
    return np.flatnonzero(rising & distinct & inside)


def _symbol_anchor(image: bytes, row: Region) -> int:
    """Find from which page kallsyms' offsets count: where most of them are targets of a BL."""
    words = words_of(image[row.offset : row.offset + row.length_bytes])
    blocks = symbol_blocks(words)
    if not len(blocks):
        return 0
    table = words[: len(words) // 1024 * 1024].reshape(-1, 1024)[blocks].ravel().astype(np.int64)
    sample = table[len(table) // 4 :: max(1, len(table) // 1000)]
    calls = Arm64(words, [Region(0, len(words) * 4, 0, len(words) * 4, 0, Code.ARM64, 0, 0)]).branch
    targets = np.unique(calls * 4 + signed(words[calls] & 0x3FFFFFF, 26) * 4)
    best = (0.2, 0)
    for anchor in range(0, 1 << 20, 4096):
        place = np.minimum(np.searchsorted(targets, sample + anchor), len(targets) - 1)
        best = max(best, (float((targets[place] == sample + anchor).mean()), anchor))
    return best[1]


def _flat_arm64(image: bytes) -> list[Region]:
    """Flat ARM64 images such as U-Boot: many RETs; U-Boot writes where it is linked at offset 8."""
    words = words_of(image)
    if len(words) < 1024 or np.count_nonzero(words == 0xD65F03C0) * 1024 < len(words):
        return []
    (base,) = struct.unpack_from("<Q", image, 8)
    if base % 4096 or base >= OBJECT_SPAN - 2 * len(image):
        base = 0
    length = len(image) // 4 * 4
    return [Region(0, length, 0, length + _KERNEL_SLACK, 0, Code.ARM64, base, 0)]


def _cortex_m(image: bytes) -> list[Region]:
    """Flat Thumb images: a vector table first, perhaps behind an MCUboot header."""
    if len(image) < 256:
        return []
    skip = struct.unpack_from("<H", image, 8)[0] if struct.unpack_from("<I", image)[0] == MCUBOOT_MAGIC else 0
    if skip % 4 or skip + 256 > len(image):
        return []
    stack, reset = struct.unpack_from("<II", image, skip)
    if not (_RAM[0] < stack <= _RAM[0] + (1 << 26) and stack % 4 == 0 and reset & 1 and reset < _RAM[0]):
        return []
    length = len(image)
    halves = np.frombuffer(image, np.uint16, count=length // 2)
    # Functions mostly begin by saving registers: PUSH {..., LR}, or PUSH.W
    begins = np.concatenate([((halves & 0xFF00) == 0xB500) | (halves == 0xE92D), [False]])
    words = words_of(image).astype(np.int64)
    pointers = np.unique(words[(words & 1 == 1) & (abs(words - reset) < length)]) - 1
    best = (0, 0)
    for base in range(max(0, (reset - length) // 256 * 256), reset, 256):  # vector tables are aligned
        place = pointers - base
        place = place[(place >= 0) & (place < length)]
        best = max(best, (int(begins[place // 2].sum()), base))
    if best[0] < 8:
        return []
    return [
        Region(0, length, best[1], length, 0, Code.THUMB, 0, 0),
        Region(0, 0, _RAM[0], _RAM[1], 0, Code.NONE, 0, 0),
    ]
