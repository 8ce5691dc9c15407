"""Domain events: what happened, for ever, written in the same transaction as the change.

``subject.past-participle`` (house.md 2.5). The table refuses UPDATE and DELETE by trigger.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from firmament.core import canonical
from firmament.log import clean

if TYPE_CHECKING:
    from datetime import datetime

    from firmament.server.database.port import Connection
    from firmament.server.scope import Scope


MAX_PAGE: Final = 500
MAX_FACTS_LENGTH_BYTES: Final = 1024 * 1024


class Event(StrEnum):
    """Every kind of event this server writes."""

    PRODUCT_ADDED = "product.added"
    ROOT_TRUSTED = "root.trusted"
    RELEASE_PUBLISHED = "release.published"
    RELEASE_WITHDRAWN = "release.withdrawn"
    RELEASE_PROMOTED = "release.promoted"
    PUBLISH_REFUSED = "publish.refused"
    DEVICE_ENROLLED = "device.enrolled"
    DEVICE_DISABLED = "device.disabled"
    DEVICE_ENABLED = "device.enabled"
    ENROLMENT_REFUSED = "enrolment.refused"
    ATTEMPT_ASSIGNED = "attempt.assigned"
    ATTEMPT_CANCELLED = "attempt.cancelled"
    ATTEMPT_MOVED = "attempt.moved"
    ATTEMPT_BLOCKED = "attempt.blocked"
    REPORT_REFUSED = "report.refused"
    REPORT_IGNORED = "report.ignored"
    UPDATE_RECORDED = "update.recorded"
    PERSON_ADDED = "person.added"
    PERSON_LOCKED = "person.locked"
    PERSON_DISABLED = "person.disabled"
    TOKEN_ISSUED = "token.issued"  # noqa: S105 - an event, not a secret
    TOKEN_REVOKED = "token.revoked"  # noqa: S105 - an event, not a secret
    ENROLMENT_TOKEN_ISSUED = "enrolment-token.issued"  # noqa: S105 - an event, not a secret


def append(  # one row, always inside the caller's transaction
    connection: Connection, scope: Scope, event: Event, now: datetime, *, subject: str = "", **facts: Any
) -> None:
    """Write one event; `subject` is the id of what it is about, `facts` are values, never secrets."""
    connection.execute(
        "INSERT INTO event(tenant_id, at, kind, actor, subject, facts) VALUES (?, ?, ?, ?, ?, ?)",
        (
            scope.tenant_id,
            int(now.timestamp()),
            event.value,
            scope.actor,
            subject,
            canonical.encode(_json(clean(facts))),
        ),
    )


def list_events(
    connection: Connection, scope: Scope, *, subject: str | None, after: int, limit: int
) -> list[dict[str, Any]]:
    """Return events in the order they happened; only a scope for all products may read them."""
    scope.require_unlimited("Reading events")
    rows = connection.execute(
        "SELECT id, at, kind, actor, subject, facts FROM event "
        "WHERE tenant_id = ? AND (? IS NULL OR subject = ?) AND id > ? ORDER BY id LIMIT ?",
        (scope.tenant_id, subject, subject, after, min(limit, MAX_PAGE)),
    )
    return [
        {
            "id": row["id"],
            "at": row["at"],
            "kind": row["kind"],
            "actor": row["actor"],
            "subject": row["subject"],
            "facts": canonical.decode(bytes(row["facts"]), limit_bytes=MAX_FACTS_LENGTH_BYTES, what="facts"),
        }
        for row in rows
    ]


def _json(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_json(item) for item in value]
    return value if isinstance(value, bool | int | str) or value is None else str(value)
