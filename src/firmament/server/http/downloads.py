"""Payloads from their store to slow and fast peers alike, without starving anybody.

The kernel sends files by itself where it can (connection.py). Elsewhere 64 KiB at a time, read
without blocking when the page is cached and in a thread when it is not, one yield to the loop per
chunk: a fast peer would otherwise hold the loop for seconds. A peer is cut only when it takes less
than the minimum rate; the total time of a progressing download is not limited.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from firmament.errors import OverloadedError
from firmament.log import logger
from firmament.server.http.file_sending import Patience, ShortFileError, TooSlowError
from firmament.server.http.messages import SEND_FILE, answer, header
from firmament.server.http.ranges import ByteRange, Unsatisfiable, allows_range, names_etag, parse_range
from firmament.server.payloads.store import CHUNK_BYTES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from firmament.server.http.messages import AsgiScope, Send
    from firmament.server.payloads.port import Source

    SendFile = Callable[[int, int, int, Patience], Awaitable[None]]

log = logger("server.downloads")

GRACE_S: Final = 10.0
"""Added to every chunk's deadline: a mobile link pauses."""
IMMUTABLE: Final = "public, max-age=31536000, immutable"
NO_CACHE: Final = "no-cache"
BUSY_RETRY_S: Final = 30


class Downloads:
    """Sends files; knows how many are under way."""

    def __init__(self, *, max_in_all: int, max_per_peer: int, min_rate_bytes_per_s: int) -> None:
        self._max_in_all = max_in_all
        self._max_per_peer = max_per_peer
        self._chunk_deadline_s = GRACE_S + CHUNK_BYTES / min_rate_bytes_per_s
        self._patience = Patience(CHUNK_BYTES, self._chunk_deadline_s)
        self._peers: Counter[str] = Counter()
        self.active = 0

    async def send_source(
        self, scope: AsgiScope, send: Send, source: Source, *, peer: str, cache_control: str, request_id: str
    ) -> int:
        """Answer GET or HEAD with a source or one range of it, and close it; return the status.

        Raises OverloadedError when too many are under way, or when the source's store is away.
        """
        try:
            return await self._respond(
                scope, send, source, peer=peer, cache_control=cache_control, request_id=request_id
            )
        finally:
            source.close()

    async def _respond(
        self, scope: AsgiScope, send: Send, source: Source, *, peer: str, cache_control: str, request_id: str
    ) -> int:
        etag, total = source.etag, source.length_bytes
        base = {
            "etag": etag,
            "accept-ranges": "bytes",
            "cache-control": cache_control,
            "x-request-id": request_id,
        }
        if names_etag(_text(scope, b"if-none-match"), etag):
            await send({"type": "http.response.start", "status": 304, "headers": _headers(base)})
            await send({"type": "http.response.body", "body": b""})
            return 304
        wanted: ByteRange | None = None
        if allows_range(_text(scope, b"if-range"), etag):
            try:
                wanted = parse_range(_text(scope, b"range"), total)
            except Unsatisfiable:
                await answer(send, 416, _headers({**base, "content-range": f"bytes */{total}"}))
                return 416
        part = wanted or ByteRange(0, total)
        headers = {**base, "content-type": "application/octet-stream", "content-length": str(part.length_bytes)}
        status = 200
        if wanted is not None:
            status = 206
            last = part.offset + part.length_bytes - 1
            headers["content-range"] = f"bytes {part.offset}-{last}/{total}"
        start = {"type": "http.response.start", "status": status, "headers": _headers(headers)}
        if scope["method"] == "HEAD":
            await send(start)
            await send({"type": "http.response.body", "body": b""})
            return status
        self._enter(peer)
        try:
            descriptor, send_file = source.descriptor, scope["state"].get(SEND_FILE)
            if send_file is None or descriptor is None or part.length_bytes <= CHUNK_BYTES:
                await self._stream(send, start, source, part, peer)
            else:
                await send(start)
                await self._hand_over(send_file, descriptor, part, peer)
                await send({"type": "http.response.body", "body": b""})
        finally:
            self._leave(peer)
        return status

    def _enter(self, peer: str) -> None:
        if self.active >= self._max_in_all or self._peers[peer] >= self._max_per_peer:
            raise OverloadedError("Too many downloads at once", retry_after_s=BUSY_RETRY_S)
        self.active += 1
        self._peers[peer] += 1

    def _leave(self, peer: str) -> None:
        self.active -= 1
        self._peers[peer] -= 1
        if not self._peers[peer]:
            del self._peers[peer]

    async def _hand_over(self, send_file: SendFile, descriptor: int, part: ByteRange, peer: str) -> None:
        """Let the kernel send it."""
        end = part.offset + part.length_bytes
        try:
            await send_file(descriptor, part.offset, end, self._patience)
        except ShortFileError as error:
            log.error("download.short-file", offset=error.offset, expected=end)  # noqa: TRY400 - a fact, no defect
            raise CutOffError from None
        except TooSlowError as error:
            log.info("download.too-slow", peer=peer, offset=error.offset)
            raise CutOffError from None
        except OSError as error:
            log.error("download.unreadable", offset=part.offset, reason=error.strerror)  # noqa: TRY400 - the disk's
            raise CutOffError from None

    async def _stream(self, send: Send, start: dict[str, Any], source: Source, part: ByteRange, peer: str) -> None:
        offset, end = part.offset, part.offset + part.length_bytes
        chunks = source.read(offset, end)
        # Before anything is said: a store that is away is an answer of its own, not half of one.
        chunk = await anext(chunks, b"")
        await send(start)
        if offset == end:
            await send({"type": "http.response.body", "body": b""})
        while offset < end:
            if not chunk:
                # The file shrank under us: end the connection instead of inventing bytes.
                log.error("download.short-file", offset=offset, expected=end)
                raise CutOffError
            offset += len(chunk)
            try:
                async with asyncio.timeout(self._chunk_deadline_s):
                    await send({"type": "http.response.body", "body": chunk, "more_body": offset < end})
                    if offset < end:  # else the place is free before the next request on this connection is looked at
                        await asyncio.sleep(0)
            except TimeoutError:
                log.info("download.too-slow", peer=peer, offset=offset)
                raise CutOffError from None
            try:
                chunk = await anext(chunks, b"")
            except OverloadedError as error:
                log.warning("download.store-away", peer=peer, offset=offset, reason=str(error))
                raise CutOffError from None


class CutOffError(Exception):
    """A download that cannot go on; the connection is closed without the rest."""


def _text(scope: AsgiScope, name: bytes) -> str | None:
    value = header(scope, name)
    return value.decode("latin-1") if value is not None else None


def _headers(values: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in values.items()]
