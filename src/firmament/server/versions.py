"""Version numbers of director replies: higher for each device with every reply, without a write each.

The number is the second, so a restored backup of the database is no rollback: time has gone on
(trust.md §9, pitfall 14; case 64). Three things could still make a number fall or repeat:

* a device asks twice within a second: each device's last number is remembered for that second;
* the clock steps back while the server runs: numbers go on from the highest second seen;
* the clock steps back across a restart: a *horizon* is stored, above every number handed out.
  It is moved ahead `BLOCK_S` at a time, before the first number beyond it is used, so the
  database is written once a minute at most, whatever the poll rate. A crash wastes at most one
  block: the next start begins above the horizon, at most a minute ahead of the clock.

Several servers on one database hand out numbers beside each other, by clocks that differ by
seconds. So a device says in its poll which version it trusts, and its reply is above that,
whichever server answers (ADR-0024). That number is the device's own affair: it is not
remembered for others and needs no horizon, because the device will say it again.

A backup that is restored *and* a clock that is wrong at the same time cannot be told from an
attack; `server doctor` compares the clock with the newest event.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from firmament.server.database.port import Connection

HORIZON: Final = "director-version-horizon"
BLOCK_S: Final = 60
AHEAD_S: Final = 30
"""The next block is asked for this early, so that no poll waits for it."""


class ReplyVersions:
    """Hands out numbers. Whoever uses it stores `wanted_horizon` and then calls `stored`."""

    def __init__(self, stored_horizon: int = 0) -> None:
        self._floor = 1
        self._horizon = 0
        self._recent: dict[str, int] = {}
        self._second = 0
        self._highest = 0
        self.begin(stored_horizon)

    def begin(self, stored_horizon: int) -> None:
        """Go on above what an earlier run may have handed out; before the first answer."""
        self._floor = stored_horizon + 1
        self._horizon = stored_horizon

    def next(self, device_id: str, unix_s: int, *, trusted: int = 0) -> int | None:
        """Return a number for a reply to this device, above `trusted`; None when the horizon must be stored first."""
        second = max(unix_s, self._floor)
        if second > self._second:
            self._second = self._floor = second
            self._recent = {device: number for device, number in self._recent.items() if number >= second}
        number = max(second, self._recent.get(device_id, 0) + 1)
        if number > self._horizon:
            return None
        self._highest = max(self._highest, number)
        self._recent[device_id] = number
        return max(number, trusted + 1)

    def wanted_horizon(self, unix_s: int) -> int | None:
        """Return the horizon to store now, None while the stored one is far enough ahead."""
        highest = max(unix_s, self._floor, self._highest)
        return highest + BLOCK_S if highest + AHEAD_S > self._horizon else None

    def last(self) -> int:
        """Return the horizon to store at a clean stop: the next start need not jump ahead."""
        return max(self._floor - 1, self._highest)

    def stored(self, horizon: int) -> None:
        """Numbers up to `horizon` may be used: it is durable."""
        self._horizon = max(self._horizon, horizon)


def first_floor(stored_horizon: int, unix_s: int, *, is_shared: bool) -> int:
    """Return what a start goes on above.

    On a shared database the horizon runs ahead because others are serving: only a clock that is
    behind it by more than that was put back.
    """
    is_ahead = unix_s + 2 * (BLOCK_S + AHEAD_S) >= stored_horizon
    return 0 if is_shared and is_ahead else stored_horizon


def read_horizon(connection: Connection) -> int:
    """Return the stored horizon, 0 on a new server."""
    row = connection.execute("SELECT value FROM number WHERE name = ?", (HORIZON,)).fetchone()
    return int(row["value"]) if row is not None else 0


def write_horizon(connection: Connection, horizon: int) -> None:
    """Store the horizon; on a shared database other servers may have stored a higher one: see `raise_horizon`."""
    connection.execute(
        "INSERT INTO number(name, value) VALUES (?, ?) ON CONFLICT(name) DO UPDATE SET value = excluded.value",
        (HORIZON, horizon),
    )


def raise_horizon(connection: Connection, horizon: int) -> None:
    """Store the horizon unless a higher one is stored: it may fall at a clean stop of the only server only."""
    write_horizon(connection, max(horizon, read_horizon(connection)))
