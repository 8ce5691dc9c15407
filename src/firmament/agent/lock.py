"""One agent per device: an flock on a file in the state directory (case 50).

The kernel drops the lock when its holder dies, however it dies, so there are no stale locks.
The file is not removed: removing it would let two holders lock two files of one name.
"""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING, Final, Self

from firmament.durable import PRIVATE_MODE, mapped_errors
from firmament.errors import LockedError

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

LOCK_NAME: Final = "agent.lock"
_MAX_PID_LENGTH: Final = 20


class InstanceLock:
    """Held from `acquire` (or ``with``) to `release`; raises LockedError naming the holder's pid."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / LOCK_NAME
        self._descriptor: int | None = None

    def acquire(self) -> Self:
        """Take the lock or raise LockedError at once; FileError if the directory cannot be used."""
        with mapped_errors(self._path):
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(self._path, flags, PRIVATE_MODE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(descriptor, _MAX_PID_LENGTH, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise LockedError("Another agent holds the lock", path=self._path, pid=holder or "unknown") from error
        with mapped_errors(self._path):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor
        return self

    def release(self) -> None:
        """Give the lock back; twice is fine."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        """Acquire."""
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release."""
        self.release()
