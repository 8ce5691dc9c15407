"""The HTTP connection: uvicorn's protocol with the peer's certificate, and ceilings it lacks.

What is added: who the TLS peer is (read once per connection), a ceiling on the length of request
heads, a deadline for them (slow-header attacks), a ceiling on open connections, and files that the
kernel sends by itself where TLS does not end in this process.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any, ClassVar, Final

from firmament.server.authority import peer_identity
from firmament.server.http.file_sending import FileSending, TooSlowError
from firmament.server.http.messages import IS_WHOLE, SEND_FILE, GoneError
from firmament.server.http.short import ShortConnection

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application
    from uvicorn.config import Config
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
    from uvicorn.server import ServerState

    from firmament.server.http.file_sending import Patience

MAX_HEAD_LENGTH_BYTES: Final = 16 * 1024
# A request line of 512 bytes and some twenty headers come to 2 KiB; nginx allows 32 KiB, Apache 8 KiB a line.
GOODBYE_S: Final = 0.1
_TOO_LONG: Final = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class DeviceConnection(ShortConnection):
    """One connection of a device or an operator."""

    head_deadline_s: ClassVar[float] = 15.0
    max_connections: ClassVar[int] = 10_000

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._head_bytes = 0
        self._in_head = True
        self._head_timer: asyncio.TimerHandle | None = None
        self._head_due_s = 0.0
        self._answering: RequestResponseCycle | None = None
        self._sending: FileSending | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn does
        """Learn who is there; refuse when there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            transport.abort()
            return
        tls = transport.get_extra_info("ssl_object")
        der = tls.getpeercert(binary_form=True) if tls is not None else None
        self.app_state = {**self.app_state, "peer": peer_identity(der) if der else None}
        if tls is None:
            self.app_state[SEND_FILE] = self.send_file
        self._start_head()

    def data_received(self, data: bytes) -> None:
        """Count the head before the parser takes it."""
        if self._in_head:
            self._head_bytes += _head_length(data)
            if self._head_bytes > MAX_HEAD_LENGTH_BYTES:
                self.transport.write(_TOO_LONG)
                self.transport.close()
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        """Begin a head."""
        super().on_message_begin()
        if not self._in_head:  # the first begins with the connection
            self._in_head = True
            self._start_head()

    def on_headers_complete(self) -> None:
        """End a head."""
        self._in_head = False
        self._head_bytes = 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Note that nothing of this request is still to come: whoever reads its body need not watch the clock."""
        self.scope["state"][IS_WHOLE] = True
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timer, and the file that was under way."""
        if self._head_timer is not None:
            self._head_timer.cancel()
        if self._sending is not None:
            self._sending.stop()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """End an idle connection soon: a peer that does not answer TLS's goodbye must not delay a stop."""
        super().shutdown()
        if self.transport.is_closing():
            self.loop.call_later(GOODBYE_S, self.transport.abort)

    def _start_head(self) -> None:
        # One timer for many heads: it looks which one it is about when it fires.
        self._head_due_s = self.loop.time() + self.head_deadline_s
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_deadline_s, self._look_at_head)

    async def send_file(self, descriptor: int, offset: int, end: int, patience: Patience) -> None:
        """Send ``[offset, end)`` of an open file as the body, or a part of it, of the answer that has been started.

        The descriptor must stay open meanwhile. The answer still has to be ended with an empty part. Raises
        GoneError, TooSlowError, ShortFileError, or OSError of the disk; the connection must end then.
        """
        cycle = self._answering
        assert cycle is not None
        await self._flushed(cycle, patience)
        link: int = self.transport.get_extra_info("socket").fileno()
        self._sending = FileSending(self.loop, link, descriptor, offset, end, patience)
        try:
            await self._sending.run()
        except GoneError:
            self.transport.abort()
            raise
        finally:
            self._sending = None
        cycle.expected_content_length -= end - offset

    async def _flushed(self, cycle: RequestResponseCycle, patience: Patience) -> None:
        """Wait until the head has left: the kernel gets the file's bytes past the transport's buffer."""
        if not self.transport.is_closing() and self.transport.get_write_buffer_size():
            low, high = self.transport.get_write_buffer_limits()
            self.transport.set_write_buffer_limits(0)
            try:
                async with asyncio.timeout(patience.period_s):
                    await self.flow.drain()
            except TimeoutError:
                raise TooSlowError(0) from None
            if not self.transport.is_closing():
                self.transport.set_write_buffer_limits(high, low)
        if cycle.disconnected or self.transport.is_closing():
            raise GoneError

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def _look_at_head(self) -> None:
        self._head_timer = None
        if not self._in_head or self.transport.is_closing():
            return
        left_s = self._head_due_s - self.loop.time()
        if left_s > 0:
            self._head_timer = self.loop.call_later(left_s, self._look_at_head)
        else:
            self.transport.close()


_HEAD_END: Final = re.compile(rb"\r?\n\r?\n")


def _head_length(data: bytes) -> int:
    end = _HEAD_END.search(data)
    return end.end() if end is not None else len(data)
