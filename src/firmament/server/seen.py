"""When each device was last heard, written behind: one transaction every few seconds.

A lost batch costs a little freshness on a screen, nothing else; reports never go this way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from firmament.server.database.port import Connection

FLUSH_INTERVAL_S: Final = 5.0
MAX_ROWS_PER_TRANSACTION: Final = 5000
"""Larger ones stall other writers (stack.md §1.4)."""
MAX_PENDING: Final = 200_000


class LastSeen:
    """Device row id to (second, address), until the next flush."""

    def __init__(self) -> None:
        self._pending: dict[int, tuple[int, str]] = {}

    def note(self, row_id: int, unix_s: int, address: str) -> None:
        """Remember that a device was here."""
        if row_id in self._pending or len(self._pending) < MAX_PENDING:
            self._pending[row_id] = (unix_s, address)

    def take(self) -> list[tuple[int, int, str]]:
        """Return the next rows to write, sorted by id, and forget them."""
        chosen = sorted(self._pending)[:MAX_ROWS_PER_TRANSACTION]
        return [(row_id, *self._pending.pop(row_id)) for row_id in chosen]


def write_seen(connection: Connection, rows: list[tuple[int, int, str]]) -> None:
    """Write one batch."""
    connection.executemany(
        "INSERT INTO device_seen(device_id, last_seen, address) VALUES (?, ?, ?) "
        "ON CONFLICT(device_id) DO UPDATE SET last_seen = excluded.last_seen, address = excluded.address",
        rows,
    )
