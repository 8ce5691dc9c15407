"""Boot control for bundles: the agent is init and boot loader of one program.

State is the symlink ``current`` (what runs) and a `RecordStore` (what is to run). A start, of the
agent or by `restart`, goes: have the new symlink ready, spend the try in the record, end what
runs, swap the symlink by rename, start the program in the slot's directory. Power lost between any two of them ends in
`start`, which decides again from the record and makes the symlink follow.

A program that ends while it is on trial is not started again: that it ended is the finding, and
`trouble` tells it. Outside a trial it is started again, at first after `FIRST_BACKOFF_S`, then
after twice that, up to `MAX_BACKOFF_S`.
"""

from __future__ import annotations

import threading
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from firmament.agent.bootctl.choice import StoredBootControl, decide
from firmament.agent.bootctl.port import Restart
from firmament.agent.bootctl.processes import MARK, LinuxProcesses
from firmament.agent.bootctl.record import RecordStore
from firmament.agent.slots.bundle import CURRENT
from firmament.agent.slots.port import Label
from firmament.errors import BootControlError, DiskFullError, FileError, ReadOnlyError
from firmament.log import logger

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from firmament.agent.bootctl.processes import Processes, Program
    from firmament.core.clock import Clock
    from firmament.durable import Disk

log = logger("agent.supervisor")

FIRST_BACKOFF_S: Final = 1.0
MAX_BACKOFF_S: Final = 60.0
STEADY_AFTER_S: Final = 60.0
"""A program that ran this long is started again without delay added up."""
LOOK_S: Final = 1.0
"""How often to look whether the program still runs."""
STOP_TIMEOUT_S: Final = 10.0
# systemd gives 90 s; a program that serves a device has nothing to do for longer than 10.


@dataclass(frozen=True, slots=True)
class SupervisorSettings:
    """What to run (settings table ``[boot]`` with ``kind = "supervisor"``)."""

    command: tuple[str, ...]
    """Started in the slot's directory."""
    stop_timeout_s: float = STOP_TIMEOUT_S
    environment: Mapping[str, str] = field(default_factory=dict)
    user: str | None = None
    """Whom it runs as; None: as the agent."""


class Supervisor(StoredBootControl):
    """`BootControl` that runs ``settings.command`` from ``<directory>/current``."""

    def __init__(
        self,
        disk: Disk,
        directory: Path,
        record_directory: Path,
        settings: SupervisorSettings,
        clock: Clock,
        processes: Processes | None = None,
    ) -> None:
        self._link = _Link(disk, directory)
        super().__init__(RecordStore(disk, record_directory), self._link)
        self._disk = disk
        self._directory = directory
        self._settings = settings
        self._clock = clock
        self._processes = LinuxProcesses(user=settings.user) if processes is None else processes
        self._lock = threading.RLock()
        self._program: Program | None = None
        self._is_wanted = False
        self._is_trial = False
        self._trouble: str | None = None
        self._crashes = 0
        self._started_s = 0.0
        self._start_after_s = 0.0

    def start(self) -> None:  # noqa: D102 - see BootControl, here and below
        with self._lock:
            self._processes.end_strays(str(self._directory), self._settings.stop_timeout_s)
            try:
                self._boot()
            except (DiskFullError, ReadOnlyError, FileError) as error:
                # A device that cannot write still starts what ran last; then no try was spent.
                log.warning("supervisor.not-chosen", code=error.code, problem=error.problem)
                self._run(self._link.booted(), self._store.load().primary)

    def stop(self) -> None:  # noqa: D102
        with self._lock:
            self._is_wanted = False
            self._end()

    def confirm(self, label: Label) -> None:  # noqa: D102
        with self._lock:
            super().confirm(label)
            self._is_trial = False

    def restart(self) -> Restart:  # noqa: D102
        with self._lock:
            self._boot()
        return Restart.DONE

    def trouble(self) -> str | None:  # noqa: D102
        with self._lock:
            self._look()
            return self._trouble

    def tend(self) -> float:  # noqa: D102
        with self._lock:
            self._look()
            if self._program is None and self._is_wanted and not self._is_trial:
                left_s = self._start_after_s - self._clock.monotonic_s()
                if left_s > 0:
                    return left_s
                self._launch()
            return LOOK_S

    def _boot(self) -> None:
        """Play the boot loader: decide, spend the try, swap, start."""
        choice = self._store.load()
        label, after = decide(choice)
        # What needs space comes before the try is spent: the way there, and from a trial the way back.
        if label is not self._link.booted():
            self._link.prepare(label)
        if label is not after.primary:
            self._link.prepare(label.other)
        if after != choice:
            self._store.store(after)
        self._end()
        self._link.swap(label)
        self._run(label, after.primary)

    def _run(self, label: Label, primary: Label) -> None:
        self._is_trial = label is not primary
        self._is_wanted = True
        self._trouble = None
        self._crashes = 0
        log.info("supervisor.booted", slot=label, is_trial=self._is_trial)
        self._launch()

    def _launch(self) -> None:
        label = self._link.booted()
        directory = self._directory / label
        if not self._disk.exists(directory):
            log.warning("supervisor.slot-empty", slot=label)
            self._is_wanted = False
            return
        environment = {
            "PYTHONDONTWRITEBYTECODE": "1",  # a slot holds what was signed and nothing else
            **self._settings.environment,
            MARK: str(self._directory),
            "FIRMAMENT_SLOT": label.value,
        }
        self._started_s = self._clock.monotonic_s()
        try:
            self._program = self._processes.start(self._settings.command, directory, environment)
        except BootControlError as error:
            self._failed(str(error))

    def _look(self) -> None:
        if self._program is None:
            return
        code = self._program.poll()
        if code is None:
            return
        output = self._program.output()
        self._program = None
        how = f"with exit code {code}" if code >= 0 else f"by signal {-code}"
        self._failed(f"The program ended {how}\n{output}".rstrip())

    def _failed(self, problem: str) -> None:
        if self._is_trial:
            self._trouble = problem
            log.warning("supervisor.trial-ended", slot=self._link.booted(), problem=problem.partition("\n")[0])
            return
        now_s = self._clock.monotonic_s()
        self._crashes = 1 if now_s - self._started_s >= STEADY_AFTER_S else self._crashes + 1
        delay_s = min(FIRST_BACKOFF_S * 2 ** min(self._crashes - 1, 10), MAX_BACKOFF_S)
        self._start_after_s = now_s + delay_s
        log.warning("supervisor.program-ended", problem=problem.partition("\n")[0], again_in_s=delay_s)

    def _end(self) -> None:
        if self._program is not None:
            self._program.end(self._settings.stop_timeout_s)
        self._program = None


class _Link:
    """`Machine` whose booted slot is where the symlink leads."""

    def __init__(self, disk: Disk, directory: Path) -> None:
        self._disk = disk
        self._directory = directory
        self._boot_id = str(uuid.uuid4())

    def booted(self) -> Label:
        target = self._disk.read_link(self._directory / CURRENT)
        if target is None:
            return Label.A  # a new device: the first image goes to B
        if target not in set(Label):
            raise BootControlError("The symlink to the booted slot leads elsewhere", target=target)
        return Label(target)

    def boot_id(self) -> str:
        return self._boot_id

    def restart(self) -> None:
        """Not used: `Supervisor.restart` is the whole of it."""

    def prepare(self, label: Label) -> None:
        """Have a symlink to `label` ready beside ``current``, durably.

        Swapping is then a rename, which even a full disk allows: a trial that must end can end.
        """
        spare = self._spare(label)
        if self._disk.read_link(spare) == label:
            return
        self._disk.make_directory(self._directory, mode=0o755)
        self._disk.remove(spare)
        self._disk.symlink(label.value, spare)
        self._disk.sync_directory(self._directory)

    def swap(self, label: Label) -> None:
        """Lead the symlink to `label`: atomic by rename, durable on return. A new start, a new id."""
        self._boot_id = str(uuid.uuid4())
        if self._disk.read_link(self._directory / CURRENT) == label:
            return
        self.prepare(label)
        self._disk.replace(self._spare(label), self._directory / CURRENT)
        self._disk.sync_directory(self._directory)

    def _spare(self, label: Label) -> Path:
        return self._directory / f"{CURRENT}.{label}"
