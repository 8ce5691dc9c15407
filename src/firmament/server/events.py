"""Domain events: what happened, for ever, written in the same transaction as the change.

``subject.past-participle`` (house.md 2.5). The table refuses UPDATE and DELETE by trigger.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from firmament.core import canonical
from firmament.log import clean
from firmament.server.audit.chain import seal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from firmament.server.database.port import Connection, Row
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
    BLOBS_REMOVED = "blobs.removed"
    """By `firmament server gc`: nothing referred to these bytes any more."""
    DEVICE_ENROLLED = "device.enrolled"
    DEVICE_DISABLED = "device.disabled"
    DEVICE_ENABLED = "device.enabled"
    DEVICE_PLACED = "device.placed"
    DEVICE_QUARANTINED = "device.quarantined"
    DEVICE_RELEASED = "device.released"
    DEVICE_PINNED = "device.pinned"
    DEVICE_UNPINNED = "device.unpinned"
    DEVICE_MUTED = "device.muted"
    DEVICE_UNMUTED = "device.unmuted"
    DEVICES_TAGGED = "devices.tagged"
    WRAPPING_KEY_REVOKED = "wrapping-key.revoked"
    WRAPPING_KEY_REGISTERED = "wrapping-key.registered"
    CONTENT_KEY_ADDED = "content-key.added"
    CONTENT_KEYS_RENEWED = "content-keys.renewed"
    FAILURE_CLEARED = "failure.cleared"
    GROUP_SAVED = "group.saved"
    GROUP_CHANGED = "group.changed"
    GROUP_DELETED = "group.deleted"
    SITE_SAVED = "site.saved"
    ROLLOUT_CREATED = "rollout.created"
    ROLLOUT_MOVED = "rollout.moved"
    ROLLOUT_HALTED = "rollout.halted"
    ROLLOUT_ACKNOWLEDGED = "rollout.acknowledged"
    ROLLOUT_CHANGED = "rollout.changed"
    WAVE_OPENED = "wave.opened"
    WAVE_CLOSED = "wave.closed"
    SITE_COMMITTED = "site.committed"
    SITE_REVERTED = "site.reverted"
    ENROLMENT_REFUSED = "enrolment.refused"
    ATTEMPT_ASSIGNED = "attempt.assigned"
    ATTEMPT_CANCELLED = "attempt.cancelled"
    ATTEMPT_MOVED = "attempt.moved"
    ATTEMPT_BLOCKED = "attempt.blocked"
    REPORT_REFUSED = "report.refused"
    REPORT_IGNORED = "report.ignored"
    UPDATE_RECORDED = "update.recorded"
    PARCEL_EXPORTED = "parcel.exported"
    RECEIPT_IMPORTED = "receipt.imported"
    PERSON_ADDED = "person.added"
    PERSON_LOCKED = "person.locked"
    PERSON_DISABLED = "person.disabled"
    PERSON_ENABLED = "person.enabled"
    PERSON_CHANGED = "person.changed"
    PASSWORD_CHANGED = "password.changed"  # noqa: S105 - an event, not a secret
    SECOND_FACTOR_ADDED = "second-factor.added"
    SECOND_FACTOR_REMOVED = "second-factor.removed"
    SESSION_OPENED = "session.opened"
    SESSION_REVOKED = "session.revoked"
    TENANT_ADDED = "tenant.added"
    TENANT_DISABLED = "tenant.disabled"
    TENANT_ENABLED = "tenant.enabled"
    CONSENT_RULE_CHANGED = "consent-rule.changed"
    CONSENT_ANSWERED = "consent.answered"
    CONSENT_REFUSED = "consent.refused"
    TOKEN_ISSUED = "token.issued"  # noqa: S105 - an event, not a secret
    TOKEN_REVOKED = "token.revoked"  # noqa: S105 - an event, not a secret
    SBOM_ADDED = "sbom.added"
    VULNERABILITY_STATED = "vulnerability.stated"
    VULNERABILITY_DROPPED = "vulnerability.dropped"
    OUTLET_ADDED = "outlet.added"
    OUTLET_REMOVED = "outlet.removed"
    OUTLET_ENABLED = "outlet.enabled"
    OUTLET_DISABLED = "outlet.disabled"
    OUTLET_MUTED = "outlet.muted"
    NOTIFICATION_ACKNOWLEDGED = "notification.acknowledged"
    AUDIT_REFUSED = "audit.refused"
    """The signer would not sign chain or release log: it signed another past before."""
    AUDIT_RESTARTED = "audit.restarted"
    """An administrator let the signer go on from a restored database; the facts say where from."""
    ENROLMENT_TOKEN_ISSUED = "enrolment-token.issued"  # noqa: S105 - an event, not a secret


_INSERT: Final = (
    "INSERT INTO event_unsealed(tenant_id, at, kind, actor, subject, facts) "
    "SELECT tenant_id, at, kind, actor, subject, facts FROM given ORDER BY given.place"
)
_COLUMNS: Final = "place bigint, tenant_id bigint, at bigint, kind text, actor text, subject text, facts bytea"


@dataclass(frozen=True, slots=True)
class NewEvent:
    """One event to write; see `append`."""

    scope: Scope
    event: Event
    now: datetime
    subject: str
    facts: Mapping[str, Any]

    def row(self) -> tuple[int, int, str, str, str, bytes]:
        """Return the values of its row, in the order of the table's columns."""
        return (
            self.scope.tenant_id,
            int(self.now.timestamp()),
            self.event.value,
            self.scope.actor,
            self.subject,
            canonical.encode(_json(clean(dict(self.facts)))),
        )


def append(  # one row, always inside the caller's transaction
    connection: Connection, scope: Scope, event: Event, now: datetime, *, subject: str = "", **facts: Any
) -> None:
    """Write one event; `subject` is the id of what it is about, `facts` are values, never secrets.

    It is sealed into the tenant's chain when the transaction commits (audit/chain.py), and can
    be read from then on.
    """
    connection.execute(
        "INSERT INTO event_unsealed(tenant_id, at, kind, actor, subject, facts) VALUES (?, ?, ?, ?, ?, ?)",
        NewEvent(scope, event, now, subject, facts).row(),
    )
    # sqlite3 outside a transaction commits each statement by itself: then this was the commit.
    if not getattr(connection, "in_transaction", True):
        seal(connection)


def append_many(connection: Connection, new: Sequence[NewEvent]) -> None:
    """Write many events in this order, inside the caller's transaction; as `append`."""
    connection.change_many(_INSERT, _COLUMNS, [(place, *one.row()) for place, one in enumerate(new)])


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which events somebody asks for; None or 0 asks for all."""

    subject: str | None = None
    kind: str | None = None
    """A whole kind, or a subject with a dot at its end: ``rollout.`` means every event of rollouts."""
    actor: str | None = None
    since: int = 0
    until: int = 0
    """Unix seconds, exclusive."""


def list_events(
    connection: Connection, scope: Scope, *, subject: str | None, after: int, limit: int
) -> list[dict[str, Any]]:
    """Return events in the order they happened; only a scope for all products may read them."""
    return find_events(connection, scope, Wanted(subject=subject), after=after, limit=limit)


def find_events(
    connection: Connection, scope: Scope, wanted: Wanted, *, after: int = 0, limit: int = MAX_PAGE, newest: bool = False
) -> list[dict[str, Any]]:
    """Return one page of the events that match; `after` is the number of the last one seen.

    With `newest` the page goes backwards from the newest, below `after` when that is not 0.
    """
    scope.require_unlimited("Reading events")
    conditions: list[str] = ["tenant_id = ?"]
    values: list[Any] = [scope.tenant_id]
    if not newest or after:
        conditions.append("number < ?" if newest else "number > ?")
        values.append(after)
    for condition, value in (
        ("subject = ?", wanted.subject),
        ("actor = ?", wanted.actor),
        ("at >= ?", wanted.since or None),
        ("at < ?", wanted.until or None),
    ):
        if value is not None:
            conditions.append(condition)
            values.append(value)
    if wanted.kind is not None:
        # Named one by one: text is ordered by the locale on PostgreSQL, so no range would do.
        kinds = [kind.value for kind in Event if kind.value.startswith(wanted.kind)]
        kinds = kinds if wanted.kind.endswith(".") else [wanted.kind]
        conditions.append(f"kind IN ({', '.join('?' * len(kinds))})" if kinds else "1 = 0")
        values += kinds
    rows = connection.execute(
        "SELECT number, at, kind, actor, subject, facts FROM event WHERE "  # noqa: S608 - conditions are literals
        + " AND ".join(conditions)
        + f" ORDER BY number {'DESC' if newest else 'ASC'} LIMIT ?",
        (*values, max(1, min(limit, MAX_PAGE))),
    )
    return [read_row(row) for row in rows]


def read_row(row: Row) -> dict[str, Any]:
    """Return an event as operators see it; `id` is its number in the tenant's chain."""
    return {
        "id": row["number"],
        "at": row["at"],
        "kind": row["kind"],
        "actor": row["actor"],
        "subject": row["subject"],
        "facts": canonical.decode(bytes(row["facts"]), limit_bytes=MAX_FACTS_LENGTH_BYTES, what="facts"),
    }


def _json(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_json(item) for item in value]
    return value if isinstance(value, bool | int | str) or value is None else str(value)
