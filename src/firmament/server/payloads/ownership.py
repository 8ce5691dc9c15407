"""Which tenant sent which bytes: blobs are kept once, but nobody is told of what others sent (ADR-0016)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from firmament.errors import DigestMismatchError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from firmament.core.digest import Digest
    from firmament.server.database.port import Connection
    from firmament.server.scope import Scope


def note_blob(connection: Connection, scope: Scope, digest: Digest, *, length_bytes: int, now: datetime) -> None:
    """Write down that this tenant sent these bytes, whole."""
    connection.execute(
        "INSERT INTO tenant_blob(tenant_id, digest, length_bytes, at) VALUES (?, ?, ?, ?) "
        "ON CONFLICT (tenant_id, digest) DO NOTHING",
        (scope.tenant_id, str(digest), length_bytes, int(now.timestamp())),
    )


def has_blob(connection: Connection, scope: Scope, digest: Digest) -> bool:
    """Whether this tenant sent these bytes."""
    row = connection.execute(
        "SELECT 1 FROM tenant_blob WHERE tenant_id = ? AND digest = ?", (scope.tenant_id, str(digest))
    ).fetchone()
    return row is not None


def require_blobs(connection: Connection, scope: Scope, targets: Iterable[tuple[str, Digest]]) -> None:
    """Raise DigestMismatchError, as for bytes that nobody sent, unless this tenant sent all of them."""
    for path, digest in targets:
        if not has_blob(connection, scope, digest):
            raise DigestMismatchError("The bytes of a target were not uploaded", target=path)
