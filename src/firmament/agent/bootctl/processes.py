"""Programs as the supervisor starts and ends them: a port, and its implementation on Linux.

A program runs in a process group of its own, so that everything it started ends with it. What it
writes goes to the log line by line, and the last lines are kept for the report of a failed trial.
A program that outlived the agent (which was killed) is found again by an environment variable
that its whole family inherited.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from firmament.agent.output import Output
from firmament.errors import BootControlError
from firmament.log import logger

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

log = logger("agent.program")

MARK: Final = "FIRMAMENT_DIRECTORY"
"""Environment variable of every supervised program: the directory of its slots."""
KILL_TIMEOUT_S: Final = 5.0
# After SIGKILL only a process in uninterruptible I/O is still there.
MAX_ENVIRON_BYTES: Final = 4 * 1024 * 1024
LOOK_S: Final = 0.05
NOT_INHERITED: Final = (
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "CREDENTIALS_DIRECTORY",
)
"""What systemd tells the agent alone: a program must not pet the agent's watchdog."""
_PROC: Final = Path("/proc")


class Program(Protocol):
    """One program that was started."""

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal, None while it runs."""
        ...

    def end(self, timeout_s: float) -> None:
        """Ask it to end (SIGTERM), then make it and everything it started end (SIGKILL)."""
        ...

    def output(self) -> str:
        """Return the last lines it wrote."""
        ...


class Processes(Protocol):
    """Starts programs."""

    def start(self, argv: Sequence[str], directory: Path, environment: Mapping[str, str]) -> Program:
        """Start a program in `directory`; raises BootControlError if that is not possible."""
        ...

    def end_strays(self, mark: str, timeout_s: float) -> int:
        """End programs that an earlier agent started with ``MARK=mark``; return how many there were."""
        ...


class LinuxProcesses:
    """`Processes` on this machine; `user` is who the programs run as, None: as the agent."""

    def __init__(self, *, user: str | None = None) -> None:
        self._user = user

    def start(self, argv: Sequence[str], directory: Path, environment: Mapping[str, str]) -> Program:  # noqa: D102
        # Not a `with`: the program outlives this call, and `_LinuxProgram` waits for it.
        try:
            return _LinuxProgram(
                subprocess.Popen(
                    list(argv),
                    cwd=directory,
                    env={**_inherited(), **environment},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    user=self._user,
                    group=_group_of(self._user),
                    extra_groups=None if self._user is None else [],
                )
            )
        except (OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
            raise BootControlError("The program cannot be started", command=argv[0], reason=error) from error

    def end_strays(self, mark: str, timeout_s: float) -> int:  # noqa: D102
        strays = _marked(mark)
        _signal_until_gone(mark, signal.SIGTERM, timeout_s)
        _signal_until_gone(mark, signal.SIGKILL, KILL_TIMEOUT_S)
        if strays:
            log.warning("program.strays-ended", count=len(strays))
        return len(strays)


class _LinuxProgram:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        assert process.stdout is not None
        self._output = Output(process.stdout, lambda line: log.info("program.output", line=line))

    def poll(self) -> int | None:
        code = self._process.poll()
        if code is not None:
            self._end_group(signal.SIGKILL)
        return code

    def end(self, timeout_s: float) -> None:
        self._end_group(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)
        self._end_group(signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(KILL_TIMEOUT_S)
        self._output.last_lines(wait_for_end=True)

    def output(self) -> str:
        return self._output.last_lines(wait_for_end=self.poll() is not None)

    def _end_group(self, number: signal.Signals) -> None:
        # The group's number is not given to anybody else while one of its members is left.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


def _inherited() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}


def _group_of(user: str | None) -> int | None:
    if user is None:
        return None
    import pwd

    return pwd.getpwnam(user).pw_gid


def _marked(mark: str) -> list[int]:
    """Return the processes that inherited the mark; those of other users cannot be asked and are not ours."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError), (entry / "environ").open("rb") as file:
                if wanted in file.read(MAX_ENVIRON_BYTES).split(b"\0"):
                    found.append(int(entry.name))
    return found


def _signal_until_gone(mark: str, number: signal.Signals, timeout_s: float) -> None:
    told: set[int] = set()
    pause = threading.Event()
    for _ in range(int(timeout_s / LOOK_S) + 1):
        left = set(_marked(mark))
        if not left:
            return
        for pid in left - told:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
        told |= left
        pause.wait(LOOK_S)
