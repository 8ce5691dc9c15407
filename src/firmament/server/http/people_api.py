"""Operator API: people and tenants, and what happened."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import Request, Response

from firmament.server import events
from firmament.server.http import shapes
from firmament.server.http.operator_base import TEXT, OperatorPart, query_integer
from firmament.server.people import second_factor, sessions, tenants
from firmament.server.people import service as people
from firmament.server.people.passwords import hash_password
from firmament.server.scope import Action, Role, Scope


class PeopleApi(OperatorPart):
    """Who operates the fleet."""

    def add_routes(self) -> None:
        """See the base."""
        router = self.router
        router.get("/api/v1/people", response_model=shapes.People, summary="List people")(self.list_people)
        router.post(
            "/api/v1/people",
            response_model=shapes.Person,
            status_code=201,
            summary="Add a person",
            openapi_extra=shapes.takes({"name": TEXT, "role": TEXT, "password": TEXT}),
        )(self.add_person)
        person = "/api/v1/people/{name}"
        router.delete(person, status_code=204, summary="Disable a person and all their tokens")(self.disable_person)
        router.post(person + "/enable", status_code=204, summary="Let a disabled person in again")(self.enable_person)
        router.put(
            person + "/role",
            status_code=204,
            summary="Give a person another role",
            openapi_extra=shapes.takes({"role": TEXT}),
        )(self.change_role)
        router.post(
            person + "/password",
            status_code=204,
            summary="Set a person's password; ends their sessions",
            openapi_extra=shapes.takes({"password": TEXT}),
        )(self.set_password)
        router.delete(person + "/sessions", status_code=204, summary="End all sessions of a person")(
            self.revoke_sessions
        )
        router.delete(person + "/second-factor", status_code=204, summary="Remove a person's lost second factor")(
            self.remove_factor
        )
        router.get("/api/v1/tenants", response_model=shapes.Tenants, summary="List tenants")(self.list_tenants)
        router.post(
            "/api/v1/tenants", status_code=204, summary="Make a tenant", openapi_extra=shapes.takes({"name": TEXT})
        )(self.add_tenant)
        tenant = "/api/v1/tenants/{tenant}"
        router.delete(tenant, status_code=204, summary="Disable a tenant: its people are refused")(self.disable_tenant)
        router.post(tenant + "/enable", status_code=204, summary="Take a disabled tenant back")(self.enable_tenant)
        router.post(
            tenant + "/people",
            status_code=204,
            summary="Add a tenant's first person",
            openapi_extra=shapes.takes({"name": TEXT, "role": TEXT, "password": TEXT}),
        )(self.add_person_of_tenant)
        router.put(tenant + "/products/{product}", status_code=204, summary="Give a new product line to a tenant")(
            self.give_product
        )
        router.get("/api/v1/events", response_model=shapes.Events, summary="Read what happened")(self.list_events)

    async def list_people(self, request: Request) -> dict[str, Any]:
        """List everybody."""
        return {"people": await self._read(people.list_people, await self._scope(request))}

    async def add_person(self, request: Request) -> dict[str, Any]:
        """Add somebody; the password is hashed in a thread."""
        scope = await self._scope(request)
        scope.require(Action.MANAGE_PEOPLE)
        return await self._add(request, scope)

    async def _add(self, request: Request, scope: Scope) -> dict[str, Any]:
        fields = await self._fields(request)
        name, role = fields.text("name", max_length=64), fields.one_of("role", Role)
        hashed = await asyncio.to_thread(hash_password, fields.text("password", max_length=256))
        now = self._parts.clock.now()
        await self._change(people.add_person, scope, name=name, role=role, password_hash=hashed, now=now)
        return {
            "name": name,
            "role": role.value,
            "disabled": False,
            "second_factor": False,
            "created_at": int(now.timestamp()),
        }

    async def disable_person(self, request: Request, name: str) -> Response:
        """Disable somebody."""
        return await self._change_person(request, name, is_disabled=True)

    async def enable_person(self, request: Request, name: str) -> Response:
        """Let somebody in again."""
        return await self._change_person(request, name, is_disabled=False)

    async def change_role(self, request: Request, name: str) -> Response:
        """Give another role."""
        scope = await self._scope(request)
        role = (await self._fields(request)).one_of("role", Role)
        await self._change(people.change_person, scope, name=name, role=role, now=self._parts.clock.now())
        return Response(status_code=204)

    async def _change_person(self, request: Request, name: str, *, is_disabled: bool) -> Response:
        scope, now = await self._scope(request), self._parts.clock.now()
        await self._change(people.change_person, scope, name=name, is_disabled=is_disabled, now=now)
        return Response(status_code=204)

    async def set_password(self, request: Request, name: str) -> Response:
        """Set a password for somebody who forgot theirs."""
        scope = await self._scope(request)
        person_id = await self._read(people.managed_person, scope, name)
        password = (await self._fields(request)).text("password", max_length=256)
        hashed = await asyncio.to_thread(hash_password, password)
        now = self._parts.clock.now()
        await self._change(people.set_password, scope, person_id=person_id, subject=name, password_hash=hashed, now=now)
        return Response(status_code=204)

    async def revoke_sessions(self, request: Request, name: str) -> Response:
        """Sign somebody out everywhere."""
        scope, now = await self._scope(request), self._parts.clock.now()
        person_id = await self._read(people.managed_person, scope, name)
        await self._change(sessions.revoke_sessions, scope, person_id=person_id, subject=name, now=now)
        return Response(status_code=204)

    async def remove_factor(self, request: Request, name: str) -> Response:
        """Help somebody who lost their authenticator."""
        scope, now = await self._scope(request), self._parts.clock.now()
        person_id = await self._read(people.managed_person, scope, name)
        await self._change(second_factor.remove, scope, person_id=person_id, subject=name, now=now)
        return Response(status_code=204)

    async def list_tenants(self, request: Request) -> dict[str, Any]:
        """List tenants."""
        return {"tenants": await self._read(tenants.list_tenants, await self._scope(request))}

    async def add_tenant(self, request: Request) -> Response:
        """Make a tenant."""
        scope = await self._scope(request)
        scope.require(Action.MANAGE_TENANTS)
        name = (await self._fields(request)).text("name", max_length=64)
        await self._change(tenants.add_tenant, scope, name=name, now=self._parts.clock.now())
        return Response(status_code=204)

    async def disable_tenant(self, request: Request, tenant: str) -> Response:
        """Refuse a tenant's people."""
        return await self._set_tenant_disabled(request, tenant, is_disabled=True)

    async def enable_tenant(self, request: Request, tenant: str) -> Response:
        """Take a tenant back."""
        return await self._set_tenant_disabled(request, tenant, is_disabled=False)

    async def _set_tenant_disabled(self, request: Request, tenant: str, *, is_disabled: bool) -> Response:
        scope, now = await self._scope(request), self._parts.clock.now()
        await self._change(tenants.set_tenant_disabled, scope, name=tenant, is_disabled=is_disabled, now=now)
        return Response(status_code=204)

    async def add_person_of_tenant(self, request: Request, tenant: str) -> Response:
        """Add the person who then adds the others."""
        scope = await self._scope(request)
        await self._add(request, await self._read(tenants.inside, scope, tenant))
        return Response(status_code=204)

    async def give_product(self, request: Request, tenant: str, product: str) -> Response:
        """Say whose a product is."""
        scope, now = await self._scope(request), self._parts.clock.now()
        await self._change(tenants.give_product, scope, tenant=tenant, product=product, now=now)
        return Response(status_code=204)

    async def list_events(self, request: Request) -> dict[str, Any]:
        """Return one page; `after` is the id of the last one seen."""
        scope = await self._readable(request)
        after = query_integer(request, "after", 0)
        subject = request.query_params.get("subject")
        limit = query_integer(request, "limit", 100)
        found = await self._read(events.list_events, scope, subject=subject, after=after, limit=limit)
        return {"events": found}
