"""Product rows: made when a product is first published or first enrolled for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from firmament.core.ids import product_name
from firmament.server import events
from firmament.server.events import Event

if TYPE_CHECKING:
    from datetime import datetime

    from firmament.server.database.port import Connection
    from firmament.server.scope import Scope


def ensure_product(connection: Connection, scope: Scope, name: str, now: datetime) -> int:
    """Return the row id of a product line, making it if needed; raises MalformedError, ForbiddenError."""
    scope.require_product(product_name(name))
    found = connection.execute(
        "SELECT id FROM product WHERE tenant_id = ? AND name = ?", (scope.tenant_id, name)
    ).fetchone()
    if found is not None:
        return int(found["id"])
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
