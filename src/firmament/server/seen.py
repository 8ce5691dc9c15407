"""When each device was last heard, written behind: one transaction every few seconds.

A lost batch costs a little freshness on a screen, nothing else; reports never go this way.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from firmament.server.database.port import Connection

FLUSH_INTERVAL_S: Final = 5.0
MAX_ROWS_PER_TRANSACTION: Final = 5000
"""Larger ones stall other writers (stack.md §1.4)."""
MAX_PENDING: Final = 200_000


MAX_GAP_S: Final = 2 * 86_400
"""A device that was away for weeks does not ask every few weeks."""


class LastSeen:
    """Device row id to (second, address, second of an idle poll or 0), until the next flush."""

    def __init__(self) -> None:
        self._pending: dict[int, tuple[int, str, int]] = {}

    def note(self, row_id: int, unix_s: int, address: str, *, is_idle_poll: bool = False) -> None:
        """Remember that a device was here; polls with nothing to do show its rhythm."""
        known = self._pending.get(row_id)
        if known is not None or len(self._pending) < MAX_PENDING:
            polled_s = unix_s if is_idle_poll else known[2] if known is not None else 0
            self._pending[row_id] = (unix_s, address, polled_s)

    def take(self) -> list[tuple[int, int, str, int]]:
        """Return the next rows to write, those heard first, sorted by id, and forget them."""
        # Not sorted as a whole: of a large fleet that alone would hold the loop up for longer than a poll takes.
        chosen = sorted(islice(self._pending, MAX_ROWS_PER_TRANSACTION))
        return [(row_id, *self._pending.pop(row_id)) for row_id in chosen]


def write_seen(connection: Connection, rows: list[tuple[int, int, str, int]]) -> None:
    """Write one batch; the interval is a running mean over four gaps.

    Servers flush beside each other, so what is written may be older than what is there.
    """
    connection.change_many(
        "INSERT INTO device_seen(device_id, last_seen, address, last_poll) "
        "SELECT device_id, last_seen, address, last_poll FROM given WHERE 1 = 1 ON CONFLICT(device_id) DO UPDATE SET "
        "address = CASE WHEN excluded.last_seen < device_seen.last_seen THEN device_seen.address "
        "ELSE excluded.address END, "
        "last_seen = CASE WHEN excluded.last_seen < device_seen.last_seen THEN device_seen.last_seen "
        "ELSE excluded.last_seen END, "
        "interval_s = CASE WHEN excluded.last_poll <= device_seen.last_poll OR device_seen.last_poll = 0 "
        "THEN device_seen.interval_s "
        f"WHEN excluded.last_poll - device_seen.last_poll > {MAX_GAP_S} "
        f"THEN (3 * device_seen.interval_s + {MAX_GAP_S}) / 4 "
        "WHEN device_seen.interval_s = 0 THEN excluded.last_poll - device_seen.last_poll "
        "ELSE (3 * device_seen.interval_s + excluded.last_poll - device_seen.last_poll) / 4 END, "
        "last_poll = CASE WHEN excluded.last_poll < device_seen.last_poll THEN device_seen.last_poll "
        "ELSE excluded.last_poll END",
        "device_id bigint, last_seen bigint, address text, last_poll bigint",
        rows,
    )
