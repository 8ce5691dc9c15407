"""Conditional polls, answered by the connection itself: no task, no ASGI messages, a few bytes (ADR-0037).

Most of what a small request costs a server in Python is the machinery around it. A conditional poll
is most of what a fleet sends, has no body and a short answer. Everything else, and whatever is
unusual about one (a body, an upgrade, an old protocol, one behind another in a pipeline), goes the
ordinary way, which answers conditional polls alike.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from firmament.protocol.v1 import paths

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Coroutine

    from firmament.server.http.messages import AsgiScope, Headers

Answer = tuple[int, "Headers", bytes]
"""Status, headers, body."""

_POLL: Final = paths.POLL.encode()
_UNUSUAL: Final = frozenset({b"content-length", b"transfer-encoding", b"expect", b"upgrade"})
_BARE: Final = 304


class Short(Protocol):
    """Who answers conditional polls."""

    answers_at_once: bool
    """Whether `answer` never waits, so that it needs no task."""

    def answer(self, scope: AsgiScope) -> Coroutine[Any, Any, Answer]:
        """Answer one; raises nothing."""
        ...


class _Exchange:
    """Stands for the request where uvicorn looks for its own object of one (`cycle`)."""

    __slots__ = ("body", "disconnected", "keep_alive", "more_body", "response_complete")

    def __init__(self) -> None:
        self.body = b""
        self.more_body = False
        self.keep_alive = True
        self.disconnected = False
        self.response_complete = False

    @property
    def message_event(self) -> _Exchange:
        """Nobody waits for more of the request."""
        return self

    def set(self) -> None:
        """See `message_event`."""


class ShortConnection(HttpToolsProtocol):
    """uvicorn's connection with a short way for conditional polls; `short` says who answers them, if anybody does."""

    short: ClassVar[Short | None] = None
    _bare: ClassVar[tuple[object, bytes]] = (None, b"")
    """The usual answer, written down for one value of uvicorn's default headers (their date changes)."""

    def on_headers_complete(self) -> None:
        """Answer a conditional poll here, leave others to uvicorn."""
        short = self.short
        if short is None or self.url != _POLL or not self._is_plain():
            super().on_headers_complete()
            return
        exchange = _Exchange()
        self.cycle = exchange  # type: ignore[assignment]  # it has all that this class uses
        answering = short.answer(self.scope)  # type: ignore[arg-type]  # a TypedDict of the same keys
        if not short.answers_at_once:
            task = self.loop.create_task(answering)
            self.tasks.add(task)  # type: ignore[arg-type]  # uvicorn only waits for them
            task.add_done_callback(partial(self._finish, exchange))
            return
        try:
            answering.send(None)
        except StopIteration as done:
            self._send(exchange, done.value)
        else:
            raise AssertionError("it had to wait")

    def _is_plain(self) -> bool:
        parser = self.parser
        before: Any = self.cycle  # None before the first, whatever uvicorn declares
        return (
            parser.get_method() == b"GET"
            and (before is None or before.response_complete)
            and parser.get_http_version() == "1.1"
            and parser.should_keep_alive()
            and _UNUSUAL.isdisjoint([name for name, _ in self.headers])
        )

    def _finish(self, exchange: _Exchange, task: asyncio.Task[Answer]) -> None:
        self.tasks.discard(task)
        if not task.cancelled():
            self._send(exchange, task.result())

    def _send(self, exchange: _Exchange, answer: Answer) -> None:
        exchange.response_complete = True
        if exchange.disconnected:
            return
        self.transport.write(self._encoded(answer))
        if not exchange.keep_alive:  # a stop was asked for meanwhile
            self.transport.close()
        self.on_response_complete()

    def _encoded(self, answer: Answer) -> bytes:
        status, headers, body = answer
        defaults = self.server_state.default_headers
        if status == _BARE:
            written, data = ShortConnection._bare
            if written is not defaults:
                data = _encode(status, [*defaults, *headers], b"")
                ShortConnection._bare = (defaults, data)
            return data
        length = (b"content-length", b"%d" % len(body))
        return _encode(status, [*defaults, *headers, length], body)


def _encode(status: int, headers: Headers, body: bytes) -> bytes:
    lines = b"".join([name + b": " + value + b"\r\n" for name, value in headers])
    return STATUS_LINE[status] + lines + b"\r\n" + body
