"""Groups and saved filters: names for queries, and for devices that were put together by hand."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from firmament.core.ids import check
from firmament.errors import ConflictError, MalformedError, NotFoundError, TooLargeError
from firmament.server import events
from firmament.server.events import Event
from firmament.server.inventory.query import Everything, names_in, parse, show
from firmament.server.inventory.query_sql import GroupRow
from firmament.server.scope import Action

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from firmament.server.database.port import Connection
    from firmament.server.scope import Scope

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._/-]{0,63}")
MAX_GROUPS: Final = 1000
MAX_FILTERS: Final = 1000
MAX_MEMBERS_AT_ONCE: Final = 5000


def group_rows(connection: Connection, scope: Scope) -> dict[str, GroupRow]:
    """Return every group by its name, for compiling queries."""
    rows = connection.execute(
        "SELECT id, name, query FROM device_group WHERE tenant_id = ? ORDER BY name LIMIT ?",
        (scope.tenant_id, MAX_GROUPS),
    )
    return {row["name"]: GroupRow(row["id"], parse(row["query"]) if row["query"] else None) for row in rows}


def save_group(connection: Connection, scope: Scope, *, name: str, query: str, now: datetime) -> None:
    """Make a group or change its query; an empty query is for devices put in by hand.

    Raises MalformedError for a query that names groups: a group of groups could name itself.
    """
    scope.require(Action.MANAGE_DEVICES)
    check(name, NAME, what="The group's name")
    node = parse(query)
    if "group" in names_in(node):
        raise MalformedError("A group's query cannot name groups", group=name)
    text = "" if isinstance(node, Everything) else show(node)
    known = connection.execute(
        "SELECT id FROM device_group WHERE tenant_id = ? AND name = ?", (scope.tenant_id, name)
    ).fetchone()
    if known is None:
        _require_room(connection, scope, "device_group", MAX_GROUPS)
        connection.execute(
            "INSERT INTO device_group(tenant_id, name, query, created_by, created_at) VALUES (?, ?, ?, ?, ?)",
            (scope.tenant_id, name, text, scope.actor, int(now.timestamp())),
        )
    else:
        connection.execute("UPDATE device_group SET query = ? WHERE id = ?", (text, known["id"]))
    events.append(connection, scope, Event.GROUP_SAVED, now, subject=name, query=text)


def delete_group(connection: Connection, scope: Scope, *, name: str, now: datetime) -> None:
    """Remove a group, not its devices; raises NotFoundError."""
    scope.require(Action.MANAGE_DEVICES)
    row_id = _group(connection, scope, name)["id"]
    connection.execute("DELETE FROM device_group_member WHERE group_id = ?", (row_id,))
    connection.execute("DELETE FROM device_group WHERE id = ?", (row_id,))
    events.append(connection, scope, Event.GROUP_DELETED, now, subject=name)


def list_groups(connection: Connection, scope: Scope) -> list[dict[str, Any]]:
    """Return groups by name, without counts."""
    rows = connection.execute(
        "SELECT name, query, created_by, created_at FROM device_group WHERE tenant_id = ? ORDER BY name LIMIT ?",
        (scope.tenant_id, MAX_GROUPS),
    )
    return [{name: row[name] for name in ("name", "query", "created_by", "created_at")} for row in rows]


def change_members(  # one group, one list, both directions
    connection: Connection,
    scope: Scope,
    *,
    name: str,
    add: Sequence[str] = (),
    remove: Sequence[str] = (),
    now: datetime,
) -> int:
    """Put devices into a group without a query, or take them out; return how many changed.

    Raises NotFoundError for a device that is not there, ConflictError for a group with a query.
    """
    scope.require(Action.MANAGE_DEVICES)
    group = _group(connection, scope, name)
    if group["query"]:
        raise ConflictError("The group's devices are chosen by its query", group=name, query=group["query"])
    if len(add) + len(remove) > MAX_MEMBERS_AT_ONCE:
        raise TooLargeError("Too many devices at once", limit=MAX_MEMBERS_AT_ONCE)
    changed = 0
    for row_id in device_rows(connection, scope, add):
        changed += connection.execute(
            "INSERT INTO device_group_member(group_id, device_id, tenant_id) VALUES (?, ?, ?) "
            "ON CONFLICT(group_id, device_id) DO NOTHING",
            (group["id"], row_id, scope.tenant_id),
        ).rowcount
    for row_id in device_rows(connection, scope, remove):
        changed += connection.execute(
            "DELETE FROM device_group_member WHERE group_id = ? AND device_id = ?", (group["id"], row_id)
        ).rowcount
    events.append(connection, scope, Event.GROUP_CHANGED, now, subject=name, added=len(add), removed=len(remove))
    return changed


def device_rows(connection: Connection, scope: Scope, names: Sequence[str]) -> list[int]:
    """Return row ids of devices by name; raises NotFoundError for the first that is not in the scope."""
    found = []
    for name in names:
        row = connection.execute(
            "SELECT d.id FROM device d JOIN product p ON p.id = d.product_id WHERE d.tenant_id = ? AND d.uid = ? "
            "AND (CAST(? AS TEXT) IS NULL OR p.name = ?)",
            (scope.tenant_id, name, scope.product, scope.product),
        ).fetchone()
        if row is None:
            raise NotFoundError("There is no such device", device_id=name[:80])
        found.append(int(row["id"]))
    return found


def save_filter(connection: Connection, scope: Scope, *, name: str, query: str, now: datetime) -> None:
    """Keep a query under a name, for everybody of the tenant; the same name again replaces it."""
    scope.require(Action.READ)
    check(name, NAME, what="The filter's name")
    text = show(parse(query))
    known = connection.execute(
        "SELECT id, created_by FROM saved_filter WHERE tenant_id = ? AND name = ?", (scope.tenant_id, name)
    ).fetchone()
    if known is None:
        _require_room(connection, scope, "saved_filter", MAX_FILTERS)
        connection.execute(
            "INSERT INTO saved_filter(tenant_id, name, query, created_by, created_at) VALUES (?, ?, ?, ?, ?)",
            (scope.tenant_id, name, text, scope.actor, int(now.timestamp())),
        )
        return
    _require_owner(scope, known["created_by"])
    connection.execute("UPDATE saved_filter SET query = ? WHERE id = ?", (text, known["id"]))


def delete_filter(connection: Connection, scope: Scope, *, name: str) -> None:
    """Remove a saved filter; raises NotFoundError, ForbiddenError for somebody else's."""
    scope.require(Action.READ)
    row = connection.execute(
        "SELECT id, created_by FROM saved_filter WHERE tenant_id = ? AND name = ?", (scope.tenant_id, name)
    ).fetchone()
    if row is None:
        raise NotFoundError("There is no such filter", filter=name[:80])
    _require_owner(scope, row["created_by"])
    connection.execute("DELETE FROM saved_filter WHERE id = ?", (row["id"],))


def list_filters(connection: Connection, scope: Scope) -> list[dict[str, Any]]:
    """Return saved filters by name."""
    rows = connection.execute(
        "SELECT name, query, created_by, created_at FROM saved_filter WHERE tenant_id = ? ORDER BY name LIMIT ?",
        (scope.tenant_id, MAX_FILTERS),
    )
    return [{name: row[name] for name in ("name", "query", "created_by", "created_at")} for row in rows]


def _require_owner(scope: Scope, created_by: str) -> None:
    if created_by != scope.actor:
        scope.require(Action.MANAGE_DEVICES)


def _group(connection: Connection, scope: Scope, name: str) -> Any:
    row = connection.execute(
        "SELECT id, query FROM device_group WHERE tenant_id = ? AND name = ?", (scope.tenant_id, name)
    ).fetchone()
    if row is None:
        raise NotFoundError("There is no such group", group=name[:80])
    return row


def _require_room(connection: Connection, scope: Scope, table: str, limit: int) -> None:
    row = connection.execute(
        f"SELECT COUNT(*) AS n FROM {table} WHERE tenant_id = ?",  # noqa: S608 - a name of this module
        (scope.tenant_id,),
    ).fetchone()
    if row["n"] >= limit:
        raise TooLargeError("There are too many of these already", limit=limit)
