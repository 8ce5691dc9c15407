"""Small ASGI helpers for the raw edges: bodies with ceilings, JSON and problem answers."""

from __future__ import annotations

import asyncio
import itertools
import json
import secrets
import traceback
from typing import TYPE_CHECKING, Any, Final

from firmament.errors import FirmamentError, MalformedError, SlowError, TooLargeError
from firmament.log import logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping, Sequence

    AsgiScope = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
    Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
    Headers = Sequence[tuple[bytes, bytes]]

log = logger("server.http")

JSON: Final = (b"content-type", b"application/json")
PROBLEM: Final = (b"content-type", b"application/problem+json")
NO_STORE: Final = (b"cache-control", b"no-store")
CLOSE: Final = (b"connection", b"close")
_NOT_MODIFIED: Final = 304
IS_WHOLE: Final = "is_whole"
"""In a request's state: its whole body has arrived (connection.py)."""
SEND_FILE: Final = "send_file"
"""In a request's state where the kernel can send files by itself: `DeviceConnection.send_file`."""
_ENCODER: Final = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False)


class GoneError(Exception):
    """The peer went away before it was answered; there is nobody to tell."""


_RUN: Final = secrets.token_hex(4)
_NUMBERS: Final = itertools.count(1)


def new_request_id() -> str:
    """Return an id for the log line and the answer: of this run of the server, and counted; no secret."""
    return f"{_RUN}{next(_NUMBERS):08x}"


def header(scope: AsgiScope, name: bytes) -> bytes | None:
    """Return a request header; raises MalformedError when it is there twice."""
    found: bytes | None = None
    for key, value in scope["headers"]:
        if key == name:
            if found is not None:
                raise MalformedError("A header appears twice", header=name.decode())
            found = value
    return found


def content_length(scope: AsgiScope) -> int | None:
    """Return the announced body length."""
    text = header(scope, b"content-length")
    return int(text) if text is not None and text.isdigit() else None


async def read_body(scope: AsgiScope, receive: Receive, *, limit_bytes: int, deadline_s: float) -> bytes:
    """Read a whole small body; raises TooLargeError, SlowError, or GoneError."""
    announced = content_length(scope)
    if announced is not None and announced > limit_bytes:
        raise TooLargeError("The body is longer than allowed", length_bytes=announced, limit_bytes=limit_bytes)
    if scope["state"].get(IS_WHOLE):  # it is here already: no timer, which most polls would pay for
        return await _read(receive, limit_bytes)
    try:
        async with asyncio.timeout(deadline_s):
            return await _read(receive, limit_bytes)
    except TimeoutError:
        raise SlowError("The body did not arrive in time", deadline_s=deadline_s) from None


async def _read(receive: Receive, limit_bytes: int) -> bytes:
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise GoneError
        part: bytes = message.get("body", b"")
        body += part
        if len(body) > limit_bytes:
            raise TooLargeError("The body is longer than allowed", limit_bytes=limit_bytes)
        if not message.get("more_body", False):
            return body


async def answer(send: Send, status: int, headers: Headers, body: bytes = b"") -> None:
    """Send a whole answer."""
    if status != _NOT_MODIFIED:  # it would tell the length of what it does not say again (RFC 9110 §8.6)
        headers = [*headers, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def answer_json(send: Send, status: int, value: Any, *, request_id: str) -> None:
    """Send a value as JSON that nobody may cache."""
    await answer_encoded(send, status, _ENCODER.encode(value).encode(), request_id=request_id)


async def answer_encoded(send: Send, status: int, body: bytes, *, request_id: str) -> None:
    """Send what is JSON already; nobody may cache it."""
    await answer(send, status, (JSON, NO_STORE, (b"x-request-id", request_id.encode())), body)


def problem(error: FirmamentError, request_id: str) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Return status, headers and body of RFC 9457 for an error; facts are values, never secrets."""
    facts = {
        name: value if isinstance(value, bool | int | str) or value is None else str(value)
        for name, value in error.facts.items()
    }
    status = 408 if isinstance(error, SlowError) else error.http_status
    body = json.dumps(
        {
            "type": error.code,
            "title": error.problem,
            "status": status,
            "detail": str(error),
            "retry": error.retry.value,
            "facts": facts,
            "request_id": request_id,
        },
        ensure_ascii=False,
    ).encode()
    headers = [PROBLEM, NO_STORE, (b"x-request-id", request_id.encode())]
    wait_s = error.facts.get("retry_after_s")
    if isinstance(wait_s, int):
        headers.append((b"retry-after", str(wait_s).encode()))
    if status == 401:  # noqa: PLR2004 - HTTP's own number
        headers.append((b"www-authenticate", b'Bearer realm="firmament"'))
    if status in {408, 413}:
        headers.append(CLOSE)  # the rest of the body is not read
    return status, headers, body


def unexpected(error: Exception, request_id: str) -> FirmamentError:
    """Log a defect of ours with its trace; return what the peer is told about it."""
    trace = "".join(traceback.format_exception(error))
    log.error("request.failed", request_id=request_id, reason=repr(error), trace=trace)
    return FirmamentError("The server failed; its log has the reason under this request id", request_id=request_id)
