"""The one way to a published release by its name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from firmament.errors import ConflictError, NotFoundError

if TYPE_CHECKING:
    from firmament.server.database.port import Connection, Row
    from firmament.server.scope import Scope

SELECT: Final = """
SELECT r.id, r.product_id, p.name AS product, r.version, r.sequence_number, r.target, r.length_bytes, r.digest,
       r.manifest, r.published_at, r.withdrawn_at
FROM release r JOIN product p ON p.id = r.product_id
WHERE r.tenant_id = ?
"""
"""For the scope's tenant; conditions may follow."""
MAX_NAMED: Final = 128
"""Characters of a wrong name that an error repeats."""


def find_release(connection: Connection, scope: Scope, product: str, version: str) -> Row:
    """Return a release's row, withdrawn or not; raises NotFoundError, ForbiddenError."""
    scope.require_product(product)
    row: Row | None = connection.execute(
        SELECT + " AND p.name = ? AND r.version = ?", (scope.tenant_id, product, version)
    ).fetchone()
    if row is None:
        raise NotFoundError("There is no such release", release=f"{product}/{version}"[:MAX_NAMED])
    return row


def find_served(connection: Connection, scope: Scope, product: str, version: str) -> Row:
    """Return a release that was not withdrawn; raises NotFoundError, ForbiddenError, ConflictError."""
    row = find_release(connection, scope, product, version)
    if row["withdrawn_at"] is not None:
        raise ConflictError("The release was withdrawn", release=f"{product}/{version}")
    return row


def find_named(connection: Connection, scope: Scope, release: str) -> Row:
    """Return the row of a release by its whole name, ``product/version``; raises as `find_release`."""
    product, _, version = release.partition("/")
    return find_release(connection, scope, product, version)
