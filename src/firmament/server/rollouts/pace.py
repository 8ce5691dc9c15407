"""How many targets one transaction writes: as many as take a quarter of the time another writer may wait.

Whoever runs the loops measures how long each chunk took, with its commit and its wait for the
disk, and takes the next one accordingly: a slow disk gets small chunks, a fast one large ones.
"""

from __future__ import annotations

from typing import Final

AIM_S: Final = 0.025
"""Another writer never waits longer than 0.1 s; a chunk may take four times as long as foreseen."""
FEWEST: Final = 100
MOST: Final = 5000
FIRST: Final = 1000
GROWS: Final = 1.5
"""At most so much from one chunk to the next; shrinking knows no limit."""


class Pace:
    """The size of the next chunk; one for each place that runs the loops."""

    def __init__(self) -> None:
        self.rows = FIRST

    def lasted(self, duration_s: float) -> None:
        """Take the last chunk's time into account, in seconds."""
        wanted = self.rows * AIM_S / duration_s if duration_s > 0 else MOST
        self.rows = int(max(FEWEST, min(MOST, wanted, self.rows * GROWS)))
