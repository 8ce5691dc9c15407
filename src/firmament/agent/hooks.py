"""Hook scripts: how a lamp, a display or a desktop hears what the agent does.

A hook is an executable file of one of the names below in the directory that the settings name.
It is started without a shell, without arguments, with facts as environment variables
(``FIRMAMENT_EVENT``, ``FIRMAMENT_RELEASE``, ``FIRMAMENT_PERCENT`` ...) and is ended when it takes
too long. What it prints or returns changes nothing, and the agent does not wait for it, with one
exception: before a restart it waits for ``on_restart_in``, at most as long as the hook may take.

A file that others could have written is not run.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import stat
import subprocess
import threading
from typing import TYPE_CHECKING, Final

from firmament.agent.events import AgentEvent, Asked, Progress, StateChanged
from firmament.agent.machine import State
from firmament.log import logger

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from firmament.agent.settings import HookSettings

log = logger("agent.hooks")

ON_OFFER: Final = "on_offer"
ON_PROGRESS: Final = "on_progress"
ON_RESTART_IN: Final = "on_restart_in"
ON_DONE: Final = "on_done"
ON_FAILED: Final = "on_failed"
HOOK_OF: Final = {
    State.OFFERED: ON_OFFER,
    State.STAGED: ON_RESTART_IN,
    State.CONFIRMED: ON_DONE,
    State.REVERTED: ON_FAILED,
    State.REFUSED: ON_FAILED,
    State.FAILED: ON_FAILED,
}
MAX_WAITING: Final = 16
_OTHERS_MAY_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH

_Call = tuple[str, dict[str, str], threading.Event]


class Hooks:
    """A listener for `events.Events` that runs hooks one after the other in a thread of its own."""

    def __init__(self, settings: HookSettings, *, page_code: Callable[[], str] = str) -> None:
        self._page_code = page_code
        self._directory = settings.directory
        self._timeout_s = settings.timeout_s
        self._calls: queue.Queue[_Call | None] = queue.Queue(MAX_WAITING)
        self._percent = -1
        self._thread = threading.Thread(target=self._work, name="hooks", daemon=True)
        if self._directory is not None:
            self._thread.start()

    def __call__(self, event: AgentEvent) -> None:
        """Start the hook of an event, if there is one."""
        match event:
            case StateChanged():
                name = HOOK_OF.get(event.state)
                facts = {"STATE": event.state.value, "CODE": event.code, "MESSAGE": event.message}
                self._percent = -1
            case Progress():
                if event.percent == self._percent:
                    return
                self._percent = event.percent
                name, facts = ON_PROGRESS, {"STATE": State.FETCHING.value}
            case Asked():
                name, facts = (
                    ON_OFFER,
                    {"STATE": State.WAITING.value, "TEXT": event.text, "PAGE_CODE": self._page_code()},
                )
            case _:
                return
        if name is None or self._directory is None:
            return
        facts["PERCENT"] = "" if isinstance(event, Asked) else str(event.percent)
        facts["ATTEMPT"] = event.attempt_id
        facts["RELEASE"] = str(getattr(event, "release_id", "") or "")
        if name == ON_RESTART_IN:
            facts["RESTART_IN_S"] = str(self._timeout_s)
        done = self._call(name, facts)
        if done is not None and name == ON_RESTART_IN:
            done.wait(self._timeout_s + 1)

    def close(self) -> None:
        """Let the hook that runs end, and start no other."""
        if self._thread.is_alive():
            with contextlib.suppress(queue.Full):
                self._calls.put_nowait(None)
            self._thread.join(self._timeout_s + 2)

    def _call(self, name: str, facts: dict[str, str]) -> threading.Event | None:
        done = threading.Event()
        try:
            self._calls.put_nowait((name, facts, done))
        except queue.Full:
            log.debug("hook.dropped", hook=name)
            return None
        return done

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            name, facts, done = call
            try:
                assert self._directory is not None
                path = self._directory / name
                if _may_run(path):
                    self._run(path, facts)
            finally:
                done.set()

    def _run(self, path: Path, facts: dict[str, str]) -> None:
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "FIRMAMENT_EVENT": path.name,
            **{f"FIRMAMENT_{name}": value.replace("\0", "") for name, value in facts.items()},
        }
        try:
            with subprocess.Popen(
                [path],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            ) as process:
                try:
                    code = process.wait(self._timeout_s)
                except subprocess.TimeoutExpired:
                    log.warning("hook.too-slow", hook=path.name, limit_s=self._timeout_s)
                    code = 0
                finally:
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.killpg(process.pid, signal.SIGKILL)
            if code:
                log.warning("hook.failed", hook=path.name, exit_code=code)
        except OSError as error:
            log.warning("hook.not-started", hook=path.name, reason=str(error))


def _may_run(path: Path) -> bool:
    try:
        found = path.stat()
    except OSError:
        return False
    if not stat.S_ISREG(found.st_mode) or not found.st_mode & stat.S_IXUSR:
        return False
    if found.st_mode & _OTHERS_MAY_WRITE or found.st_uid not in {0, os.geteuid()}:
        log.warning("hook.not-trusted", hook=path.name, mode=f"{found.st_mode & 0o777:04o}", owner=found.st_uid)
        return False
    return True
