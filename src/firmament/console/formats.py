"""How numbers, times and lengths are written for people. Pure functions; `now` is an argument."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

NBSP: Final = "\u00a0"
NOTHING: Final = "\u2013"
KILO_FROM: Final = 10_000
SHORT: Final = 90
UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
DIGEST_SHOWN: Final = 16
MINUTE_S: Final = 60
HOUR_S: Final = 3600
DAY_S: Final = 86_400
FEW: Final = 30
"""Below this many, a percentage says more than is known: counts only (console.md, the states)."""


def number(value: float | None) -> str:
    """Return 95386 as ``95 386``."""
    return NOTHING if value is None else f"{int(value):,}".replace(",", NBSP)


def short_number(value: int | None) -> str:
    """Return 100000 as ``100k``, for badges."""
    if value is None:
        return ""
    if value >= 1_000_000:  # noqa: PLR2004 - a million is written M
        return f"{value / 1_000_000:.1f}M".replace(".0M", "M")
    return f"{value // 1000}k" if value >= KILO_FROM else number(value)


def percent(ratio: float | None, digits: int = 1) -> str:
    """Return 0.0207 as ``2.1 %``."""
    return NOTHING if ratio is None else f"{ratio * 100:.{digits}f}{NBSP}%"


def limit_percent(ratio: float | None) -> str:
    """Return a limit as it was given: 0.02 is ``2 %``, 0.025 is ``2.5 %``."""
    return NOTHING if ratio is None else f"{ratio * 100:g}{NBSP}%"


def share(part: int, whole: int) -> str:
    """Return part of whole: a percentage from 30 on, counts below."""
    if whole < FEW:
        return f"{number(part)} of {number(whole)}"
    return percent(part / whole)


def length(value: float | None) -> str:
    """Return bytes as ``18.4 MB`` (decimal units, as downloads are sold)."""
    if value is None:
        return NOTHING
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.1f}{NBSP}{unit}"
    return f"{int(value)}{NBSP}B"


def duration(seconds: float | None) -> str:
    """Return a length of time: ``14 s``, ``2 min 27 s``, ``3 h 20 min``, ``12 d``."""
    if seconds is None:
        return NOTHING
    whole = max(0, round(seconds))
    if whole < MINUTE_S:
        return f"{whole}{NBSP}s"
    if whole < HOUR_S:
        rest = f"{NBSP}{whole % MINUTE_S}{NBSP}s" if whole % MINUTE_S else ""
        return f"{whole // MINUTE_S}{NBSP}min{rest}"
    if whole < DAY_S * 2:
        minutes = whole % HOUR_S // MINUTE_S
        return f"{whole // HOUR_S}{NBSP}h" + (f"{NBSP}{minutes}{NBSP}min" if minutes else "")
    return f"{whole // DAY_S}{NBSP}d"


def ago(at: int | None, now: datetime) -> str:
    """Return how long ago, or ``in …`` for what is still to come, or ``never``."""
    if at is None:
        return "never"
    seconds = int(now.timestamp()) - at
    words = _rough(abs(seconds))
    return f"in{NBSP}{words}" if seconds < 0 else f"{words}{NBSP}ago"


def _rough(seconds: int) -> str:
    if seconds < SHORT:
        return f"{seconds}{NBSP}s"
    if seconds < SHORT * MINUTE_S:
        return f"{seconds // MINUTE_S}{NBSP}min"
    if seconds < 2 * DAY_S:
        return f"{seconds // HOUR_S}{NBSP}h"
    return f"{seconds // DAY_S}{NBSP}d"


def moment(at: int | None) -> datetime | None:
    """Return unix seconds as an aware time."""
    return None if at is None else datetime.fromtimestamp(at, UTC)


def iso(at: int | None) -> str:
    """Return ``2026-11-26T03:12:08Z``."""
    found = moment(at)
    return "" if found is None else found.strftime("%Y-%m-%dT%H:%M:%SZ")


def absolute(at: int | None) -> str:
    """Return ``26 Nov 2026, 03:12:08 UTC``."""
    found = moment(at)
    return "never" if found is None else f"{found.day} {found:%b %Y, %H:%M:%S} UTC"


def day(at: int | None) -> str:
    """Return ``26 Nov 2026``."""
    found = moment(at)
    return NOTHING if found is None else f"{found.day} {found:%b %Y}"


def clock_time(at: int | None, now: datetime | None = None) -> str:
    """Return ``03:12:08`` for today, with the day in front for any other."""
    found = moment(at)
    if found is None:
        return NOTHING
    if now is not None and found.date() != now.astimezone(UTC).date():
        return f"{found.day} {found:%b %H:%M}"
    return f"{found:%H:%M:%S}"


def plural(count: int, one: str, many: str = "") -> str:
    """Return ``1 device`` or ``4 447 devices``."""
    return f"{number(count)} {one if count == 1 else many or one + 's'}"


def short_id(value: str) -> str:
    """Return a name with the UUIDs in it cut to their first eight digits."""
    return UUID.sub(lambda match: match[0][:8], value)


def short_digest(value: str) -> str:
    """Return a digest's ends: enough to compare by eye, the whole is beside it to copy."""
    text = value.rpartition(":")[2]
    return text if len(text) <= DIGEST_SHOWN else f"{text[:8]}…{text[-6:]}"
