"""Everything the agent works with, injected: nothing in the engine finds its own world."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from firmament.agent.bootctl.port import BootControl
    from firmament.agent.events import Events
    from firmament.agent.health.port import HealthCheck
    from firmament.agent.policy import Chance, Policy
    from firmament.agent.ports import Link
    from firmament.agent.record import Release
    from firmament.agent.slots.port import Slots
    from firmament.core.clock import Clock
    from firmament.core.fields import Fields
    from firmament.core.ids import DeviceId
    from firmament.durable import Disk

MAX_DEADLINE_S: Final = 24 * 3600
# An image that needs a day to prove itself is watched by the server's rollout rules instead.


class SequenceFloor(Protocol):
    """Where the sequence number of the newest confirmed image is kept; `trust.floors.Floors` fits."""

    def raise_sequence(self, sequence_number: int) -> None:
        """Raise the floor durably; the same number again changes nothing."""
        ...


@dataclass(frozen=True, slots=True)
class TrialSettings:
    """How an image proves itself (settings table ``[trial]``)."""

    deadline_s: int = 60
    """From the first start of the agent in the new image."""
    interval_s: int = 1
    """Between two rounds of checks."""
    passes: int = 2
    """Healthy rounds in a row: a program that answers once and dies does not pass."""

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Read the settings table; raises MalformedError."""
        return cls(
            deadline_s=fields.integer("deadline_s", minimum=1, maximum=MAX_DEADLINE_S, default=60),
            interval_s=fields.integer("interval_s", minimum=1, maximum=3600, default=1),
            passes=fields.integer("passes", minimum=1, maximum=1000, default=2),
        )


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Parts:
    """The agent's world."""

    disk: Disk
    state_directory: Path
    clock: Clock
    chance: Chance
    link: Link
    slots: Slots
    boot: BootControl
    checks: Sequence[HealthCheck]
    floors: SequenceFloor
    events: Events
    policy: Policy
    device_id: DeviceId
    trial: TrialSettings = field(default_factory=TrialSettings)
    initial: Release | None = None
    """What the factory put into the booted slot, if that is known; used when there is no journal yet."""
    attributes: Mapping[str, str] = field(default_factory=dict)
    """Facts for the inventory, sent with each poll."""
    language: str = ""
    """Language tag of this device's owner; empty: English, or whatever the author wrote."""
    offline_s: int = 120
    """How long the device is usually away when it restarts into a new image."""
    should_stop: Callable[[], bool] = _never
    """Asked between two chunks of a download: the daemon is to end."""
