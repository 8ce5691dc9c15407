"""Which tenant sent which bytes: blobs are kept once, but nobody is told of what others sent (ADR-0016)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from firmament.errors import DigestMismatchError, OverloadedError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from firmament.core.digest import Digest
    from firmament.server.database.port import Connection
    from firmament.server.scope import Scope


def note_blob(connection: Connection, scope: Scope, digest: Digest, *, length_bytes: int, now: datetime) -> None:
    """Write down that this tenant sent these bytes, whole; the time protects them (`payloads.collect`)."""
    connection.execute(
        "INSERT INTO tenant_blob(tenant_id, digest, length_bytes, at) VALUES (?, ?, ?, ?) "
        "ON CONFLICT (tenant_id, digest) DO UPDATE SET at = excluded.at",
        (scope.tenant_id, str(digest), length_bytes, int(now.timestamp())),
    )


def has_blob(connection: Connection, scope: Scope, digest: Digest) -> bool:
    """Whether this tenant sent these bytes."""
    row = connection.execute(
        "SELECT 1 FROM tenant_blob WHERE tenant_id = ? AND digest = ?", (scope.tenant_id, str(digest))
    ).fetchone()
    return row is not None


def pin_blobs(connection: Connection, scope: Scope, targets: Iterable[tuple[str, Digest]], now: datetime) -> None:
    """Protect the bytes of targets that are about to be published from being collected.

    Raises DigestMismatchError, as for bytes that nobody sent, unless this tenant sent all of them.
    """
    for path, digest in targets:
        found = connection.execute(
            "UPDATE tenant_blob SET at = ? WHERE tenant_id = ? AND digest = ?",
            (int(now.timestamp()), scope.tenant_id, str(digest)),
        )
        if not found.rowcount:
            raise DigestMismatchError("The bytes of a target were not uploaded", target=path)


def require_kept(length_bytes: int | None, expected_bytes: int) -> None:
    """Raise OverloadedError when bytes were collected between their arrival and the note of it."""
    if length_bytes != expected_bytes:
        raise OverloadedError("The bytes were removed meanwhile; send them again", retry_after_s=1)
