"""Geometry of the charts, which the server draws as SVG: pure numbers, no markup."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTH: Final = 560
HEIGHT: Final = 200
LEFT: Final = 44
RIGHT: Final = 10
TOP: Final = 18
BOTTOM: Final = 26
HEADROOM: Final = 1.25
MAX_POINTS: Final = 240
DAY_S: Final = 86_400


@dataclass(frozen=True, slots=True)
class Tick:
    """A line of the grid."""

    at: float
    value: float


@dataclass(frozen=True, slots=True)
class Line:
    """A line over time with a limit."""

    points: str
    area: str
    last_x: float
    last_y: float
    limit_y: float | None
    ticks: tuple[Tick, ...]


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a stacked bar, in percent of its width."""

    key: str
    x: float
    width: float
    value: int


def line(values: Sequence[float], limit: float | None) -> Line | None:
    """Place ratios from left to right, under a limit; None for no value."""
    if not values:
        return None
    kept = list(values)[-MAX_POINTS:]
    top = max(*kept, limit or 0.0, 0.01) * HEADROOM
    step = _step(top)

    def y(value: float) -> float:
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / top), 1)

    def x(index: int) -> float:
        share = index / (len(kept) - 1) if len(kept) > 1 else 1.0  # a single value is the newest
        return round(LEFT + (WIDTH - LEFT - RIGHT) * share, 1)

    points = " ".join(f"{x(i)},{y(value)}" for i, value in enumerate(kept))
    last_x = x(len(kept) - 1)
    ticks, value = [], 0.0
    while value <= top:
        ticks.append(Tick(y(value), value))
        value += step
    return Line(
        points=points,
        area=f"{x(0)},{y(0)} {points} {last_x},{y(0)}",
        last_x=last_x,
        last_y=y(kept[-1]),
        limit_y=None if limit is None else y(limit),
        ticks=tuple(ticks),
    )


def _step(top: float) -> float:
    for step in (0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5, 1.0):
        if top / step <= 4:  # noqa: PLR2004 - at most five lines can be read
            return step
    return top


def stacked(parts: Sequence[tuple[str, int]], total: int) -> tuple[Segment, ...]:
    """Place parts of a total beside each other; a part that is there is never thinner than 0.6 %."""
    if total <= 0:
        return ()
    found: list[Segment] = []
    x = 0.0
    for key, value in parts:
        if value <= 0:
            continue
        width = max(100 * value / total, 0.6)
        width = min(width, 100 - x)
        found.append(Segment(key, round(x, 2), round(width, 2), value))
        x += width
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Day:
    """One day's bar: its place, and its parts from the bottom up."""

    at: int
    x: float
    width: float
    parts: tuple[tuple[str, float, float], ...]
    """Key, top and height."""


@dataclass(frozen=True, slots=True)
class Days:
    """Bars side by side, one a day; a day without counts is a gap."""

    bars: tuple[Day, ...]
    top: int
    ticks: tuple[Tick, ...]


def days(counted: Sequence[tuple[int, Sequence[tuple[str, int]]]], last_at: int, number: int) -> Days | None:
    """Place counts of days (begin of the day, parts) on a scale that ends with `last_at`; None for no day."""
    top = max((sum(value for _, value in parts) for _, parts in counted), default=0)
    if top <= 0:
        return None
    step = (WIDTH - LEFT - RIGHT) / number
    room = HEIGHT - TOP - BOTTOM
    bars = []
    for at, parts in counted:
        place = number - 1 - round((last_at - at) / DAY_S)
        if not 0 <= place < number:
            continue
        y, found = float(HEIGHT - BOTTOM), []
        for key, value in parts:
            height = room * value / top
            y -= height
            found.append((key, round(y, 1), round(height, 1)))
        bars.append(Day(at, round(LEFT + place * step + 1, 1), round(step - 2, 1), tuple(found)))
    ticks = tuple(Tick(round(TOP + room * (1 - share), 1), top * share) for share in (0.0, 0.5, 1.0))
    return Days(tuple(bars), top, ticks)
