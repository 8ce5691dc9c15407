"""Live parts: regions of pages, drawn once per tick for everybody who may see the same.

A message carries state, not an event: one that is lost or comes twice does no harm, and a viewer
gets every region that is newer than its Last-Event-ID. Ids carry a mark of this process, so that
a restart sends everything again.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
from typing import TYPE_CHECKING, Final

from starlette.responses import Response, StreamingResponse

from firmament.console.api import Api, ApiError, Caller
from firmament.console.visit import Me, Visit
from firmament.log import logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from starlette.types import ASGIApp

    from firmament.console.render import Templates
    from firmament.core.clock import Clock

    Drawing = Callable[[Visit, str], Awaitable[Mapping[str, str]]]

log = logger("console.live")

TICK_S: Final = 1.0
"""A region changes at most once a second: nobody reads faster, and a list that moves cannot be used."""
HEARTBEAT_S: Final = 5.0
RETRY_MS: Final = 2000
MAX_TOPICS: Final = 24
MAX_STREAMS: Final = 500
TOPIC: Final = re.compile(r"[a-z]+(?:\.[A-Za-z0-9_-]{1,64})?")

_DRAWINGS: dict[str, Drawing] = {}


def draws(kind: str) -> Callable[[Drawing], Drawing]:
    """Register what draws the regions of a topic, e.g. ``rollout`` for ``rollout.42``."""

    def register(drawing: Drawing) -> Drawing:
        _DRAWINGS[kind] = drawing
        return drawing

    return register


class _Topic:
    """The regions of one topic for one audience."""

    def __init__(self) -> None:
        self.regions: dict[str, tuple[int, str]] = {}
        self.viewers: list[_Viewer] = []
        self.fresh_at_s = 0.0


class _Viewer:
    def __init__(self, api: Api, me: Me) -> None:
        self.api = api
        self.me = me


class Live:
    """Streams of all browsers."""

    def __init__(self, operators: ASGIApp, templates: Templates, clock: Clock) -> None:
        self._operators = operators
        self._templates = templates
        self._clock = clock
        self._topics: dict[tuple[str, tuple[str, ...]], _Topic] = {}
        self._mark = secrets.token_hex(4)
        self._version = 0
        self._changed = asyncio.Event()
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.streams = 0
        self.drawn = 0
        """Regions drawn so far, for the test that viewers share them."""

    def start(self) -> None:
        """Begin to draw."""
        self._task = asyncio.create_task(self._draw_for_ever())

    async def stop(self) -> None:
        """End every stream at once."""
        self._stopping.set()
        self._tell()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def respond(self, visit: Visit) -> Response:
        """Answer with a stream of the topics that the address names."""
        assert visit.request is not None
        names = [name for name in dict.fromkeys(visit.request.query_params.getlist("t")) if TOPIC.fullmatch(name)]
        names = [name for name in names[:MAX_TOPICS] if name.partition(".")[0] in _DRAWINGS]
        if not names:
            return Response(status_code=204)  # tells EventSource to stop asking
        if self.streams >= MAX_STREAMS or self._stopping.is_set():
            return Response(status_code=503, headers={"retry-after": "4"})
        caller = Caller(visit.api.token, visit.request.client.host if visit.request.client else "", visit.request_id)
        viewer = _Viewer(Api(self._operators, caller), visit.who)
        seen = self._seen(visit.request.headers.get("last-event-id", ""))
        return StreamingResponse(
            self._stream(viewer, names, seen),
            media_type="text/event-stream",
            headers={"x-accel-buffering": "no", "cache-control": "no-store"},
        )

    def _seen(self, last_event_id: str) -> int:
        mark, _, number = last_event_id.partition("-")
        return int(number) if mark == self._mark and number.isdigit() and len(number) < 19 else 0  # noqa: PLR2004

    async def _stream(self, viewer: _Viewer, names: list[str], seen: int) -> AsyncIterator[bytes]:
        topics = {name: self._topics.setdefault((name, viewer.me.audience), _Topic()) for name in names}
        for topic in topics.values():
            topic.viewers.append(viewer)
        self.streams += 1
        beat_at_s = self._clock.monotonic_s() + HEARTBEAT_S
        try:
            yield f"retry: {RETRY_MS}\n\n".encode()
            while not self._stopping.is_set():
                changed = self._changed
                version = self._version
                for name, topic in topics.items():
                    newer = [html for at, html in topic.regions.values() if at > seen]
                    if newer:
                        yield _message("patch", f"{self._mark}-{version}", name, "\n".join(newer))
                seen = max(seen, version)
                now_s = self._clock.monotonic_s()
                if now_s >= beat_at_s:
                    beat_at_s = now_s + HEARTBEAT_S
                    if not await _is_welcome(viewer):
                        yield _message("goodbye", "", "", "")
                        return
                    # Only topics that could be read: a heart that beats over old numbers would lie.
                    fresh = [name for name, topic in topics.items() if now_s - topic.fresh_at_s < HEARTBEAT_S]
                    if fresh:
                        yield _message("beat", "", "\n".join(fresh), "")
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), max(0.05, beat_at_s - self._clock.monotonic_s()))
        finally:
            self.streams -= 1
            for name, topic in topics.items():
                topic.viewers.remove(viewer)
                if not topic.viewers:
                    self._topics.pop((name, viewer.me.audience), None)

    async def _draw_for_ever(self) -> None:
        while not self._stopping.is_set():
            before_s = self._clock.monotonic_s()
            for (name, _), topic in list(self._topics.items()):
                if topic.viewers:
                    await self._draw(name, topic)
            spent_s = self._clock.monotonic_s() - before_s
            # A slow database is asked less often, never more than half of the time.
            await asyncio.sleep(max(TICK_S - spent_s, spent_s, 0.05))

    async def _draw(self, name: str, topic: _Topic) -> None:
        kind, _, key = name.partition(".")
        viewer = topic.viewers[-1]
        visit = Visit(None, viewer.api, self._templates, self._clock.now(), viewer.me, "")
        try:
            regions = await _DRAWINGS[kind](visit, key)
        except ApiError as error:
            log.info("live.refused", topic=name, code=error.code)
            return
        except Exception as error:  # noqa: BLE001 - one topic that cannot be drawn must not stop the others
            log.error("live.failed", topic=name, reason=repr(error))  # noqa: TRY400 - a sentence
            return
        topic.fresh_at_s = self._clock.monotonic_s()
        for region, html in regions.items():
            self.drawn += 1
            known = topic.regions.get(region)
            if known is None or known[1] != html:
                self._version += 1
                topic.regions[region] = (self._version, html)
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


async def _is_welcome(viewer: _Viewer) -> bool:
    try:
        me = Me.of_json(await viewer.api.get("/me"))
    except ApiError as error:
        return error.status >= 500  # noqa: PLR2004 - the server's trouble is not the viewer's
    return me.audience == viewer.me.audience


def _message(event: str, number: str, topic: str, html: str) -> bytes:
    lines = [f"event: {event}"]
    if number:
        lines.append(f"id: {number}")
    lines += [f"data: {line}" for line in (*topic.split("\n"), *(line for line in html.split("\n") if line.strip()))]
    return ("\n".join(lines) + "\n\n").encode()
