"""The leader's own collecting of payloads, once in an interval whichever server leads then.

The time of the last round is a row, so that neither a restart nor another leader begins a round
early. The look goes through a connection of its own in a thread; each removal is a change like
any other of a leader: fenced by its epoch, in turn with every publish.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from firmament.log import logger
from firmament.server.database.opening import command_database
from firmament.server.scope import SERVER

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from firmament.core.clock import Clock
    from firmament.server.database.port import Connection, Database
    from firmament.server.database.target import Target
    from firmament.server.payloads.collect import Collected, Collector, Doomed, Found

log = logger("server.payloads")

CHECK_S: Final = 600.0
LAST_ROUND: Final = "blobs-collected-at"


def begin_round(connection: Connection, now: datetime, interval: timedelta) -> bool:
    """Write down that a round begins, if one is due; the first is due an interval after the first start."""
    now_s = int(now.timestamp())
    row = connection.execute("SELECT value FROM number WHERE name = ?", (LAST_ROUND,)).fetchone()
    if row is not None and int(row["value"]) <= now_s < int(row["value"]) + int(interval.total_seconds()):
        return False
    connection.execute(
        "INSERT INTO number(name, value) VALUES (?, ?) ON CONFLICT(name) DO UPDATE SET value = excluded.value",
        (LAST_ROUND, now_s),
    )
    # A clock that was put back begins to count anew.
    return row is not None and int(row["value"]) <= now_s


class Upkeep:
    """Collects when it is due."""

    def __init__(
        self, collector: Collector, database: Database, target: Target, clock: Clock, *, interval: timedelta
    ) -> None:
        self._collector = collector
        self._database = database
        self._target = target
        self._clock = clock
        self._interval = interval

    async def collect_due(self) -> Collected | None:
        """Do a round if one is due; raises LockedError when another server leads meanwhile, OverloadedError."""
        now, collector = self._clock.now(), self._collector
        if not self._interval or not await self._database.submit(lambda db: begin_round(db, now, self._interval)):
            return None
        found = await asyncio.to_thread(self._look, now)
        removed: list[Doomed] = []
        for batch in found.batches():
            removed += await self._database.submit(
                lambda db, batch=batch: collector.remove(db, SERVER, batch, now)  # type: ignore[misc]  # bound now
            )
        done = await asyncio.to_thread(collector.finish, found, removed, now)
        log.info("payloads.collected", blobs=done.blobs, length_bytes=done.length_bytes, uploads=done.uploads)
        return done

    def _look(self, now: datetime) -> Found:
        with command_database(self._target, read_only=True) as database:
            return self._collector.look(database, now)
