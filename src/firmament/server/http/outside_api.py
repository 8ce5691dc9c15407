"""Operator API: signing in through an identity provider; for browsers, which it sends there and takes back."""

from __future__ import annotations

import asyncio
import hmac
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from fastapi import Request, Response
from typing_extensions import TypedDict  # pydantic reads no other before Python 3.12

from firmament.errors import NotFoundError, OutsideSignInError
from firmament.log import logger
from firmament.server.http.operator_base import OperatorPart, address_of, client_of
from firmament.server.people import outside, sessions

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from firmament.server.people.outside import Provider

HOME = "/"
REFUSED = "/login?outside=refused"
log = logger("outside")


class OutsideProvider(TypedDict):
    """Host of the identity provider, empty without one."""

    provider: str


class OutsideApi(OperatorPart):
    """Two steps: there and back."""

    def add_routes(self) -> None:
        """See the base."""
        self._provider: Provider | None = None
        self.router.get(
            "/api/v1/outside", response_model=OutsideProvider, summary="Name the identity provider, if there is one"
        )(self.name)
        self.router.get("/api/v1/outside/start", status_code=303, summary="Go to the identity provider")(self.start)
        self.router.get(outside.CALLBACK, status_code=303, summary="Come back from the identity provider")(self.finish)

    async def name(self) -> dict[str, str]:
        """Answer without a token: for the page where people sign in."""
        return {"provider": urlsplit(self._parts.settings.oidc_issuer).hostname or ""}

    def _required(self, request: Request) -> Provider:
        parts = self._parts
        parts.login_limit.require(address_of(request), parts.clock.monotonic_s(), what="sign-in attempts")
        if not parts.settings.oidc_issuer:
            raise NotFoundError("This server knows no identity provider")
        if self._provider is None:
            self._provider = outside.Provider(parts.settings)
        return self._provider

    async def start(self, request: Request) -> Response:
        """Send the browser to the provider."""
        return await self._or_back(request, self._start)

    async def finish(self, request: Request) -> Response:
        """Verify what the provider says; open a session and go on in the console."""
        return await self._or_back(request, self._finish)

    async def _or_back(self, request: Request, step: Callable[[Request], Awaitable[Response]]) -> Response:
        """Take a person whose sign-in was refused back to the page where it began; programs read the refusal itself."""
        try:
            return await step(request)
        except OutsideSignInError as error:
            if "text/html" not in request.headers.get("accept", ""):
                raise
            log.info("outside.refused", code=error.code, reason=str(error))
            return _go(REFUSED, f"{outside.COOKIE}=; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age=0")

    async def _start(self, request: Request) -> Response:
        provider = self._required(request)
        state, nonce, verifier = await self._change(outside.begin, self._parts.vault, self._parts.clock.now())
        location = await asyncio.to_thread(provider.authorize, state=state, nonce=nonce, verifier=verifier)
        cookie = (
            f"{outside.COOKIE}={state}; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age={outside.SIGN_IN_LIFETIME_S}"
        )
        return _go(location, cookie)

    async def _finish(self, request: Request) -> Response:
        provider = self._required(request)
        asked, now = request.query_params, self._parts.clock.now()
        state = asked.get("state", "")
        if not state or not hmac.compare_digest(state.encode(), request.cookies.get(outside.COOKIE, "").encode()):
            raise OutsideSignInError("The answer belongs to no sign-in of this browser")
        remembered = await self._change(outside.take_back, self._parts.vault, state, now)
        if remembered is None:
            raise OutsideSignInError("The sign-in was used up or took too long")
        if "code" not in asked:
            raise OutsideSignInError("The provider did not agree", reason=asked.get("error", "")[:80])
        nonce, verifier = remembered
        identity = await asyncio.to_thread(
            provider.identify, code=asked["code"], verifier=verifier, nonce=nonce, now=now
        )
        opened = await self._change(
            outside.admit, identity, address=address_of(request), client=client_of(request), now=now
        )
        gone = f"{outside.COOKIE}=; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age=0"
        return _go(HOME, gone, sessions.cookie(opened.secret))


def _go(location: str, *cookies: str) -> Response:
    response = Response(status_code=303, headers={"location": location, "cache-control": "no-store"})
    for cookie in cookies:
        response.headers.append("set-cookie", cookie)
    return response
