"""The folder in which the demonstration plays, and the real processes in it.

Everything a person would type is run as a command, shown before it runs and written to
``logs/commands.log`` with what it said. Long-running parts (the server, the devices) write to
``logs/NAME.log``. Whatever happens, `World.close` leaves no process behind: everything started
here hangs on the world's plug (sim/device.py), and on Linux the parts also end when the
demonstration itself is killed.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from firmament.durable import PRIVATE_MODE
from firmament.sim.device import POWER, command_path, cut_power

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from firmament.core.clock import Clock
    from firmament.sim.demo.narrator import Narrator

COMMAND_TIMEOUT_S: Final = 120
LOOK_EVERY_S: Final = 0.03
# How long after something happened it is noticed; a look costs a few reads of log files.
STOP_TIMEOUT_S: Final = 20.0
MAX_LINE_BYTES: Final = 256 * 1024
MAX_SHOWN_OUTPUT: Final = 2000
RUNNING: Final = "running.json"


class Differs(Exception):  # noqa: N818 - it is a finding of the demonstration, not an error of the house
    """Something is not as it must be; the text says what was expected and what was found."""


@dataclass(frozen=True, slots=True)
class Done:
    """What a command said."""

    code: int
    stdout: str
    stderr: str

    def json(self) -> dict[str, Any]:
        """Return the one document on stdout."""
        found = json.loads(self.stdout)
        if not isinstance(found, dict):
            raise Differs(f"a command printed something else than one JSON object: {self.stdout[:200]}")
        return found


class Log:
    """Reads a growing file of JSON lines from where the last look ended."""

    def __init__(self, path: Path) -> None:
        self.path: Final = path
        self._offset = 0

    def new(self) -> Iterator[dict[str, Any]]:
        """Yield the complete lines since the last look; what is not JSON (a traceback) is skipped."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                with suppress(ValueError):
                    found = json.loads(line[:MAX_LINE_BYTES])
                    if isinstance(found, dict):
                        yield found


class World:
    """A folder and what runs in it; a context manager that cleans up."""

    def __init__(self, directory: Path, narrator: Narrator, clock: Clock, *, is_kept: bool = False) -> None:
        self.directory: Final = directory
        self.logs: Final = directory / "logs"
        self.plug: Final = f"world:{directory}"
        self.narrator: Final = narrator
        self.clock: Final = clock
        self._is_kept = is_kept
        self._parts: dict[str, subprocess.Popen[bytes]] = {}
        self._variables: dict[str, str] = {}
        self._short: Path | None = None
        self.logs.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None or not self._is_kept:
            self.close()

    # --- secrets and environment ---------------------------------------------------------

    def secret_file(self, name: str) -> Path:
        """Write a random passphrase that nobody has to remember into a file of mode 0600."""
        return self.private_file(name, secrets.token_urlsafe(24) + "\n")

    def private_file(self, name: str, text: str) -> Path:
        """Write a file that only its owner can read, created that way."""
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            path.unlink()
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_MODE), "w") as file:
            file.write(text)
        return path

    def short_directory(self) -> Path:
        """Return a directory outside the world whose path is short, made at the first call."""
        if self._short is None:
            self._short = Path(tempfile.mkdtemp(prefix="firmament-"))
        return self._short

    def export(self, name: str, value: str) -> None:
        """Set an environment variable for every later command, and show it."""
        self._variables[name] = value
        self.narrator.command(f"export {name}={shlex.quote(value)}")

    def _environment(self, plug: str) -> dict[str, str]:
        # Settings of the person who runs this must not leak into the world, e.g. a token for a real server.
        kept = {name: value for name, value in os.environ.items() if not name.startswith("FIRMAMENT_")}
        here = str(Path(command_path("firmament")).parent)
        kept["PATH"] = f"{here}:{kept.get('PATH', os.defpath)}:/usr/sbin:/sbin"
        return {**kept, **self._variables, POWER: plug}

    # --- commands ------------------------------------------------------------------------

    def run(
        self,
        *argv: str | Path,
        codes: Sequence[int] = (0,),
        as_json: bool = False,
    ) -> Done:
        """Run one command to its end in the world's folder; raises Differs unless it ends with one of `codes`."""
        return self.run_all([argv], codes=codes, as_json=as_json)[0]

    def run_all(
        self, commands: Sequence[Sequence[str | Path]], *, codes: Sequence[int] = (0,), as_json: bool = False
    ) -> list[Done]:
        """Run commands side by side; raises Differs as `run` does, after all have ended.

        `as_json` asks for JSON by the environment, so that the line shown is the one a person types.
        """
        lines = [shlex.join(map(str, argv)) for argv in commands]
        for line in lines:
            self.narrator.command(line)
        begun = [self._begin(argv, as_json=as_json) for argv in commands]
        done: list[Done] = []
        wrong: list[Differs] = []
        for process, line in zip(begun, lines, strict=True):
            try:
                done.append(self._finish(process, line, codes))
            except Differs as error:
                wrong.append(error)
        if wrong:
            raise wrong[0]
        return done

    def _begin(self, argv: Sequence[str | Path], *, as_json: bool) -> subprocess.Popen[bytes]:
        name, *rest = map(str, argv)
        program = command_path(name) if name.startswith("firmament") else name
        return subprocess.Popen(
            [program, *rest],
            cwd=self.directory,
            env=self._environment(self.plug) | ({"FIRMAMENT_JSON": "1"} if as_json else {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def _finish(self, process: subprocess.Popen[bytes], line: str, codes: Sequence[int]) -> Done:
        began_s = self.clock.monotonic_s()
        with process:
            try:
                stdout, stderr = process.communicate(timeout=COMMAND_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                raise Differs(f"`{line}` did not end within {COMMAND_TIMEOUT_S} s") from None
            except BaseException:
                process.kill()
                raise
        done = Done(process.returncode, stdout.decode(errors="replace"), stderr.decode(errors="replace"))
        lasted_s = self.clock.monotonic_s() - began_s
        with (self.logs / "commands.log").open("a", encoding="utf-8") as file:
            file.write(f"$ {line}\n{done.stdout}{done.stderr}[exit {done.code} after {lasted_s:.1f} s]\n\n")
        if done.code not in codes:
            said = (done.stderr or done.stdout).strip()[-MAX_SHOWN_OUTPUT:]
            raise Differs(f"`{line}` ended with {done.code}, not {' or '.join(map(str, codes))}: {said}")
        return done

    # --- long-running parts --------------------------------------------------------------

    def start(self, name: str, *argv: str | Path) -> Log:
        """Start a part of the world in a session of its own; return its log."""
        self.narrator.command(f"{shlex.join(map(str, argv))} 2>> logs/{name}.log &")
        command, *rest = map(str, argv)
        path = self.logs / f"{name}.log"
        log = Log(path)
        for _ in log.new():
            pass  # what an earlier start of this part said is old
        with path.open("ab") as file:
            self._parts[name] = subprocess.Popen(
                [*self._leash(), command_path(command), *rest],
                cwd=self.directory,
                env=self._environment(self.plug_of(name)),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        return log

    def plug_of(self, name: str) -> str:
        """Return the plug that a part hangs on."""
        return f"{self.plug}#{name}"

    def stop(self, name: str) -> None:
        """End a part in order: SIGTERM, and after a time the power goes."""
        part = self._parts.pop(name, None)
        if part is None:
            return
        part.terminate()  # only the first process of the part: it ends its own in order
        with suppress(subprocess.TimeoutExpired):
            part.wait(STOP_TIMEOUT_S)
        self._cut(name, part)

    def cut_power(self, *names: str) -> int:
        """SIGKILL everything on these parts at once; return how many processes that were."""
        return sum(self._cut(name, part) for name in names if (part := self._parts.pop(name, None)) is not None)

    def is_running(self, name: str) -> bool:
        """Whether a part was started and has not ended."""
        return name in self._parts and self._parts[name].poll() is None

    def processes(self) -> dict[str, int]:
        """Return the process id of each part that runs."""
        return {name: part.pid for name, part in self._parts.items() if part.poll() is None}

    def write_running(self) -> None:
        """Write down what runs, so that `stop_kept` finds it later."""
        self.private_file(RUNNING, json.dumps(self.processes()) + "\n")

    def close(self) -> None:
        """End everything: in order first, then without asking."""
        for part in self._parts.values():
            part.terminate()
        for name in list(self._parts):
            self.stop(name)
        cut_power(self.plug, self.clock)
        if self._short is not None:
            shutil.rmtree(self._short, ignore_errors=True)

    def _cut(self, name: str, part: subprocess.Popen[bytes]) -> int:
        ended = cut_power(self.plug_of(name), self.clock, group=part.pid)
        part.wait()
        return ended

    def _leash(self) -> list[str]:
        # The kernel ends the part when this process is gone, however it went (prctl(2), PR_SET_PDEATHSIG).
        setpriv = None if self._is_kept else shutil.which("setpriv")
        return [setpriv, "--pdeathsig", "TERM", "--"] if setpriv else []

    # --- waiting -------------------------------------------------------------------------

    def wait_until(self, what: str, holds: Callable[[], bool], *, timeout_s: float) -> None:
        """Look again and again until something holds; raises Differs after `timeout_s`, or when a part died."""
        began_s = self.clock.monotonic_s()
        while not holds():
            for name, part in self._parts.items():
                if part.poll() is not None:
                    raise Differs(f"{name} ended by itself with {part.returncode} while waiting: {what}")
            if self.clock.monotonic_s() - began_s > timeout_s:
                raise Differs(f"this did not happen within {timeout_s:.0f} s: {what}")
            self.clock.sleep(LOOK_EVERY_S)


def stop_kept(directory: Path, clock: Clock) -> int:
    """End what `--keep` left running in a world; return how many processes that were."""
    plug = f"world:{directory}"
    ended = 0
    for name in _kept_parts(directory):
        ended += cut_power(f"{plug}#{name}", clock)
    return ended


def _kept_parts(directory: Path) -> Mapping[str, Any]:
    path = directory / RUNNING
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found if isinstance(found, dict) else {}
