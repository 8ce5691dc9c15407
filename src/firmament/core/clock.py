"""Time as an argument.

`Clock` is the port; only `SystemClock` may read the machine's clock. `now` is wall time (aware
UTC) and may jump; `monotonic_s` never goes back and measures durations; `sleep` waits.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """What the rest of the house may ask about time."""

    def now(self) -> datetime:
        """Return wall time, aware, UTC."""
        ...

    def monotonic_s(self) -> float:
        """Return seconds on a clock that never goes back; only differences mean something."""
        ...

    def sleep(self, duration_s: float) -> None:
        """Wait; a simulated clock advances instead."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:  # noqa: D102 - see Clock
        return datetime.now(UTC)  # noqa: TID251 - the one place that reads the clock

    def monotonic_s(self) -> float:  # noqa: D102 - see Clock
        return time.monotonic()  # noqa: TID251 - the one place that reads the clock

    def sleep(self, duration_s: float) -> None:  # noqa: D102 - see Clock
        time.sleep(duration_s)  # noqa: TID251 - the one place that waits


class FixedClock:
    """A clock that moves only when told, for tests, simulations and forecasts."""

    def __init__(self, start: datetime) -> None:
        self._now = start
        self._monotonic_s = 0.0

    def now(self) -> datetime:  # noqa: D102 - see Clock
        return self._now

    def monotonic_s(self) -> float:  # noqa: D102 - see Clock
        return self._monotonic_s

    def sleep(self, duration_s: float) -> None:  # noqa: D102 - see Clock
        self.advance(duration_s)

    def advance(self, duration_s: float) -> None:
        """Move both clocks forward."""
        self._now += timedelta(seconds=duration_s)
        self._monotonic_s += duration_s

    def set(self, moment: datetime) -> None:
        """Jump wall time, as NTP or an attacker would; monotonic time stays."""
        self._now = moment
