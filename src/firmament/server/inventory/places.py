"""Tags, sites and gateways: how operators say what a device is for and where it is."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from firmament.core.ids import check
from firmament.errors import ConflictError, TooLargeError
from firmament.server import events
from firmament.server.events import Event
from firmament.server.inventory.groups import device_rows
from firmament.server.inventory.query_sql import FROM, IDLE
from firmament.server.inventory.search import condition, count_devices
from firmament.server.scope import Action

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from firmament.server.database.port import Connection
    from firmament.server.scope import Scope

TAG: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,63}")
SITE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._/-]{0,63}")
MAX_SITES: Final = 100_000
MAX_PAGE: Final = 500
MAX_TAGS_LISTED: Final = 500
CHUNK: Final = 5000
MAX_TAGGED: Final = 50_000
# Ten chunks are some 100 ms of the writer; more is done by narrower queries, one after the other.


def change_tags(
    connection: Connection,
    scope: Scope,
    *,
    query: str | None,
    ids: Sequence[str],
    add: Sequence[str],
    remove: Sequence[str],
    expect_count: int | None,
    now: datetime,
) -> int:
    """Add and remove tags of the devices a query selects, or of those named; return how many devices.

    Raises ConflictError when `expect_count` is not what matches now: somebody looked at another list.
    """
    scope.require(Action.MANAGE_DEVICES)
    for tag in (*add, *remove):
        check(tag, TAG, what="The tag")
    rows = _selected(connection, scope, query, now) if query is not None else device_rows(connection, scope, ids)
    if expect_count is not None and expect_count != len(rows):
        raise ConflictError("Another number of devices matches now", expected=expect_count, found=len(rows))
    for tag in add:
        connection.executemany(
            "INSERT INTO device_tag(device_id, tag, tenant_id) VALUES (?, ?, ?) ON CONFLICT(device_id, tag) DO NOTHING",
            [(row_id, tag, scope.tenant_id) for row_id in rows],
        )
    for tag in remove:
        connection.executemany(
            "DELETE FROM device_tag WHERE device_id = ? AND tag = ?", [(row_id, tag) for row_id in rows]
        )
    events.append(
        connection,
        scope,
        Event.DEVICES_TAGGED,
        now,
        count=len(rows),
        query=query,
        added=list(add),
        removed=list(remove),
    )
    return len(rows)


def _selected(connection: Connection, scope: Scope, query: str, now: datetime) -> list[int]:
    count = count_devices(connection, scope, query, now, cap=MAX_TAGGED)
    if count.is_capped:
        raise TooLargeError("The query selects too many devices at once", limit=MAX_TAGGED)
    where = condition(connection, scope, query, now)
    rows = connection.execute(f"SELECT d.id FROM {FROM} WHERE {where.text} ORDER BY d.id", where.parameters)
    return [row["id"] for row in rows]


def list_tags(connection: Connection, scope: Scope) -> list[dict[str, Any]]:
    """Return tags with how many devices have them, by name."""
    scope.require_unlimited("Listing tags")
    rows = connection.execute(
        "SELECT tag, COUNT(*) AS n FROM device_tag WHERE tenant_id = ? GROUP BY tag ORDER BY tag LIMIT ?",
        (scope.tenant_id, MAX_TAGS_LISTED),
    )
    return [{"tag": row["tag"], "count": row["n"]} for row in rows]


def describe(connection: Connection, scope: Scope, row_ids: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Return tags, site, gateway, state, error, and why pinned, muted, in quarantine or without its wrapping key."""
    del scope  # the rows were read in it
    found: dict[int, dict[str, Any]] = {
        row_id: {
            "tags": [], "site": None, "gateway": None, "state": IDLE, "error": "", "quarantine": None,
            "pinned": None, "muted": None, "wrapping_key_revoked": None,
        }
        for row_id in row_ids
    }  # fmt: skip
    if not found:
        return found
    marks = ", ".join("?" * len(found))
    tags = connection.execute(
        f"SELECT device_id, tag FROM device_tag WHERE device_id IN ({marks}) ORDER BY device_id, tag",
        tuple(found),
    )
    for row in tags:
        found[row["device_id"]]["tags"].append(row["tag"])
    places = connection.execute(
        "SELECT x.device_id, y.name AS site, g.uid AS gateway FROM device_place x "
        "LEFT JOIN site y ON y.id = x.site_id LEFT JOIN device g ON g.id = x.gateway_id "
        f"WHERE x.device_id IN ({marks})",
        tuple(found),
    )
    for row in places:
        found[row["device_id"]] |= {"site": row["site"], "gateway": row["gateway"]}
    for row in connection.execute(
        f"SELECT device_id, code FROM device_failure WHERE device_id IN ({marks}) ORDER BY at", tuple(found)
    ):
        found[row["device_id"]]["error"] = row["code"]
    for row in connection.execute(
        f"SELECT device_id, reason FROM device_quarantine WHERE device_id IN ({marks})", tuple(found)
    ):
        found[row["device_id"]]["quarantine"] = row["reason"]
    for row in connection.execute(
        f"SELECT device_id, mark, reason FROM device_mark WHERE device_id IN ({marks})", tuple(found)
    ):
        found[row["device_id"]][row["mark"]] = row["reason"]
    for row in connection.execute(
        f"SELECT device_id, state, code FROM attempt WHERE active = 1 AND device_id IN ({marks})", tuple(found)
    ):
        found[row["device_id"]]["state"] = row["state"]
        found[row["device_id"]]["error"] = row["code"] or found[row["device_id"]]["error"]
    for row in connection.execute(
        f"SELECT device_id, reason FROM revoked_wrapping_key WHERE device_id IN ({marks})", tuple(found)
    ):
        found[row["device_id"]]["wrapping_key_revoked"] = row["reason"]
    return found


def save_site(connection: Connection, scope: Scope, *, name: str, now: datetime) -> int:
    """Make a site, or find it; return its row id."""
    scope.require(Action.MANAGE_DEVICES)
    check(name, SITE, what="The site's name")
    known = connection.execute(
        "SELECT id FROM site WHERE tenant_id = ? AND name = ?", (scope.tenant_id, name)
    ).fetchone()
    if known is not None:
        return int(known["id"])
    row = connection.execute("SELECT COUNT(*) AS n FROM site WHERE tenant_id = ?", (scope.tenant_id,)).fetchone()
    if row["n"] >= MAX_SITES:
        raise TooLargeError("There are too many sites already", limit=MAX_SITES)
    made = connection.execute(
        "INSERT INTO site(tenant_id, name, created_at) VALUES (?, ?, ?) RETURNING id",
        (scope.tenant_id, name, int(now.timestamp())),
    ).fetchone()
    events.append(connection, scope, Event.SITE_SAVED, now, subject=name)
    return int(made["id"])


def list_sites(connection: Connection, scope: Scope, *, after: str, limit: int) -> list[dict[str, Any]]:
    """Return sites by name with how many devices are there; `after` is the last name of the page before."""
    scope.require_unlimited("Listing sites")
    rows = connection.execute(
        "SELECT y.name, y.created_at, (SELECT COUNT(*) FROM device_place x WHERE x.site_id = y.id) AS n "
        "FROM site y WHERE y.tenant_id = ? AND y.name > ? ORDER BY y.name LIMIT ?",
        (scope.tenant_id, after, min(limit, MAX_PAGE)),
    )
    return [{"name": row["name"], "created_at": row["created_at"], "count": row["n"]} for row in rows]


def place_device(
    connection: Connection, scope: Scope, *, device_id: str, site: str | None, gateway: str | None, now: datetime
) -> None:
    """Say where a device is and which device speaks for it; None takes it away.

    Raises NotFoundError, and ConflictError for a gateway that is behind a gateway itself.
    """
    scope.require(Action.MANAGE_DEVICES)
    (row_id,) = device_rows(connection, scope, [device_id])
    site_id = save_site(connection, scope, name=site, now=now) if site else None
    gateway_id = device_rows(connection, scope, [gateway])[0] if gateway else None
    if gateway_id is not None:
        _require_front(connection, row_id, gateway_id, device_id)
    connection.execute(
        "INSERT INTO device_place(device_id, tenant_id, site_id, gateway_id) VALUES (?, ?, ?, ?) "
        "ON CONFLICT(device_id) DO UPDATE SET site_id = excluded.site_id, gateway_id = excluded.gateway_id",
        (row_id, scope.tenant_id, site_id, gateway_id),
    )
    events.append(connection, scope, Event.DEVICE_PLACED, now, subject=device_id, site=site, gateway=gateway)


def _require_front(connection: Connection, row_id: int, gateway_id: int, device_id: str) -> None:
    if gateway_id == row_id:
        raise ConflictError("A device cannot be its own gateway", device_id=device_id)
    behind = connection.execute(
        "SELECT 1 FROM device_place WHERE device_id = ? AND gateway_id IS NOT NULL", (gateway_id,)
    ).fetchone()
    children = connection.execute("SELECT 1 FROM device_place WHERE gateway_id = ?", (row_id,)).fetchone()
    if behind is not None or children is not None:
        raise ConflictError("A gateway cannot be behind another gateway", device_id=device_id)
