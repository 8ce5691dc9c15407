"""Programs that only pretend to run, for supervisors in a simulated world."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from firmament.errors import BootControlError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from firmament.agent.bootctl.processes import Program


@dataclass(slots=True)
class SimProgram:
    """A program; `exit_code` is set by the test, or by `end`."""

    argv: tuple[str, ...]
    directory: Path
    environment: Mapping[str, str]
    exit_code: int | None = None
    said: str = ""

    def poll(self) -> int | None:
        return self.exit_code

    def end(self, timeout_s: float) -> None:
        self.exit_code = -15

    def output(self) -> str:
        return self.said


@dataclass(slots=True)
class SimProcesses:
    """`Processes` of a simulated machine; power lost ends them all."""

    started: list[SimProgram] = field(default_factory=list)
    """Everything that was ever started, in order."""
    dies_in: set[str] = field(default_factory=set)
    """Names of slot directories whose program ends at once with 1."""
    missing_in: set[str] = field(default_factory=set)
    """Names of slot directories whose program cannot even be started."""

    @property
    def running(self) -> list[SimProgram]:
        """What runs now."""
        return [program for program in self.started if program.exit_code is None]

    def start(self, argv: Sequence[str], directory: Path, environment: Mapping[str, str]) -> Program:
        if directory.name in self.missing_in:
            raise BootControlError("The program cannot be started", command=argv[0], reason="simulated")
        program = SimProgram(tuple(argv), directory, dict(environment))
        if directory.name in self.dies_in:
            program.exit_code, program.said = 1, "simulated death"
        self.started.append(program)
        return program

    def end_strays(self, mark: str, timeout_s: float) -> int:
        strays = self.running
        for program in strays:
            program.exit_code = -9
        return len(strays)

    def lose_power(self) -> None:
        """End everything at once."""
        self.end_strays("", 0)
