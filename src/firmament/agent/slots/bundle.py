"""A slot that is a directory: the bundle is unpacked as it arrives, and read back by packing it again.

    <directory>/a/ b/      the slots
    <directory>/current    symlink to the booted one, swapped by rename (bootctl/supervisor.py)

Nothing is stored but the tree. The grammar (core/bundle.py) makes one byte string of one tree,
so the tree alone says what was stored so far: `resume` packs it again up to the journalled
offset, and `verify` packs it whole and compares with the signed digest. A file gets its full
length when it begins; therefore even the middle of a large file is a place to go on.

Files are not synced one by one but at each checkpoint, then their directories. Nothing relies on
a file before the checkpoint after it: until `finish` no offset beyond the last checkpoint is
given out, and the slot is not started before `verify`. At most `MAX_UNSYNCED` names wait, so a
bundle of many small files takes no more memory than one of few.
"""

from __future__ import annotations

import stat
from bisect import bisect_right
from typing import TYPE_CHECKING, Final

from firmament.agent.slots.progress import Progress
from firmament.core import bundle
from firmament.core.bundle import Entry, EntryKind
from firmament.durable import DropsCache, make_directory_durably
from firmament.errors import (
    BootControlError,
    DigestMismatchError,
    DiskFullError,
    LengthExceededError,
    ReadBackError,
    SlotTooSmallError,
    UnsafeArchiveError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from firmament.agent.slots.port import Label
    from firmament.core.manifest import Image
    from firmament.durable import Disk, Reader, Writer

CURRENT: Final = "current"
DIRECTORY_MODE: Final = 0o755
CHUNK_BYTES: Final = 256 * 1024
MAX_UNSYNCED: Final = 256
# A quarter of the usual limit of open files and 40 KiB of names; more gains nothing, because the
# first fsync of a batch commits the file system's journal for all of it.


class BundleSlot:
    """`Slot` over the directory ``<directory>/<label>``; `limit_bytes` as in `ImageSlot`."""

    def __init__(self, disk: Disk, label: Label, directory: Path, *, limit_bytes: int | None = None) -> None:
        self._disk = disk
        self._label = label
        self._directory = directory
        self._root = directory / label.value
        self._limit_bytes = limit_bytes
        self._unpacking: _Unpacking | None = None

    @property
    def label(self) -> Label:  # noqa: D102 - see Slot, here and below
        return self._label

    @property
    def path(self) -> Path:
        """Return the slot's directory."""
        return self._root

    def capacity_bytes(self) -> int:
        """Return what is free plus what the slot's present content gives back."""
        there = self._directory
        while not self._disk.exists(there):
            there = there.parent
        room = self._disk.free_bytes(there) + self._stored_bytes(self._root)
        return room if self._limit_bytes is None else min(room, self._limit_bytes)

    def begin(self, image: Image) -> None:  # noqa: D102
        self.close()
        if self._limit_bytes is not None and image.length_bytes > self._limit_bytes:
            raise SlotTooSmallError(
                "The image does not fit into the slot",
                slot=self._label,
                image_bytes=image.length_bytes,
                slot_bytes=self._limit_bytes,
            )
        capacity = self.capacity_bytes()
        if image.length_bytes > capacity:
            # The file system is shared: what fills it now (a log) may be gone later, so this is retried.
            raise DiskFullError(
                "The file system has no room for the image",
                slot=self._label,
                image_bytes=image.length_bytes,
                free_bytes=capacity,
            )
        self._refuse_booted()
        _remove(self._disk, self._root)
        make_directory_durably(self._disk, self._directory, mode=DIRECTORY_MODE)
        self._disk.make_directory(self._root, mode=DIRECTORY_MODE)
        self._unpacking = _Unpacking(self._disk, self._root, image)

    def resume(self, image: Image, offset: int) -> int:  # noqa: D102
        self.close()
        self._refuse_booted()
        kept = _Unpacking(self._disk, self._root, image)
        if 0 < offset <= image.length_bytes and kept.take_stored(offset):
            self._unpacking = kept
            return offset
        self.begin(image)
        return 0

    def write(self, data: bytes | bytearray | memoryview) -> None:  # noqa: D102
        self._session().write(data)

    def checkpoint(self) -> int:  # noqa: D102
        return self._session().checkpoint()

    def finish(self) -> None:  # noqa: D102
        self._session().finish()

    def verify(self, image: Image) -> None:  # noqa: D102
        packed = Progress(image)
        try:
            for piece in self._packed():
                packed.take(piece)
            packed.require_complete()
        except (DigestMismatchError, LengthExceededError, UnsafeArchiveError) as error:
            raise ReadBackError(
                "The slot does not hold the image", slot=self._label, reason=error.problem, **error.facts
            ) from error

    def open_image(self, image: Image) -> Reader:  # noqa: D102
        return PackedReader(self._disk, self._root, image.length_bytes)

    def close(self) -> None:  # noqa: D102
        if self._unpacking is not None:
            self._unpacking.close()
        self._unpacking = None

    def _session(self) -> _Unpacking:
        if self._unpacking is None:
            msg = "begin or resume comes first"
            raise RuntimeError(msg)
        return self._unpacking

    def _packed(self) -> Iterator[bytes]:
        """Yield the tree's bundle, read from the storage."""
        for entry, path in entries(self._disk, self._root):
            if entry.kind is EntryKind.FILE and isinstance(self._disk, DropsCache):
                self._disk.drop_cache(path)
            yield from member(self._disk, entry, path)
        yield bundle.END

    def _stored_bytes(self, path: Path) -> int:
        mode = self._disk.mode(path)
        if mode is None or stat.S_ISLNK(mode):
            return 0
        if stat.S_ISDIR(mode):
            return sum(self._stored_bytes(path / name) for name in self._disk.list(path))
        return self._disk.length_bytes(path) or 0

    def _refuse_booted(self) -> None:
        target = self._disk.read_link(self._directory / CURRENT)
        if target is not None and target.rstrip("/").rpartition("/")[2] == self._label:
            raise BootControlError("The slot to be written is in use by the running system", path=self._root)


class PackedReader:
    """The tree as the bundle it makes, read at any offset without being stored anywhere.

    Holds one entry per member (a few hundred bytes) and one open file; a delta reads mostly forward.
    """

    def __init__(self, disk: Disk, root: Path, length_bytes: int) -> None:
        self._disk = disk
        self._length_bytes = length_bytes
        self._members: list[tuple[Entry, Path]] = []
        self._starts: list[int] = []
        self._open: tuple[Path, Reader] | None = None
        offset = 0
        for entry, path in entries(disk, root):
            self._starts.append(offset)
            self._members.append((entry, path))
            offset += _length(entry)
        self._end = offset

    def read_at(self, offset: int, length_bytes: int) -> bytes:
        """Return up to `length_bytes` from `offset`; fewer only at the end of the image."""
        end = min(offset + length_bytes, self._length_bytes)
        parts: list[bytes] = []
        while offset < end:
            part = self._part(offset, end - offset)
            if not part:
                break
            parts.append(part)
            offset += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Release what is open."""
        if self._open is not None:
            self._open[1].close()
        self._open = None

    def _part(self, offset: int, most: int) -> bytes:
        if offset >= self._end:
            return bundle.END[offset - self._end : offset - self._end + most]
        index = bisect_right(self._starts, offset) - 1
        entry, path = self._members[index]
        within = offset - self._starts[index]
        header = bundle.header(entry)
        if within < len(header):
            return header[within : within + most]
        within -= len(header)
        if within < entry.length_bytes:
            return self._file(path).read_at(within, min(most, entry.length_bytes - within))
        within -= entry.length_bytes
        return bundle.padding(entry.length_bytes)[within : within + most]

    def _file(self, path: Path) -> Reader:
        if self._open is None or self._open[0] != path:
            self.close()
            self._open = (path, self._disk.open_reader(path))
        return self._open[1]


class _Unpacking:
    """One session: the bundle's reader, the file being written, and what still has to be synced."""

    def __init__(self, disk: Disk, root: Path, image: Image) -> None:
        self._disk = disk
        self._root = root
        self._progress = Progress(image)
        self._reader = bundle.Reader()
        self._writer: Writer | None = None
        self._path = root
        self._written = 0
        self._member_end = 0
        """Offset after the last member that began, padding included."""
        self._files: list[Path] = []
        self._directories: dict[Path, None] = {root.parent: None, root: None}

    def take_stored(self, offset: int) -> bool:
        """Take what is stored up to `offset` as if it had been written; whether that was possible.

        What the tree holds after `offset` is removed: it was never promised to be whole.
        """
        last: tuple[Entry, Path] | None = None
        begin = 0
        try:
            for entry, path in entries(self._disk, self._root):
                if self._member_end >= offset:
                    break
                begin, last = self._member_end, (entry, path)
                self._feed_stored(entry, path, offset - begin)
                self._member_end = begin + _length(entry)
        except UnsafeArchiveError:
            return False  # what is there was not written by this class
        if last is None or self._member_end < offset:
            return False
        entry, path = last
        content = offset - begin - len(bundle.header(entry))
        if content < 0:
            return False  # `checkpoint` never answers with the middle of a header
        self._remove_after(self._root, list(bundle.sort_key(entry.path)))
        if entry.kind is EntryKind.FILE and content < entry.length_bytes:
            self._path, self._written = path, content
            self._writer = self._disk.open_writer(path, create=False)
        return True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._progress.take(data)
        for found in self._reader.feed(data):
            if isinstance(found, Entry):
                self._begin_member(found)
            elif self._writer is not None:
                self._writer.write_at(self._written, found)
                self._written += len(found)

    def checkpoint(self) -> int:
        self._sync()
        # Bytes of a header that is not complete yet left nothing in the tree.
        return min(self._progress.offset, self._member_end)

    def finish(self) -> None:
        self._progress.require_complete()
        self._reader.finish()
        self._sync()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer = None

    def _begin_member(self, entry: Entry) -> None:
        self._end_member()
        self._path = self._root.joinpath(*entry.path.split("/"))
        self._written = 0
        self._member_end += _length(entry)
        match entry.kind:
            case EntryKind.DIRECTORY:
                self._disk.make_directory(self._path, mode=entry.mode)
                self._directories[self._path] = None
            case EntryKind.SYMLINK:
                self._disk.symlink(entry.link, self._path)
            case EntryKind.FILE:
                if self._member_end > self._progress.image.length_bytes:
                    # Before it is made: a header may promise an exbibyte.
                    raise LengthExceededError(
                        "A file of the bundle is longer than the signed image",
                        path=entry.path,
                        length_bytes=entry.length_bytes,
                        signed_bytes=self._progress.image.length_bytes,
                    )
                self._writer = self._disk.open_writer(self._path, mode=entry.mode)
                if entry.length_bytes:
                    self._writer.truncate(entry.length_bytes)
        self._directories[self._path.parent] = None

    def _end_member(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            self._files.append(self._path)
        if len(self._files) + len(self._directories) >= MAX_UNSYNCED:
            self._sync()

    def _sync(self) -> None:
        if self._writer is not None:
            self._writer.sync()
        for path in self._files:
            writer = self._disk.open_writer(path, create=False)
            try:
                writer.sync()
            finally:
                writer.close()
        for path in self._directories:
            self._disk.sync_directory(path)
        self._files.clear()
        self._directories.clear()

    def _feed_stored(self, entry: Entry, path: Path, limit_bytes: int) -> None:
        for piece in member(self._disk, entry, path):
            taken = piece[:limit_bytes]
            limit_bytes -= len(taken)
            self._progress.take(taken)
            for _ in self._reader.feed(taken):
                pass

    def _remove_after(self, directory: Path, parts: list[str]) -> None:
        """Remove what comes after the member `parts` in the order of a bundle."""
        last = parts[0] if parts else ""
        for name in self._disk.list(directory):
            if name > last:
                _remove(self._disk, directory / name)
                self._directories[directory] = None
            elif name == last:
                mode = self._disk.mode(directory / name)
                if mode is not None and stat.S_ISDIR(mode):
                    self._remove_after(directory / name, parts[1:])


def entries(disk: Disk, root: Path) -> Iterator[tuple[Entry, Path]]:
    """Yield the members of the bundle that the tree below `root` makes, in order.

    Raises UnsafeArchiveError for anything that no bundle can hold, such as a device or a mode
    that was changed.
    """
    yield from _below(disk, root, "")


def member(disk: Disk, entry: Entry, path: Path) -> Iterator[bytes]:
    """Yield the bytes of one member: header, content, padding."""
    yield bundle.header(entry)
    if entry.kind is not EntryKind.FILE:
        return
    reader = disk.open_reader(path)
    try:
        offset = 0
        while offset < entry.length_bytes:
            piece = reader.read_at(offset, min(CHUNK_BYTES, entry.length_bytes - offset))
            if not piece:
                raise UnsafeArchiveError("A file became shorter while it was read", path=path)
            offset += len(piece)
            yield piece
    finally:
        reader.close()
    yield bundle.padding(entry.length_bytes)


def _below(disk: Disk, directory: Path, prefix: str) -> Iterator[tuple[Entry, Path]]:
    for name in disk.list(directory):
        path = directory / name
        entry = _entry(disk, path, prefix + name)
        yield entry, path
        if entry.kind is EntryKind.DIRECTORY:
            yield from _below(disk, path, f"{prefix}{name}/")


def _entry(disk: Disk, path: Path, name: str) -> Entry:
    mode = disk.mode(path) or 0
    if stat.S_ISLNK(mode):
        return Entry(name, EntryKind.SYMLINK, link=disk.read_link(path) or "")
    if stat.S_ISDIR(mode):
        entry = Entry(name, EntryKind.DIRECTORY)
    elif stat.S_ISREG(mode):
        is_executable = bool(mode & stat.S_IXUSR)
        entry = Entry(name, EntryKind.FILE, is_executable=is_executable, length_bytes=disk.length_bytes(path) or 0)
    else:
        raise UnsafeArchiveError("Something in the slot is neither file, directory nor symlink", path=path)
    if stat.S_IMODE(mode) != entry.mode:
        raise UnsafeArchiveError("The mode of something in the slot was changed", path=path, mode=f"{mode:o}")
    return entry


def _length(entry: Entry) -> int:
    return len(bundle.header(entry)) + entry.length_bytes + len(bundle.padding(entry.length_bytes))


def _remove(disk: Disk, path: Path) -> None:
    mode = disk.mode(path)
    if mode is not None and stat.S_ISDIR(mode):
        disk.remove_tree(path)
    else:
        disk.remove(path)
