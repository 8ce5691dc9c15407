"""Product rows: made when a product is first published or first enrolled for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from firmament.core.ids import product_name
from firmament.errors import NotFoundError
from firmament.server import events
from firmament.server.events import Event
from firmament.server.scope import FIRST_TENANT

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from firmament.server.database.port import Connection
    from firmament.server.scope import Scope


def ensure_product(
    connection: Connection, scope: Scope, name: str, now: datetime, *, is_published: bool = False
) -> int:
    """Return the row id of a product line, making it if there is one tenant only.

    With several, product lines are given to tenants (`people.tenants.give_product`), and one that
    is another's looks like one that nobody has. `is_published`: the repository names it already,
    and it is given to nobody: it is the first tenant's. Raises MalformedError, ForbiddenError, NotFoundError.
    """
    scope.require_product(product_name(name))
    found = connection.execute(
        "SELECT id FROM product WHERE tenant_id = ? AND name = ?", (scope.tenant_id, name)
    ).fetchone()
    if found is not None:
        return int(found["id"])
    others = connection.execute("SELECT 1 FROM tenant WHERE id <> ?", (FIRST_TENANT,)).fetchone()
    if others is not None and not (is_published and scope.tenant_id == FIRST_TENANT):
        raise NotFoundError("There is no such product line; an administrator of the server gives it", product=name)
    row = connection.execute(
        "INSERT INTO product(tenant_id, name, created_at) VALUES (?, ?, ?) RETURNING id",
        (scope.tenant_id, name, int(now.timestamp())),
    ).fetchone()
    events.append(connection, scope, Event.PRODUCT_ADDED, now, subject=name)
    return int(row["id"])


def list_products(connection: Connection, scope: Scope) -> list[str]:
    """Return the product lines this scope may see."""
    rows = connection.execute("SELECT name FROM product WHERE tenant_id = ? ORDER BY name", (scope.tenant_id,))
    return [row["name"] for row in rows if scope.product in {None, row["name"]}]


def owners(connection: Connection) -> dict[str, int]:
    """Return whose each product line is: for the server's own book-keeping, never for an answer."""
    return {row["name"]: row["tenant_id"] for row in connection.execute("SELECT name, tenant_id FROM product")}


def owner(connection: Connection, name: str) -> int:
    """Return whose a product line is; the first tenant's when it was given to nobody."""
    row = connection.execute("SELECT tenant_id FROM product WHERE name = ?", (name,)).fetchone()
    return FIRST_TENANT if row is None else int(row["tenant_id"])


def foreign(connection: Connection, scope: Scope, names: Iterable[str]) -> set[str]:
    """Return those of these product lines that are not this tenant's: not to be named to it."""
    whose = owners(connection)
    return {name for name in names if whose.get(name, FIRST_TENANT) != scope.tenant_id}
