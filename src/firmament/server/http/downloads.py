"""Files from disk to slow and fast peers alike, without starving anybody (stack.md §2).

64 KiB at a time, read without blocking when the page is cached and in a thread when it is not,
one yield to the loop per chunk: a fast peer would otherwise hold the loop for seconds. A peer is
cut only when it takes less than the minimum rate; the total time of a progressing download is
not limited.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections import Counter
from typing import TYPE_CHECKING, Final

from firmament.errors import NotFoundError, OverloadedError
from firmament.log import logger
from firmament.server.http.messages import answer, header
from firmament.server.http.ranges import ByteRange, Unsatisfiable, allows_range, names_etag, parse_range

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from firmament.server.http.messages import AsgiScope, Send

log = logger("server.downloads")

CHUNK_BYTES: Final = 64 * 1024
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
        self._peers: Counter[str] = Counter()
        self.active = 0

    async def send_file(
        self, scope: AsgiScope, send: Send, path: Path, *, peer: str, cache_control: str, request_id: str
    ) -> int:
        """Answer GET or HEAD with a file or one range of it; return the status.

        Raises NotFoundError, or OverloadedError when too many are under way.
        """
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise NotFoundError("There is no such file in the repository") from error
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise NotFoundError("There is no such file in the repository")
            return await self._respond(
                scope, send, descriptor, found, peer=peer, cache_control=cache_control, request_id=request_id
            )
        finally:
            os.close(descriptor)

    async def _respond(
        self,
        scope: AsgiScope,
        send: Send,
        descriptor: int,
        found: os.stat_result,
        *,
        peer: str,
        cache_control: str,
        request_id: str,
    ) -> int:
        etag = f'"{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_size:x}"'
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
                wanted = parse_range(_text(scope, b"range"), found.st_size)
            except Unsatisfiable:
                await answer(send, 416, _headers({**base, "content-range": f"bytes */{found.st_size}"}))
                return 416
        part = wanted or ByteRange(0, found.st_size)
        headers = {**base, "content-type": "application/octet-stream", "content-length": str(part.length_bytes)}
        status = 200
        if wanted is not None:
            status = 206
            last = part.offset + part.length_bytes - 1
            headers["content-range"] = f"bytes {part.offset}-{last}/{found.st_size}"
        if scope["method"] == "HEAD":
            await send({"type": "http.response.start", "status": status, "headers": _headers(headers)})
            await send({"type": "http.response.body", "body": b""})
            return status
        self._enter(peer)
        try:
            await send({"type": "http.response.start", "status": status, "headers": _headers(headers)})
            await self._stream(send, descriptor, part, peer)
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

    async def _stream(self, send: Send, descriptor: int, part: ByteRange, peer: str) -> None:
        offset, end = part.offset, part.offset + part.length_bytes
        if offset == end:
            await send({"type": "http.response.body", "body": b""})
        while offset < end:
            chunk = await read_chunk(descriptor, offset, min(CHUNK_BYTES, end - offset))
            if not chunk:
                # The file shrank under us: end the connection instead of inventing bytes.
                log.error("download.short-file", offset=offset, expected=end)
                raise CutOffError
            offset += len(chunk)
            try:
                async with asyncio.timeout(self._chunk_deadline_s):
                    await send({"type": "http.response.body", "body": chunk, "more_body": offset < end})
                    await asyncio.sleep(0)
            except TimeoutError:
                log.info("download.too-slow", peer=peer, offset=offset)
                raise CutOffError from None


class CutOffError(Exception):
    """A download that cannot go on; the connection is closed without the rest."""


async def read_chunk(descriptor: int, offset: int, length_bytes: int) -> bytes:
    """Read cached pages at once, others in a thread; fewer bytes only at the end of the file."""
    buffer = bytearray(length_bytes)
    try:
        count = os.preadv(descriptor, [buffer], offset, os.RWF_NOWAIT)
    except (BlockingIOError, OSError, AttributeError):
        count = -1
    if count < length_bytes:
        # Not all of it is in the page cache (or this system cannot tell): let a thread wait for the disk.
        return await asyncio.to_thread(os.pread, descriptor, length_bytes, offset)
    return bytes(buffer)


def _text(scope: AsgiScope, name: bytes) -> str | None:
    value = header(scope, name)
    return value.decode("latin-1") if value is not None else None


def _headers(values: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in values.items()]
