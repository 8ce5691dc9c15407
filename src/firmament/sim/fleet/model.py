"""What a virtual fleet is like: its size and rhythm, the network's weather, and what the build does to devices."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

HOUR_S: Final = 3600
DAY_S: Final = 86_400


@dataclass(frozen=True, slots=True)
class Crowd:
    """Who is out there."""

    devices: int = 1000
    interval_s: int = 4 * HOUR_S
    """How often a device asks when it has nothing to do; each keeps its own, within a quarter of this."""
    active_s: int = 60
    """How soon a device asks again while it has something to do."""
    asleep_ratio: float = 0.0
    """Of the devices; they are off and wake up once in `asleep_s`."""
    asleep_s: int = 3 * DAY_S
    hardware: dict[str, float] = field(default_factory=lambda: {"rev-b": 0.7, "rev-c": 0.3})
    """Name to share."""
    zones: dict[str, float] = field(default_factory=lambda: {"UTC": 1.0})
    sites: int = 0
    """How many sites the devices are spread over."""
    ask_ratio: float = 0.0
    """Of the devices; their owner is asked."""


@dataclass(frozen=True, slots=True)
class Weather:
    """What the network does."""

    lost_ratio: float = 0.0
    """Of messages that do not arrive; the device tries again."""
    rate_bytes_per_s: int = 125_000
    payload_bytes: int = 4_000_000
    broken_fetch_ratio: float = 0.0
    """Of fetches that end in failure; the server's retry budget decides what follows."""


@dataclass(frozen=True, slots=True)
class Build:
    """What the new release does to devices that try it."""

    failure_ratio: float = 0.0
    """Of the devices; the health check fails and they fall back."""
    silent_ratio: float = 0.0
    """Of the devices; they do not come back from the restart."""
    bad_hardware: str = ""
    """When set, only devices of this hardware fail."""
    trial_s: int = 120
    yes_ratio: float = 0.7
    """Of owners that are asked and agree, `no_ratio` decline, the others do not answer."""
    no_ratio: float = 0.1
    answer_s: int = 6 * HOUR_S


@dataclass(frozen=True, slots=True)
class Scenario:
    """One fleet, one build, one seed: the same three play the same, to the second."""

    crowd: Crowd = field(default_factory=Crowd)
    weather: Weather = field(default_factory=Weather)
    build: Build = field(default_factory=Build)
    seed: int = 1
    may_go_back: bool = True
    """Whether the author permitted going back from the new release."""
