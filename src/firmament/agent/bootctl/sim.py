"""A machine in a directory: boot record, boot loader and "what is booted" as files.

For demonstrations and tests with real agent processes and no machine: each start of the agent's
daemon is a power-on, at which the simulated boot loader decides (`StoredLoader`) and writes down
what it chose; `restart` ends the process, and whoever watches it starts it again.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from firmament.agent.bootctl.choice import StoredBootControl, StoredLoader
from firmament.agent.bootctl.record import RecordStore
from firmament.agent.slots.port import Label
from firmament.core import canonical
from firmament.core.fields import Fields
from firmament.durable import make_directory_durably, read_file, replace_durably
from firmament.errors import DiskFullError, ReadOnlyError

if TYPE_CHECKING:
    from pathlib import Path

    from firmament.durable import Disk

BOOTED: Final = "booted"
MAX_LENGTH_BYTES: Final = 4096


class SimMachine:
    """`Machine` whose facts are in ``booted``; a machine that was never started runs slot A."""

    def __init__(self, disk: Disk, directory: Path) -> None:
        self._disk = disk
        self._path = directory / BOOTED
        self._now: tuple[Label, int] | None = None

    def booted(self) -> Label:  # noqa: D102 - see Machine, here and below
        return self._load()[0]

    def boot_id(self) -> str:  # noqa: D102
        return f"sim-{self._load()[1]}"

    def restart(self) -> None:
        """Do nothing: the caller ends, and the next start of its process is the restart."""

    def power_on(self, label: Label) -> None:
        """Write down what the boot loader chose; a machine whose disk is full starts all the same."""
        self._now = label, self._load()[1] + 1
        value = canonical.encode({"slot": label, "starts": self._now[1]})
        with contextlib.suppress(DiskFullError, ReadOnlyError):
            make_directory_durably(self._disk, self._path.parent)
            replace_durably(self._disk, self._path, value)

    def _load(self) -> tuple[Label, int]:
        if self._now is not None:
            return self._now
        if not self._disk.exists(self._path):
            return Label.A, 0
        data = read_file(self._disk, self._path, limit_bytes=MAX_LENGTH_BYTES)
        fields = Fields(canonical.decode_object(data, limit_bytes=MAX_LENGTH_BYTES, what="booted"), what="booted")
        return fields.one_of("slot", Label), fields.integer("starts")


class SimBootControl(StoredBootControl):
    """`BootControl` of a machine in a directory; `start` is its power-on."""

    def __init__(self, disk: Disk, directory: Path) -> None:
        store, machine = RecordStore(disk, directory), SimMachine(disk, directory)
        super().__init__(store, machine)
        self._loader = StoredLoader(store)
        self._sim_machine = machine

    def start(self) -> None:
        """Let the boot loader choose, and boot that."""
        self._sim_machine.power_on(self._loader.start())
