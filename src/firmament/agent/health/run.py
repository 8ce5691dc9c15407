"""Run a command of the health checks: bounded in time and output, with nothing left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from typing import TYPE_CHECKING

from firmament.agent.output import Output

if TYPE_CHECKING:
    from collections.abc import Sequence


def run(argv: Sequence[str], *, timeout_s: float) -> tuple[int | None, str]:
    """Return exit code (None: timed out) and the last lines of output, of stdout and stderr together.

    The command has a process group of its own, which is killed before this returns, however the
    command ended. Raises OSError if it cannot be started.
    """
    process = subprocess.Popen(
        list(argv),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    output = Output(process.stdout)
    code: int | None = None
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = process.wait(timeout_s)
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return code, output.last_lines(wait_for_end=True)
