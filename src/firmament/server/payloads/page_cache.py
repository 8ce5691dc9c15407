"""Which parts of a file lie in memory: a read of any other part would wait for the disk.

The kernel tells (`mincore`) for files that this process owns or may write, which published payloads
are. For a file of somebody else it says that everything is there; then a part that is not makes
whoever sends it wait, as it would in any web server. It cannot be asked at all on some systems.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import Any, Final

WINDOW_BYTES: Final = 2 * 1024 * 1024
"""The kernel is asked about so much at a time, ..."""
BELIEF_S: Final = 1.0
"""... and what it said is believed for so long: asking costs 17 us for each MiB."""
MAX_BELIEFS: Final = 4096
_READ_BYTES: Final = 256 * 1024
_FAILED: Final = ctypes.c_void_p(-1).value
_MAP_SHARED: Final = 1
_PROT_READ: Final = 1


def _load() -> Any:
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        # Offsets above 2 GiB on 32-bit machines too; musl has one name for both.
        make_map = libc.mmap64 if hasattr(libc, "mmap64") else libc.mmap
        make_map.restype = ctypes.c_void_p
        make_map.argtypes = (
            *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int),
            ctypes.c_int64,
        )
        libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
        libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)
    except (OSError, AttributeError):
        return None
    return make_map, libc.munmap, libc.mincore


_CALLS: Final = _load()


def is_cached(descriptor: int, offset: int, end: int) -> bool:
    """Whether all of ``[offset, end)`` of a file is in memory; no when that cannot be told."""
    if _CALLS is None or end <= offset:
        return False
    make_map, unmap, in_core = _CALLS
    begin = offset - offset % mmap.ALLOCATIONGRANULARITY
    length = end - begin
    pages = -(-length // mmap.PAGESIZE)
    # The mapping is only asked about and never touched: a file that shrinks meanwhile does no harm.
    address = make_map(None, length, _PROT_READ, _MAP_SHARED, descriptor, begin)
    if address == _FAILED:
        return False
    try:
        found = ctypes.create_string_buffer(pages)
        return in_core(address, length, found) == 0 and found.raw.count(1) == pages
    finally:
        unmap(address, length)


class PageCache:
    """What is known to be in memory, for all downloads together: many devices fetch the same file at once."""

    def __init__(self) -> None:
        self._until_s: dict[tuple[int, int, int], float] = {}

    def window(self, descriptor: int, file: tuple[int, int], offset: int, now_s: float) -> tuple[int, float] | None:
        """Return up to where a file is in memory from an offset on, and until when to believe it; None if it is not.

        `file` is device and inode; `now_s` comes from one monotonic clock.
        """
        number = offset // WINDOW_BYTES
        end = (number + 1) * WINDOW_BYTES
        until_s = self._until_s.get((*file, number), 0.0)
        if now_s < until_s:
            return end, until_s
        if not is_cached(descriptor, number * WINDOW_BYTES, min(end, os.fstat(descriptor).st_size)):
            return None
        return end, self.believe(file, number, now_s)

    def believe(self, file: tuple[int, int], number: int, now_s: float) -> float:
        """Note that a window was found in memory, or read; return until when to believe it."""
        if len(self._until_s) >= MAX_BELIEFS:
            self._until_s.clear()
        until_s = self._until_s[*file, number] = now_s + BELIEF_S
        return until_s


def fill(descriptor: int, offset: int, end: int) -> None:
    """Wait until ``[offset, end)`` of a file has been read into memory (blocking); raises OSError."""
    buffer = bytearray(_READ_BYTES)
    while offset < end:
        count = os.preadv(descriptor, [memoryview(buffer)[: end - offset]], offset)
        if not count:
            return
        offset += count
