"""How many targets one transaction writes: as many as take a quarter of the time another writer may wait.

Whoever runs the loops measures how long each chunk took, with its commit and its wait for the
disk, and takes the next one accordingly: a slow disk gets small chunks, a fast one large ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from firmament.server.rollouts import loops

if TYPE_CHECKING:
    from datetime import datetime

    from firmament.core.clock import Clock
    from firmament.server.database.port import Database

AIM_S: Final = 0.025
"""Another writer is to wait no longer than 0.1 s; so a chunk may take four times as long as foreseen."""
FEWEST: Final = 100
MOST: Final = 5000
FIRST: Final = 1000
GROWS: Final = 1.5
"""At most so much from one chunk to the next; shrinking knows no limit."""


class Pace:
    """The size of the next chunk; one for each place that runs the loops."""

    def __init__(self) -> None:
        self.rows = FIRST

    def begin(self) -> None:
        """Begin a round: whatever the last one came to, small is safe."""
        self.rows = min(self.rows, FIRST)

    def lasted(self, duration_s: float) -> None:
        """Take the last chunk's time into account, in seconds."""
        wanted = self.rows * AIM_S / duration_s if duration_s > 0 else MOST
        self.rows = int(max(FEWEST, min(MOST, wanted, self.rows * GROWS)))


async def run_round(database: Database, clock: Clock, pace: Pace) -> None:
    """Let the loops do all they want to do now, chunk after chunk: others write in between."""
    now = clock.now()
    pace.begin()
    for _ in range(loops.MAX_CHUNKS):
        if not await run_chunk(database, clock, pace, now):
            return


async def run_chunk(database: Database, clock: Clock, pace: Pace, now: datetime) -> bool:
    """Do one chunk, and learn from it; return whether the loops want more at once."""
    began_s, rows = clock.monotonic_s(), pace.rows
    is_busy = await database.submit(lambda connection: loops.tick(connection, now, rows))
    if is_busy:
        pace.lasted(clock.monotonic_s() - began_s)
    return is_busy
