"""Simulated machines: each kind of boot control over a simulated disk, with its boot loader.

The agent's half is the real one (agent/bootctl); the boot loader's half is the model that the
tests compare with the real scripts (`Loader`). Both see nothing but bytes on the disk, so after a
power cut the boot loader decides from whatever the cut left there.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final

from firmament.agent.bootctl import grub_env
from firmament.agent.bootctl.choice import Choice, Other, StoredBootControl
from firmament.agent.bootctl.grub import GrubLoader, GrubStore
from firmament.agent.bootctl.grub_env import GrubEnvironment
from firmament.agent.bootctl.record import RecordStore
from firmament.agent.bootctl.sim import SimBootControl
from firmament.agent.bootctl.supervisor import Supervisor, SupervisorSettings
from firmament.agent.bootctl.uboot import UBootLoader, UBootStore, variables_of
from firmament.agent.bootctl.uboot_env import Place, UBootEnvironment, encode_copy
from firmament.agent.slots.port import Label
from firmament.sim.faults import Survives

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from firmament.agent.bootctl.port import BootControl, Loader
    from firmament.core.clock import Clock
    from firmament.sim.disk import SimDisk

BOOT_DIRECTORY: Final = Path("/boot")
APPLICATION: Final = Path("/opt/app")
ENVIRONMENT_BYTES: Final = 256
# Small, so that the sweep is quick; real ones are 4 KiB to 512 KiB, which changes nothing but time.


class BootKind(StrEnum):
    """Boot controls of the agent, as in the settings."""

    SUPERVISOR = "supervisor"
    SIM = "sim"
    UBOOT = "uboot"
    GRUB = "grub"


class VolatileMachine:
    """`bootctl.machine.Machine` in variables: all of it is gone when the power is."""

    def __init__(self) -> None:
        self.slot = Label.A
        self.starts = 0

    def booted(self) -> Label:
        """Return what the boot loader started."""
        return self.slot

    def boot_id(self) -> str:
        """Return a name for this start."""
        return f"start-{self.starts}"

    def restart(self) -> None:
        """Do nothing: the world restarts the machine when the agent has ended."""


class SimProgram:
    """`Program` that runs until it is ended, or is found dead."""

    def __init__(self, *, is_dead: bool) -> None:
        self._is_dead = is_dead

    def poll(self) -> int | None:
        """Return the exit code of a program that died."""
        return 1 if self._is_dead else None

    def end(self, timeout_s: float) -> None:
        """Nothing to wait for."""

    def output(self) -> str:
        """Return its last words."""
        return "Traceback: simulated" if self._is_dead else ""


class SimProcesses:
    """`Processes` whose programs live as long as `lives(slot)` says."""

    def __init__(self, lives: Callable[[Label], bool]) -> None:
        self._lives = lives

    def start(self, argv: Sequence[str], directory: Path, environment: Mapping[str, str]) -> SimProgram:
        """Start the program of the slot that `current` names."""
        del argv, directory
        return SimProgram(is_dead=not self._lives(Label(environment["FIRMAMENT_SLOT"])))

    def end_strays(self, mark: str, timeout_s: float) -> int:
        """There are none: the power was off."""
        del mark, timeout_s
        return 0


def install(kind: BootKind, disk: SimDisk) -> None:
    """Put the boot loader's storage on a new disk, as the factory does: slot A is primary, B unknown."""
    match kind:
        case BootKind.UBOOT:
            variables = {"bootcmd": b"run firmament", **variables_of(Choice())}
            for flags, name in enumerate(("env.a", "env.b")):
                data = encode_copy(variables, length_bytes=ENVIRONMENT_BYTES, flags=flags)
                disk.put(BOOT_DIRECTORY / name, data, is_device=True)
        case BootKind.GRUB:
            disk.put(BOOT_DIRECTORY / "grubenv", grub_env.empty())
            # The factory says that B holds nothing yet, or GRUB could fall back into it.
            GrubStore(GrubEnvironment(disk, BOOT_DIRECTORY / "grubenv")).store(Choice(other=Other.SPENT))
            disk.lose_power(Survives.ORDERED)
        case BootKind.SUPERVISOR | BootKind.SIM:
            disk.make_directory(BOOT_DIRECTORY)
            for label in Label:
                disk.make_directory(APPLICATION / label, mode=0o755)
            disk.lose_power(Survives.ORDERED)


def power_on(
    kind: BootKind, disk: SimDisk, clock: Clock, *, starts: int, lives: Callable[[Label], bool]
) -> BootControl:
    """Let the boot loader decide and start a slot; return the agent's boot control, started."""
    machine = VolatileMachine()
    machine.starts = starts
    control: BootControl
    match kind:
        case BootKind.SUPERVISOR:
            settings = SupervisorSettings(command=("app",))
            control = Supervisor(disk, APPLICATION, BOOT_DIRECTORY, settings, clock, SimProcesses(lives))
        case BootKind.SIM:
            control = SimBootControl(disk, BOOT_DIRECTORY)
        case BootKind.UBOOT:
            environment = _uboot(disk)
            machine.slot = _start(UBootLoader(environment))
            control = StoredBootControl(UBootStore(environment), machine)
        case BootKind.GRUB:
            block = GrubEnvironment(disk, BOOT_DIRECTORY / "grubenv")
            machine.slot = _start(GrubLoader(block))
            control = StoredBootControl(GrubStore(block), machine)
    control.start()
    return control


def is_armed(kind: BootKind, disk: SimDisk) -> bool:
    """Whether the next start is a trial, read from the disk as the boot loader will."""
    match kind:
        case BootKind.UBOOT:
            return UBootStore(_uboot(disk)).load().other is Other.ARMED
        case BootKind.GRUB:
            return GrubStore(GrubEnvironment(disk, BOOT_DIRECTORY / "grubenv")).load().other is Other.ARMED
        case BootKind.SUPERVISOR | BootKind.SIM:
            return RecordStore(disk, BOOT_DIRECTORY).load().other is Other.ARMED


def _start(loader: Loader) -> Label:
    return loader.start()


def _uboot(disk: SimDisk) -> UBootEnvironment:
    places = [Place(BOOT_DIRECTORY / name, 0, ENVIRONMENT_BYTES) for name in ("env.a", "env.b")]
    return UBootEnvironment(disk, places)
