"""Drawing a fleet from its seed."""

from __future__ import annotations

import random  # noqa: TID251 - the fleet's seed is the argument
from typing import TYPE_CHECKING

from firmament.sim.fleet.device import Fate, VirtualDevice
from firmament.trust.device_keys import IdentityKey

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from firmament.sim.fleet.model import Scenario


def draw(scenario: Scenario) -> Iterator[VirtualDevice]:
    """Yield the devices of a scenario; the same seed draws the same fates, keys apart."""
    for number in range(scenario.crowd.devices):
        # Each device has a chance of its own, so that one more device changes no other's fate.
        chance = random.Random(f"{scenario.seed}/{number}")  # noqa: S311 - a repeatable fleet, no secret
        hardware = _one_of(scenario.crowd.hardware, chance)
        device = VirtualDevice(
            number,
            key=IdentityKey.generate(),
            hardware=hardware,
            fate=_fate(scenario, hardware, chance),
            chance=chance,
            scenario=scenario,
        )
        device.attributes["zone"] = _one_of(scenario.crowd.zones, chance)
        yield device


def _fate(scenario: Scenario, hardware: str, chance: random.Random) -> Fate:
    crowd, build, weather = scenario.crowd, scenario.build, scenario.weather
    interval_s = int(crowd.interval_s * chance.uniform(0.875, 1.125))
    if chance.random() < crowd.asleep_ratio:
        interval_s = int(crowd.asleep_s * chance.uniform(0.5, 1.5))
    answer = chance.random()
    can_fail = build.bad_hardware in {"", hardware}
    return Fate(
        interval_s=interval_s,
        fails=chance.random() < build.failure_ratio and can_fail,
        never_returns=chance.random() < build.silent_ratio and can_fail,
        is_asked=chance.random() < crowd.ask_ratio,
        answer="yes" if answer < build.yes_ratio else "no" if answer < build.yes_ratio + build.no_ratio else "",
        fetch_s=int(weather.payload_bytes / weather.rate_bytes_per_s * chance.uniform(0.7, 2.0)) + 1,
        first_s=int(interval_s * chance.random()),
    )


def _one_of(shares: Mapping[str, float], chance: random.Random) -> str:
    return chance.choices(list(shares), list(shares.values()))[0]
