"""Operator API: who a token speaks for, what the field runs, what the repositories are signed with."""

from __future__ import annotations

from typing import Any, Final

from fastapi import Request  # noqa: TC002 - the framework reads the annotations when it runs
from typing_extensions import TypedDict  # pydantic reads no other before Python 3.12

from firmament.errors import SecondFactorError
from firmament.server import products
from firmament.server.http.operator_base import OperatorPart, query_integer
from firmament.server.inventory import history, search
from firmament.server.people import second_factor
from firmament.server.people import service as people
from firmament.server.releases import trusted
from firmament.server.scope import ALLOWED, Action, Role

COUNTS_KEPT_S: Final = 10.0
MAX_KEPT: Final = 1000
DAYS_SHOWN: Final = 30


class Me(TypedDict):
    """Who asks, and which roles may do what: for saying beforehand what somebody may not do."""

    name: str
    role: str
    product: str | None
    tenant: str
    actions: list[str]
    roles: dict[str, list[str]]
    second_factor: bool
    needs_second_factor: bool
    """The role must have one, and this session was opened without: only adding one is open to it."""
    session_id: int | None


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


class VersionCount(TypedDict):
    """How many devices of a product run a version."""

    product: str
    version: str
    count: int


class VersionCounts(TypedDict):
    """What the field runs, at most ten seconds old."""

    total: int
    versions: list[VersionCount]


class VersionDay(TypedDict):
    """What the field ran on a day; `at` is its begin (UTC)."""

    at: int
    total: int
    versions: list[VersionCount]


class VersionDays(TypedDict):
    """Days, oldest first; those when no server ran are absent."""

    days: list[VersionDay]


class MeApi(OperatorPart):
    """Questions that every page of the console begins with."""

    def add_routes(self) -> None:
        """See the base."""
        self._versions: dict[tuple[int, str | None], tuple[float, dict[str, Any]]] = {}
        self.router.get(
            "/api/v1/devices/versions", response_model=VersionCounts, summary="Count devices by product and version"
        )(self.versions)
        self.router.get(
            "/api/v1/devices/versions/days", response_model=VersionDays, summary="Count devices by version, day by day"
        )(self.days)
        self.router.get("/api/v1/me", response_model=Me, summary="Say who this token speaks for")(self.me)
        self.router.get("/api/v1/trust", response_model=Trust, summary="List roles, keys and expiry")(self.trust)

    async def me(self, request: Request) -> dict[str, Any]:
        """Name the person, the role and what it may do."""
        caller = await self._caller(request, is_enrolling=True)
        scope, session = caller.scope, caller.session
        assert scope.role is not None
        has_factor = session is not None and await self._read(second_factor.is_confirmed, session.person_id)
        return {
            "second_factor": has_factor,
            "needs_second_factor": await self._lacks_factor(request, scope.role),
            "session_id": session.session_id if session is not None else None,
            "name": scope.actor.partition(":")[2],
            "role": scope.role.value,
            "product": scope.product,
            "tenant": await self._read(people.tenant_name, scope),
            "actions": sorted(action.value for action in Action if scope.may(action)),
            "roles": {
                action.value: [role.value for role, allowed in ALLOWED.items() if action in allowed]
                for action in Action
            },
        }

    async def _lacks_factor(self, request: Request, role: Role) -> bool:
        if role not in self._parts.settings.second_factor_roles:
            return False
        try:
            await self._caller(request)
        except SecondFactorError:
            return True
        return False

    async def versions(self, request: Request) -> dict[str, Any]:
        """Count what the field runs; a whole table is read, so the answer is kept for some seconds."""
        product = request.query_params.get("product")
        scope = await self._readable(request, product=product)
        key, now_s = (scope.tenant_id, product or scope.product), self._parts.clock.monotonic_s()
        kept = self._versions.get(key)
        if kept is not None and now_s - kept[0] < COUNTS_KEPT_S:
            return kept[1]
        found = await self._read(search.count_versions, scope, product)
        answer = {"total": sum(row["count"] for row in found), "versions": found}
        if len(self._versions) >= MAX_KEPT:
            self._versions.clear()
        self._versions[key] = (now_s, answer)
        return answer

    async def days(self, request: Request) -> dict[str, Any]:
        """Return the last `days` days, 30 when it is not said."""
        product = request.query_params.get("product")
        scope = await self._readable(request, product=product)
        days = query_integer(request, "days", DAYS_SHOWN)
        found = await self._read(history.list_days, scope, product=product, days=days, now=self._parts.clock.now())
        return {"days": found}

    async def trust(self, request: Request) -> dict[str, Any]:
        """Describe what is published now."""
        scope = await self._readable(request)
        foreign = await self._read(products.foreign, scope, self._parts.publisher.published.products)
        roles = trusted.describe(self._parts.publisher.published)
        return {"roles": [role for role in roles if role["role"] not in foreign]}
