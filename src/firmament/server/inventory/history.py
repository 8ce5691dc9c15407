"""What the field ran, day by day: the counts of a day are written again and again until it is over.

Any replica may write them, at any time: the rows of a day are replaced as a whole, so twice is once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from firmament.server.scope import Action

if TYPE_CHECKING:
    from datetime import datetime

    from firmament.server.database.port import Connection
    from firmament.server.scope import Scope

DAY_S: Final = 86_400
EVERY_S: Final = 900.0
"""A whole table is read each time: 100 000 devices take some 20 ms."""
KEPT_DAYS: Final = 400
"""A year, and the month before."""
MAX_DAYS: Final = 366
MAX_KINDS: Final = 10_000
"""Products times versions of all tenants, the most frequent first."""


def count_today(connection: Connection) -> list[tuple[int, int, str, int]]:
    """Return tenant, product, version and how many devices run it now, for every tenant."""
    rows = connection.execute(
        "SELECT tenant_id, product_id, version, COUNT(*) AS n FROM device "
        "GROUP BY tenant_id, product_id, version ORDER BY n DESC LIMIT ?",
        (MAX_KINDS,),
    )
    return [(row["tenant_id"], row["product_id"], row["version"], row["n"]) for row in rows]


def write_day(connection: Connection, counts: list[tuple[int, int, str, int]], now: datetime) -> None:
    """Replace the counts of today, and forget what is older than `KEPT_DAYS`."""
    day = int(now.timestamp()) // DAY_S
    connection.execute("DELETE FROM version_day WHERE day = ? OR day < ?", (day, day - KEPT_DAYS))
    connection.executemany(
        "INSERT INTO version_day(tenant_id, product_id, day, version, devices) VALUES (?, ?, ?, ?, ?)",
        [(tenant, product, day, version, n) for tenant, product, version, n in counts],
    )


def list_days(
    connection: Connection, scope: Scope, *, product: str | None, days: int, now: datetime
) -> list[dict[str, Any]]:
    """Return the last days, oldest first; days when no server ran are absent. `at` is the begin of the day, UTC."""
    scope.require(Action.READ)
    if product is not None:
        scope.require_product(product)
    wanted = product or scope.product
    since = int(now.timestamp()) // DAY_S - max(1, min(days, MAX_DAYS)) + 1
    rows = connection.execute(
        "SELECT v.day, p.name AS product, v.version, v.devices FROM version_day v "
        "JOIN product p ON p.id = v.product_id WHERE v.tenant_id = ? AND v.day >= ? "
        "AND (CAST(? AS TEXT) IS NULL OR p.name = ?) ORDER BY v.day, v.devices DESC, p.name, v.version LIMIT ?",
        (scope.tenant_id, since, wanted, wanted, MAX_KINDS),
    )
    found: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["day"], []).append(
            {"product": row["product"], "version": row["version"], "count": row["devices"]}
        )
    return [
        {"at": day * DAY_S, "total": sum(one["count"] for one in versions), "versions": versions}
        for day, versions in found.items()
    ]
