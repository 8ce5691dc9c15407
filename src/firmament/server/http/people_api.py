"""Operator API: sign in, tokens, people, events."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from fastapi import Request, Response

from firmament import __version__
from firmament.errors import UnauthenticatedError
from firmament.server import events
from firmament.server.http import shapes
from firmament.server.http.operator_base import DAY_S, INTEGER, TEXT, OperatorPart, bearer_token, query_integer
from firmament.server.people import service as people
from firmament.server.people.passwords import hash_password, verify_password
from firmament.server.scope import Action, Role


class PeopleApi(OperatorPart):
    """Who operates the fleet."""

    def add_routes(self) -> None:
        """See the base."""
        router = self.router
        router.get("/health", response_model=shapes.Health, summary="Say that the server answers")(self.health)
        router.post(
            "/api/v1/login",
            response_model=shapes.Token,
            summary="Sign in with a name and a password",
            openapi_extra=shapes.takes({"name": TEXT, "password": TEXT}),
        )(self.login)
        router.post("/api/v1/logout", status_code=204, summary="Make the token used here useless")(self.logout)
        router.post(
            "/api/v1/tokens",
            response_model=shapes.Token,
            status_code=201,
            summary="Make a token that may do at most what this one may",
            openapi_extra=shapes.takes({"role": TEXT, "expires_in_s": INTEGER}, {"product": TEXT, "label": TEXT}),
        )(self.make_token)
        router.get("/api/v1/people", response_model=shapes.People, summary="List people")(self.list_people)
        router.post(
            "/api/v1/people",
            response_model=shapes.Person,
            status_code=201,
            summary="Add a person",
            openapi_extra=shapes.takes({"name": TEXT, "role": TEXT, "password": TEXT}),
        )(self.add_person)
        router.delete("/api/v1/people/{name}", status_code=204, summary="Disable a person and all their tokens")(
            self.disable_person
        )
        router.get("/api/v1/events", response_model=shapes.Events, summary="Read what happened")(self.list_events)

    async def health(self) -> dict[str, Any]:
        """Answer without a token: for load balancers and people who wonder."""
        return {"status": "ok", "version": __version__}

    async def login(self, request: Request) -> dict[str, Any]:
        """Check a password in a thread and open a session."""
        parts = self._parts
        address = request.client.host if request.client else ""
        parts.login_limit.require(address, parts.clock.monotonic_s(), what="sign-in attempts")
        fields = await self._fields(request)
        name, password = fields.text("name", max_length=64), fields.text("password", max_length=256)
        found = await self._read(people.credentials, name)
        is_right = await asyncio.to_thread(verify_password, found.hashed, password)
        issued = await parts.database.submit(
            lambda connection: people.open_session(
                connection, found, is_right=is_right, label="session", now=parts.clock.now()
            )
        )
        if issued is None:
            raise UnauthenticatedError("Name or password is wrong, or the name is locked for a while")
        return _token(issued)

    async def logout(self, request: Request) -> Response:
        """Revoke the token that is used."""
        scope = await self._scope(request)
        token = bearer_token(request)
        now = self._parts.clock.now()
        await self._parts.database.submit(lambda connection: people.revoke_token(connection, scope, token, now))
        return Response(status_code=204)

    async def make_token(self, request: Request) -> dict[str, Any]:
        """Issue a narrower or equal token."""
        scope = await self._scope(request)
        fields = await self._fields(request)
        role = fields.one_of("role", Role)
        product = fields.maybe("product", fields.text)
        lifetime = timedelta(seconds=fields.integer("expires_in_s", minimum=1, maximum=366 * DAY_S))
        label = fields.text("label", max_length=80, default="")
        now = self._parts.clock.now()
        return _token(
            await self._parts.database.submit(
                lambda connection: people.issue_token(
                    connection, scope, role=role, product=product, lifetime=lifetime, label=label, now=now
                )
            )
        )

    async def list_people(self, request: Request) -> dict[str, Any]:
        """List everybody."""
        return {"people": await self._read(people.list_people, await self._scope(request))}

    async def add_person(self, request: Request) -> dict[str, Any]:
        """Add somebody; the password is hashed in a thread."""
        scope = await self._scope(request)
        scope.require(Action.MANAGE_PEOPLE)
        fields = await self._fields(request)
        name, role = fields.text("name", max_length=64), fields.one_of("role", Role)
        hashed = await asyncio.to_thread(hash_password, fields.text("password", max_length=256))
        now = self._parts.clock.now()
        await self._parts.database.submit(
            lambda connection: people.add_person(connection, scope, name=name, role=role, password_hash=hashed, now=now)
        )
        return {"name": name, "role": role.value, "disabled": False, "created_at": int(now.timestamp())}

    async def disable_person(self, request: Request, name: str) -> Response:
        """Disable somebody."""
        scope, now = await self._scope(request), self._parts.clock.now()
        await self._parts.database.submit(
            lambda connection: people.disable_person(connection, scope, name=name, now=now)
        )
        return Response(status_code=204)

    async def list_events(self, request: Request) -> dict[str, Any]:
        """Return one page; `after` is the id of the last one seen."""
        scope = await self._readable(request)
        after = query_integer(request, "after", 0)
        subject = request.query_params.get("subject")
        limit = query_integer(request, "limit", 100)
        found = await self._read(events.list_events, scope, subject=subject, after=after, limit=limit)
        return {"events": found}


def _token(issued: people.IssuedToken) -> dict[str, Any]:
    return {
        "token": issued.token,
        "expires_at": issued.expires_at,
        "role": issued.role.value,
        "product": issued.product,
    }
