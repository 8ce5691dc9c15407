"""Payloads for others nearby, over plain HTTP: read-only, by digest only, few at a time, at a bounded rate.

The address is that of any cache, ``/<product>/<version>/<digest>.<name>``; only the digest counts.
Whoever asks is not asked who they are, and need not believe a byte: they compare with what they
were signed. What is not sealed can be read by everybody who reaches this address.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, Final

from firmament.agent.fetch import TokenBucket
from firmament.agent.http_server import BoundedServer
from firmament.errors import AddressInUseError, FirmamentError
from firmament.log import logger

if TYPE_CHECKING:
    from firmament.agent.share import Share, ShareSettings
    from firmament.core.clock import Clock
    from firmament.durable import Reader

log = logger("agent.share")

MAX_CONNECTIONS: Final = 4
SILENCE_S: Final = 10.0
"""A neighbour that neither asks nor takes anything for so long is left."""
MAX_ANSWER_S: Final = 600.0
"""No answer takes longer: the neighbour asks again from where it is, and others get their turn."""
_PATH: Final = re.compile(r"/[A-Za-z0-9._/-]{1,400}/([0-9a-f]{64,128})\.[A-Za-z0-9._-]{1,200}")
_RANGE: Final = re.compile(r"bytes=(\d{1,15})-(\d{1,15})?")


class ShareServer:
    """Serves a `Share` in threads of its own."""

    def __init__(self, settings: ShareSettings, share: Share, clock: Clock) -> None:
        self._settings = settings
        self.share: Final = share
        self.clock: Final = clock
        self._server: BoundedServer | None = None

    @property
    def url(self) -> str:
        """What others write into `payload.neighbours`."""
        host, port = self._server.bound if self._server is not None else (self._settings.host, self._settings.port)
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/"

    def bucket(self) -> TokenBucket:
        """Return the rate of one connection: together they stay below the setting."""
        rate = self._settings.max_rate_bytes_per_s
        return TokenBucket(self.clock, max(rate // MAX_CONNECTIONS, 1) if rate else 0)

    def start(self) -> None:
        """Listen; raises AddressInUseError."""
        server = self

        class Handler(_Handler):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                self.serving = server
                super().__init__(*args, **kwargs)

        address = (self._settings.host, self._settings.port)
        try:
            self._server = BoundedServer(address, Handler, max_connections=MAX_CONNECTIONS, name="share")
        except OSError as error:
            raise AddressInUseError("Payloads cannot be shared", url=self.url, reason=error) from error
        self._server.start()
        log.info("share.serving", url=self.url)

    def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.stop()
            self._server = None


class _Handler(BaseHTTPRequestHandler):
    serving: ShareServer
    timeout = SILENCE_S
    protocol_version = "HTTP/1.1"
    server_version = "firmament-agent"
    sys_version = ""

    def do_HEAD(self) -> None:
        """Say whether a payload is here."""
        self.do_GET()

    def do_GET(self) -> None:
        """Send a payload, or the part of it that was asked for."""
        match = _PATH.fullmatch(self.path)
        found = self.serving.share.open(match[1]) if match is not None else None
        if match is None or found is None:
            self._head(HTTPStatus.NOT_FOUND, 0)
            return
        reader, length_bytes = found
        try:
            self._send(reader, length_bytes, etag=f'"{match[1]}"')
        finally:
            reader.close()

    def _send(self, reader: Reader, length_bytes: int, *, etag: str) -> None:
        wanted = self.headers.get("Range")
        start, end = 0, length_bytes
        if wanted is not None and self.headers.get("If-Range", etag) == etag:
            match = _RANGE.fullmatch(wanted.strip())
            start = int(match[1]) if match is not None else length_bytes
            end = min(int(match[2]) + 1, length_bytes) if match is not None and match[2] else length_bytes
            if start >= end:
                self._head(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, 0, {"Content-Range": f"bytes */{length_bytes}"})
                return
            part = {"Content-Range": f"bytes {start}-{end - 1}/{length_bytes}", "ETag": etag}
            self._head(HTTPStatus.PARTIAL_CONTENT, end - start, part)
        else:
            self._head(HTTPStatus.OK, length_bytes, {"ETag": etag, "Accept-Ranges": "bytes"})
        if self.command == "GET":
            self._pieces(reader, start, end)

    def _pieces(self, reader: Reader, start: int, end: int) -> None:
        clock, bucket = self.serving.clock, self.serving.bucket()
        until_s = clock.monotonic_s() + MAX_ANSWER_S
        is_last, self.close_connection = self.close_connection, True  # until the last byte was sent
        while start < end:
            try:
                piece = reader.read_at(start, min(bucket.chunk_bytes, end - start))
            except FirmamentError as error:
                log.info("share.unreadable", code=error.code)
                return
            if not piece or clock.monotonic_s() > until_s:
                return
            bucket.take(len(piece))
            self.wfile.write(piece)
            start += len(piece)
        self.close_connection = is_last

    def _head(self, status: HTTPStatus, length_bytes: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        fixed = {"Content-Type": "application/octet-stream", "Content-Length": str(length_bytes)}
        for name, value in {**fixed, "X-Content-Type-Options": "nosniff", **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
        """Log, where the library would print."""
        log.debug("share.request", line=format % args)
