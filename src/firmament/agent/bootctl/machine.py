"""What a boot control must know of the machine: which slot runs, which start this is, how to restart."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from firmament.agent.slots.port import Label
from firmament.errors import BootControlError

if TYPE_CHECKING:
    from collections.abc import Sequence

PARAMETER: Final = "firmament.slot"
COMMAND_LINE: Final = Path("/proc/cmdline")
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
RESTART: Final = ("systemctl", "reboot")
RESTART_TIMEOUT_S: Final = 60
MAX_COMMAND_LINE_BYTES: Final = 64 * 1024
# The kernel's own limit is 4 KiB on the largest architecture (COMMAND_LINE_SIZE).


class Machine(Protocol):
    """Facts about the running system; a simulated one has them in variables."""

    def booted(self) -> Label:
        """Return the slot that runs; raises BootControlError if that cannot be told."""
        ...

    def boot_id(self) -> str:
        """Return a name for this start of the machine."""
        ...

    def restart(self) -> None:
        """Begin to restart; raises BootControlError if that does not work."""
        ...


class LinuxMachine:
    """A Linux machine whose boot loader says on the kernel's command line which slot it chose.

    ``firmament.slot=a`` by default; ``rauc.slot=A`` works too, case does not matter. The command
    line is written by the boot loader for this start only, so it cannot be stale.
    """

    def __init__(
        self,
        *,
        parameter: str = PARAMETER,
        restart: Sequence[str] = RESTART,
        command_line: Path = COMMAND_LINE,
        boot_id: Path = BOOT_ID,
    ) -> None:
        self._parameter = parameter
        self._restart = tuple(restart)
        self._command_line = command_line
        self._boot_id = boot_id

    def booted(self) -> Label:  # noqa: D102 - see Machine, here and below
        values = [
            word.partition("=")[2].strip('"').lower()
            for word in _read(self._command_line).split()
            if word.partition("=")[0] == self._parameter
        ]
        # The last one counts, as for the kernel: a boot loader may append to a default.
        if not values or values[-1] not in set(Label):
            raise BootControlError(
                "The kernel's command line does not say which slot is booted",
                expected=f"{self._parameter}=a or {self._parameter}=b",
                found=values[-1] if values else "nothing",
            )
        return Label(values[-1])

    def boot_id(self) -> str:  # noqa: D102
        return _read(self._boot_id).strip()

    def restart(self) -> None:  # noqa: D102
        try:
            subprocess.run(
                self._restart, check=True, timeout=RESTART_TIMEOUT_S, stdin=subprocess.DEVNULL, capture_output=True
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise BootControlError(
                "The machine cannot be restarted", command=" ".join(self._restart), reason=error
            ) from error


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MAX_COMMAND_LINE_BYTES).decode("utf-8", "replace")
    except OSError as error:
        raise BootControlError("The running system cannot be asked", path=path, reason=error.strerror) from error
