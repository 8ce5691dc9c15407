"""Operator API: notifications, the outlets they and events go to, and the event stream."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, Final

from fastapi import Request, Response
from starlette.responses import StreamingResponse

from firmament.core.ids import PRODUCT
from firmament.errors import FirmamentError, MalformedError, OverloadedError
from firmament.server import events
from firmament.server.audit import chain
from firmament.server.events import Event
from firmament.server.http import out_shapes as shapes
from firmament.server.http.operator_base import DAY_S, INTEGER, TEXT, OperatorPart, query_integer
from firmament.server.http.shapes import takes
from firmament.server.notify import store as notifications
from firmament.server.notify.decide import Severity
from firmament.server.notify.news import halted
from firmament.server.outbox import store as outlets
from firmament.server.outbox.model import Outlet, OutletKind, Parcel, Takes
from firmament.server.scope import Action

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from firmament.server.scope import Scope

BASE: Final = "/api/v1/notifications"
MAX_STREAMS: Final = 200
HEARTBEAT_S: Final = 5.0
"""A page says so when its data is older than 8 s."""
LOOK_S: Final = 0.5
RECHECK_S: Final = 30.0
"""How long a stream goes on after its token was revoked, at most."""
EXAMPLE: Final[dict[str, Any]] = {
    "release": "thermo/2.14.0",
    "wave": 3,
    "failed": 73,
    "finished": 3529,
    "limit_ratio": "0.02",
    "went_back_online": 70,
    "silent": 3,
    "not_started": 95386,
    "in_flight": 85,
    "updated": 3456,
    "common": {"attribute": "hardware", "value": "C", "share": 0.86},
}


class OutApi(OperatorPart):
    """Whom to tell, and what was told."""

    def add_routes(self) -> None:
        """See the base."""
        router = self.router
        self._streams = 0
        outlet = BASE + "/outlets/{name}"
        router.get(BASE, response_model=shapes.Notifications, summary="List notifications")(self.list_notifications)
        router.get(BASE + "/preview", response_model=shapes.Preview, summary="Show how a stop is told")(self.preview)
        router.post(
            BASE + "/{number}/acknowledge", response_model=shapes.Notification, summary="Stop repeats and escalation"
        )(self.acknowledge)
        router.get(BASE + "/outlets", response_model=shapes.Outlets, summary="List outlets")(self.list_outlets)
        router.post(
            BASE + "/outlets",
            response_model=shapes.NewOutlet,
            status_code=201,
            summary="Add a webhook, a mail address or a topic",
            openapi_extra=takes(
                {"name": TEXT, "kind": TEXT, "target": TEXT},
                {"takes": TEXT, "kinds": "array", "is_escalation": "boolean"},
            ),
        )(self.add_outlet)
        router.delete(outlet, status_code=204, summary="Remove an outlet")(self.remove_outlet)
        router.get(outlet + "/deliveries", response_model=shapes.Deliveries, summary="Show what was tried")(
            self.list_deliveries
        )
        router.post(outlet + "/test", response_model=shapes.Tested, summary="Deliver a test message now")(self.test)
        router.post(
            outlet + "/enable",
            response_model=shapes.Outlet,
            summary="Switch an outlet on again, optionally from an earlier event on",
            openapi_extra=takes({}, {"replay_from": INTEGER}),
        )(self.enable)
        router.post(
            outlet + "/mute",
            response_model=shapes.Outlet,
            summary="Send it no notifications for a while",
            openapi_extra=takes({"for_s": INTEGER}),
        )(self.mute)
        router.get(
            "/api/v1/events/stream", response_class=StreamingResponse, summary="Follow events (server-sent events)"
        )(self.stream)

    # --- notifications ---------------------------------------------------------------------

    async def list_notifications(self, request: Request) -> dict[str, Any]:
        """Return one page."""
        scope = await self._readable(request)
        limit = max(1, min(query_integer(request, "limit", 50), notifications.MAX_LISTED))
        before = query_integer(request, "cursor", 0)
        found = await self._read(notifications.list_notifications, scope, before=before, limit=limit)
        return {"notifications": found, "next": found[-1]["id"] if len(found) == limit else None}

    async def preview(self, request: Request) -> dict[str, Any]:
        """Write the text of a made-up stop, as outlets get it."""
        await self._readable(request)
        now = int(self._parts.clock.now().timestamp())
        title, text = halted("42", EXAMPLE, None, at=now, base_url=self._parts.out.public_url)
        return {"severity": Severity.CRITICAL.value, "title": title, "text": text}

    async def acknowledge(self, request: Request, number: int) -> dict[str, Any]:
        """Say that somebody has seen it."""
        scope, now = await self._scope(request), self._parts.clock.now()
        return await self._change(lambda connection: notifications.acknowledge(connection, scope, number, now))

    # --- outlets ---------------------------------------------------------------------------

    async def _manager(self, request: Request) -> Scope:
        scope = await self._scope(request)
        scope.require(Action.MANAGE_NOTIFICATIONS)
        scope.require_unlimited("Managing notifications")
        return scope

    async def list_outlets(self, request: Request) -> dict[str, Any]:
        """List outlets, without their secrets."""
        found = await self._read(outlets.list_outlets, await self._manager(request))
        return {"outlets": [_shown(outlet) for outlet in found]}

    async def add_outlet(self, request: Request) -> dict[str, Any]:
        """Add one."""
        scope = await self._manager(request)
        fields = await self._fields(request)
        name = fields.text("name", max_length=63, pattern=PRODUCT)
        kind = fields.one_of("kind", OutletKind)
        what = fields.one_of("takes", Takes, default=Takes.NOTIFICATIONS)
        target = fields.text("target", max_length=outlets.MAX_TARGET_LENGTH)
        kinds = fields.texts("kinds", max_items=outlets.MAX_KINDS, max_length=64, optional=True)
        _check_kinds(kinds)
        is_escalation = fields.boolean("is_escalation", default=False)
        now = self._parts.clock.now()
        outlet, secret = await self._change(
            lambda connection: outlets.add_outlet(
                connection,
                scope,
                name=name,
                kind=kind,
                takes=what,
                target=target,
                kinds=kinds,
                is_escalation=is_escalation,
                vault=self._parts.vault,
                now=now,
            )
        )
        return {**_shown(outlet), "secret": secret}

    async def remove_outlet(self, request: Request, name: str) -> Response:
        """Remove one."""
        scope, now = await self._manager(request), self._parts.clock.now()
        await self._change(lambda connection: outlets.remove_outlet(connection, scope, name, now))
        return Response(status_code=204)

    async def list_deliveries(self, request: Request, name: str) -> dict[str, Any]:
        """Show the delivery log."""
        scope = await self._manager(request)
        limit = query_integer(request, "limit", 50)
        return {"deliveries": await self._read(outlets.list_deliveries, scope, name, limit=limit)}

    async def test(self, request: Request, name: str) -> dict[str, Any]:
        """Deliver something harmless now."""
        scope = await self._manager(request)
        outlet = await self._read(outlets.get_outlet, scope, name)
        text = f"This is a test of the outlet {name}, asked for by {scope.actor}. Nothing has happened."
        at = int(self._parts.clock.now().timestamp())
        value = {"v": 1, "message": 0, "severity": "test", "title": "Firmament: test", "text": text, "at": at}
        parcel = Parcel(0, "test", at, "Firmament: test", text, value)
        answer = await self._parts.out.courier.carry(outlet, parcel)
        return {"ok": answer.ok, "answer": answer.text, "duration_ms": answer.duration_ms}

    async def enable(self, request: Request, name: str) -> dict[str, Any]:
        """Switch on again, and go back if asked to."""
        scope = await self._manager(request)
        fields = await self._fields(request)
        replay_from = fields.integer("replay_from", minimum=1) if "replay_from" in fields else None
        now = self._parts.clock.now()
        outlet = await self._change(
            lambda connection: outlets.enable(connection, scope, name, now, replay_from=replay_from)
        )
        return _shown(outlet)

    async def mute(self, request: Request, name: str) -> dict[str, Any]:
        """Mute for a while; 0 ends it."""
        scope = await self._manager(request)
        duration_s = (await self._fields(request)).integer("for_s", maximum=366 * DAY_S)
        now = self._parts.clock.now()
        until = int(now.timestamp()) + duration_s if duration_s else 0
        await self._change(lambda connection: outlets.mute(connection, scope, name, until, now))
        return _shown(await self._read(outlets.get_outlet, scope, name))

    # --- the stream ------------------------------------------------------------------------

    async def stream(self, request: Request) -> StreamingResponse:
        """Follow events: each with its number as id, so that `Last-Event-ID` goes on where it stopped."""
        scope = await self._stream_scope(request)
        if self._streams >= MAX_STREAMS:
            raise OverloadedError("Too many event streams are open", limit=MAX_STREAMS, retry_after_s=30)
        last = request.headers.get("last-event-id", "")
        if last and (not last.isdigit() or len(last) > 18):  # noqa: PLR2004 - digits of 2^63
            raise MalformedError("Last-Event-ID is not the number of an event")
        head, _ = await self._read(chain.head, scope.tenant_id)
        after = min(int(last), head) if last else head
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(self._follow(request, scope, after), media_type="text/event-stream", headers=headers)

    async def _stream_scope(self, request: Request) -> Scope:
        scope = await self._scope(request)
        scope.require(Action.SEE_AUDIT)
        scope.require_unlimited("Following events")
        return scope

    async def _follow(self, request: Request, scope: Scope, after: int) -> AsyncIterator[bytes]:
        clock, stopping = self._parts.clock, self._parts.out.stopping
        self._streams += 1
        try:
            yield b"retry: 3000\n\n"
            said_s = checked_s = clock.monotonic_s()
            while not stopping.is_set():
                head, _ = await self._read(chain.head, scope.tenant_id)
                if head > after:
                    for event in await self._read(events.find_events, scope, events.Wanted(), after=after):
                        after = event["id"]
                        yield _sse(event)
                    said_s = clock.monotonic_s()
                    continue
                now_s = clock.monotonic_s()
                if now_s - said_s >= HEARTBEAT_S:
                    yield b": alive\n\n"
                    said_s = now_s
                if now_s - checked_s >= RECHECK_S:
                    await self._stream_scope(request)
                    checked_s = now_s
                try:
                    async with asyncio.timeout(LOOK_S):
                        await stopping.wait()
                except TimeoutError:
                    continue
        except FirmamentError:
            return  # the token was revoked, or the database is busy: the reader comes back and is told
        finally:
            self._streams -= 1


def _sse(event: dict[str, Any]) -> bytes:
    data = json.dumps(event, separators=(",", ":"), ensure_ascii=False)
    return f"id: {event['id']}\nevent: {event['kind']}\ndata: {data}\n\n".encode()


def _shown(outlet: Outlet) -> dict[str, Any]:
    return {
        "name": outlet.name,
        "kind": outlet.kind.value,
        "takes": outlet.takes.value,
        "target": outlet.target,
        "kinds": list(outlet.kinds),
        "is_escalation": outlet.is_escalation,
        "cursor": outlet.cursor,
        "failures": outlet.failures,
        "disabled_at": outlet.disabled_at,
        "muted_until": outlet.muted_until,
    }


def _check_kinds(kinds: tuple[str, ...]) -> None:
    known = {kind.value for kind in Event}
    subjects = {f"{kind.partition('.')[0]}." for kind in known}
    for kind in kinds:
        if kind not in known | subjects:
            raise MalformedError("There is no such kind of event; see docs/reference/events.md", kind=kind)
