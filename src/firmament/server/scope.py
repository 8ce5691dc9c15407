"""Who is asking: the first argument of every query and every change.

A `Scope` names the tenant, the person or device, and what it may do. The permission table is
here, in one place; `require` is the only way to ask it. Queries take the tenant from the scope,
so that a forgotten filter is a missing argument, not a leak.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from firmament.errors import ForbiddenError

FIRST_TENANT: Final = 1
"""A new server has one tenant; every table carries the column from day one."""


class Role(StrEnum):
    """What kind of operator somebody is."""

    VIEWER = "viewer"
    """Looks."""
    OPERATOR = "operator"
    """Enrols devices and assigns published releases to them."""
    RELEASER = "releaser"
    """Uploads and publishes what authors signed."""
    APPROVER = "approver"
    """Promotes published releases to a channel."""
    ADMIN = "admin"
    """Everything, including people and the first root."""


class Action(StrEnum):
    """What a request may need permission for."""

    READ = "read"
    ASSIGN = "assign"
    ENROL = "enrol"
    MANAGE_DEVICES = "manage-devices"
    UPLOAD = "upload"
    PUBLISH = "publish"
    PUBLISH_ROOT = "publish-root"
    """A new root or new delegations: touches every product."""
    TRUST_FIRST_ROOT = "trust-first-root"
    PROMOTE = "promote"
    MANAGE_PEOPLE = "manage-people"
    RECORD = "record"


ALLOWED: Final[dict[Role, frozenset[Action]]] = {
    Role.VIEWER: frozenset({Action.READ}),
    Role.OPERATOR: frozenset({Action.READ, Action.ASSIGN, Action.ENROL, Action.MANAGE_DEVICES, Action.RECORD}),
    Role.RELEASER: frozenset(
        {Action.READ, Action.UPLOAD, Action.PUBLISH, Action.PUBLISH_ROOT, Action.PROMOTE, Action.RECORD}
    ),
    Role.APPROVER: frozenset({Action.READ, Action.PROMOTE}),
    Role.ADMIN: frozenset(Action),
}


@dataclass(frozen=True, slots=True)
class Scope:
    """Tenant, actor and permissions of one request."""

    tenant_id: int
    actor: str
    """For events: ``person:alice``, ``device:<uuid>``, ``server``, ``console:root``."""
    role: Role | None = None
    """None: a device or the server itself; it has no operator permission."""
    product: str | None = None
    """A token may be limited to one product line."""

    def require(self, action: Action, *, product: str | None = None) -> None:
        """Raise ForbiddenError unless this scope may do `action`, for `product` where that matters."""
        if self.role is None or action not in ALLOWED[self.role]:
            raise ForbiddenError("This role may not do that", role=self.role or "none", action=action.value)
        if product is not None:
            self.require_product(product)

    def require_product(self, product: str) -> None:
        """Raise ForbiddenError when the token is limited to another product."""
        if self.product is not None and self.product != product:
            raise ForbiddenError("The token is for another product", token_product=self.product, product=product)

    def require_unlimited(self, what: str) -> None:
        """Raise ForbiddenError when the token is limited to one product."""
        if self.product is not None:
            raise ForbiddenError(f"{what} needs a token for all products", token_product=self.product)

    @property
    def may_see_all(self) -> bool:
        """Whether lists are not limited to one product."""
        return self.product is None


SERVER: Final = Scope(FIRST_TENANT, "server")
"""The server acting on its own."""


def console(user: str) -> Scope:
    """Whoever has a shell on the server and may read its directory: an administrator."""
    return Scope(FIRST_TENANT, f"console:{user}", Role.ADMIN)


def of_device(tenant_id: int, device_id: str) -> Scope:
    """Return the scope of an enrolled device."""
    return Scope(tenant_id, f"device:{device_id}")
