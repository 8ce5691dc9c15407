"""Read a directory as a deterministic bundle (core/bundle.py has the format)."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from firmament.core.bundle import END, Entry, EntryKind, Order, Reader, header, padding, sort_key
from firmament.errors import FileError, UnsafeArchiveError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_CHUNK: Final = 1024 * 1024


def entries(root: Path) -> list[Entry]:
    """List a tree in bundle order; raises UnsafeArchiveError for anything a bundle cannot hold.

    Owner, time and every permission but the owner's execute bit are left out.
    """
    found: list[Entry] = []
    pending = [(root, "")]
    while pending:
        directory, prefix = pending.pop()
        try:
            with os.scandir(directory) as listing:
                for item in listing:
                    path = prefix + item.name
                    entry = _entry(item, path)
                    if entry.kind is EntryKind.DIRECTORY:
                        pending.append((directory / item.name, path + "/"))
                    found.append(entry)
        except OSError as error:
            raise FileError("The tree cannot be read", path=error.filename, reason=error.strerror) from error
    found.sort(key=lambda entry: sort_key(entry.path))
    return found


def write(root: Path) -> Iterator[bytes]:
    """Yield the bytes of the bundle of a tree; a file that changes meanwhile raises FileError."""
    order = Order()
    for entry in entries(root):
        head = header(entry)
        order.accept(entry)
        yield head
        if entry.kind is EntryKind.FILE:
            yield from _content(root / entry.path, entry.length_bytes)
            yield padding(entry.length_bytes)
    yield END


def check(pieces: Iterable[bytes]) -> list[tuple[Entry, int]]:
    """Read a bundle to its end; return its entries and where each one's content begins.

    Raises UnsafeArchiveError for anything but a bundle.
    """
    reader, found, offset = Reader(), [], 0
    for piece in pieces:
        for item in reader.feed(piece):
            if isinstance(item, Entry):
                offset += len(header(item))
                found.append((item, offset))
                offset += item.length_bytes + len(padding(item.length_bytes))
    reader.finish()
    return found


def _entry(item: os.DirEntry[str], path: str) -> Entry:
    status = item.stat(follow_symlinks=False)
    mode = status.st_mode
    if stat.S_ISDIR(mode):
        return Entry(path, EntryKind.DIRECTORY)
    if stat.S_ISLNK(mode):
        return Entry(path, EntryKind.SYMLINK, link=str(Path(item.path).readlink()))
    if stat.S_ISREG(mode):
        if mode & (stat.S_ISUID | stat.S_ISGID):
            raise UnsafeArchiveError("A file is setuid or setgid", path=path)
        is_executable = bool(mode & stat.S_IXUSR)
        return Entry(path, EntryKind.FILE, is_executable=is_executable, length_bytes=status.st_size)
    raise UnsafeArchiveError("Only files, directories and symlinks can be in a bundle", path=path)


def _content(path: Path, length_bytes: int) -> Iterator[bytes]:
    left = length_bytes
    try:
        with path.open("rb") as file:
            while left and (piece := file.read(min(left, _CHUNK))):
                left -= len(piece)
                yield piece
            if left or file.read(1):
                raise FileError("A file changed while the bundle was built", path=path)
    except OSError as error:
        raise FileError("A file cannot be read", path=path, reason=error.strerror or error) from error
