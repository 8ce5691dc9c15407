"""The release log: every release that was ever published, under a signed tree head (RFC 9162).

A device or auditor who sees a release can ask for its proof: it is then in a log that the server
can only extend. Showing one release to some and another to others takes two logs, and two signed
tree heads that contradict each other. The tree is computed from the leaves: 10 000 releases are
10 000 hashes, about 10 ms.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from firmament.core import canonical
from firmament.core.digest import Digest
from firmament.errors import NotFoundError, TooLargeError
from firmament.trust import merkle

if TYPE_CHECKING:
    from collections.abc import Sequence

    from firmament.core.manifest import Manifest
    from firmament.server.database.port import Connection
    from firmament.server.scope import Scope

MAX_LEAVES: Final = 1_000_000
MAX_LEAF_LENGTH_BYTES: Final = 4096
MAX_PAGE: Final = 500


def leaf(manifest: Manifest, custom: bytes, *, published_at: int) -> bytes:
    """Return the leaf of a release: what it is called and the digest of the signed manifest."""
    return canonical.encode(
        {
            "v": 1,
            "release": manifest.release_id,
            "sequence_number": manifest.sequence_number,
            "manifest_digest": str(Digest.of(custom)),
            "image_digest": str(manifest.image.digest),
            "published_at": published_at,
        }
    )


def append(connection: Connection, scope: Scope, leaves: Sequence[tuple[str, bytes]]) -> int:
    """Log releases that are not in the log; return how many are new. Never changes what is there."""
    known = {
        row["release"]
        for row in connection.execute("SELECT release FROM release_log WHERE tenant_id = ?", (scope.tenant_id,))
    }
    new = [(release, data) for release, data in leaves if release not in known]
    if len(known) + len(new) > MAX_LEAVES:
        raise TooLargeError("The release log is full", limit=MAX_LEAVES)
    connection.executemany(
        "INSERT INTO release_log(tenant_id, number, release, leaf) VALUES (?, ?, ?, ?)",
        [(scope.tenant_id, len(known) + index, release, data) for index, (release, data) in enumerate(new)],
    )
    return len(new)


def leaf_hashes(connection: Connection, tenant_id: int) -> list[bytes]:
    """Return the hashes of all leaves, in order."""
    rows = connection.execute("SELECT leaf FROM release_log WHERE tenant_id = ? ORDER BY number", (tenant_id,))
    return [merkle.leaf_hash(bytes(row["leaf"])) for row in rows]


def tenants_behind(connection: Connection) -> list[int]:
    """Return the tenants whose log has releases that no tree head covers."""
    rows = connection.execute(
        "SELECT l.tenant_id, count(*) AS size, "
        "(SELECT COALESCE(max(h.size), 0) FROM tree_head h WHERE h.tenant_id = l.tenant_id) AS signed "
        "FROM release_log l GROUP BY l.tenant_id ORDER BY l.tenant_id"
    )
    return [row["tenant_id"] for row in rows if row["size"] != row["signed"]]


def stored_head(connection: Connection, tenant_id: int, size: int) -> dict[str, Any] | None:
    """Return the signed tree head of this size."""
    row = connection.execute(
        "SELECT envelope FROM tree_head WHERE tenant_id = ? AND size = ?", (tenant_id, size)
    ).fetchone()
    return None if row is None else _envelope(row["envelope"])


def store_head(connection: Connection, tenant_id: int, made: dict[str, Any]) -> None:
    """Keep a signed tree head."""
    connection.execute(
        "INSERT INTO tree_head(tenant_id, size, at, envelope) VALUES (?, ?, ?, ?) "
        "ON CONFLICT (tenant_id, size) DO NOTHING",
        (tenant_id, made["size"], made["at"], canonical.encode(made["envelope"])),
    )


def proof(connection: Connection, scope: Scope, *, product: str, version: str) -> dict[str, Any]:
    """Return leaf, index and inclusion path of a release under the log as it is; raises NotFoundError."""
    scope.require_product(product)
    row = connection.execute(
        "SELECT number, leaf FROM release_log WHERE tenant_id = ? AND release = ?",
        (scope.tenant_id, f"{product}/{version}"),
    ).fetchone()
    if row is None:
        raise NotFoundError("The release is not in the log", release=f"{product}/{version}"[:200])
    leaves = leaf_hashes(connection, scope.tenant_id)
    path = merkle.inclusion_proof(leaves, int(row["number"]))
    return {
        "release": f"{product}/{version}",
        "leaf": bytes(row["leaf"]).decode(),
        "index": int(row["number"]),
        "size": len(leaves),
        "proof": [part.hex() for part in path],
    }


def consistency(connection: Connection, scope: Scope, *, old_size: int) -> dict[str, Any]:
    """Return the proof that the log of `old_size` is a beginning of the log as it is; raises LogProofError."""
    scope.require_unlimited("Reading the release log")
    leaves = leaf_hashes(connection, scope.tenant_id)
    path = merkle.consistency_proof(leaves, old_size) if old_size else []
    return {"old_size": old_size, "size": len(leaves), "proof": [part.hex() for part in path]}


def list_leaves(connection: Connection, scope: Scope, *, after: int, limit: int) -> list[dict[str, Any]]:
    """Return leaves from number `after` on."""
    scope.require_unlimited("Reading the release log")
    rows = connection.execute(
        "SELECT number, release, leaf FROM release_log WHERE tenant_id = ? AND number >= ? ORDER BY number LIMIT ?",
        (scope.tenant_id, after, max(1, min(limit, MAX_PAGE))),
    )
    return [{"index": row["number"], "release": row["release"], "leaf": bytes(row["leaf"]).decode()} for row in rows]


def _envelope(data: Any) -> dict[str, Any]:
    return canonical.decode_object(bytes(data), limit_bytes=MAX_LEAF_LENGTH_BYTES, what="tree head")
