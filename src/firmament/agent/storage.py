"""Slots, boot control and health checks as the settings say: what can be looked at without an identity.

Apart from compose.py, because `firmament-agent status` needs this and no TUF, TLS or keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from firmament.agent.bootctl.settings import Around, boot_control_from_fields
from firmament.agent.health.settings import checks_from_fields
from firmament.agent.settings import setting_errors
from firmament.agent.slots.settings import slots_from_fields

if TYPE_CHECKING:
    from firmament.agent.bootctl.port import BootControl
    from firmament.agent.health.port import HealthCheck
    from firmament.agent.settings import AgentSettings
    from firmament.agent.slots.port import Slots
    from firmament.core.clock import Clock
    from firmament.durable import Disk

JOURNAL_DIRECTORY: Final = "journal"
"""Below the state directory."""


@dataclass(frozen=True, slots=True)
class Storage:
    """What the settings say about slots, boot control and health; needs no enrolment."""

    slots: Slots
    boot: BootControl
    checks: tuple[HealthCheck, ...]


def compose_storage(settings: AgentSettings, *, disk: Disk, clock: Clock) -> Storage:
    """Make slots, boot control and health checks; raises SettingError or FileError, starts nothing."""
    with setting_errors(settings.path):
        slots = slots_from_fields(settings.slots, disk=disk)
        around = Around(disk, clock, settings.state_directory, slots)
        boot = boot_control_from_fields(settings.boot, around=around)
        return Storage(slots, boot, checks_from_fields(settings.health))
