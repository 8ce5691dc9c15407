"""A disk in memory with a page cache, whose power can be cut at any operation.

`SimDisk` implements `durable.Disk` with the promises of POSIX and no more: bytes are durable
after `Writer.sync`, names after `sync_directory` of their directory. Everything else is at the
mercy of the cut (`faults.Survives`). Contents are immutable values that are shared between
copies, so `clone` costs a dictionary, and a sweep can keep one disk per operation.
"""

from __future__ import annotations

import hashlib
import stat
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from firmament.durable import PRIVATE_MODE
from firmament.errors import DiskFullError, FileError
from firmament.sim.faults import Cut, Fault, Kind, Operation, PowerCut, Survives

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from firmament.durable import Reader, Writer

DEFAULT_CAPACITY_BYTES: Final = 64 * 1024 * 1024
MAX_LINKS: Final = 40  # Linux gives up after 40 symlinks in one path (path_resolution(7))
ROOT: Final = 1
_DIRECTORY_LENGTH_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class _File:
    now: bytes
    durable: bytes
    mode: int
    is_device: bool = False


@dataclass(frozen=True, slots=True)
class _Link:
    target: str


@dataclass(frozen=True, slots=True)
class _Directory:
    now: Mapping[str, int]
    durable: Mapping[str, int]
    mode: int = 0o755


_Node = _File | _Link | _Directory


class SimDisk:
    """`durable.Disk` in memory; `cut` and `faults` are planted by the test."""

    def __init__(self, *, capacity_bytes: int = DEFAULT_CAPACITY_BYTES) -> None:
        self.capacity_bytes = capacity_bytes
        self.operations = 0
        """Changes so far, over all lives of the device."""
        self.cut: Cut | None = None
        self.faults: list[Fault] = []
        self.before: Callable[[Operation], None] | None = None
        """Called before each change; a sweep takes its copies here."""
        self.is_on = True
        self._torn: tuple[int, Callable[[], _File]] | None = None
        """What the operation that is about to happen would leave half done."""
        self._nodes: dict[int, _Node] = {ROOT: _Directory({}, {})}
        self._next = ROOT + 1

    # --- for tests and simulators ----------------------------------------------------------

    def clone(self) -> SimDisk:
        """Return an independent copy in the same condition, without cut, faults and observer."""
        twin = SimDisk(capacity_bytes=self.capacity_bytes)
        twin.operations = self.operations
        twin._nodes = dict(self._nodes)
        twin._next = self._next
        return twin

    def lose_power(self, survives: Survives = Survives.LOST) -> None:
        """Forget what a cut between two operations makes this disk forget; it is on again."""
        self._nodes = {number: _survivor(node, survives) for number, node in self._nodes.items()}
        self.is_on = True
        self.cut = None

    def after_cut(self, survives: Survives) -> SimDisk:
        """Return what a cut right here would leave, as a disk of its own; for the observer `before`."""
        twin = self.clone()
        twin._torn = self._torn  # noqa: SLF001 - its own class
        twin._fall(survives)  # noqa: SLF001 - its own class
        return twin

    def _fall(self, survives: Survives) -> None:
        if survives is Survives.TORN and self._torn is not None:
            number, half_done = self._torn
            self._nodes[number] = half_done()
        self.lose_power(survives)

    def put(self, path: Path, data: bytes, *, mode: int = 0o644, is_device: bool = False) -> None:
        """Set up a file, durable at once, that counts no operation; a device has a fixed length."""
        parent = self._put_directory(path.parent)
        number = self._add(_File(data, data, mode, is_device))
        self._enter(parent, path.name, number, durable=True)

    def get(self, path: Path) -> bytes:
        """Return what a file holds now."""
        return self._file(path)[1].now

    def tree(self, path: Path) -> dict[str, bytes | str | None]:
        """Return everything below a directory by relative path: a file's bytes, a symlink's target, or None."""
        found: dict[str, bytes | str | None] = {}
        start = self._find(path)
        todo = [("", start)] if start is not None else []
        while todo:
            prefix, number = todo.pop()
            node = self._nodes[number]
            if isinstance(node, _Directory):
                todo += [(f"{prefix}/{name}", child) for name, child in node.now.items()]
            content = None if isinstance(node, _Directory) else node.now if isinstance(node, _File) else node.target
            if prefix:
                found[prefix[1:]] = content
        return found

    def fingerprint(self) -> tuple[tuple[str, object], ...]:
        """Return all names and contents as one value: two disks with the same are the same after a reboot."""
        return tuple(sorted(self.tree(Path("/")).items()))

    def dump(self) -> str:
        """Return the tree for people: name, length, start of the digest, ``*`` for not yet durable."""
        return "\n".join(self._lines())

    def _lines(self) -> list[str]:
        lines: list[str] = []

        def walk(path: PurePosixPath, number: int) -> None:
            node = self._nodes[number]
            if isinstance(node, _Link):
                lines.append(f"{path} -> {node.target}")
            elif isinstance(node, _File):
                mark = "" if node.now == node.durable else " *"
                digest = hashlib.sha256(node.now).hexdigest()[:16]
                lines.append(f"{path} {node.mode:o} {len(node.now)} {digest}{mark}")
            else:
                lines.append(f"{path}/{'' if node.now == node.durable else ' *'}")
                for name in sorted(node.now):
                    walk(path / name, node.now[name])

        walk(PurePosixPath("/"), ROOT)
        return lines

    # --- durable.Disk ----------------------------------------------------------------------

    def open_writer(self, path: Path, *, mode: int = PRIVATE_MODE, create: bool = True) -> Writer:  # noqa: D102
        parent, name = self._parent(path)
        number = self._entries(parent).get(name)
        if number is None:
            if not create:
                raise _error(path, "No such file or directory")
            self._operate(Kind.CREATE, path)
            number = self._add(_File(b"", b"", mode))
            self._enter(parent, name, number)
        if not isinstance(self._nodes[number], _File):
            raise _error(path, "Is a directory or a symlink")
        return _SimFile(self, number, path)

    def open_reader(self, path: Path) -> Reader:  # noqa: D102
        number, _ = self._file(path)
        self._read(path)
        return _SimFile(self, number, path)

    def length_bytes(self, path: Path) -> int | None:  # noqa: D102
        self._read(path)
        number = self._find(path)
        if number is None:
            return None
        node = self._nodes[number]
        return len(node.now) if isinstance(node, _File) else _DIRECTORY_LENGTH_BYTES

    def exists(self, path: Path) -> bool:  # noqa: D102
        return self._find(path, follow=False) is not None

    def list(self, path: Path) -> list[str]:  # noqa: D102
        self._read(path)
        number = self._find(path)
        if number is None:
            return []
        node = self._nodes[number]
        if not isinstance(node, _Directory):
            raise _error(path, "Not a directory")
        return sorted(node.now)

    def read_link(self, path: Path) -> str | None:  # noqa: D102
        self._read(path)
        number = self._find(path, follow=False)
        node = None if number is None else self._nodes[number]
        return node.target if isinstance(node, _Link) else None

    def mode(self, path: Path) -> int | None:  # noqa: D102
        self._read(path)
        number = self._find(path, follow=False)
        if number is None:
            return None
        match self._nodes[number]:
            case _File(mode=mode, is_device=is_device):
                return (stat.S_IFBLK if is_device else stat.S_IFREG) | mode
            case _Link():
                return stat.S_IFLNK | 0o777
            case _Directory(mode=mode):
                return stat.S_IFDIR | mode

    def make_directory(self, path: Path, *, mode: int = 0o700) -> None:  # noqa: D102
        number = self._find(path)
        if number is not None:
            if not isinstance(self._nodes[number], _Directory):
                raise _error(path, "File exists")
            return
        if path.parent != path:
            self.make_directory(path.parent, mode=mode)
        self._operate(Kind.MAKE_DIRECTORY, path)
        parent, name = self._parent(path)
        self._enter(parent, name, self._add(_Directory({}, {}, mode)))

    def symlink(self, target: str, path: Path) -> None:  # noqa: D102
        parent, name = self._parent(path)
        if name in self._entries(parent):
            raise _error(path, "File exists")
        self._operate(Kind.SYMLINK, path)
        self._enter(parent, name, self._add(_Link(target)))

    def replace(self, source: Path, destination: Path) -> None:  # noqa: D102
        old_parent, old_name = self._parent(source)
        new_parent, new_name = self._parent(destination)
        number = self._entries(old_parent).get(old_name)
        if number is None:
            raise _error(source, "No such file or directory")
        there = self._entries(new_parent).get(new_name)
        if there is not None:
            replaced, moved = self._nodes[there], self._nodes[number]
            if isinstance(replaced, _Directory) != isinstance(moved, _Directory):
                raise _error(destination, "Is a directory" if isinstance(replaced, _Directory) else "Not a directory")
            if isinstance(replaced, _Directory) and replaced.now:
                raise _error(destination, "Directory not empty")
        self._operate(Kind.REPLACE, destination)
        self._leave(old_parent, old_name)
        self._enter(new_parent, new_name, number)

    def remove(self, path: Path) -> None:  # noqa: D102
        number = self._find(path, follow=False)
        if number is None:
            return
        if isinstance(self._nodes[number], _Directory):
            raise _error(path, "Is a directory")
        self._operate(Kind.REMOVE, path)
        self._leave(*self._parent(path))

    def remove_tree(self, path: Path) -> None:
        """Remove a directory entry by entry, as the real one does: a cut may leave half of it."""
        number = self._find(path, follow=False)
        if number is None:
            return
        node = self._nodes[number]
        if not isinstance(node, _Directory):
            raise _error(path, "Not a directory")
        for name in sorted(node.now):
            child = path / name
            if isinstance(self._nodes[node.now[name]], _Directory):
                self.remove_tree(child)
            else:
                self.remove(child)
        self._operate(Kind.REMOVE, path)
        self._leave(*self._parent(path))

    def sync_directory(self, path: Path) -> None:  # noqa: D102
        number = self._directory(path)
        self._operate(Kind.SYNC_DIRECTORY, path)
        node = self._nodes[number]
        assert isinstance(node, _Directory)
        self._nodes[number] = replace(node, durable=node.now)

    def free_bytes(self, path: Path) -> int:  # noqa: D102
        self._read(path)
        return max(0, self.capacity_bytes - self._used_bytes())

    # --- operations ------------------------------------------------------------------------

    def _operate(
        self, kind: Kind, path: Path, *, grows_bytes: int = 0, torn: tuple[int, Callable[[], _File]] | None = None
    ) -> None:
        if not self.is_on:
            raise PowerCut("the power is off")
        operation = Operation(self.operations, kind, path, grows_bytes)
        for fault in self.faults:
            fault.strike(operation)
        if grows_bytes > 0 and self._used_bytes() + grows_bytes > self.capacity_bytes:
            raise DiskFullError("No space is left", path=path, free_bytes=self.free_bytes(path))
        self._torn = torn
        if self.before is not None:
            self.before(operation)
        if self.cut is not None and self.cut.at == self.operations:
            self._fall(self.cut.survives)
            self.is_on = False
            raise PowerCut(f"at operation {operation.number}: {operation.kind} {operation.path}")
        self._torn = None
        self.operations += 1

    def _read(self, path: Path) -> None:
        if not self.is_on:
            raise PowerCut("the power is off")
        for fault in self.faults:
            fault.strike(Operation(self.operations, Kind.READ, path))

    # --- nodes and names -------------------------------------------------------------------

    def _add(self, node: _Node) -> int:
        number, self._next = self._next, self._next + 1
        self._nodes[number] = node
        return number

    def _used_bytes(self) -> int:
        used, seen, todo = 0, set(), [ROOT]
        while todo:
            number = todo.pop()
            node = self._nodes[number]
            if isinstance(node, _Directory):
                todo.extend(node.now.values())
            elif isinstance(node, _File) and not node.is_device and number not in seen:
                seen.add(number)
                used += len(node.now)
        return used

    def _entries(self, directory: int) -> Mapping[str, int]:
        node = self._nodes[directory]
        assert isinstance(node, _Directory)
        return node.now

    def _enter(self, directory: int, name: str, number: int, *, durable: bool = False) -> None:
        node = self._nodes[directory]
        assert isinstance(node, _Directory)
        now = {**node.now, name: number}
        kept = {**node.durable, name: number} if durable else node.durable
        self._nodes[directory] = replace(node, now=now, durable=kept)

    def _leave(self, directory: int, name: str) -> None:
        node = self._nodes[directory]
        assert isinstance(node, _Directory)
        self._nodes[directory] = replace(node, now={key: n for key, n in node.now.items() if key != name})

    def _find(self, path: Path | PurePosixPath, *, follow: bool = True, links: int = MAX_LINKS) -> int | None:
        number = ROOT
        parts = path.parts[1:]
        for index, part in enumerate(parts):
            node = self._nodes[number]
            found = node.now.get(part) if isinstance(node, _Directory) else None
            if found is None:
                return None
            entry = self._nodes[found]
            if isinstance(entry, _Link) and (follow or index < len(parts) - 1):
                if links == 0:
                    raise _error(Path(path), "Too many levels of symbolic links")
                here = PurePosixPath("/", *parts[:index])
                rest = _normal(here / entry.target).joinpath(*parts[index + 1 :])
                return self._find(rest, follow=follow, links=links - 1)
            number = found
        return number

    def _file(self, path: Path) -> tuple[int, _File]:
        number = self._find(path)
        if number is None:
            raise _error(path, "No such file or directory")
        node = self._nodes[number]
        if not isinstance(node, _File):
            raise _error(path, "Is a directory")
        return number, node

    def _directory(self, path: Path) -> int:
        number = self._find(path)
        if number is None or not isinstance(self._nodes[number], _Directory):
            raise _error(path, "No such file or directory")
        return number

    def _parent(self, path: Path) -> tuple[int, str]:
        return self._directory(path.parent), path.name

    def _put_directory(self, path: Path) -> int:
        number = self._find(path)
        if number is not None:
            return number
        parent = self._put_directory(path.parent)
        number = self._add(_Directory({}, {}))
        self._enter(parent, path.name, number, durable=True)
        return number

    # --- bytes, for _SimFile ---------------------------------------------------------------

    def write(self, number: int, path: Path, offset: int, data: bytes) -> None:
        """Write into a node; see `durable.Writer`."""
        node = self._bytes_of(number)
        end = offset + len(data)
        if node.is_device and end > len(node.now):
            raise DiskFullError("No space is left", path=path, reason="end of the device")
        half = data[: len(data) // 2]
        torn = (number, lambda: replace(node, now=_overwritten(node.now, offset, half)))
        self._operate(Kind.WRITE, path, grows_bytes=max(0, end - len(node.now)), torn=torn)
        self._nodes[number] = replace(node, now=_overwritten(node.now, offset, data))

    def truncate(self, number: int, path: Path, length_bytes: int) -> None:
        """Set the length of a node; see `durable.Writer`."""
        node = self._bytes_of(number)
        if node.is_device:
            raise _error(path, "Invalid argument")
        self._operate(Kind.TRUNCATE, path, grows_bytes=max(0, length_bytes - len(node.now)))
        self._nodes[number] = replace(node, now=node.now[:length_bytes].ljust(length_bytes, b"\0"))

    def sync(self, number: int, path: Path) -> None:
        """Make a node's bytes durable; see `durable.Writer`."""
        node = self._bytes_of(number)
        self._operate(Kind.SYNC, path, torn=(number, lambda: replace(node, now=_half_written_back(node))))
        self._nodes[number] = replace(node, durable=node.now)

    def read(self, number: int, path: Path, offset: int, length_bytes: int) -> bytes:
        """Read from a node; see `durable.Reader`."""
        self._read(path)
        return self._bytes_of(number).now[offset : offset + length_bytes]

    def _bytes_of(self, number: int) -> _File:
        node = self._nodes[number]
        assert isinstance(node, _File)
        return node


class _SimFile:
    """Both `Writer` and `Reader` on one node; it stays usable after its name is gone, as a descriptor does."""

    def __init__(self, disk: SimDisk, number: int, path: Path) -> None:
        self._disk, self._number, self._path = disk, number, path

    def write_at(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        self._disk.write(self._number, self._path, offset, bytes(data))

    def truncate(self, length_bytes: int) -> None:
        self._disk.truncate(self._number, self._path, length_bytes)

    def sync(self) -> None:
        self._disk.sync(self._number, self._path)

    def read_at(self, offset: int, length_bytes: int) -> bytes:
        return self._disk.read(self._number, self._path, offset, length_bytes)

    def close(self) -> None:
        """Nothing is held."""


def _survivor(node: _Node, survives: Survives) -> _Node:
    if isinstance(node, _Link):
        return node
    if isinstance(node, _File):
        match survives:
            case Survives.LOST:
                kept = node.durable
            case Survives.HOLLOW:
                kept = node.durable[: len(node.now)].ljust(len(node.now), b"\0")
            case Survives.ORDERED | Survives.TORN | Survives.NAMELESS:
                kept = node.now
        return node if node.now is node.durable else replace(node, now=kept, durable=kept)
    names = node.durable if survives in {Survives.LOST, Survives.NAMELESS} else node.now
    return node if node.now is node.durable else replace(node, now=names, durable=names)


def _overwritten(old: bytes, offset: int, data: bytes) -> bytes:
    return old[:offset].ljust(offset, b"\0") + data + old[offset + len(data) :]


def _half_written_back(node: _File) -> bytes:
    """Write-back in the wrong order: of the bytes that differ, the second half is on the disk, the first is not."""
    new, old = node.now, node.durable[: len(node.now)].ljust(len(node.now), b"\0")
    if new == old:
        return new
    changed = [index for index in range(0, len(new), 16) if new[index : index + 16] != old[index : index + 16]]
    middle = changed[len(changed) // 2] if len(changed) > 1 else changed[0] + 8
    return old[:middle] + new[middle:]


def _normal(path: PurePosixPath) -> PurePosixPath:
    parts: list[str] = []
    for part in path.parts[1:]:
        if part == "..":
            parts = parts[:-1]
        else:
            parts.append(part)
    return PurePosixPath("/", *parts)


def _error(path: Path, reason: str) -> FileError:
    return FileError("The file cannot be used", path=path, reason=reason)
