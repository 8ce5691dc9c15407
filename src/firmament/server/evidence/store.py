"""Components, statements and what follows from both, as rows."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from firmament.core import canonical
from firmament.errors import ConflictError, DigestMismatchError, NotFoundError
from firmament.server import events
from firmament.server.events import Event
from firmament.server.evidence import sbom
from firmament.server.evidence.sbom import Component
from firmament.server.evidence.statements import Statement, affected_of_json
from firmament.server.inventory.store import decode_manifest
from firmament.server.releases.find import find_release
from firmament.server.scope import Action

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from firmament.core.digest import Digest
    from firmament.server.database.port import Connection, Row
    from firmament.server.scope import Scope

MAX_VULNERABILITIES: Final = 20_000
MAX_PAGE: Final = 1000
MAX_STATEMENT_LENGTH_BYTES: Final = 2 * 1024 * 1024

# --- bills of materials --------------------------------------------------------------------


def wanted_digest(connection: Connection, scope: Scope, product: str, version: str) -> Digest:
    """Return the digest that the signed manifest gives for the bill of materials; raises ConflictError."""
    manifest = decode_manifest(bytes(find_release(connection, scope, product, version)["manifest"]))
    if manifest.sbom_digest is None:
        raise ConflictError(
            "The signed manifest of this release names no bill of materials; build it with --sbom",
            release=manifest.release_id,
        )
    return manifest.sbom_digest


def require_digest(wanted: Digest, found: Digest) -> None:
    """Raise DigestMismatchError unless these are the bytes that were signed."""
    if wanted != found:
        raise DigestMismatchError("This is not the bill of materials that was signed", expected=wanted, found=found)


def add_sbom(
    connection: Connection,
    scope: Scope,
    *,
    product: str,
    version: str,
    digest: Digest,
    components: Sequence[Component],
    now: datetime,
) -> int:
    """Store the components of a release; return how many are affected by what is known. The same again is nothing."""
    scope.require(Action.IMPORT_EVIDENCE, product=product)
    row = find_release(connection, scope, product, version)
    release_id = row["id"]
    if connection.execute("SELECT 1 FROM sbom WHERE release_id = ?", (release_id,)).fetchone() is None:
        connection.execute(
            "INSERT INTO sbom(release_id, tenant_id, digest, components, added_at) VALUES (?, ?, ?, ?, ?)",
            (release_id, scope.tenant_id, str(digest), len(components), int(now.timestamp())),
        )
        connection.executemany(
            "INSERT INTO component(tenant_id, release_id, ecosystem, name, version, purl, licence) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                (scope.tenant_id, release_id, each.ecosystem, each.name, each.version, each.purl, each.licence)
                for each in components
            ],
        )
        events.append(
            connection,
            scope,
            Event.SBOM_ADDED,
            now,
            subject=f"{product}/{version}",
            digest=digest,
            components=len(components),
        )
    found = tuple(components)
    for vulnerability in connection.execute(
        "SELECT id, name, summary, severity, statement FROM vulnerability WHERE tenant_id = ?", (scope.tenant_id,)
    ).fetchall():
        _match(connection, scope, vulnerability["id"], _statement(vulnerability), release_id, found)
    answer = connection.execute("SELECT count(*) AS n FROM finding WHERE release_id = ?", (release_id,)).fetchone()
    return int(answer["n"])


def components_of(connection: Connection, release_id: int) -> tuple[Component, ...]:
    """Return the components of a release."""
    rows = connection.execute(
        "SELECT name, version, ecosystem, purl, licence FROM component WHERE release_id = ? ORDER BY name, version",
        (release_id,),
    )
    return tuple(Component(row["name"], row["version"], row["ecosystem"], row["purl"], row["licence"]) for row in rows)


def show_sbom(connection: Connection, scope: Scope, *, product: str, version: str) -> dict[str, Any]:
    """Return the components of a release; raises NotFoundError when none were read."""
    row = find_release(connection, scope, product, version)
    known = connection.execute("SELECT digest, added_at FROM sbom WHERE release_id = ?", (row["id"],)).fetchone()
    if known is None:
        raise NotFoundError("No bill of materials was read for this release", release=f"{product}/{version}")
    components = [
        {
            "name": each.name,
            "version": each.version,
            "ecosystem": each.ecosystem,
            "purl": each.purl,
            "licence": each.licence,
        }
        for each in components_of(connection, row["id"])
    ]
    return {
        "release": f"{product}/{version}",
        "digest": known["digest"],
        "added_at": known["added_at"],
        "components": components,
    }


def diff(connection: Connection, scope: Scope, *, product: str, old: str, new: str) -> dict[str, Any]:
    """Return what components changed between two releases of a product."""
    before, after = (
        components_of(connection, find_release(connection, scope, product, version)["id"]) for version in (old, new)
    )
    changes = sbom.diff(before, after)
    return {
        "old": f"{product}/{old}",
        "new": f"{product}/{new}",
        "changes": [{"name": each.name, "old": each.old, "new": each.new} for each in changes],
    }


# --- vulnerabilities -----------------------------------------------------------------------


def state(connection: Connection, scope: Scope, statements: Sequence[Statement], now: datetime) -> int:
    """Store statements, the newest of a name counts; match all releases. Returns how many findings there are."""
    scope.require(Action.IMPORT_EVIDENCE)
    scope.require_unlimited("Importing a statement")
    count = connection.execute(
        "SELECT count(*) AS n FROM vulnerability WHERE tenant_id = ?", (scope.tenant_id,)
    ).fetchone()["n"]
    if count + len(statements) > MAX_VULNERABILITIES:
        raise ConflictError("There are as many vulnerabilities as allowed", limit=MAX_VULNERABILITIES)
    releases = connection.execute("SELECT release_id FROM sbom WHERE tenant_id = ?", (scope.tenant_id,)).fetchall()
    found = 0
    known = {row["release_id"]: components_of(connection, row["release_id"]) for row in releases}
    for statement in statements:
        row_id = _store(connection, scope, statement, now)
        connection.execute("DELETE FROM finding WHERE vulnerability_id = ?", (row_id,))
        for release_id, components in known.items():
            found += _match(connection, scope, row_id, statement, release_id, components)
        events.append(
            connection, scope, Event.VULNERABILITY_STATED, now, subject=statement.name, severity=statement.severity
        )
    return found


def _store(connection: Connection, scope: Scope, statement: Statement, now: datetime) -> int:
    row = connection.execute(
        "INSERT INTO vulnerability(tenant_id, name, summary, severity, statement, known_at) VALUES (?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (tenant_id, name) DO UPDATE SET summary = excluded.summary, severity = excluded.severity, "
        "statement = excluded.statement RETURNING id",
        (
            scope.tenant_id,
            statement.name,
            statement.summary,
            statement.severity,
            canonical.encode([each.to_json() for each in statement.affected]).decode(),
            int(now.timestamp()),
        ),
    ).fetchone()
    return int(row["id"])


def _statement(row: Row) -> Statement:
    affected = tuple(affected_of_json(value) for value in json.loads(row["statement"]))
    return Statement(row["name"], row["summary"], row["severity"], affected)


def _match(
    connection: Connection,
    scope: Scope,
    vulnerability_id: int,
    statement: Statement,
    release_id: int,
    components: tuple[Component, ...],
) -> int:
    component = statement.finds(components)
    if component is None:
        return 0
    connection.execute(
        "INSERT INTO finding(tenant_id, vulnerability_id, release_id, component, status) VALUES (?, ?, ?, ?, ?) "
        "ON CONFLICT (vulnerability_id, release_id) DO UPDATE SET component = excluded.component",
        (scope.tenant_id, vulnerability_id, release_id, f"{component.name} {component.version}".strip(), "affected"),
    )
    return 1


def drop(connection: Connection, scope: Scope, name: str, now: datetime) -> None:
    """Forget a statement, e.g. one that was wrong; the events stay. Raises NotFoundError."""
    scope.require(Action.IMPORT_EVIDENCE)
    row = _vulnerability(connection, scope, name)
    connection.execute("DELETE FROM finding WHERE vulnerability_id = ?", (row["id"],))
    connection.execute("DELETE FROM vulnerability WHERE id = ?", (row["id"],))
    events.append(connection, scope, Event.VULNERABILITY_DROPPED, now, subject=name)


def _vulnerability(connection: Connection, scope: Scope, name: str) -> Row:
    row: Row | None = connection.execute(
        "SELECT id, name, summary, severity, statement, known_at FROM vulnerability WHERE tenant_id = ? AND name = ?",
        (scope.tenant_id, name),
    ).fetchone()
    if row is None:
        raise NotFoundError("Nobody stated anything about this vulnerability", name=name[:80])
    return row


def list_vulnerabilities(connection: Connection, scope: Scope, *, after: int, limit: int) -> list[dict[str, Any]]:
    """Return what is known, with how many devices still run an affected release."""
    scope.require_unlimited("Reading vulnerabilities")
    rows = connection.execute(
        "SELECT v.id, v.name, v.summary, v.severity, v.known_at, "
        "(SELECT count(*) FROM finding f WHERE f.vulnerability_id = v.id) AS releases, "
        "(SELECT count(*) FROM finding f JOIN release r ON r.id = f.release_id JOIN device d "
        "ON d.product_id = r.product_id AND d.version = r.version AND d.disabled = 0 "
        "WHERE f.vulnerability_id = v.id) AS devices "
        "FROM vulnerability v WHERE v.tenant_id = ? AND v.id > ? ORDER BY v.id LIMIT ?",
        (scope.tenant_id, after, max(1, min(limit, MAX_PAGE))),
    )
    names = ("id", "name", "summary", "severity", "known_at", "releases", "devices")
    return [{name: row[name] for name in names} for row in rows]


def show_vulnerability(connection: Connection, scope: Scope, name: str) -> dict[str, Any]:
    """Return who still runs an affected release, where it is fixed, and how long the fleet took."""
    scope.require_unlimited("Reading vulnerabilities")
    row = _vulnerability(connection, scope, name)
    affected = connection.execute(
        "SELECT p.name AS product, r.version, r.product_id, r.sequence_number, r.published_at, f.component, "
        "(SELECT count(*) FROM device d WHERE d.product_id = r.product_id AND d.version = r.version "
        "AND d.disabled = 0) AS devices FROM finding f JOIN release r ON r.id = f.release_id "
        "JOIN product p ON p.id = r.product_id WHERE f.vulnerability_id = ? ORDER BY p.name, r.sequence_number",
        (row["id"],),
    ).fetchall()
    products = {each["product_id"] for each in affected}
    fixes = [fix for product_id in sorted(products) for fix in _fixes(connection, row, product_id, affected)]
    return {
        "name": row["name"],
        "summary": row["summary"],
        "severity": row["severity"],
        "known_at": row["known_at"],
        "affected": json.loads(row["statement"]),
        "releases": [
            {
                "release": f"{each['product']}/{each['version']}",
                "component": each["component"],
                "published_at": each["published_at"],
                "devices": each["devices"],
            }
            for each in affected
        ],
        "devices": sum(each["devices"] for each in affected),
        "devices_unknown": _unknown(connection, scope),
        "fixed_in": [fix["release"] for fix in fixes],
        "time_to_patch": _time_to_patch(connection, row["known_at"], fixes),
    }


def _fixes(connection: Connection, row: Row, product_id: int, affected: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the releases above the newest affected one whose components were read and are not affected."""
    newest = max(each["sequence_number"] for each in affected if each["product_id"] == product_id)
    rows = connection.execute(
        "SELECT r.id, r.version, r.published_at, p.name AS product FROM release r "
        "JOIN product p ON p.id = r.product_id JOIN sbom s ON s.release_id = r.id "
        "WHERE r.product_id = ? AND r.sequence_number > ? AND "
        "NOT EXISTS (SELECT 1 FROM finding f WHERE f.release_id = r.id AND f.vulnerability_id = ?) "
        "ORDER BY r.sequence_number",
        (product_id, newest, row["id"]),
    )
    return [
        {
            "id": each["id"],
            "release": f"{each['product']}/{each['version']}",
            "published_at": each["published_at"],
        }
        for each in rows
    ]


def _time_to_patch(connection: Connection, known_at: int, fixes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the seconds from knowing to the fix's publication, and to half, 90 % and all of the devices so far."""
    times: list[int] = []
    for fix in fixes:
        rows = connection.execute(
            "SELECT min(updated_at) AS at FROM attempt WHERE release_id = ? AND state = 'confirmed' GROUP BY device_id",
            (fix["id"],),
        )
        times += [int(row["at"]) for row in rows]
    times.sort()
    first = min((int(fix["published_at"]) for fix in fixes), default=None)

    def after(moment: int | None) -> int | None:
        return None if moment is None else max(0, moment - known_at)

    def share(percent: int) -> int | None:
        return after(times[max(0, -(-len(times) * percent // 100) - 1)]) if times else None

    return {
        "published_after_s": after(first),
        "devices_fixed": len(times),
        "half_after_s": share(50),
        "most_after_s": share(90),
        "last_after_s": share(100),
    }


def _unknown(connection: Connection, scope: Scope) -> int:
    """Count devices of which nobody can say what they contain: no bill of materials for what they run."""
    row = connection.execute(
        "SELECT count(*) AS n FROM device d WHERE d.tenant_id = ? AND d.disabled = 0 AND NOT EXISTS "
        "(SELECT 1 FROM release r JOIN sbom s ON s.release_id = r.id "
        "WHERE r.product_id = d.product_id AND r.version = d.version)",
        (scope.tenant_id,),
    ).fetchone()
    return int(row["n"])
