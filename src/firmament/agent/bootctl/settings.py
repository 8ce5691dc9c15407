"""The settings table ``[boot]``.

    kind = "supervisor"  command = ["python3", "main.py"]  stop_timeout_s = 10  user = "app"  environment = {…}
    kind = "sim"
    kind = "uboot"       config = "/etc/fw_env.config"  accept_single_copy = false
    kind = "grub"        path = "/boot/grub/grubenv"

and for uboot and grub ``parameter`` (of the kernel's command line, default ``firmament.slot``)
and ``restart`` (default ``["systemctl", "reboot"]``). Another kind (UEFI boot order,
systemd-boot, Raspberry Pi tryboot) is a row here or an entry point in the group
``firmament.boot_controls``: ``read(fields, around=...) -> BootControl``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from firmament.agent.bootctl.choice import StoredBootControl
from firmament.agent.bootctl.grub import GrubStore
from firmament.agent.bootctl.grub_env import GrubEnvironment
from firmament.agent.bootctl.machine import PARAMETER, RESTART, LinuxMachine
from firmament.agent.bootctl.sim import SimBootControl
from firmament.agent.bootctl.supervisor import Supervisor, SupervisorSettings
from firmament.agent.bootctl.uboot import UBootStore
from firmament.agent.bootctl.uboot_env import MAX_CONFIG_BYTES, UBootEnvironment, parse_config
from firmament.agent.kinds import BOOT_CONTROLS, read_kind
from firmament.agent.slots.bundle import BundleSlot
from firmament.agent.slots.settings import absolute
from firmament.durable import read_file
from firmament.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from firmament.agent.bootctl.port import BootControl
    from firmament.agent.bootctl.processes import Processes
    from firmament.agent.slots.port import Slots
    from firmament.core.clock import Clock
    from firmament.core.fields import Fields
    from firmament.durable import Disk

MAX_ARGUMENTS: Final = 64
MAX_ARGUMENT_LENGTH: Final = 4096
MAX_STOP_TIMEOUT_S: Final = 600
RECORD_DIRECTORY: Final = "boot"
"""Below the state directory: the record of the kinds whose boot loader is ours."""
_PARAMETER: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_USER: Final = re.compile(r"[a-z_][a-z0-9_-]{0,31}")


@dataclass(frozen=True, slots=True)
class Around:
    """What a boot control may need of the rest of the agent."""

    disk: Disk
    clock: Clock
    state_directory: Path
    slots: Slots
    processes: Processes | None = None
    """For the supervisor; None: those of this machine."""


def boot_control_from_fields(fields: Fields, *, around: Around) -> BootControl:
    """Read ``[boot]``; starts nothing. Raises SettingError, MalformedError or FileError."""
    return read_kind(fields, KINDS, group=BOOT_CONTROLS, around=around)


def arguments(fields: Fields, name: str) -> tuple[str, ...]:
    """Read a command as a list of at least one argument."""
    found = fields.texts(name, max_items=MAX_ARGUMENTS, max_length=MAX_ARGUMENT_LENGTH)
    if not found or not found[0]:
        raise SettingError("A command needs at least a program", setting=f"{fields.what}.{name}")
    return found


def _supervisor(fields: Fields, *, around: Around) -> BootControl:
    slot = around.slots.a
    if not isinstance(slot, BundleSlot):
        raise SettingError("The supervisor runs bundles", setting="slots.kind", found=around.slots.kind)
    settings = SupervisorSettings(
        command=arguments(fields, "command"),
        stop_timeout_s=fields.integer("stop_timeout_s", minimum=1, maximum=MAX_STOP_TIMEOUT_S, default=10),
        environment=fields.text_map("environment", max_items=64, max_length=4096, optional=True),
        user=fields.text("user", pattern=_USER) if "user" in fields else None,
    )
    return Supervisor(
        around.disk,
        slot.path.parent,
        around.state_directory / RECORD_DIRECTORY,
        settings,
        around.clock,
        around.processes,
    )


def _sim(_fields: Fields, *, around: Around) -> BootControl:
    return SimBootControl(around.disk, around.state_directory / RECORD_DIRECTORY)


def _uboot(fields: Fields, *, around: Around) -> BootControl:
    config = absolute(fields, "config", default="/etc/fw_env.config")
    places = parse_config(read_file(around.disk, config, limit_bytes=MAX_CONFIG_BYTES).decode("utf-8", "replace"))
    environment = UBootEnvironment(
        around.disk, places, accept_single_copy=fields.boolean("accept_single_copy", default=False)
    )
    return StoredBootControl(UBootStore(environment), _machine(fields))


def _grub(fields: Fields, *, around: Around) -> BootControl:
    path = absolute(fields, "path", default="/boot/grub/grubenv")
    return StoredBootControl(GrubStore(GrubEnvironment(around.disk, path)), _machine(fields))


def _machine(fields: Fields) -> LinuxMachine:
    return LinuxMachine(
        parameter=fields.text("parameter", pattern=_PARAMETER, default=PARAMETER),
        restart=arguments(fields, "restart") if "restart" in fields else RESTART,
    )


KINDS: Final[Mapping[str, Callable[..., BootControl]]] = {
    "supervisor": _supervisor,
    "sim": _sim,
    "uboot": _uboot,
    "grub": _grub,
}
