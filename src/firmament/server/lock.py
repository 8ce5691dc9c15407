"""One process per server directory: a lock that the kernel drops when its holder dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING

from firmament.errors import LocalError, LockedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from firmament.server.layout import Layout


@contextlib.contextmanager
def locked(layout: Layout) -> Iterator[None]:
    """Hold the directory's lock; raises LockedError when another process does."""
    try:
        descriptor = os.open(layout.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise LocalError("The server's directory cannot be used", path=layout.lock, reason=error.strerror) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise LockedError("A server runs in this directory", path=layout.lock) from error
        yield
    finally:
        os.close(descriptor)
