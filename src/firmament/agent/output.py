"""Listen to what a child process writes: keep the last lines, bounded in memory."""

from __future__ import annotations

import collections
import threading
from typing import IO, TYPE_CHECKING, Final

from firmament.agent.health.port import MAX_DETAIL_LINES, tail

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_LINE_BYTES: Final = 2048
# A longer line comes in pieces; a program without newlines costs no memory.
JOIN_TIMEOUT_S: Final = 2.0
# After its group was killed only a process that left the group can still hold the pipe open; the
# listener is a daemon thread and is not waited for longer.


class Output:
    """Reads `pipe` in a thread until its end; `on_line` is called there for each line."""

    def __init__(self, pipe: IO[bytes], on_line: Callable[[str], None] | None = None) -> None:
        self._pipe = pipe
        self._on_line = on_line
        self._lines: collections.deque[str] = collections.deque(maxlen=MAX_DETAIL_LINES)
        self._thread = threading.Thread(target=self._listen, name="child-output", daemon=True)
        self._thread.start()

    def last_lines(self, *, wait_for_end: bool) -> str:
        """Return the last lines so far, or, once the child has ended, of everything."""
        if wait_for_end:
            self._thread.join(JOIN_TIMEOUT_S)
        return tail("\n".join(tuple(self._lines)))

    def _listen(self) -> None:
        with self._pipe:
            while line := self._pipe.readline(MAX_LINE_BYTES):
                text = line.decode("utf-8", "replace").rstrip("\n")
                self._lines.append(text)
                if self._on_line is not None:
                    self._on_line(text)
