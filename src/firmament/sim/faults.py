"""What can go wrong with storage, as objects: power cuts and what survives them, full, read-only and broken disks.

Users can plant them in their own integration tests:

    disk = SimDisk()
    disk.faults.append(DiskFull(from_operation=40))
    disk.cut = Cut(at=52, survives=Survives.TORN)
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from firmament.errors import DiskFullError, FileError, ReadOnlyError

if TYPE_CHECKING:
    from pathlib import Path


class PowerCut(BaseException):
    """The power went. Not an Exception: no ``except Exception`` in the agent may survive it."""


class Kind(StrEnum):
    """What an operation does to storage. Only reads change nothing, so only reads are not counted."""

    READ = "read"
    CREATE = "create"
    WRITE = "write"
    TRUNCATE = "truncate"
    SYNC = "sync"
    MAKE_DIRECTORY = "make-directory"
    SYMLINK = "symlink"
    REPLACE = "replace"
    REMOVE = "remove"
    SYNC_DIRECTORY = "sync-directory"


@dataclass(frozen=True, slots=True)
class Operation:
    """One step of storage, about to happen."""

    number: int
    """Counts the operations that change something, from 0."""
    kind: Kind
    path: Path
    grows_bytes: int = 0
    """How much more space it needs; an overwrite in place needs none."""

    @property
    def needs_space(self) -> bool:
        """Whether a full disk refuses it."""
        return self.grows_bytes > 0 or self.kind in {Kind.CREATE, Kind.MAKE_DIRECTORY, Kind.SYMLINK}


class Survives(StrEnum):
    """What a power cut leaves of everything that was not yet made durable.

    POSIX promises nothing between write and sync; each row is what some real file system or
    block device does with that freedom.
    """

    ORDERED = "ordered"
    """Everything before the cut, as on a disk with a battery-backed cache."""
    LOST = "lost"
    """Nothing that was not synced: neither bytes nor names."""
    TORN = "torn"
    """Everything before the cut, and half of what was just being written: the first half of a
    write, the second half of what a sync was writing back."""
    HOLLOW = "hollow"
    """Names and lengths, but not the bytes: delayed allocation leaves NULs behind a new name."""
    NAMELESS = "nameless"
    """Bytes, but not the names: a rename was forgotten although its file is on the disk."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Cut the power when operation number `at` is about to happen."""

    at: int
    survives: Survives = Survives.ORDERED


class Fault(Protocol):
    """Something wrong with a disk; `strike` raises what the real disk would make `durable` raise."""

    def strike(self, operation: Operation) -> None:
        """Raise for operations that fail."""
        ...


@dataclass(slots=True)
class DiskFull:
    """No space is left, between two operation numbers; what needs no new space still works."""

    from_operation: int = 0
    until_operation: int | None = None
    struck: int = 0
    """How many operations it refused."""

    def strike(self, operation: Operation) -> None:
        """Refuse what needs space."""
        started = operation.number >= self.from_operation
        over = self.until_operation is not None and operation.number >= self.until_operation
        if started and not over and operation.needs_space:
            self.struck += 1
            raise DiskFullError("No space is left", path=operation.path, reason="simulated")


@dataclass(slots=True)
class ReadOnlyDisk:
    """A file system that the kernel remounted read-only after an error."""

    from_operation: int = 0

    def strike(self, operation: Operation) -> None:
        """Refuse every change."""
        if operation.kind is not Kind.READ and operation.number >= self.from_operation:
            raise ReadOnlyError("The storage is read-only", path=operation.path, reason="simulated")


@dataclass(slots=True)
class BrokenDisk:
    """Input/output errors on paths under `under`, on reads, changes or both."""

    under: Path
    reads: bool = True
    changes: bool = True

    def strike(self, operation: Operation) -> None:
        """Fail what concerns the broken part."""
        concerned = operation.path == self.under or self.under in operation.path.parents
        if concerned and (self.reads if operation.kind is Kind.READ else self.changes):
            raise FileError("The file cannot be used", path=operation.path, reason="Input/output error (simulated)")
