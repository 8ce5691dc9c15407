"""Operator API: one's own account: who am I, password, second factor, sessions, tokens."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from fastapi import Request, Response

from firmament.errors import UnauthenticatedError
from firmament.server.http import shapes
from firmament.server.http.callers import sign_in
from firmament.server.http.operator_base import (
    DAY_S,
    INTEGER,
    TEXT,
    OperatorPart,
    address_of,
    client_of,
    path_integer,
    query_integer,
)
from firmament.server.people import second_factor, sessions, tokens
from firmament.server.people import service as people
from firmament.server.people.passwords import hash_password, verify_password
from firmament.server.people.sessions import Kind
from firmament.server.scope import Role


class AccountApi(OperatorPart):
    """What everybody may do about themselves."""

    def add_routes(self) -> None:
        """See the base."""
        router = self.router
        router.post(
            "/api/v1/login",
            response_model=shapes.Token,
            summary="Sign in with a name and a password",
            responses={400: {"model": shapes.Problem, "description": "The request cannot be done"}},
            openapi_extra=shapes.takes({"name": TEXT, "password": TEXT}, {"code": TEXT, "session": TEXT}),
        )(self.login)
        router.post("/api/v1/logout", status_code=204, summary="End the session, or revoke the token, used here")(
            self.logout
        )
        router.post(
            "/api/v1/me/password",
            status_code=204,
            summary="Change the own password; ends all other sessions",
            openapi_extra=shapes.takes({"old": TEXT, "new": TEXT}),
        )(self.change_password)
        factor = "/api/v1/me/second-factor"
        router.post(factor, response_model=shapes.FactorBegun, status_code=201, summary="Begin a second factor")(
            self.begin_factor
        )
        router.post(
            factor + "/confirm",
            response_model=shapes.FactorConfirmed,
            summary="Prove the second factor by a code; from now on it is asked for",
            openapi_extra=shapes.takes({"code": TEXT}),
        )(self.confirm_factor)
        router.post(
            factor + "/remove",
            status_code=204,
            summary="Remove the own second factor, proven by a code",
            openapi_extra=shapes.takes({"code": TEXT}),
        )(self.remove_factor)
        own = "/api/v1/me/sessions"
        router.get(own, response_model=shapes.Sessions, summary="List the own sessions")(self.list_sessions)
        router.delete(own, status_code=204, summary="End all own sessions but this one")(self.revoke_sessions)
        router.delete(own + "/{session_id}", status_code=204, summary="End one of the own sessions")(
            self.revoke_session
        )
        router.post(
            "/api/v1/tokens",
            response_model=shapes.Token,
            status_code=201,
            summary="Make a token that may do at most what this one may",
            openapi_extra=shapes.takes({"role": TEXT, "expires_in_s": INTEGER}, {"product": TEXT, "label": TEXT}),
        )(self.make_token)
        router.get("/api/v1/tokens", response_model=shapes.Tokens, summary="List the own tokens, or all=1 everybody's")(
            self.list_tokens
        )
        router.delete("/api/v1/tokens/{token_id}", status_code=204, summary="Revoke a token")(self.revoke_token)

    async def login(self, request: Request) -> dict[str, Any]:
        """Open a session: a command's, or the console's, which also ends when nobody uses it."""
        fields = await self._fields(request)
        opened = await sign_in(
            self._parts,
            account=fields.text("name", max_length=130),
            password=fields.text("password", max_length=256),
            code=fields.text("code", max_length=32) if "code" in fields else None,
            kind=fields.one_of("session", Kind) if "session" in fields else Kind.COMMAND,
            address=address_of(request),
            client=client_of(request),
        )
        role = opened.scope.role
        assert role is not None
        return {"token": opened.secret, "expires_at": opened.expires_at, "role": role.value, "product": None}

    async def logout(self, request: Request) -> Response:
        """Make what was used here useless."""
        caller, now = await self._caller(request, is_enrolling=True), self._parts.clock.now()
        session = caller.session
        if session is not None:
            await self._change(
                sessions.revoke_session,
                caller.scope,
                person_id=session.person_id,
                session_id=session.session_id,
                now=now,
            )
        else:
            found = await self._read(tokens.find_token, self._secret(request), now)
            await self._change(tokens.revoke_token, caller.scope, token_id=found.token_id, now=now)
        return Response(status_code=204)

    async def change_password(self, request: Request) -> Response:
        """Check the old one, store the new one."""
        session = (await self._caller(request, is_enrolling=True)).require_session()
        fields = await self._fields(request)
        old, new = fields.text("old", max_length=256), fields.text("new", max_length=256)
        parts = self._parts
        parts.name_limit.require(f"{session.name}@{session.tenant}", parts.clock.monotonic_s(), what="attempts")
        stored = await self._read(people.password_hash_of, session.person_id)
        if not await asyncio.to_thread(verify_password, stored, old):
            raise UnauthenticatedError("The old password is wrong")
        await self._change(
            people.set_password,
            session.scope,
            person_id=session.person_id,
            subject=session.name,
            password_hash=await asyncio.to_thread(hash_password, new),
            now=parts.clock.now(),
            keep_session=session.session_id,
        )
        return Response(status_code=204)

    async def begin_factor(self, request: Request) -> dict[str, Any]:
        """Show a secret for an authenticator; it counts once it is confirmed."""
        session = (await self._caller(request, is_enrolling=True)).require_session()
        made = await self._change(
            second_factor.begin,
            session.scope,
            self._parts.vault,
            person_id=session.person_id,
            account=f"{session.name}@{session.tenant}",
            now=self._parts.clock.now(),
        )
        return {"secret": made.secret, "uri": made.uri}

    async def confirm_factor(self, request: Request) -> dict[str, Any]:
        """Show the recovery codes, once."""
        session = (await self._caller(request, is_enrolling=True)).require_session()
        code = (await self._fields(request)).text("code", max_length=32)
        self._slow_down(session.name, session.tenant)
        codes = await self._change(
            second_factor.confirm,
            session.scope,
            self._parts.vault,
            person_id=session.person_id,
            code=code,
            now=self._parts.clock.now(),
        )
        return {"recovery_codes": codes}

    async def remove_factor(self, request: Request) -> Response:
        """Take a code as proof that it is not a stolen session."""
        session = (await self._caller(request)).require_session()
        code = (await self._fields(request)).text("code", max_length=32)
        self._slow_down(session.name, session.tenant)
        await self._change(
            people.remove_own_factor,
            session.scope,
            self._parts.vault,
            person_id=session.person_id,
            code=code,
            now=self._parts.clock.now(),
        )
        return Response(status_code=204)

    def _slow_down(self, name: str, tenant: str) -> None:
        parts = self._parts
        parts.name_limit.require(f"{name}@{tenant}", parts.clock.monotonic_s(), what="codes for this name")

    async def list_sessions(self, request: Request) -> dict[str, Any]:
        """Show where one is signed in."""
        session = (await self._caller(request)).require_session()
        found = await self._read(sessions.list_sessions, session.scope, session.person_id, self._parts.clock.now())
        return {"sessions": [{**one, "current": one["session_id"] == session.session_id} for one in found]}

    async def revoke_sessions(self, request: Request) -> Response:
        """Sign out everywhere else."""
        session = (await self._caller(request)).require_session()
        await self._change(
            sessions.revoke_sessions,
            session.scope,
            person_id=session.person_id,
            subject=session.name,
            now=self._parts.clock.now(),
            keep=session.session_id,
        )
        return Response(status_code=204)

    async def revoke_session(self, request: Request, session_id: str) -> Response:
        """Sign out somewhere."""
        session = (await self._caller(request)).require_session()
        await self._change(
            sessions.revoke_session,
            session.scope,
            person_id=session.person_id,
            session_id=path_integer(session_id),
            now=self._parts.clock.now(),
        )
        return Response(status_code=204)

    async def make_token(self, request: Request) -> dict[str, Any]:
        """Issue a narrower or equal token."""
        scope = await self._scope(request)
        fields = await self._fields(request)
        role = fields.one_of("role", Role)
        product = fields.maybe("product", fields.text)
        lifetime = timedelta(seconds=fields.integer("expires_in_s", minimum=1, maximum=366 * DAY_S))
        issued = await self._change(
            tokens.issue_token,
            scope,
            role=role,
            product=product,
            lifetime=lifetime,
            label=fields.text("label", max_length=80, default=""),
            now=self._parts.clock.now(),
        )
        return {
            "token": issued.token,
            "expires_at": issued.expires_at,
            "role": issued.role.value,
            "product": issued.product,
        }

    async def list_tokens(self, request: Request) -> dict[str, Any]:
        """Name tokens without showing them."""
        scope = await self._scope(request)
        everybody = query_integer(request, "all", 0) == 1
        found = await self._read(tokens.list_tokens, scope, self._parts.clock.now(), everybody=everybody)
        return {"tokens": found}

    async def revoke_token(self, request: Request, token_id: str) -> Response:
        """Make one useless."""
        scope = await self._scope(request)
        await self._change(tokens.revoke_token, scope, token_id=path_integer(token_id), now=self._parts.clock.now())
        return Response(status_code=204)
