"""Letting a fleet live: events in the order of time, as fast as they can be computed or as slow as a clock.

    played = play(InsideServer(...), devices, policy, until=...)

The virtual clock jumps from event to event. With `pace` the caller waits between steps, e.g. to
show a fleet in real time or so many times faster.
"""

from __future__ import annotations

import heapq
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from firmament.server.rollouts.machine import TargetStatus
from firmament.sim.fleet.crowd import draw
from firmament.sim.fleet.inside import InsideServer
from firmament.sim.fleet.model import DAY_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from firmament.server.rollouts.model import Policy
    from firmament.sim.fleet.device import VirtualDevice
    from firmament.sim.fleet.model import Scenario

BEGINNING_S: Final = 1_795_000_000
"""A day in November 2026; nothing depends on it but what windows see."""
TICK_S: Final = 30
"""How often the loops run on the virtual clock while something happens; a server does it every five seconds."""
QUIET_TICK_S: Final = 300
"""And while nothing does."""
MAX_DAYS: Final = 60
ENDS: Final = frozenset({"finished", "reverted", "aborted", "denied"})
REST: Final = frozenset({*ENDS, "halted", "paused"})
"""Nothing happens any more unless somebody acts."""


@dataclass(frozen=True, slots=True)
class Played:
    """What a play came to."""

    devices: int
    state: str
    duration_s: int
    counts: dict[str, int]
    touched: int
    """Devices that began to install before the stop, or in all."""
    halted_after_s: int | None
    updated_at_halt: int | None
    failed_at_halt: int | None
    waves: list[dict[str, Any]]
    common: dict[str, Any] | None

    @property
    def sentence(self) -> str:
        """Say it as an operator would want to hear it."""
        if self.halted_after_s is None:
            return f"Takes {duration(self.duration_s)}; {self.counts.get('updated', 0)} of {self.devices} updated."
        back = self.counts.get(TargetStatus.WENT_BACK, 0)
        then = f", and {back} went back" if back else ""
        return (
            f"Stops by itself after {duration(self.halted_after_s)} at {self.touched} devices: "
            f"{self.failed_at_halt} failed, {self.updated_at_halt} were updated{then}."
        )

    def to_json(self) -> dict[str, Any]:
        """Return the document of `firmament sim fleet`."""
        return {
            "devices": self.devices,
            "state": self.state,
            "duration_s": self.duration_s,
            "counts": self.counts,
            "touched": self.touched,
            "halted_after_s": self.halted_after_s,
            "updated_at_halt": self.updated_at_halt,
            "failed_at_halt": self.failed_at_halt,
            "waves": self.waves,
            "common": self.common,
            "sentence": self.sentence,
        }


def duration(seconds: float) -> str:
    """Say a time in its largest unit, to one decimal."""
    for unit, length in (("days", DAY_S), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"


class Fleet:
    """A scenario being played inside this process."""

    def __init__(self, directory: Path, scenario: Scenario, policy: Policy) -> None:
        self.scenario = scenario
        self.server = InsideServer(directory, scenario, now_s=BEGINNING_S)
        self.devices = self.server.populate(draw(scenario))
        self._queue: list[tuple[float, int, VirtualDevice]] = [
            (BEGINNING_S + device.fate.first_s, device.number, device) for device in self.devices
        ]
        heapq.heapify(self._queue)
        self._tick_s = float(BEGINNING_S)
        self._changes = 0
        self._halt: tuple[int, dict[str, Any]] | None = None
        self.server.create(policy)

    def close(self) -> None:
        """Let go of the database."""
        self.server.close()

    @property
    def elapsed_s(self) -> int:
        """Virtual seconds since the rollout was made."""
        return self.server.now_s - BEGINNING_S

    def step(self) -> float:
        """Do everything up to the next tick of the loops, and the tick; return its virtual second."""
        until = self._tick_s
        while self._queue and self._queue[0][0] <= until:
            at_s, number, device = heapq.heappop(self._queue)
            self.server.now_s = math.floor(at_s)
            again_s = device.wake(at_s)
            if again_s is not None:
                heapq.heappush(self._queue, (max(again_s, at_s + 1), number, device))
        self.server.now_s = math.floor(until)
        is_quiet = self.server.changes == self._changes
        self._changes = self.server.changes
        self.server.tick()
        if self._halt is None and self.server.state() in {"halted", "reverting"}:
            self._halt = (self.elapsed_s, self.server.show())
        self._tick_s += QUIET_TICK_S if is_quiet else TICK_S
        return until

    def steps(self, *, days: float = MAX_DAYS) -> Iterator[float]:
        """Step until the rollout rests or the time is over."""
        while self.elapsed_s < days * DAY_S:
            yield self.step()
            if self.server.state() in REST and not self._is_under_way():
                return

    def _is_under_way(self) -> bool:
        counts = self.server.show()["counts"]
        return any(counts.get(status) for status in (TargetStatus.OFFERED, TargetStatus.IN_FLIGHT, TargetStatus.ASKING))

    def result(self) -> Played:
        """Return what it came to."""
        shown = self.server.show()
        at = self._halt
        halt = at[1]["halt"] if at is not None else None
        counts = shown["counts"]
        begun = len(self.devices) - sum(
            counts.get(status, 0)
            for status in (TargetStatus.WAITING, TargetStatus.POSTPONED, TargetStatus.SKIPPED, TargetStatus.DECLINED)
        )
        return Played(
            devices=len(self.devices),
            state=shown["state"],
            duration_s=self.elapsed_s,
            counts=counts,
            touched=begun,
            halted_after_s=at[0] if at is not None else None,
            updated_at_halt=(halt["updated"] + at[1]["counts"].get("reverting", 0)) if halt and at else None,
            failed_at_halt=(halt["went_back_online"] + halt["silent"]) if halt else None,
            waves=[
                {name: wave[name] for name in ("number", "name", "state", "size", "finished", "failed")}
                for wave in shown["waves"]
            ],
            common=halt["common"] if halt else None,
        )


def play(
    scenario: Scenario,
    policy: Policy,
    *,
    directory: Path,
    days: float = MAX_DAYS,
    pace: Callable[[Fleet], None] | None = None,
) -> Played:
    """Play a scenario to its end; `pace` is called after every step."""
    fleet = Fleet(directory, scenario, policy)
    try:
        for _ in fleet.steps(days=days):
            if pace is not None:
                pace(fleet)
        return fleet.result()
    finally:
        fleet.close()


def forecast(scenario: Scenario, policy: Policy, *, days: float = MAX_DAYS) -> Played:
    """Play a scenario on a database that is thrown away."""
    with tempfile.TemporaryDirectory(prefix="firmament-forecast-") as directory:
        return play(scenario, policy, directory=Path(directory), days=days)
