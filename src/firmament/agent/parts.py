"""Everything the agent works with, injected: nothing in the engine finds its own world."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol, Self

from firmament.agent.policy import FIRST_BACKOFF_S

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from firmament.agent.bootctl.port import BootControl
    from firmament.agent.events import Events
    from firmament.agent.health.port import HealthCheck
    from firmament.agent.policy import Chance, Policy
    from firmament.agent.ports import Link
    from firmament.agent.record import Release
    from firmament.agent.share import Share
    from firmament.agent.slots.port import Slots
    from firmament.core.clock import Clock
    from firmament.core.digest import Digest
    from firmament.core.fields import Fields
    from firmament.core.ids import DeviceId
    from firmament.durable import Disk

MAX_DEADLINE_S: Final = 24 * 3600
# An image that needs a day to prove itself is watched by the server's rollout rules instead.

MAX_BASE_URLS: Final = 8
DEFAULT_MEMORY_BYTES: Final = 64 * 1024**2


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


@dataclass(frozen=True, slots=True)
class PayloadSettings:
    """What payloads may take of this device (settings table ``[payload]``)."""

    memory_bytes: int = DEFAULT_MEMORY_BYTES
    """What applying one may add to the agent's memory; methods that may need more are not stated."""
    limit_bytes: int = 0
    """Longest payload stored before it is applied; 0: what is free."""
    base_urls: tuple[str, ...] = ()
    """Caches to ask for payload bytes before the server, each the base of ``<product>/...``."""
    neighbours: tuple[str, ...] = ()
    """Agents or caches nearby, asked before those."""

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Read the settings table; raises MalformedError."""
        return cls(
            memory_bytes=fields.integer("memory_bytes", minimum=1024**2, default=DEFAULT_MEMORY_BYTES),
            limit_bytes=fields.integer("limit_bytes", default=0),
            base_urls=fields.texts("base_urls", max_items=MAX_BASE_URLS, max_length=512, optional=True),
            neighbours=fields.texts("neighbours", max_items=MAX_BASE_URLS, max_length=512, optional=True),
        )


class Unwrap(Protocol):
    """Opens content keys that are wrapped for this device; `compose` makes it over the device's HPKE key."""

    def __call__(self, wrapped: bytes, release_id: str, sealed_digest: Digest, /) -> bytes:
        """Return the content key; raises KeyWrapError for a wrap that is not for this device, release and file."""
        ...


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
    methods: frozenset[str] = frozenset({"whole/1"})
    """Payload methods that this device states: `payload.methods.applicable`, and ``sealed/1`` with a key."""
    payloads: PayloadSettings = field(default_factory=PayloadSettings)
    unwrap: Unwrap | None = None
    share: Share | None = None
    """Where verified payloads are kept for others nearby; None: nowhere."""
    retry_wait_s: float = FIRST_BACKOFF_S
    """Longest wait before a command tries once more what a moment may mend."""
    should_stop: Callable[[], bool] = _never
    """Asked between two chunks of a download: the daemon is to end."""
