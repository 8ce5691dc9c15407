"""Processes and directories that do not outlive the test process, however it ends."""

import ctypes
import fcntl
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
LOCK = "lives"
YOUNG_S = 86_400
"""A directory without a lock may be somebody's who is about to take it."""


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent ends: a `preexec_fn`, one C call before any thread of ours."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def own_directory(prefix: str) -> Path:
    """Make a directory that is ours until this process ends; remove those of its kind whose owners have ended."""
    for old in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        if is_left_behind(old):
            shutil.rmtree(old, ignore_errors=True)
    made = Path(tempfile.mkdtemp(prefix=prefix))
    descriptor = os.open(
        made / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
    )  # open, and locked, as long as we live
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return made


def is_left_behind(directory: Path) -> bool:
    """Whether nobody lives who made it."""
    try:
        descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return directory.exists() and time.time() - directory.stat().st_mtime > YOUNG_S
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        return True
    finally:
        os.close(descriptor)
