"""Who is asking: the first argument of every query and every change.

A `Scope` names the tenant, the person or device, and what it may do. The permission table is
here, in one place; `require` is the only way to ask it. Queries take the tenant from the scope,
so that a forgotten filter is a missing argument, not a leak.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from firmament.errors import ForbiddenError, SecondPersonError

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
    START_ROLLOUT = "start-rollout"
    """Plan, make, start and go on: whatever gives a release to more devices."""
    APPROVE = "approve"
    """Agree to, or deny, what another person made (`Scope.require_second_person`)."""
    STOP = "stop"
    """Pause, abort, acknowledge: fewer devices get it. Everybody who is called at night may."""
    REVERT = "revert"
    """Bring updated devices back."""
    SET_CONSENT = "set-consent"
    """Say which updates ask their owner first."""
    SEE_AUDIT = "see-audit"
    """Read, verify and export the record of who did what."""
    MANAGE_NOTIFICATIONS = "manage-notifications"
    """Webhooks and whom to tell."""
    MANAGE_TENANTS = "manage-tenants"
    """Make and disable tenants, and say which products are theirs; the first tenant's administrators only."""
    IMPORT_EVIDENCE = "import-evidence"
    """Bills of materials and statements about vulnerabilities."""


_EVERYBODY_ON_CALL: Final = frozenset({Action.READ, Action.STOP, Action.SEE_AUDIT})
ALLOWED: Final[dict[Role, frozenset[Action]]] = {
    Role.VIEWER: frozenset({Action.READ}),
    Role.OPERATOR: _EVERYBODY_ON_CALL
    | {
        Action.ASSIGN,
        Action.ENROL,
        Action.MANAGE_DEVICES,
        Action.RECORD,
        Action.START_ROLLOUT,
        Action.REVERT,
        Action.SET_CONSENT,
        Action.MANAGE_NOTIFICATIONS,
    },
    Role.RELEASER: _EVERYBODY_ON_CALL
    | {
        Action.UPLOAD,
        Action.IMPORT_EVIDENCE,
        Action.PUBLISH,
        Action.PUBLISH_ROOT,
        Action.PROMOTE,
        Action.RECORD,
        Action.START_ROLLOUT,
        Action.REVERT,
    },
    Role.APPROVER: _EVERYBODY_ON_CALL | {Action.PROMOTE, Action.APPROVE},
    Role.ADMIN: frozenset(Action),
}
SERVER_WIDE: Final = frozenset({Action.MANAGE_TENANTS, Action.TRUST_FIRST_ROOT, Action.PUBLISH_ROOT})
"""What touches every tenant: roots and delegations are common to all products, ADR-0016."""


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
        if action in SERVER_WIDE and self.tenant_id != FIRST_TENANT:
            raise ForbiddenError("Only the first tenant may do that", action=action.value)
        if product is not None:
            self.require_product(product)

    def may(self, action: Action) -> bool:
        """Whether `require` would pass: for saying beforehand what somebody may not do, and why."""
        return (
            self.role is not None
            and action in ALLOWED[self.role]
            and (action not in SERVER_WIDE or self.tenant_id == FIRST_TENANT)
        )

    def require_second_person(self, first: str) -> None:
        """Raise SecondPersonError when `first` (the actor who made it) is the one who asks now.

        A token speaks as the person who made it, so that one person with two tokens is one person.
        """
        if self.actor == first:
            raise SecondPersonError("Somebody else must do this", actor=self.actor)

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
