"""The one way to touch storage: a port, its real implementation, and durable replacement.

Everything a device writes goes through `Disk`, so that a simulated disk (sim/disk.py) can cut
the power at every single operation. The rules of a POSIX file system hold: written bytes are
durable after `Writer.sync`; a new, renamed or removed name is durable after `sync_directory`
of its parent. Between the two, a power cut may keep or lose either (house rule 3).

All paths are absolute `pathlib.PurePosixPath`-like strings or `Path`s. Every read has a ceiling.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

from firmament.errors import DiskFullError, FileError, FirmamentError, ReadOnlyError, TooLargeError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PRIVATE_MODE: Final = 0o600
PUBLIC_MODE: Final = 0o644
ANY_MODE: Final = 0o777
TEMPORARY_SUFFIX: Final = ".new"
"""A file that was being replaced when the power went; safe to remove at start."""


class Writer(Protocol):
    """An open file, written at explicit offsets."""

    def write_at(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data` at `offset`; durable only after `sync`."""
        ...

    def truncate(self, length_bytes: int) -> None:
        """Set the length."""
        ...

    def sync(self) -> None:
        """Return once everything written is durable."""
        ...

    def close(self) -> None:
        """Release the file; says nothing about durability."""
        ...


class Reader(Protocol):
    """An open file, read at explicit offsets."""

    def read_at(self, offset: int, length_bytes: int) -> bytes:
        """Return up to `length_bytes` from `offset`; fewer only at the end of the file."""
        ...

    def close(self) -> None:
        """Release the file."""
        ...


class Disk(Protocol):
    """What the agent may ask of storage. Errors are DiskFullError, ReadOnlyError or FileError."""

    def open_writer(self, path: Path, *, mode: int = PRIVATE_MODE, create: bool = True) -> Writer:
        """Open for writing without truncating; `create` makes an empty file if absent, with exactly `mode`."""
        ...

    def open_reader(self, path: Path) -> Reader:
        """Open for reading."""
        ...

    def length_bytes(self, path: Path) -> int | None:
        """Return the length of a file or block device, None if there is none."""
        ...

    def exists(self, path: Path) -> bool:
        """Whether the name exists, as anything (a dangling symlink too)."""
        ...

    def list(self, path: Path) -> list[str]:
        """Return the sorted names in a directory; empty if it does not exist."""
        ...

    def read_link(self, path: Path) -> str | None:
        """Return a symlink's target, None if `path` is not a symlink."""
        ...

    def mode(self, path: Path) -> int | None:
        """Return `st_mode` of the name itself, type and permissions (lstat(2)); None if there is none."""
        ...

    def make_directory(self, path: Path, *, mode: int = 0o700) -> None:
        """Create a directory, and its missing parents, with exactly `mode`; existing ones are fine."""
        ...

    def symlink(self, target: str, path: Path) -> None:
        """Create a symlink; `path` must not exist."""
        ...

    def replace(self, source: Path, destination: Path) -> None:
        """Rename atomically over whatever `destination` names (not a non-empty directory)."""
        ...

    def remove(self, path: Path) -> None:
        """Remove a file or symlink; absent is fine."""
        ...

    def remove_tree(self, path: Path) -> None:
        """Remove a directory and everything in it; absent is fine."""
        ...

    def sync_directory(self, path: Path) -> None:
        """Make names in this directory durable."""
        ...

    def free_bytes(self, path: Path) -> int:
        """Return the bytes an unprivileged writer may still add on this file system."""
        ...


@runtime_checkable
class DropsCache(Protocol):
    """A disk that can forget what it holds in memory, so that the next read comes from the storage."""

    def drop_cache(self, path: Path) -> None:
        """Forget the cached pages of a file or block device that is synced; a hint, never an error."""
        ...


class RealDisk:
    """`Disk` on the machine's file systems."""

    def open_writer(self, path: Path, *, mode: int = PRIVATE_MODE, create: bool = True) -> Writer:  # noqa: D102
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        with mapped_errors(path):
            if create:
                with contextlib.suppress(FileExistsError):
                    descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, mode)
                    try:
                        os.fchmod(descriptor, mode)  # whatever the umask is
                    except OSError:
                        os.close(descriptor)
                        raise
                    return _RealFile(descriptor, path)
            return _RealFile(os.open(path, flags), path)

    def open_reader(self, path: Path) -> Reader:  # noqa: D102
        with mapped_errors(path):
            return _RealFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC), path)

    def length_bytes(self, path: Path) -> int | None:  # noqa: D102
        with mapped_errors(path):
            try:
                found = path.stat()
            except (FileNotFoundError, NotADirectoryError):
                return None
            if stat.S_ISBLK(found.st_mode):
                with path.open("rb") as device:
                    return device.seek(0, os.SEEK_END)
            return found.st_size

    def exists(self, path: Path) -> bool:  # noqa: D102
        return os.path.lexists(path)

    def list(self, path: Path) -> list[str]:  # noqa: D102
        with mapped_errors(path):
            try:
                return sorted(entry.name for entry in path.iterdir())
            except FileNotFoundError:
                return []

    def read_link(self, path: Path) -> str | None:  # noqa: D102
        with mapped_errors(path):
            return str(path.readlink()) if path.is_symlink() else None

    def make_directory(self, path: Path, *, mode: int = 0o700) -> None:  # noqa: D102
        with mapped_errors(path):
            for directory in reversed((path, *path.parents)):
                if not directory.is_dir():
                    directory.mkdir(mode=mode, exist_ok=True)
                    directory.chmod(mode)  # whatever the umask is

    def mode(self, path: Path) -> int | None:  # noqa: D102
        with mapped_errors(path):
            try:
                return path.lstat().st_mode
            except (FileNotFoundError, NotADirectoryError):
                return None

    def symlink(self, target: str, path: Path) -> None:  # noqa: D102
        with mapped_errors(path):
            path.symlink_to(target)

    def replace(self, source: Path, destination: Path) -> None:  # noqa: D102
        with mapped_errors(destination):
            source.replace(destination)

    def remove(self, path: Path) -> None:  # noqa: D102
        with mapped_errors(path):
            path.unlink(missing_ok=True)

    def remove_tree(self, path: Path) -> None:  # noqa: D102
        with mapped_errors(path), contextlib.suppress(FileNotFoundError):
            shutil.rmtree(path)

    def sync_directory(self, path: Path) -> None:  # noqa: D102
        with mapped_errors(path):
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def free_bytes(self, path: Path) -> int:  # noqa: D102
        with mapped_errors(path):
            found = os.statvfs(path)
            return found.f_bavail * found.f_frsize

    def drop_cache(self, path: Path) -> None:  # noqa: D102
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


class _RealFile:
    """Both `Writer` and `Reader` on one descriptor."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self._descriptor = descriptor
        self._path = path

    def write_at(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        with mapped_errors(self._path):
            while view:
                written = os.pwrite(self._descriptor, view, offset)
                view, offset = view[written:], offset + written

    def truncate(self, length_bytes: int) -> None:
        with mapped_errors(self._path):
            os.ftruncate(self._descriptor, length_bytes)

    def sync(self) -> None:
        with mapped_errors(self._path):
            os.fsync(self._descriptor)

    def read_at(self, offset: int, length_bytes: int) -> bytes:
        found = bytearray()
        with mapped_errors(self._path):
            # One pread returns at most 2 GiB - 4 KiB, and less when a signal comes.
            while data := os.pread(self._descriptor, length_bytes - len(found), offset + len(found)):
                if len(data) == length_bytes:
                    return data
                found += data
        return bytes(found)

    def close(self) -> None:
        os.close(self._descriptor)


def read_file(disk: Disk, path: Path, *, limit_bytes: int) -> bytes:
    """Read a whole file of at most `limit_bytes`; raises FileError if absent, TooLargeError above."""
    length = disk.length_bytes(path)
    if length is None:
        raise FileError("The file does not exist", path=path)
    if length > limit_bytes:
        raise TooLargeError("The file is longer than allowed", path=path, length_bytes=length, limit_bytes=limit_bytes)
    reader = disk.open_reader(path)
    try:
        return reader.read_at(0, length)
    finally:
        reader.close()


def public_mode_of(disk: Disk, directory: Path) -> int:
    """Return the mode for files that are not secret on the file system of `directory`, e.g. of a stick.

    FAT has no owners: it takes the mode of its mount only, and asked for all bits drops the others.
    """
    probe = directory / f".mode{TEMPORARY_SUFFIX}"
    try:
        disk.open_writer(probe, mode=PUBLIC_MODE).close()
    except FileError:
        return ANY_MODE
    finally:
        with contextlib.suppress(FirmamentError):
            disk.remove(probe)
    return PUBLIC_MODE


def replace_durably(disk: Disk, path: Path, data: bytes, *, mode: int = PRIVATE_MODE) -> None:
    """Replace `path` so that after a power cut it holds the old bytes or the new ones, whole.

    Write beside it, sync the file, rename, sync the directory: without the first sync the new
    name may point at a hole, without the second the rename itself may be forgotten.
    """
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    disk.remove(temporary)
    try:
        writer = disk.open_writer(temporary, mode=mode)
        try:
            writer.write_at(0, data)
            writer.sync()
        finally:
            writer.close()
        disk.replace(temporary, path)
    except FirmamentError:
        with contextlib.suppress(FirmamentError):
            disk.remove(temporary)
        raise
    disk.sync_directory(path.parent)


def make_directory_durably(disk: Disk, path: Path, *, mode: int = 0o700) -> None:
    """Make a directory and its missing parents so that a power cut cannot take the names away again.

    Syncing a file and its own directory is not enough for a directory that is new itself.
    """
    missing = []
    while not disk.exists(path):
        missing.append(path)
        path = path.parent
    for directory in reversed(missing):
        disk.make_directory(directory, mode=mode)
        disk.sync_directory(directory.parent)


@contextlib.contextmanager
def mapped_errors(path: Path) -> Iterator[None]:
    """Turn OSError from storage into this house's errors, naming the path.

    ValueError is what the standard library raises for a path that no file system can have.
    """
    try:
        yield
    except OSError as error:
        facts = {"path": path, "reason": error.strerror or error}
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise DiskFullError("No space is left", **facts) from error
        if error.errno == errno.EROFS:
            raise ReadOnlyError("The storage is read-only", **facts) from error
        raise FileError("The file cannot be used", **facts) from error
    except ValueError as error:
        raise FileError("This is not a path", path=ascii(str(path)), reason=error) from error
