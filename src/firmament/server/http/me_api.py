"""Operator API: who a token speaks for, and what the published repositories are signed with."""

from __future__ import annotations

from typing import Any

from fastapi import Request  # noqa: TC002 - the framework reads the annotations when it runs
from typing_extensions import TypedDict  # pydantic reads no other before Python 3.12

from firmament.server.http.operator_base import OperatorPart
from firmament.server.releases import trusted
from firmament.server.scope import ALLOWED, Action


class Me(TypedDict):
    """Who asks, and which roles may do what: for saying beforehand what somebody may not do."""

    name: str
    role: str
    product: str | None
    tenant: str
    actions: list[str]
    roles: dict[str, list[str]]


class TrustKey(TypedDict):
    """One key of a role."""

    keyid: str
    kind: str
    is_post_quantum: bool
    has_signed: bool


class TrustRole(TypedDict):
    """One role of one repository; `expires_at` is null where answers are signed one by one."""

    repository: str
    role: str
    version: int | None
    expires_at: int | None
    lifetime_s: int
    threshold: int
    hybrid_minimum: int
    is_online: bool
    keys: list[TrustKey]


class Trust(TypedDict):
    """Every role, its keys and its end."""

    roles: list[TrustRole]


class MeApi(OperatorPart):
    """Questions that every page of the console begins with."""

    def add_routes(self) -> None:
        """See the base."""
        self.router.get("/api/v1/me", response_model=Me, summary="Say who this token speaks for")(self.me)
        self.router.get("/api/v1/trust", response_model=Trust, summary="List roles, keys and expiry")(self.trust)

    async def me(self, request: Request) -> dict[str, Any]:
        """Name the person, the role and what it may do."""
        scope = await self._scope(request)
        assert scope.role is not None
        return {
            "name": scope.actor.partition(":")[2],
            "role": scope.role.value,
            "product": scope.product,
            "tenant": str(scope.tenant_id),
            "actions": sorted(action.value for action in ALLOWED[scope.role]),
            "roles": {
                action.value: [role.value for role, allowed in ALLOWED.items() if action in allowed]
                for action in Action
            },
        }

    async def trust(self, request: Request) -> dict[str, Any]:
        """Describe what is published now."""
        await self._readable(request)
        return {"roles": trusted.describe(self._parts.publisher.published)}
