"""Bytes at random offsets: what appliers and openers read payloads and precursors through."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

from firmament.durable import mapped_errors

if TYPE_CHECKING:
    from pathlib import Path


class Reader(Protocol):
    """As `durable.Reader` reads; anything with this method will do."""

    def read_at(self, offset: int, length_bytes: int) -> bytes:
        """Return up to `length_bytes` from `offset`; fewer only at the end."""
        ...


class BytesReader:
    """A reader of bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.length_bytes = len(data)

    def read_at(self, offset: int, length_bytes: int) -> bytes:
        """Return a slice."""
        return self._data[offset : offset + length_bytes]


class FileReader:
    """A reader of a file or block device on the author's bench; the agent has its own, through `durable.Disk`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with mapped_errors(path):
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self.length_bytes = os.lseek(self._descriptor, 0, os.SEEK_END)

    def read_at(self, offset: int, length_bytes: int) -> bytes:
        """Read with pread; raises FileError."""
        with mapped_errors(self._path):
            return os.pread(self._descriptor, length_bytes, offset)

    def close(self) -> None:
        """Release the file."""
        os.close(self._descriptor)


def read_all(source: Reader, length_bytes: int) -> bytes:
    """Read a whole source into memory, for libraries that cannot do with less."""
    parts, offset = [], 0
    while offset < length_bytes:
        part = source.read_at(offset, length_bytes - offset)
        if not part:
            break
        parts.append(part)
        offset += len(part)
    return b"".join(parts)
