"""Notifications and messages as rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from firmament.errors import NotFoundError
from firmament.server import events
from firmament.server.events import Event
from firmament.server.notify.decide import News, Open, Send, Severity
from firmament.server.outbox.model import Outlet, Parcel, Takes
from firmament.server.outbox.store import read_outlet
from firmament.server.scope import Action

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from firmament.server.database.port import Connection, Row
    from firmament.server.scope import Scope

MAX_OPEN: Final = 1000
MAX_LISTED: Final = 200
GIVE_UP_AFTER: Final = 12
"""Tries of one message: about six hours; by then the next repeat has told it again."""
CURSOR: Final = "notify-cursor:"


def cursor(connection: Connection, tenant_id: int) -> int | None:
    """Return the number of the last event that was looked at; None on a new server."""
    row = connection.execute("SELECT value FROM number WHERE name = ?", (f"{CURSOR}{tenant_id}",)).fetchone()
    return None if row is None else int(row["value"])


def take_news(connection: Connection, tenant_id: int, news: Iterable[News], *, upto: int | None) -> None:
    """Open a notification for each, end what its subject had before, and move the cursor: one transaction."""
    for each in news:
        connection.execute(
            # A stop that reverts by itself is over before anybody was told: it is still told, once.
            "UPDATE notification SET closed_at = ? WHERE tenant_id = ? AND subject = ? AND closed_at IS NULL "
            "AND NOT (severity = ? AND sent_at IS NULL)",
            (each.at, tenant_id, each.subject, Severity.CRITICAL.value),
        )
        connection.execute(
            "INSERT INTO notification(tenant_id, subject, event_number, severity, title, body, link, at) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                tenant_id,
                each.subject,
                each.event_number,
                each.severity.value,
                each.title,
                each.body,
                each.link,
                each.at,
            ),
        )
    if upto is not None:
        connection.execute(
            "INSERT INTO number(name, value) VALUES (?, ?) ON CONFLICT(name) DO UPDATE SET value = excluded.value",
            (f"{CURSOR}{tenant_id}", upto),
        )


def acknowledge_subject(connection: Connection, tenant_id: int, subject: str, actor: str, at: int) -> None:
    """Somebody acknowledged what it is about elsewhere, e.g. on the rollout's page."""
    connection.execute(
        "UPDATE notification SET acknowledged_at = ?, acknowledged_by = ? "
        "WHERE tenant_id = ? AND subject = ? AND closed_at IS NULL AND acknowledged_at IS NULL",
        (at, actor, tenant_id, subject),
    )


def open_ones(connection: Connection, tenant_id: int) -> list[Open]:
    """Return what has not ended."""
    rows = connection.execute(
        "SELECT * FROM notification WHERE tenant_id = ? AND closed_at IS NULL ORDER BY id LIMIT ?",
        (tenant_id, MAX_OPEN),
    )
    return [
        Open(
            row_id=row["id"],
            severity=Severity(row["severity"]),
            title=row["title"],
            body=row["body"],
            at=row["at"],
            sent_at=row["sent_at"],
            repeats=row["repeats"],
            escalated_at=row["escalated_at"],
            acknowledged_at=row["acknowledged_at"],
        )
        for row in rows
    ]


def carry_out(connection: Connection, tenant_id: int, sends: Iterable[Send], now: int) -> int:
    """Write a message for each outlet that is to have it; return how many."""
    outlets = [
        read_outlet(row)
        for row in connection.execute(
            "SELECT * FROM outlet WHERE tenant_id = ? AND takes = ? AND disabled_at IS NULL ORDER BY id",
            (tenant_id, Takes.NOTIFICATIONS.value),
        )
    ]
    count = 0
    for send in sends:
        for outlet in outlets:
            if outlet.is_escalation != send.is_escalation or outlet.muted_until > now:
                continue
            _queue(connection, outlet, send.ids[0], send.title, send.body, send.severity.value, now)
            count += 1
        for row_id in send.ids:
            if send.is_escalation:
                connection.execute("UPDATE notification SET escalated_at = ? WHERE id = ?", (now, row_id))
            else:
                connection.execute(
                    "UPDATE notification SET sent_at = ?, repeats = repeats + ?, closed_at = CASE WHEN severity = ? "
                    "AND NOT EXISTS (SELECT 1 FROM notification newer WHERE newer.tenant_id = notification.tenant_id "
                    "AND newer.subject = notification.subject AND newer.id > notification.id) "
                    "THEN closed_at ELSE ? END WHERE id = ?",
                    (now, int(send.is_repeat), Severity.CRITICAL.value, now, row_id),
                )
    return count


def _queue(
    connection: Connection, outlet: Outlet, notification: int | None, title: str, body: str, severity: str, now: int
) -> None:
    connection.execute(
        "INSERT INTO message(tenant_id, outlet_id, notification_id, title, body, severity, created_at, next_at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (outlet.tenant_id, outlet.row_id, notification, title, body, severity, now, now),
    )


def due_messages(connection: Connection, now: int, limit: int = 100) -> list[tuple[Outlet, Parcel, int]]:
    """Return outlet, parcel and number of tries of what may be tried now."""
    rows = connection.execute(
        "SELECT id, outlet_id, title, body, severity, created_at, attempts FROM message "
        "WHERE done_at IS NULL AND next_at <= ? ORDER BY id LIMIT ?",
        (now, limit),
    ).fetchall()
    found = []
    for row in rows:
        outlet = connection.execute("SELECT * FROM outlet WHERE id = ?", (row["outlet_id"],)).fetchone()
        found.append((read_outlet(outlet), parcel_of(row), int(row["attempts"])))
    return found


def parcel_of(row: Row) -> Parcel:
    """Return what is delivered for a message."""
    value = {
        "v": 1,
        "message": row["id"],
        "severity": row["severity"],
        "title": row["title"],
        "text": row["body"],
        "at": row["created_at"],
    }
    return Parcel(row["id"], "notification", row["created_at"], row["title"], row["body"], value)


def note_message(connection: Connection, message_id: int, *, ok: bool, attempts: int, now: int, wait_s: int) -> None:
    """Write down whether a message is done, given up, or to be tried again."""
    is_done = ok or attempts + 1 >= GIVE_UP_AFTER
    connection.execute(
        "UPDATE message SET attempts = ?, next_at = ?, done_at = ? WHERE id = ?",
        (attempts + 1, now + wait_s, now if is_done else None, message_id),
    )


def list_notifications(connection: Connection, scope: Scope, *, before: int, limit: int) -> list[dict[str, Any]]:
    """Return notifications, newest first."""
    scope.require_unlimited("Reading notifications")
    rows = connection.execute(
        "SELECT * FROM notification WHERE tenant_id = ? AND id < ? ORDER BY id DESC LIMIT ?",
        (scope.tenant_id, before or 2**62, max(1, min(limit, MAX_LISTED))),
    )
    return [_shown(row) for row in rows]


def _shown(row: Row) -> dict[str, Any]:
    names = "id subject event_number severity title link at sent_at repeats escalated_at acknowledged_at closed_at"
    return {
        **{name: row[name] for name in names.split()},
        "text": row["body"],
        "acknowledged_by": row["acknowledged_by"],
    }


def acknowledge(connection: Connection, scope: Scope, notification_id: int, now: datetime) -> dict[str, Any]:
    """Say that somebody has seen it: no more repeats, no escalation. Raises NotFoundError."""
    scope.require(Action.STOP)
    scope.require_unlimited("Acknowledging a notification")
    row = connection.execute(
        "SELECT * FROM notification WHERE tenant_id = ? AND id = ?", (scope.tenant_id, notification_id)
    ).fetchone()
    if row is None:
        raise NotFoundError("There is no such notification", notification=notification_id)
    if row["acknowledged_at"] is None:
        connection.execute(
            "UPDATE notification SET acknowledged_at = ?, acknowledged_by = ? WHERE id = ?",
            (int(now.timestamp()), scope.actor, notification_id),
        )
        events.append(
            connection,
            scope,
            Event.NOTIFICATION_ACKNOWLEDGED,
            now,
            subject=row["subject"],
            notification=notification_id,
        )
    return _shown(connection.execute("SELECT * FROM notification WHERE id = ?", (notification_id,)).fetchone())
