"""The index over the published repository: rows that can be rebuilt from the signed files."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from firmament.core.canonical import decode_object
from firmament.server import events
from firmament.server.attempts.service import cancel_of_release
from firmament.server.events import Event
from firmament.server.inventory.store import decode_manifest
from firmament.server.products import ensure_product, owners
from firmament.server.releases import log as release_log
from firmament.server.releases.admission import read_releases
from firmament.server.releases.find import SELECT, find_release, find_served
from firmament.server.releases.model import AdmittedRelease, History, Published
from firmament.server.scope import FIRST_TENANT, Action, Scope

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from firmament.server.database.port import Connection, Row

_NOT_LOGGED: Final = """
SELECT p.name AS product, r.version, r.manifest, r.published_at
FROM release r JOIN product p ON p.id = r.product_id
WHERE r.tenant_id = ? AND NOT EXISTS (
    SELECT 1 FROM release_log l WHERE l.tenant_id = r.tenant_id AND l.release = p.name || '/' || r.version
) ORDER BY r.id
"""
MAX_LISTED: Final = 1000


def histories(connection: Connection) -> dict[str, History]:
    """Return what was ever published by whomever, withdrawn releases included: the repository is judged whole."""
    manifests: dict[str, dict[str, bytes]] = {}
    highest: dict[str, int] = {}
    for row in connection.execute(
        "SELECT p.name AS product, r.version, r.sequence_number, r.manifest "
        "FROM release r JOIN product p ON p.id = r.product_id"
    ):
        manifests.setdefault(row["product"], {})[row["version"]] = bytes(row["manifest"])
        highest[row["product"]] = max(highest.get(row["product"], 0), row["sequence_number"])
    return {name: History(highest[name], found) for name, found in manifests.items()}


def published_releases(published: Published) -> list[AdmittedRelease]:
    """Return every release that the signed repository names now."""
    return [
        release for name, metadata in published.products.items() for release in read_releases(name, metadata.signed)
    ]


def index(connection: Connection, scope: Scope, releases: Sequence[AdmittedRelease], now: datetime) -> None:
    """Make the rows agree with the repository: add, withdraw, bring back. Running it again changes nothing.

    The files are switched first and this follows: a crash in between is mended at the next start.
    Each release goes to the tenant whose product it is; what is nobody's yet is the first tenant's.
    """
    whose = owners(connection)
    for tenant_id in sorted({FIRST_TENANT, *whose.values()}):
        mine = [one for one in releases if whose.get(one.manifest.product, FIRST_TENANT) == tenant_id]
        _index(connection, replace(scope, tenant_id=tenant_id), mine, now)


def _index(connection: Connection, scope: Scope, releases: Sequence[AdmittedRelease], now: datetime) -> None:
    moment = int(now.timestamp())
    rows = connection.execute(SELECT, (scope.tenant_id,)).fetchall()
    known = {(row["product"], row["version"]): row for row in rows}
    listed = {(release.manifest.product, release.manifest.version) for release in releases}
    for release in releases:
        manifest = release.manifest
        row = known.get((manifest.product, manifest.version))
        if row is not None:
            if row["withdrawn_at"] is not None:
                connection.execute("UPDATE release SET withdrawn_at = NULL WHERE id = ?", (row["id"],))
                events.append(connection, scope, Event.RELEASE_PUBLISHED, now, subject=manifest.release_id, again=True)
            continue
        connection.execute(
            "INSERT INTO release(tenant_id, product_id, version, sequence_number, target, length_bytes, digest, "
            "manifest, published_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                scope.tenant_id,
                ensure_product(connection, scope, manifest.product, now, is_published=True),
                manifest.version,
                manifest.sequence_number,
                release.target,
                manifest.payloads[0].length_bytes,
                str(manifest.payloads[0].digest),
                release.custom,
                moment,
            ),
        )
        events.append(
            connection,
            scope,
            Event.RELEASE_PUBLISHED,
            now,
            subject=manifest.release_id,
            sequence_number=manifest.sequence_number,
            digest=manifest.image.digest,
        )
    _log(connection, scope)
    for key, row in known.items():
        if key not in listed and row["withdrawn_at"] is None:
            connection.execute("UPDATE release SET withdrawn_at = ? WHERE id = ?", (moment, row["id"]))
            connection.execute("DELETE FROM channel WHERE release_id = ?", (row["id"],))
            events.append(connection, scope, Event.RELEASE_WITHDRAWN, now, subject="/".join(key))
            cancel_of_release(connection, scope, row["id"], now, reason="the release was withdrawn")


def _log(connection: Connection, scope: Scope) -> None:
    """Put every release that is not in the release log into it, in the order of publication."""
    rows = connection.execute(_NOT_LOGGED, (scope.tenant_id,)).fetchall()
    leaves = [
        (
            f"{row['product']}/{row['version']}",
            release_log.leaf(
                decode_manifest(bytes(row["manifest"])), bytes(row["manifest"]), published_at=int(row["published_at"])
            ),
        )
        for row in rows
    ]
    if leaves:
        release_log.append(connection, scope, leaves)


def list_releases(connection: Connection, scope: Scope, *, product: str | None) -> list[dict[str, Any]]:
    """Return releases, newest first."""
    if product is not None:
        scope.require_product(product)
    wanted = product or scope.product
    rows = connection.execute(
        SELECT + " AND (CAST(? AS TEXT) IS NULL OR p.name = ?) ORDER BY r.id DESC LIMIT ?",
        (scope.tenant_id, wanted, wanted, MAX_LISTED),
    )
    channels = _channels(connection, scope)
    return [_summary(row, channels) for row in rows]


def get_release(connection: Connection, scope: Scope, *, product: str, version: str) -> dict[str, Any]:
    """Return one release with its manifest; raises NotFoundError."""
    row = find_release(connection, scope, product, version)
    manifest = decode_object(bytes(row["manifest"]), limit_bytes=1024 * 1024, what="manifest")
    return {**_summary(row, _channels(connection, scope)), "manifest": manifest}


def promote(connection: Connection, scope: Scope, *, product: str, version: str, channel: str, now: datetime) -> None:
    """Make a release the one that a channel names; raises NotFoundError, ForbiddenError, ConflictError."""
    scope.require(Action.PROMOTE, product=product)
    row = find_served(connection, scope, product, version)
    connection.execute(
        "INSERT INTO channel(tenant_id, product_id, name, release_id, promoted_at) VALUES (?, ?, ?, ?, ?) "
        "ON CONFLICT(tenant_id, product_id, name) DO UPDATE SET release_id = excluded.release_id, "
        "promoted_at = excluded.promoted_at",
        (scope.tenant_id, row["product_id"], channel, row["id"], int(now.timestamp())),
    )
    events.append(connection, scope, Event.RELEASE_PROMOTED, now, subject=f"{product}/{version}", channel=channel)


def _channels(connection: Connection, scope: Scope) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for row in connection.execute(
        "SELECT release_id, name FROM channel WHERE tenant_id = ? ORDER BY name", (scope.tenant_id,)
    ):
        found.setdefault(row["release_id"], []).append(row["name"])
    return found


def _summary(row: Row, channels: dict[int, list[str]]) -> dict[str, Any]:
    manifest = decode_manifest(bytes(row["manifest"]))
    return {
        "release": f"{row['product']}/{row['version']}",
        "product": row["product"],
        "version": row["version"],
        "sequence_number": row["sequence_number"],
        "target": row["target"],
        "length_bytes": row["length_bytes"],
        "digest": row["digest"],
        "hardware": list(manifest.hardware),
        "installer": manifest.installer,
        "class": manifest.update_class.value,
        "published_at": row["published_at"],
        "withdrawn_at": row["withdrawn_at"],
        "channels": channels.get(row["id"], []),
    }
