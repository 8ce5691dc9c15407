"""Whole bodies and resumable bodies over a `Transport`: what trust/client.py calls a Source.

A payload lies at a name that contains its digest, so it never changes; a dropped connection is
continued where it stopped. What a server may answer to ``Range: bytes=N-`` (RFC 9110, 14.2-15.5.17):

* 206 with exactly ``bytes N-(length-1)/length`` (or ``/*``): continue;
* 200: this server does not do ranges, or the file changed; if it is known to have changed, raise
  RangeError, else skip N bytes and continue;
* anything else, another range above all: RangeError.

RangeError means: start again from 0. Digests are the caller's; these checks only avoid fetching
a gigabyte to find out that it was mixed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from firmament.agent.fetch import read_body, require_success
from firmament.errors import (
    HttpStatusError,
    LengthExceededError,
    RangeError,
    TransferError,
    TruncatedError,
    UnreachableError,
)
from firmament.log import logger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from firmament.agent.ports import Response, Transport
    from firmament.core.clock import Clock

log = logger("agent.resume")

MAX_FRUITLESS: Final = 4
"""Connections in a row that bring nothing before the error is passed on; progress resets the count."""
BACK_OFF_S: Final = 0.5
PASSING: Final = frozenset({500, 502, 503, 504})
OK: Final = 200
PARTIAL: Final = 206
NOT_SATISFIABLE: Final = 416


class TransportSource:
    """`trust.client.Source` over HTTP."""

    def __init__(
        self, transport: Transport, clock: Clock, *, payload_deadline_s: float, back_off_s: float = BACK_OFF_S
    ) -> None:
        self._transport = transport
        self._clock = clock
        self._payload_deadline_s = payload_deadline_s
        self._back_off_s = back_off_s

    def fetch(self, url: str, *, limit_bytes: int) -> bytes:
        """Return a whole small body; raises HttpStatusError with ``status`` unless it is 200."""
        response = self._transport.request("GET", url)
        require_success(response, url)
        return read_body(response, limit_bytes=limit_bytes, url=url)

    def stream(
        self, url: str, *, offset: int, length_bytes: int, end: int | None = None, max_fruitless: int = MAX_FRUITLESS
    ) -> Iterator[bytes]:
        """Yield the bytes from `offset` to `end`, continuing after dropped connections.

        `length_bytes` is the signed length of the file, and what `end` is if it is not given.

        Raises RangeError, LengthExceededError, HttpStatusError, SlowError, TlsError at once, and
        TruncatedError or UnreachableError after `max_fruitless` connections without a byte.
        """
        body = _Body(url, length_bytes, position=offset, end=length_bytes if end is None else end)
        fruitless = 0
        deadline_at_s = self._clock.monotonic_s() + self._payload_deadline_s
        while body.position < body.end:
            before = body.position
            try:
                yield from self._continue(body, deadline_s=deadline_at_s - self._clock.monotonic_s())
            except (TruncatedError, UnreachableError, HttpStatusError) as error:
                fruitless = 0 if body.position > before else fruitless + 1
                if body.is_short or fruitless >= max_fruitless or not _is_passing(error):
                    raise
                log.info("payload.resumed", offset=body.position, length_bytes=length_bytes, code=error.code)
                self._clock.sleep(self._back_off_s * 2**fruitless)

    def _continue(self, body: _Body, *, deadline_s: float) -> Iterator[bytes]:
        headers = {}
        if body.is_part:
            last = "" if body.end == body.length_bytes else body.end - 1
            headers["Range"] = f"bytes={body.position}-{last}"
            if body.etag:
                headers["If-Range"] = body.etag
        response = self._transport.request("GET", body.url, headers=headers, deadline_s=max(deadline_s, 0.001))
        try:
            skip = body.check(response)
            body.etag = _strong_etag(response)
            for found in _after(response.chunks(), skip):
                # A server without ranges sends the whole file, however little of it was asked for.
                chunk = found[: body.end - body.position] if body.end < body.length_bytes else found
                if body.position + len(chunk) > body.end:
                    raise LengthExceededError(
                        "More bytes came than were signed", url=body.url, signed=body.length_bytes
                    )
                body.position += len(chunk)
                yield chunk
                if len(chunk) < len(found):
                    return
        finally:
            response.close()
        if body.position < body.end:
            raise TruncatedError("The body ended early", url=body.url, got=body.position, signed=body.length_bytes)


@dataclass
class _Body:
    """One file on its way."""

    url: str
    length_bytes: int
    position: int
    end: int
    etag: str = ""
    is_short: bool = False
    """The server's whole file is shorter than was signed: asking again brings nothing."""

    @property
    def is_part(self) -> bool:
        """Whether less than the whole file is asked for."""
        return self.position > 0 or self.end < self.length_bytes

    def check(self, response: Response) -> int:
        """Return how many bytes of the answer to skip; raises as described at the head of this file."""
        if response.status == NOT_SATISFIABLE:
            raise RangeError("The server does not have the rest of the file", url=self.url, offset=self.position)
        if response.status == OK:
            length = response.headers.get("content-length", "")
            if length.isdecimal() and int(length) > self.length_bytes:
                raise LengthExceededError("The file is longer than was signed", url=self.url, got=length)
            if length.isdecimal() and int(length) < self.length_bytes:
                self.is_short = True
                raise TruncatedError("The file is shorter than was signed", url=self.url, got=length)
            self._require_same(response)
            return self.position
        if response.status == PARTIAL:
            expected = f"bytes {self.position}-{self.end - 1}/"
            found = response.headers.get("content-range", "")
            if not self.is_part or found not in {f"{expected}{self.length_bytes}", f"{expected}*"}:
                raise RangeError("The server answered another range", url=self.url, expected=expected, got=found[:64])
            self._require_same(response)
            return 0
        require_success(response, self.url)
        raise HttpStatusError("The server answered something else than a file", url=self.url, status=response.status)

    def _require_same(self, response: Response) -> None:
        if self.position and self.etag and _strong_etag(response) != self.etag:
            raise RangeError("The file changed while it was fetched", url=self.url, offset=self.position)


def _after(chunks: Iterator[bytes], skip: int) -> Iterator[bytes]:
    for chunk in chunks:
        if skip >= len(chunk):
            skip -= len(chunk)
            continue
        yield chunk[skip:] if skip else chunk
        skip = 0


def _strong_etag(response: Response) -> str:
    etag = response.headers.get("etag", "")
    return etag if etag.startswith('"') and len(etag) <= 256 else ""  # noqa: PLR2004 - longer ones are not echoed


def _is_passing(error: TransferError) -> bool:
    return not isinstance(error, HttpStatusError) or error.facts.get("status") in PASSING
