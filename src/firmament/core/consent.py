"""How updates of one class may go ahead, and daily windows: what device and server both decide by.

The server keeps what operators set, the device what its owner set; each lays the other's over its
own, and the stricter of the two holds (docs/integrate/consent.md).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta, tzinfo
from enum import StrEnum
from typing import Final, Self

from firmament.errors import MalformedError

_WINDOW: Final = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")
_LOOK_AHEAD_MIN: Final = 49 * 60
# A daily window opens within 24 h; across a change of daylight saving time one opening may not
# exist, then within 48 h and the hour that moved.


class Mode(StrEnum):
    """How far updates of one class go by themselves; later ones are stricter."""

    AUTOMATIC = "automatic"
    """At once."""
    WINDOW = "window"
    """At once, but only while the window is open."""
    ASK = "ask"
    """Once the owner agreed."""
    MANUAL = "manual"
    """Only when somebody says so at the device; the owner is not asked."""


STRICTNESS: Final = {mode: rank for rank, mode in enumerate(Mode)}


def stricter(one: Mode, other: Mode) -> Mode:
    """Return the one of two modes that lets less happen by itself."""
    return max(one, other, key=STRICTNESS.__getitem__)


@dataclass(frozen=True, slots=True)
class Window:
    """A daily span of device-local wall time, start included, end excluded; it may pass midnight."""

    start: time
    end: time

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``02:00-04:00``; raises MalformedError."""
        match = _WINDOW.fullmatch(text)
        if match is None:
            raise MalformedError("The window is not well formed", found=text[:40], expected="02:00-04:00")
        start_hour, start_minute, end_hour, end_minute = map(int, match.groups())
        start, end = time(start_hour, start_minute), time(end_hour, end_minute)
        if start == end:
            raise MalformedError("The window never opens", found=text)
        return cls(start, end)

    def __str__(self) -> str:
        """Return what `parse` reads."""
        return f"{self.start:%H:%M}-{self.end:%H:%M}"

    def is_open(self, now: datetime, zone: tzinfo) -> bool:
        """Whether `now` (aware) lies in the window on a wall clock in `zone`.

        An hour that daylight saving time repeats is open twice, one that it skips not at all.
        """
        wall = now.astimezone(zone).time()
        if self.start < self.end:
            return self.start <= wall < self.end
        return wall >= self.start or wall < self.end

    def opens_at(self, now: datetime, zone: tzinfo) -> datetime:
        """Return the next minute at which it is open; `now` itself if it is."""
        if self.is_open(now, zone):
            return now
        # Minute by minute, because that is right on every day of the year, and takes 3 ms.
        minute = now.astimezone(UTC).replace(second=0, microsecond=0)
        for ahead in range(1, _LOOK_AHEAD_MIN):
            moment = minute + timedelta(minutes=ahead)
            if self.is_open(moment, zone):
                return moment
        return minute + timedelta(minutes=_LOOK_AHEAD_MIN)
