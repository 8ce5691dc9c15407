"""Outlets and deliveries as rows."""

from __future__ import annotations

import base64
import secrets
from typing import TYPE_CHECKING, Any, Final

from firmament.errors import ConflictError, CorruptStateError, MalformedError, NotFoundError
from firmament.server import events
from firmament.server.audit import chain
from firmament.server.events import Event
from firmament.server.inventory.marks import without_muted
from firmament.server.outbox.guard import read_url
from firmament.server.outbox.model import Outlet, OutletKind, Parcel, Takes, is_given_up
from firmament.server.scope import Action, Scope

if TYPE_CHECKING:
    from datetime import datetime

    from firmament.server.database.port import Connection, Row
    from firmament.server.outbox.model import Answer
    from firmament.server.people.vault import Vault

MAX_OUTLETS: Final = 100
"""Of one tenant: each costs deliveries."""
KEPT_DELIVERIES: Final = 1000
MAX_TARGET_LENGTH: Final = 2048
MAX_KINDS: Final = 64
SECRET_LENGTH_BYTES: Final = 32


def add_outlet(
    connection: Connection,
    scope: Scope,
    *,
    name: str,
    kind: OutletKind,
    takes: Takes,
    target: str,
    kinds: tuple[str, ...],
    is_escalation: bool,
    vault: Vault,
    now: datetime,
) -> tuple[Outlet, str]:
    """Add an outlet; return it with the secret its deliveries are signed with, shown this once.

    Events are delivered from now on. Raises ForbiddenError, MalformedError or ConflictError.
    """
    scope.require(Action.MANAGE_NOTIFICATIONS)
    scope.require_unlimited("Adding an outlet")
    _check_target(kind, target)
    count = connection.execute("SELECT count(*) AS n FROM outlet WHERE tenant_id = ?", (scope.tenant_id,)).fetchone()
    if count["n"] >= MAX_OUTLETS:
        raise ConflictError("There are as many outlets as allowed", limit=MAX_OUTLETS)
    if any(row["name"] == name for row in _rows(connection, scope)):
        raise ConflictError("There is an outlet of this name", name=name)
    secret = secrets.token_urlsafe(SECRET_LENGTH_BYTES) if kind is OutletKind.WEBHOOK else ""
    cursor, _ = chain.head(connection, scope.tenant_id)
    connection.execute(
        "INSERT INTO outlet(tenant_id, name, kind, takes, target, secret, filter, is_escalation, cursor, created_at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            scope.tenant_id,
            name,
            kind.value,
            takes.value,
            target,
            seal_secret(vault, scope.tenant_id, name, secret) if secret else "",
            " ".join(kinds),
            int(is_escalation),
            cursor,
            int(now.timestamp()),
        ),
    )
    events.append(connection, scope, Event.OUTLET_ADDED, now, subject=name, kind=kind.value, takes=takes.value)
    return get_outlet(connection, scope, name), secret


def seal_secret(vault: Vault, tenant_id: int, name: str, secret: str) -> str:
    """Return what is stored of a secret: useless without the server's key, and for another outlet."""
    return base64.b64encode(vault.seal(secret.encode(), purpose=_purpose(tenant_id, name))).decode()


def open_secret(vault: Vault, outlet: Outlet) -> str:
    """Return the secret that an outlet's deliveries are signed with; raises CorruptStateError."""
    try:
        sealed = base64.b64decode(outlet.sealed_secret, validate=True)
    except ValueError as error:
        raise CorruptStateError("An outlet's secret cannot be read; add the outlet again", name=outlet.name) from error
    return vault.open(sealed, purpose=_purpose(outlet.tenant_id, outlet.name)).decode()


def _purpose(tenant_id: int, name: str) -> str:
    return f"outlet:{tenant_id}:{name}"


def _check_target(kind: OutletKind, target: str) -> None:
    if not target or len(target) > MAX_TARGET_LENGTH or not target.isprintable():
        raise MalformedError("The target is empty, too long, or has characters that are not allowed")
    match kind:
        case OutletKind.WEBHOOK:
            read_url(target)
        case OutletKind.SMTP:
            name, _, domain = target.rpartition("@")
            if not name or not domain or " " in target or "," in target:
                raise MalformedError("The target is not one mail address", target=target[:80])
        case OutletKind.MQTT:
            if "#" in target or "+" in target or target.startswith("$"):
                raise MalformedError("The target is not a topic to publish to", target=target[:80])


def _rows(connection: Connection, scope: Scope) -> list[Row]:
    return connection.execute(
        "SELECT * FROM outlet WHERE tenant_id = ? ORDER BY id LIMIT ?", (scope.tenant_id, MAX_OUTLETS)
    ).fetchall()


def list_outlets(connection: Connection, scope: Scope) -> list[Outlet]:
    """Return every outlet of the tenant."""
    return [read_outlet(row) for row in _rows(connection, scope)]


def get_outlet(connection: Connection, scope: Scope, name: str) -> Outlet:
    """Return one outlet; raises NotFoundError."""
    row = connection.execute(
        "SELECT * FROM outlet WHERE tenant_id = ? AND name = ?", (scope.tenant_id, name)
    ).fetchone()
    if row is None:
        raise NotFoundError("There is no such outlet", name=name[:80])
    return read_outlet(row)


def read_outlet(row: Row) -> Outlet:
    """Read a row."""
    return Outlet(
        row_id=row["id"],
        tenant_id=row["tenant_id"],
        name=row["name"],
        kind=OutletKind(row["kind"]),
        takes=Takes(row["takes"]),
        target=row["target"],
        sealed_secret=row["secret"],
        kinds=tuple(row["filter"].split()),
        is_escalation=bool(row["is_escalation"]),
        cursor=row["cursor"],
        failures=row["failures"],
        next_at=row["next_at"],
        disabled_at=row["disabled_at"],
        muted_until=row["muted_until"],
    )


def remove_outlet(connection: Connection, scope: Scope, name: str, now: datetime) -> None:
    """Remove an outlet, its log and what waits for it; raises NotFoundError."""
    scope.require(Action.MANAGE_NOTIFICATIONS)
    outlet = get_outlet(connection, scope, name)
    for table in ("delivery", "message"):
        connection.execute(f"DELETE FROM {table} WHERE outlet_id = ?", (outlet.row_id,))  # noqa: S608 - two literals
    connection.execute("DELETE FROM outlet WHERE id = ?", (outlet.row_id,))
    events.append(connection, scope, Event.OUTLET_REMOVED, now, subject=name)


def enable(connection: Connection, scope: Scope, name: str, now: datetime, *, replay_from: int | None = None) -> Outlet:
    """Switch an outlet on again; with `replay_from` its events are delivered once more from that number."""
    scope.require(Action.MANAGE_NOTIFICATIONS)
    outlet = get_outlet(connection, scope, name)
    cursor = outlet.cursor
    if replay_from is not None:
        head, _ = chain.head(connection, scope.tenant_id)
        if not 1 <= replay_from <= head + 1:
            raise MalformedError("There is no such event to go back to", replay_from=replay_from, newest=head)
        cursor = replay_from - 1
    connection.execute(
        "UPDATE outlet SET disabled_at = NULL, failures = 0, next_at = 0, cursor = ? WHERE id = ?",
        (cursor, outlet.row_id),
    )
    events.append(connection, scope, Event.OUTLET_ENABLED, now, subject=name, replay_from=replay_from)
    return get_outlet(connection, scope, name)


def mute(connection: Connection, scope: Scope, name: str, until: int, now: datetime) -> None:
    """Hold notifications back until a time (unix seconds); 0 ends it."""
    scope.require(Action.MANAGE_NOTIFICATIONS)
    outlet = get_outlet(connection, scope, name)
    connection.execute("UPDATE outlet SET muted_until = ? WHERE id = ?", (until, outlet.row_id))
    events.append(connection, scope, Event.OUTLET_MUTED, now, subject=name, until=until)


# --- delivering ----------------------------------------------------------------------------


def due_outlets(connection: Connection, now: int) -> list[Outlet]:
    """Return the outlets of every tenant that take events and may be tried now and have something waiting."""
    rows = connection.execute(
        "SELECT o.* FROM outlet o JOIN chain_head h ON h.tenant_id = o.tenant_id "
        "WHERE o.takes = ? AND o.disabled_at IS NULL AND o.next_at <= ? AND o.cursor < h.number ORDER BY o.id",
        (Takes.EVENTS.value, now),
    )
    return [read_outlet(row) for row in rows]


def next_parcels(connection: Connection, outlet: Outlet, limit: int) -> tuple[list[Parcel], int]:
    """Return the next events that the outlet wants, and the number up to which that is everything.

    Troubles of muted devices are left out; the record keeps them.
    """
    found = events.find_events(
        connection, Scope(outlet.tenant_id, "server"), events.Wanted(), after=outlet.cursor, limit=limit
    )
    wanted = [event for event in found if outlet.wants(event["kind"])]
    parcels = [
        Parcel(event["id"], event["kind"], event["at"], event["kind"], "", event)
        for event in without_muted(connection, Scope(outlet.tenant_id, "server"), wanted)
    ]
    return parcels, (found[-1]["id"] if found else outlet.cursor)


def note_delivery(
    connection: Connection,
    outlet: Outlet,
    answer: Answer,
    now: datetime,
    *,
    wait_s: int,
    event_number: int | None = None,
    message_id: int | None = None,
) -> None:
    """Write down what came of a try, and when the outlet may be tried again or that it is switched off."""
    moment = int(now.timestamp())
    connection.execute(
        "INSERT INTO delivery(tenant_id, outlet_id, event_number, message_id, at, ok, answer, duration_ms) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            outlet.tenant_id,
            outlet.row_id,
            event_number,
            message_id,
            moment,
            int(answer.ok),
            answer.text[:200],
            answer.duration_ms,
        ),
    )
    connection.execute(
        "DELETE FROM delivery WHERE outlet_id = ? AND id <= (SELECT max(id) FROM delivery WHERE outlet_id = ?) - ?",
        (outlet.row_id, outlet.row_id, KEPT_DELIVERIES),
    )
    if answer.ok:
        connection.execute("UPDATE outlet SET failures = 0, next_at = 0 WHERE id = ?", (outlet.row_id,))
        if event_number is not None:
            move_cursor(connection, outlet, event_number)
        return
    failures = outlet.failures + 1
    is_off = is_given_up(failures)
    connection.execute(
        "UPDATE outlet SET failures = ?, next_at = ?, disabled_at = ? WHERE id = ?",
        (failures, moment + wait_s, moment if is_off else None, outlet.row_id),
    )
    if is_off:
        events.append(
            connection,
            Scope(outlet.tenant_id, "server"),
            Event.OUTLET_DISABLED,
            now,
            subject=outlet.name,
            failures=failures,
            answer=answer.text,
        )


def move_cursor(connection: Connection, outlet: Outlet, number: int) -> None:
    """Say that everything up to this event is delivered, unless somebody moved the cursor meanwhile."""
    connection.execute(
        "UPDATE outlet SET cursor = ? WHERE id = ? AND cursor = ?", (number, outlet.row_id, outlet.cursor)
    )


def list_deliveries(connection: Connection, scope: Scope, name: str, *, limit: int) -> list[dict[str, Any]]:
    """Return the newest tries of an outlet."""
    outlet = get_outlet(connection, scope, name)
    rows = connection.execute(
        "SELECT event_number, message_id, at, ok, answer, duration_ms FROM delivery WHERE outlet_id = ? "
        "ORDER BY id DESC LIMIT ?",
        (outlet.row_id, max(1, min(limit, KEPT_DELIVERIES))),
    )
    return [
        {
            "event_number": row["event_number"],
            "message_id": row["message_id"],
            "at": row["at"],
            "ok": bool(row["ok"]),
            "answer": row["answer"],
            "duration_ms": row["duration_ms"],
        }
        for row in rows
    ]
