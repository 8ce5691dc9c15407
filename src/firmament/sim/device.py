"""A simulated machine around a real agent: power, boot loader and watchdog.

The agent of a device with `sim` boot control runs as its own process, as on a real device. This
loop is the machine around it: it powers on (the agent's start is the moment at which the
simulated boot loader decides, agent/bootctl/sim.py), starts it again when it ends for a restart,
and, like a watchdog, when it dies. It decides nothing about updates.

A power cut is a SIGKILL for everything on the device at once: `cut_power`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

from firmament.errors import DependencyMissingError, RestartNeededError
from firmament.log import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from firmament.core.clock import Clock

log = logger("sim.device")

POWER: Final = "FIRMAMENT_SIM_POWER"
"""Environment variable that everything on one device inherits: what hangs on the same plug."""
FIRST_PAUSE_S: Final = 0.25
MAX_PAUSE_S: Final = 10.0
DYING_S: Final = 0.005
# A killed process still frees its memory for a moment, and is found until then.
STEADY_AFTER_S: Final = 30.0
# A watchdog restarts at once; a machine that dies at every start waits a little longer each time.
STOP_TIMEOUT_S: Final = 15.0
# The agent ends its program (5 s by default) and writes its journal before it ends.


class Machine:
    """Runs one agent for as long as the machine has power."""

    def __init__(self, argv: Sequence[str], clock: Clock, *, environment: Mapping[str, str] | None = None) -> None:
        self._argv = list(argv)
        self._clock = clock
        self._environment = dict(os.environ if environment is None else environment)
        self._running: subprocess.Popen[bytes] | None = None
        self._off = threading.Event()
        self.starts = 0
        """How often the power came on or the machine restarted."""

    def run(self) -> int:
        """Play until `switch_off`, or until the agent ends by itself for good; return its exit code."""
        pause_s = FIRST_PAUSE_S
        while True:
            code, lasted_s = self._start()
            if self._off.is_set():
                return 0
            if code == RestartNeededError.exit_code:
                log.info("machine.restarts")
                continue
            if code >= 0 and not _is_death(code):
                log.info("machine.agent-ended", exit_code=code)
                return code
            pause_s = FIRST_PAUSE_S if lasted_s > STEADY_AFTER_S else min(pause_s * 2, MAX_PAUSE_S)
            log.warning("machine.agent-died", exit_code=code, again_in_s=pause_s)
            if self._off.wait(pause_s):
                return 0

    def switch_off(self) -> None:
        """Shut down in order: the agent is asked to end and gets time for it. Any thread may call it."""
        self._off.set()
        running = self._running
        if running is not None and running.poll() is None:
            running.terminate()

    def _start(self) -> tuple[int, float]:
        began_s = self._clock.monotonic_s()
        self.starts += 1
        log.info("machine.powers-on", start=self.starts)
        with subprocess.Popen(self._argv, env=self._environment, stdin=subprocess.DEVNULL) as running:
            self._running = running
            if self._off.is_set():
                running.terminate()
            try:
                while running.poll() is None:
                    if self._off.is_set():
                        _end(running)
                        break
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        running.wait(1.0)
            except BaseException:
                running.kill()
                raise
        return running.returncode, self._clock.monotonic_s() - began_s


def cut_power(plug: str, clock: Clock, *, group: int | None = None) -> int:
    """SIGKILL everything that inherited this plug; return how many processes that ended.

    `group` is a process group that surely belongs to it and goes first, in one system call, so
    that nothing can restart what died before it.
    """
    if group is not None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    ended: set[int] = {group} if group is not None else set()
    while found := on_plug(plug):
        for process in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        ended.update(found)
        clock.sleep(DYING_S)
    return len(ended)


def on_plug(plug: str) -> list[int]:
    """Return the processes of this user that inherited the plug and are alive (Linux's /proc)."""
    wanted = f"{POWER}={plug}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        # A process that ended meanwhile, or of another user, is none of ours. A zombie's
        # environment is empty.
        with contextlib.suppress(OSError):
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def agent_command() -> str:
    """Return the path of `firmament-agent`, the one installed beside this interpreter first."""
    return command_path("firmament-agent")


def command_path(name: str) -> str:
    """Return the path of one of this package's commands; raises DependencyMissingError."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        raise DependencyMissingError("A command of this package is not installed", missing=name, install="firmament")
    return found


def on_signals(act: Callable[[], None]) -> None:
    """Call `act` at SIGTERM, SIGINT or SIGHUP."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: act())


def _end(running: subprocess.Popen[bytes]) -> None:
    try:
        running.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        log.warning("machine.agent-killed", reason="it did not end in time", timeout_s=STOP_TIMEOUT_S)
        running.kill()
        running.wait()


def _is_death(code: int) -> bool:
    """Whether a watchdog would start it again: unexpected errors, not settings that cannot work."""
    return code == 1
