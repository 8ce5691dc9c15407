"""Pages and counts of the devices that a query selects, within the caller's scope."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from firmament.server.inventory.groups import group_rows
from firmament.server.inventory.model import DeviceRecord
from firmament.server.inventory.query import Node, names_in, parse
from firmament.server.inventory.query_sql import FROM, Sql, compile_query

if TYPE_CHECKING:
    from datetime import datetime

    from firmament.server.database.port import Connection
    from firmament.server.scope import Scope

MAX_PAGE: Final = 500
COUNT_CAP: Final = 10_000
"""A live count stops here: "10 000+" is as good for a person, and cheap."""
MAX_ATTRIBUTE_NAMES: Final = 100
MAX_ATTRIBUTE_VALUES: Final = 20
SAMPLE: Final = 5
MAX_VERSIONS: Final = 200


@dataclass(frozen=True, slots=True)
class Count:
    """How many match; capped counts are lower bounds."""

    count: int
    is_capped: bool


def condition(connection: Connection, scope: Scope, query: str | Node, now: datetime) -> Sql:
    """Return a query's condition in this scope, for `FROM`; raises MalformedError or NotFoundError."""
    node = parse(query) if isinstance(query, str) else query
    groups = group_rows(connection, scope) if "group" in names_in(node) else {}
    selected = compile_query(node, now_s=int(now.timestamp()), groups=groups)
    text, parameters = f"d.tenant_id = ? AND {selected.text}", (scope.tenant_id, *selected.parameters)
    if scope.product is not None:
        text, parameters = f"{text} AND p.name = ?", (*parameters, scope.product)
    return Sql(text, parameters)


def find_devices(
    connection: Connection, scope: Scope, *, query: str, after: int, limit: int, now: datetime
) -> list[DeviceRecord]:
    """Return one page in the order of enrolment; `after` is the last row id of the page before."""
    where = condition(connection, scope, query, now)
    rows = connection.execute(
        "SELECT d.id, d.uid, p.name AS product, d.hardware, d.serial, d.disabled, d.version, d.sequence_number, "
        "d.image_digest, d.boot_id, d.attributes, d.enrolled_at, s.last_seen "
        f"FROM {FROM} WHERE {where.text} AND d.id > ? ORDER BY d.id LIMIT ?",
        (*where.parameters, after, min(limit, MAX_PAGE)),
    )
    return [DeviceRecord.of_row(row) for row in rows]


def count_devices(
    connection: Connection, scope: Scope, query: str | Node, now: datetime, cap: int = COUNT_CAP
) -> Count:
    """Count, at most up to `cap`."""
    where = condition(connection, scope, query, now)
    row = connection.execute(
        f"SELECT COUNT(*) AS n FROM (SELECT 1 FROM {FROM} WHERE {where.text} LIMIT ?) AS counted",
        (*where.parameters, cap + 1),
    ).fetchone()
    return Count(min(int(row["n"]), cap), int(row["n"]) > cap)


def count_versions(connection: Connection, scope: Scope, product: str | None) -> list[dict[str, Any]]:
    """Return how many devices run what, the most frequent first."""
    if product is not None:
        scope.require_product(product)
    wanted = product or scope.product
    rows = connection.execute(
        "SELECT p.name AS product, d.version, COUNT(*) AS n FROM device d JOIN product p ON p.id = d.product_id "
        "WHERE d.tenant_id = ? AND (CAST(? AS TEXT) IS NULL OR p.name = ?) "
        "GROUP BY p.name, d.version ORDER BY n DESC, p.name, d.version LIMIT ?",
        (scope.tenant_id, wanted, wanted, MAX_VERSIONS),
    )
    return [{"product": row["product"], "version": row["version"], "count": row["n"]} for row in rows]


def sample_devices(connection: Connection, scope: Scope, where: Sql, limit: int = SAMPLE) -> list[str]:
    """Return the names of a few devices that fit a condition."""
    del scope  # `where` was made in it
    rows = connection.execute(
        f"SELECT d.uid FROM {FROM} WHERE {where.text} ORDER BY d.id LIMIT ?", (*where.parameters, limit)
    )
    return [row["uid"] for row in rows]


def list_attributes(connection: Connection, scope: Scope) -> list[dict[str, Any]]:
    """Return names that devices report and some of their values: filters come from what is reported."""
    scope.require_unlimited("Listing what devices report")
    names = connection.execute(
        "SELECT DISTINCT name FROM device_attribute WHERE tenant_id = ? ORDER BY name LIMIT ?",
        (scope.tenant_id, MAX_ATTRIBUTE_NAMES),
    ).fetchall()
    found = []
    for row in names:
        values = connection.execute(
            "SELECT DISTINCT value FROM device_attribute WHERE tenant_id = ? AND name = ? ORDER BY value LIMIT ?",
            (scope.tenant_id, row["name"], MAX_ATTRIBUTE_VALUES),
        )
        found.append({"name": row["name"], "values": [value["value"] for value in values]})
    return found
