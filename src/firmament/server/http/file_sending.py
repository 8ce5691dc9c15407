"""Parts of files that the kernel copies from its page cache into a connection (sendfile).

For connections without TLS of our own. No byte passes through this process: a turn is one system
call, made whenever the peer's socket has room. What the page cache lacks is read by a thread first,
so that no turn waits for a disk. A peer is given up only when it takes less than was asked within a
while; what counts is what it has acknowledged, not what the kernel holds for it.
"""

from __future__ import annotations

import fcntl
import os
import struct
import termios
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from firmament.server.http.messages import GoneError
from firmament.server.payloads.page_cache import WINDOW_BYTES, PageCache, fill

if TYPE_CHECKING:
    import asyncio

TURN_BYTES: Final = 512 * 1024
"""At most so much in one turn of the loop; the others are waiting."""
PAGES: Final = PageCache()


class ShortFileError(Exception):
    """The file ended before its part did: it shrank while it was sent."""

    def __init__(self, offset: int) -> None:
        super().__init__(offset)
        self.offset = offset


class TooSlowError(Exception):
    """The peer took too little for too long."""

    def __init__(self, offset: int) -> None:
        super().__init__(offset)
        self.offset = offset


@dataclass(frozen=True, slots=True)
class Patience:
    """The least that a peer must take: `least_bytes` in every `period_s`."""

    least_bytes: int
    period_s: float


class FileSending:
    """One part of a file on its way into one socket.

    `socket_descriptor` stays the caller's; a duplicate of it is watched until `run` is over. The file's
    descriptor must stay open until then.
    """

    __slots__ = (
        "_begin",
        "_believed_until_s",
        "_cached_until",
        "_descriptor",
        "_done",
        "_end",
        "_file",
        "_filling",
        "_is_watching",
        "_loop",
        "_offset",
        "_patience",
        "_socket",
        "_taken",
        "_timer",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        socket_descriptor: int,
        descriptor: int,
        offset: int,
        end: int,
        patience: Patience,
    ) -> None:
        self._loop = loop
        self._descriptor = descriptor
        self._begin = self._offset = offset
        self._end = end
        self._patience = patience
        found = os.fstat(descriptor)
        self._file = (found.st_dev, found.st_ino)
        self._cached_until = offset
        self._believed_until_s = 0.0
        self._taken = 0
        self._is_watching = False
        self._filling: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._done: asyncio.Future[None] = loop.create_future()
        # uvloop watches its own descriptor of the connection and allows nobody else to.
        self._socket = os.dup(socket_descriptor)

    async def run(self) -> None:
        """Send it all; raises GoneError, TooSlowError, ShortFileError, or OSError of the disk."""
        self._timer = self._loop.call_later(self._patience.period_s, self._judge)
        try:
            self._turn()
            await self._done
        finally:
            self._timer.cancel()
            self._unwatch()
            os.close(self._socket)

    def stop(self) -> None:
        """Give up: the peer is gone."""
        self._fail(GoneError())

    def _turn(self) -> None:
        """Send what the socket takes; called some thousand times for each gigabyte."""
        offset = self._offset
        if offset >= self._cached_until or self._loop.time() > self._believed_until_s:
            if self._is_over():
                return
            if not self._ask():
                self._fill()
                return
        length_bytes = self._cached_until - offset
        try:
            count = os.sendfile(self._socket, self._descriptor, offset, min(length_bytes, TURN_BYTES))
        except (BlockingIOError, InterruptedError):
            self._watch()
            return
        except ConnectionError:
            self._fail(GoneError())
            return
        except OSError as error:
            self._fail(error)
            return
        self._offset = offset + count
        if self._offset == self._end:
            self._unwatch()
            if not self._done.done():
                self._done.set_result(None)
        elif not count:
            self._fail(ShortFileError(offset))
        elif not self._is_watching:
            self._watch()

    def _is_over(self) -> bool:
        return self._done.done() or self._filling is not None

    def _watch(self) -> None:
        if not self._is_watching:
            self._loop.add_writer(self._socket, self._turn)
            self._is_watching = True

    def _unwatch(self) -> None:
        if self._is_watching:
            self._loop.remove_writer(self._socket)
            self._is_watching = False

    def _ask(self) -> bool:
        found = PAGES.window(self._descriptor, self._file, self._offset, self._loop.time())
        if found is None:
            return False
        self._cached_until, self._believed_until_s = min(found[0], self._end), found[1]
        return True

    def _fill(self) -> None:
        """Let a thread wait for the disk, and go on when the window is here."""
        self._unwatch()
        number = self._offset // WINDOW_BYTES
        self._filling = self._loop.run_in_executor(
            None, _fill_and_close, os.dup(self._descriptor), number * WINDOW_BYTES, (number + 1) * WINDOW_BYTES
        )
        self._filling.add_done_callback(lambda filled: self._filled(filled, number))

    def _filled(self, filled: asyncio.Future[None], number: int) -> None:
        self._filling = None
        error = GoneError() if filled.cancelled() else filled.exception()
        if self._done.done():
            return
        if error is not None:
            self._fail(error)
            return
        self._believed_until_s = PAGES.believe(self._file, number, self._loop.time())
        self._cached_until = min((number + 1) * WINDOW_BYTES, self._end)
        self._turn()

    def _judge(self) -> None:
        """Give up a peer that took too little since the last time."""
        if self._done.done():
            return
        waiting = struct.unpack("i", fcntl.ioctl(self._socket, termios.TIOCOUTQ, bytes(4)))[0]
        taken = self._offset - self._begin - waiting
        if self._filling is None and taken - self._taken < self._patience.least_bytes:
            self._fail(TooSlowError(self._offset))
            return
        self._taken = taken
        self._timer = self._loop.call_later(self._patience.period_s, self._judge)

    def _fail(self, error: BaseException) -> None:
        self._unwatch()
        if not self._done.done():
            self._done.set_exception(error)


def _fill_and_close(descriptor: int, offset: int, end: int) -> None:
    try:
        fill(descriptor, offset, end)
    finally:
        os.close(descriptor)
