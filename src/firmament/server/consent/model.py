"""Values of consent: who decided how, and what an owner said about one release.

The rule that applies to a device and an update class is the most specific one that an operator
set: the device's, else its group's, else the tenant's, else `BUILT_IN`. The owner's own rule, as
their device reports it, is laid over it: the stricter of the two holds (`Ruling.mode`), and an
opt-out holds against everything.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta, tzinfo
from enum import StrEnum
from typing import Final, Self

from firmament.core.manifest import UpdateClass
from firmament.errors import MalformedError

_WINDOW: Final = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")
_LOOK_AHEAD_MIN: Final = 49 * 60
# As on the device: across a change of daylight saving time one opening may not exist.


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


class Level(StrEnum):
    """Whose rule it is, from the most general to the most specific."""

    BUILT_IN = "built-in"
    TENANT = "tenant"
    GROUP = "group"
    DEVICE = "device"
    OWNER = "owner"
    """The rule in the device's own settings, as the device reports it."""


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
        """Whether `now` (aware) lies in the window on a wall clock in `zone`."""
        wall = now.astimezone(zone).time()
        if self.start < self.end:
            return self.start <= wall < self.end
        return wall >= self.start or wall < self.end

    def opens_at(self, now: datetime, zone: tzinfo) -> datetime:
        """Return the next minute at which it is open; `now` itself if it is."""
        if self.is_open(now, zone):
            return now
        minute = now.astimezone(UTC).replace(second=0, microsecond=0)
        for ahead in range(1, _LOOK_AHEAD_MIN):
            moment = minute + timedelta(minutes=ahead)
            if self.is_open(moment, zone):
                return moment
        return minute + timedelta(minutes=_LOOK_AHEAD_MIN)


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule and who set it when."""

    mode: Mode
    window: Window | None = None
    level: Level = Level.BUILT_IN
    subject: str = ""
    """Name of the group or id of the device it was set for."""
    set_by: str = ""
    set_at: int = 0


BUILT_IN: Final = Rule(Mode.AUTOMATIC)
"""Without a rule updates install by themselves: security updates must by default (CRA Annex I, part I (2)(c))."""


@dataclass(frozen=True, slots=True)
class Ruling:
    """What holds for one device and update class: the operator's rule with the owner's laid over it."""

    operator: Rule = BUILT_IN
    owner: Rule | None = None
    """What the device reports; None: nothing yet."""
    opted_out_at: int | None = None
    """When the owner said: nothing by itself any more. Holds until they opt in again."""
    zone: tzinfo = UTC

    @property
    def holding(self) -> Rule:
        """The stricter of the operator's and the owner's rule; the owner's where they are equal."""
        if self.owner is not None and STRICTNESS[self.owner.mode] >= STRICTNESS[self.operator.mode]:
            return self.owner
        return self.operator


class Word(StrEnum):
    """The latest thing an owner said about one release."""

    ASKED = "asked"
    NOW = "now"
    TONIGHT = "tonight"
    LATER = "later"
    SKIP = "skip"
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True, slots=True)
class Answers:
    """What one owner said about one release, summed up."""

    latest: Word | None = None
    """None: the device has not told of asking yet."""
    at: datetime | None = None
    until: datetime | None = None
    """When it will be asked again (later) or is to be installed (tonight), as the device told."""
    first_asked_at: datetime | None = None
    postponements: int = 0


@dataclass(frozen=True, slots=True)
class Limit:
    """How often and how long an update of a class may be put off."""

    times: int | None
    longest: timedelta | None


LIMITS: Final = {
    UpdateClass.SECURITY: Limit(times=3, longest=timedelta(days=14)),
    # console.md §1.4: a postponement has an end that is visible beforehand.
    UpdateClass.FEATURE: Limit(times=None, longest=None),
}
