"""Tenants: made, listed and disabled by the first tenant's administrators, who run the server (ADR-0016)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from firmament.core.ids import check, product_name
from firmament.errors import ConflictError, NotFoundError
from firmament.server import events
from firmament.server.events import Event
from firmament.server.scope import FIRST_TENANT, Action, Role, Scope

if TYPE_CHECKING:
    from datetime import datetime

    from firmament.server.database.port import Connection

FIRST_TENANT_NAME: Final = "main"
NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?")
MAX_LISTED: Final = 2000


def add_tenant(connection: Connection, scope: Scope, *, name: str, now: datetime) -> int:
    """Make a tenant, with nobody in it; raises ConflictError when the name is taken."""
    _require(scope)
    check(name, NAME, what="The tenant's name")
    if connection.execute("SELECT 1 FROM tenant WHERE name = ?", (name,)).fetchone():
        raise ConflictError("There is a tenant of this name already", name=name)
    row = connection.execute(
        "INSERT INTO tenant(name, created_by, created_at) VALUES (?, ?, ?) RETURNING id",
        (name, scope.actor, int(now.timestamp())),
    ).fetchone()
    events.append(connection, scope, Event.TENANT_ADDED, now, subject=name)
    return int(row["id"])


def list_tenants(connection: Connection, scope: Scope) -> list[dict[str, Any]]:
    """Return every tenant with how many people, products and devices it has."""
    _require(scope)
    rows = connection.execute(
        "SELECT t.id, t.name, t.disabled, t.created_at, "
        "(SELECT COUNT(*) FROM person p WHERE p.tenant_id = t.id) AS people, "
        "(SELECT COUNT(*) FROM product p WHERE p.tenant_id = t.id) AS products, "
        "(SELECT COUNT(*) FROM device d WHERE d.tenant_id = t.id) AS devices "
        "FROM tenant t ORDER BY t.id LIMIT ?",
        (MAX_LISTED,),
    )
    return [
        {
            "name": row["name"],
            "disabled": bool(row["disabled"]),
            "created_at": row["created_at"],
            "people": row["people"],
            "products": row["products"],
            "devices": row["devices"],
        }
        for row in rows
    ]


def set_tenant_disabled(connection: Connection, scope: Scope, *, name: str, is_disabled: bool, now: datetime) -> None:
    """Refuse a tenant's people from now on, or take them back; its devices keep what they were assigned.

    Raises NotFoundError, and ConflictError for the first tenant.
    """
    _require(scope)
    tenant_id = tenant_of(connection, scope, name)
    if tenant_id == FIRST_TENANT:
        raise ConflictError("The first tenant runs the server and stays", name=name)
    connection.execute("UPDATE tenant SET disabled = ? WHERE id = ?", (int(is_disabled), tenant_id))
    kind = Event.TENANT_DISABLED if is_disabled else Event.TENANT_ENABLED
    events.append(connection, scope, kind, now, subject=name)


def tenant_of(connection: Connection, scope: Scope, name: str) -> int:
    """Return a tenant's number; raises NotFoundError."""
    _require(scope)
    row = connection.execute("SELECT id FROM tenant WHERE name = ?", (name,)).fetchone()
    if row is None:
        raise NotFoundError("There is no such tenant", name=name[:80])
    return int(row["id"])


def inside(connection: Connection, scope: Scope, name: str) -> Scope:
    """Return the same administrator, acting in another tenant: for its first person and its products."""
    return Scope(tenant_of(connection, scope, name), scope.actor, Role.ADMIN)


def give_product(connection: Connection, scope: Scope, *, tenant: str, product: str, now: datetime) -> None:
    """Say that a new product line is a tenant's; raises ConflictError when it is somebody's already."""
    target = inside(connection, scope, tenant)
    product_name(product)
    row = connection.execute("SELECT tenant_id FROM product WHERE name = ?", (product,)).fetchone()
    if row is not None and row["tenant_id"] == target.tenant_id:
        return
    if row is not None:
        raise ConflictError("The product line is another tenant's", product=product)
    connection.execute(
        "INSERT INTO product(tenant_id, name, created_at) VALUES (?, ?, ?)",
        (target.tenant_id, product, int(now.timestamp())),
    )
    events.append(connection, target, Event.PRODUCT_ADDED, now, subject=product)


def _require(scope: Scope) -> None:
    scope.require(Action.MANAGE_TENANTS)
    scope.require_unlimited("Managing tenants")
