"""Windows on the device's own clock, and when they open next."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta, tzinfo
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from firmament.errors import MalformedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from firmament.core.fields import Fields

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_TIME: Final = re.compile(r"([01]\d|2[0-3]):([0-5]\d)")
_ZONE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_+/-]{0,63}")
_STEP: Final = timedelta(minutes=5)
_LOOK_AHEAD: Final = timedelta(days=8)
# A weekly window opens within seven days, and an hour that a clock change skips within the eighth.


@dataclass(frozen=True, slots=True)
class Window:
    """A span of wall time on some days, start included, end excluded; it may go past midnight."""

    start: time
    end: time
    days: frozenset[int] = frozenset(range(7))
    """Days on which it begins; 0 is Monday."""

    @classmethod
    def decode(cls, fields: Fields) -> Self:
        """Read ``{"start": "02:00", "end": "04:00", "days": ["sat"]}``; raises MalformedError."""
        start, end = _time(fields, "start"), _time(fields, "end")
        if start == end:
            raise MalformedError(f"{fields.what} never opens", start=f"{start:%H:%M}")
        names = fields.texts("days", max_items=7, max_length=3, optional=True) or DAYS
        unknown = [name for name in names if name not in DAYS]
        if unknown:
            raise MalformedError(f"{fields.what}.days has an unknown day", found=unknown[0], known=" ".join(DAYS))
        return cls(start, end, frozenset(DAYS.index(name) for name in names))

    def to_json(self) -> dict[str, Any]:
        """Return what `decode` reads."""
        return {
            "start": f"{self.start:%H:%M}",
            "end": f"{self.end:%H:%M}",
            "days": [DAYS[number] for number in sorted(self.days)],
        }

    def is_open(self, now: datetime, zone: tzinfo) -> bool:
        """Whether `now` (aware) is inside on a wall clock in `zone`."""
        local = now.astimezone(zone)
        wall, day = local.time(), local.weekday()
        if self.start < self.end:
            return day in self.days and self.start <= wall < self.end
        return (day in self.days and wall >= self.start) or ((day - 1) % 7 in self.days and wall < self.end)


def is_any_open(windows: Sequence[Window], now: datetime, zone: tzinfo) -> bool:
    """Whether a device in `zone` may start now; without windows it always may."""
    return not windows or any(window.is_open(now, zone) for window in windows)


def next_opening(windows: Sequence[Window], now: datetime, zone: tzinfo) -> datetime:
    """Return when the first window opens, to five minutes; `now` when one is open."""
    if is_any_open(windows, now, zone):
        return now
    moment = now.astimezone(UTC).replace(second=0, microsecond=0)
    moment -= timedelta(minutes=moment.minute % 5)
    end = moment + _LOOK_AHEAD
    while moment < end:
        moment += _STEP
        if is_any_open(windows, moment, zone):
            return moment
    return end


@lru_cache(maxsize=600)  # there are about 600 zones
def zone_named(name: str) -> tzinfo:
    """Return a zone by its IANA name; raises MalformedError for one that is not known here."""
    if name == "UTC":
        return UTC
    if not _ZONE.fullmatch(name):
        raise MalformedError("The time zone is not well formed", zone=name[:64])
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise MalformedError("The time zone is not known here", zone=name) from error


def zone_or(name: str | None, default: tzinfo) -> tzinfo:
    """Return the zone a device reports, or the default when it reports none that is known."""
    if not name:
        return default
    try:
        return zone_named(name)
    except MalformedError:
        return default


def _time(fields: Fields, name: str) -> time:
    match = _TIME.fullmatch(fields.text(name, max_length=5))
    if match is None:
        raise MalformedError(f"{fields.what}.{name} is not a time of day", expected="02:00")
    return time(int(match[1]), int(match[2]))
