"""The console as one ASGI application: dispatches to views, and answers whatever goes wrong.

`make_console` gets the operator API of the same process and nothing else.
"""

from __future__ import annotations

import secrets
import traceback
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Match, Route

from firmament.console import guard
from firmament.console.api import FORBIDDEN, NOT_FOUND, UNAUTHENTICATED, Api, ApiError, Caller
from firmament.console.live import Live
from firmament.console.render import Assets, Templates
from firmament.console.views import VIEWS
from firmament.console.views.account import ENROLMENT
from firmament.console.views.overview import Badges
from firmament.console.views.session import provider
from firmament.console.visit import SEE_OTHER, Me, Visit
from firmament.errors import FirmamentError
from firmament.log import logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Receive, Scope, Send

    from firmament.core.clock import Clock

log = logger("console")

IMMUTABLE: Final = "public, max-age=31536000, immutable"
SIGNING_IN: Final = "/login"
FAILED: Final = 500
UNAVAILABLE: Final = 503


class Console:
    """Pages, their live parts, and their static files."""

    def __init__(self, operators: ASGIApp, clock: Clock) -> None:
        self._operators = operators
        self._clock = clock
        self._assets = Assets()
        self._templates = Templates(self._assets)
        self._live = Live(operators, self._templates, clock)
        self._badges = Badges(clock)
        self._routes = [
            Route(view.path, _none, methods=list(view.methods), name=str(i)) for i, view in enumerate(VIEWS)
        ]

    async def start(self) -> None:
        """Begin to draw live parts."""
        self._live.start()

    async def stop(self) -> None:
        """End every stream, so that the server can stop while people watch."""
        await self._live.stop()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        request = Request(scope, receive)
        response = await self._respond(request)
        for name, value in guard.HEADERS.items():
            response.headers.setdefault(name, value)
        response.headers.setdefault("cache-control", "no-store")
        await response(scope, receive, send)

    async def _respond(self, request: Request) -> Response:
        path = request.url.path
        if path.startswith("/static/"):
            return self._static(path.removeprefix("/static/"))
        visit = self._visit(request)
        try:
            return await self._dispatch(request, visit)
        except ApiError as error:
            return await self._refused(request, visit, error)
        except ClientDisconnect:
            return Response(status_code=400)
        except FirmamentError as error:
            return self._error(visit, error.http_status, error.problem, str(error))
        except Exception as error:  # noqa: BLE001 - logged; the page names the request
            trace = "".join(traceback.format_exception(error))
            log.error("page.failed", request_id=visit.request_id, reason=repr(error), trace=trace)  # noqa: TRY400 - with its trace
            return self._error(visit, FAILED, "The server failed", "")

    async def _dispatch(self, request: Request, visit: Visit) -> Response:
        allowed: set[str] = set()
        for view, route in zip(VIEWS, self._routes, strict=True):
            match, child = route.matches({**request.scope, "root_path": ""})
            if match is Match.NONE:
                continue
            if match is Match.PARTIAL:
                allowed.update(view.methods)
                continue
            request.scope["path_params"] = child["path_params"]
            if request.method not in {"GET", "HEAD"}:
                guard.require_same_origin(request)
            if not view.is_public:
                if not visit.api.token:
                    return _to_sign_in(request)
                visit.me = Me.of_json(await visit.api.get("/me"))
                if visit.me.needs_factor and not view.is_for_enrolment:
                    return RedirectResponse(ENROLMENT, status_code=SEE_OTHER)
                visit.nav = {} if visit.me.needs_factor else await self._badges.of(visit)
            return await view.handle(visit, **child["path_params"])
        if visit.api.token:
            visit.me = await self._who(visit)
        if allowed:
            return self._error(visit, 405, "This page does not take that", "Go back and use the button of the page.")
        return self._error(visit, NOT_FOUND, "There is no such page", "The address may be old or mistyped.")

    async def _who(self, visit: Visit) -> Me | None:
        try:
            return Me.of_json(await visit.api.get("/me"))
        except ApiError:
            return None

    def _visit(self, request: Request) -> Visit:
        request_id = request.scope.get("state", {}).get("request_id") or secrets.token_hex(8)
        caller = Caller(
            token=request.cookies.get(guard.SESSION_COOKIE, ""),
            address=request.client.host if request.client else "",
            request_id=request_id,
        )
        api = Api(self._operators, caller)
        return Visit(request, api, self._templates, self._clock.now(), None, request_id, live=self._live)

    def _static(self, name: str) -> Response:
        found = self._assets.find(name)
        if found is None:
            return Response(status_code=NOT_FOUND)
        kind, data = found
        return Response(data, media_type=kind, headers={"cache-control": IMMUTABLE})

    async def _refused(self, request: Request, visit: Visit, error: ApiError) -> Response:
        if error.status == UNAUTHENTICATED:
            return await _signed_out(request, visit)
        if error.status == FORBIDDEN:
            return self._error(visit, FORBIDDEN, "Your role may not see or do this", error.detail)
        if error.status == NOT_FOUND:
            return self._error(visit, NOT_FOUND, error.title, "It may have been removed, or the address is mistyped.")
        return self._error(visit, error.status, error.title, error.detail)

    def _error(self, visit: Visit, status: int, title: str, detail: str) -> Response:
        values: dict[str, Any] = {"status_code": status, "title": title, "detail": detail}
        return HTMLResponse(visit.draw("error.html", **values), status_code=status)


def make_console(clock: Clock) -> Callable[[ASGIApp], Console]:
    """Return what `server.http.app.Server` calls with its operator API."""
    return lambda operators: Console(operators, clock)


def _to_sign_in(request: Request) -> Response:
    path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    if request.method != "GET" or path == "/":
        return RedirectResponse(SIGNING_IN, status_code=SEE_OTHER)
    return RedirectResponse(f"{SIGNING_IN}?{urlencode({'next': path})}", status_code=SEE_OTHER)


async def _signed_out(request: Request, visit: Visit) -> Response:
    """Ask to sign in again; a form that was sent is kept in the page and sent after that."""
    held: list[tuple[str, str]] = []
    path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    if request.method == "POST":
        try:
            held = await guard.read_form(request)
        except (FirmamentError, RuntimeError):
            held = []
    response = visit.page(
        "login.html",
        status=UNAUTHENTICATED,
        next=path if request.method == "GET" else "/",
        held_path=path if held else "",
        held=[pair for pair in held if "password" not in pair[0]],
        problem="You were signed out. Sign in again to go on" + (": what you had filled in is kept." if held else "."),
        needs_code=False,
        name="",
        provider=await provider(visit),
    )
    guard.end_session(response)
    return response


async def _none(_request: Request) -> Response:  # the table of paths only; `Console` calls the views
    return Response(status_code=NOT_FOUND)
