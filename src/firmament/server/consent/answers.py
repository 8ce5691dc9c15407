"""Answers: signed events of devices, kept as evidence, and their sum per device and release.

An event changes no attempt and no failure rate. The sum is made from the events in the order of
their numbers, so that the order in which they arrive does not matter.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from firmament.core.digest import Digest
from firmament.errors import ConflictError, ForbiddenError, ReplayError
from firmament.protocol.status import ConsentAnswer
from firmament.server import events
from firmament.server.consent.decide import DEFAULT_POSTPONEMENT, Verdict, decide
from firmament.server.consent.model import Answers, Word
from firmament.server.consent.rules import count_asking, rulings
from firmament.server.events import Event
from firmament.server.releases.find import find_release
from firmament.server.scope import Action

if TYPE_CHECKING:
    from collections.abc import Sequence

    from firmament.core.manifest import Manifest, UpdateClass
    from firmament.protocol.v1.envelope import Envelope
    from firmament.protocol.v1.messages import ConsentEvent
    from firmament.server.database.port import Connection, Row
    from firmament.server.inventory.model import Device
    from firmament.server.scope import Scope

ABOUT_ALL: Final = frozenset({ConsentAnswer.OPT_OUT, ConsentAnswer.OPT_IN})
MAX_CLOCK_AGE: Final = timedelta(days=30)
"""A device's time that is older than this, or in the future, is not believed for limits."""
MAX_PAGE: Final = 500
CHUNK: Final = 500


def take_event(
    connection: Connection, scope: Scope, device: Device, event: ConsentEvent, envelope: Envelope, now: datetime
) -> None:
    """Store one verified event and what it sums up to; the same again changes nothing.

    Raises ForbiddenError when it speaks for another device or about its attempt, ReplayError for
    a number that said something else before.
    """
    if event.device_id != device.device_id:
        raise ForbiddenError("A consent event speaks for another device", claimed=event.device_id)
    digest = Digest.of(envelope.payload).value
    known = connection.execute(
        "SELECT digest FROM consent_event WHERE device_id = ? AND number = ?", (device.row_id, event.consent_number)
    ).fetchone()
    if known is not None:
        if bytes(known["digest"]) != digest:
            raise ReplayError("This consent number was used before for another event", number=event.consent_number)
        return
    release_id = None if event.answer in ABOUT_ALL else _release_row(connection, device, event)
    connection.execute(
        "INSERT INTO consent_event(tenant_id, device_id, number, digest, release_id, attempt_uid, answer, actor, via, "
        "at, until, update_class, text_digest, language, received_at, payload, signature) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            device.tenant_id,
            device.row_id,
            event.consent_number,
            digest,
            release_id,
            event.attempt_id or "",
            event.answer.value,
            event.actor,
            event.via,
            int(_believed(event.at, now).timestamp()),
            int(event.until.timestamp()) if event.until is not None else None,
            event.update_class.value if event.update_class is not None else "",
            event.text_digest,
            event.language,
            int(now.timestamp()),
            envelope.payload,
            envelope.signature,
        ),
    )
    if event.answer in ABOUT_ALL:
        _choose(connection, device, event, now)
    elif release_id is not None:
        _sum_up(connection, device, release_id)
    events.append(
        connection,
        scope,
        Event.CONSENT_ANSWERED,
        now,
        subject=device.device_id,
        answer=event.answer.value,
        release=event.release_id,
        actor=event.actor,
        via=event.via,
        language=event.language,
        text_digest=event.text_digest,
    )


def _release_row(connection: Connection, device: Device, event: ConsentEvent) -> int | None:
    attempt = connection.execute(
        "SELECT device_id, release_id FROM attempt WHERE uid = ?", (event.attempt_id or "",)
    ).fetchone()
    if attempt is not None:
        if attempt["device_id"] != device.row_id:
            raise ForbiddenError("A consent event is about another device's attempt")
        return int(attempt["release_id"])
    # A server restored from a backup may not know the attempt; the release says enough.
    product, _, version = event.release_id.partition("/")
    row = connection.execute(
        "SELECT r.id FROM release r JOIN product p ON p.id = r.product_id "
        "WHERE r.tenant_id = ? AND p.name = ? AND r.version = ?",
        (device.tenant_id, product, version),
    ).fetchone()
    return None if row is None or product != device.product else int(row["id"])


def _believed(at: datetime, now: datetime) -> datetime:
    return at if now - MAX_CLOCK_AGE <= at <= now else now


def _choose(connection: Connection, device: Device, event: ConsentEvent, now: datetime) -> None:
    since = int(now.timestamp()) if event.answer is ConsentAnswer.OPT_OUT else None
    connection.execute(
        "INSERT INTO owner_choice(device_id, tenant_id, number, opted_out_at) VALUES (?, ?, ?, ?) "
        "ON CONFLICT (device_id) DO UPDATE SET number = excluded.number, opted_out_at = excluded.opted_out_at "
        "WHERE excluded.number > owner_choice.number",
        (device.row_id, device.tenant_id, event.consent_number, since),
    )


def _sum_up(connection: Connection, device: Device, release_id: int) -> None:
    rows = connection.execute(
        "SELECT number, answer, at, until FROM consent_event WHERE device_id = ? AND release_id = ? ORDER BY number",
        (device.row_id, release_id),
    ).fetchall()
    newest = rows[-1]
    connection.execute(
        "INSERT INTO consent_answer(device_id, release_id, tenant_id, number, latest, at, until, first_asked_at, "
        "postponements) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (device_id, release_id) DO UPDATE SET "
        "number = excluded.number, latest = excluded.latest, at = excluded.at, until = excluded.until, "
        "first_asked_at = excluded.first_asked_at, postponements = excluded.postponements",
        (
            device.row_id,
            release_id,
            device.tenant_id,
            newest["number"],
            newest["answer"],
            newest["at"],
            newest["until"],
            min(row["at"] for row in rows),
            sum(row["answer"] == ConsentAnswer.LATER.value for row in rows),
        ),
    )


def of_release(
    connection: Connection, scope: Scope, device_rows: Sequence[int], release_row: int
) -> dict[int, Answers]:
    """Return what the owners of devices said about one release, by row id; silent ones are absent."""
    found: dict[int, Answers] = {}
    for start in range(0, len(device_rows), CHUNK):
        part = device_rows[start : start + CHUNK]
        marks = ", ".join("?" * len(part))
        rows = connection.execute(
            "SELECT device_id, latest, at, until, first_asked_at, postponements FROM consent_answer "
            f"WHERE tenant_id = ? AND release_id = ? AND device_id IN ({marks})",
            (scope.tenant_id, release_row, *part),
        )
        found.update({row["device_id"]: _answers(row) for row in rows})
    return found


def verdicts(
    connection: Connection,
    scope: Scope,
    device_rows: Sequence[int],
    *,
    release_row: int,
    update_class: UpdateClass,
    now: datetime,
) -> dict[int, Verdict]:
    """Return what consent means for one release on each of these devices, by row id."""
    holding = rulings(connection, scope, device_rows, update_class, now)
    said = of_release(connection, scope, device_rows, release_row)
    return {
        row_id: decide(ruling, update_class, said.get(row_id, Answers()), now) for row_id, ruling in holding.items()
    }


def _answers(row: Row) -> Answers:
    return Answers(
        latest=Word(row["latest"]),
        at=_time(row["at"]),
        until=_time(row["until"]),
        first_asked_at=_time(row["first_asked_at"]),
        postponements=row["postponements"],
    )


def _time(value: int | None) -> datetime | None:
    return None if value is None else datetime.fromtimestamp(value, UTC)


# --- counting ------------------------------------------------------------------------------


_STANDING: Final = """
CASE WHEN latest IN ('now', 'tonight') THEN 'agreed'
     WHEN latest = 'skip' THEN 'declined'
     WHEN latest = 'later' AND COALESCE(until, at + ?) > ? THEN 'postponed'
     ELSE 'no_answer' END
"""


def report(connection: Connection, scope: Scope, *, release: str | None, now: datetime) -> dict[str, Any]:
    """Count answers per release and in all: asked = agreed + postponed + declined + no answer, always."""
    scope.require(Action.READ)
    product, _, version = (release or "").partition("/")
    if release is not None:
        scope.require_product(product)
    wanted, moment = (product or scope.product), int(now.timestamp())
    rows = connection.execute(
        f"SELECT p.name AS product, r.version, {_STANDING} AS standing, COUNT(*) AS n, MIN(a.until) AS first_until, "
        "MAX(a.until) AS last_until FROM consent_answer a JOIN release r ON r.id = a.release_id "
        "JOIN product p ON p.id = r.product_id WHERE a.tenant_id = ? AND (CAST(? AS TEXT) IS NULL OR p.name = ?) "
        "AND (CAST(? AS TEXT) IS NULL OR r.version = ?) GROUP BY p.name, r.version, 3 ORDER BY p.name, r.version",
        (
            int(DEFAULT_POSTPONEMENT.total_seconds()),
            moment,
            scope.tenant_id,
            wanted or None,
            wanted or None,
            version or None,
            version or None,
        ),
    ).fetchall()
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        name = f"{row['product']}/{row['version']}"
        one = found.setdefault(name, {"release": name, **_none()})
        one[row["standing"]] += row["n"]
        one["asked"] += row["n"]
        if row["standing"] == "postponed":
            one["postponed_until"] = {"first": row["first_until"], "last": row["last_until"]}
    if release is not None and not found:
        find_release(connection, scope, product, version)
    total = {key: sum(one[key] for one in found.values()) for key in _COUNTED}
    return {**total, "opted_out": _opted_out(connection, scope, wanted or None), "releases": list(found.values())}


_COUNTED: Final = ("asked", "agreed", "postponed", "declined", "no_answer")


def _none() -> dict[str, Any]:
    return {**dict.fromkeys(_COUNTED, 0), "postponed_until": None}


def _opted_out(connection: Connection, scope: Scope, product: str | None) -> int:
    row = connection.execute(
        "SELECT COUNT(*) AS n FROM owner_choice o JOIN device d ON d.id = o.device_id "
        "JOIN product p ON p.id = d.product_id WHERE o.tenant_id = ? AND o.opted_out_at IS NOT NULL "
        "AND (CAST(? AS TEXT) IS NULL OR p.name = ?)",
        (scope.tenant_id, product, product),
    ).fetchone()
    return int(row["n"])


def list_answers(
    connection: Connection,
    scope: Scope,
    *,
    device_id: str | None,
    after: int,
    limit: int,
    is_newest_first: bool = False,
) -> list[dict[str, Any]]:
    """Return events in the order they came, or from the end: who said what, when, to which text in which language.

    `after` is the id of the last one seen, in either direction; 0 begins.
    """
    scope.require(Action.READ)
    order = "(? = 0 OR e.id < ?) ORDER BY e.id DESC" if is_newest_first else "(? = 0 OR e.id > ?) ORDER BY e.id"
    rows = connection.execute(
        "SELECT e.id, d.uid, e.number, e.answer, e.actor, e.via, e.at, e.until, e.update_class, e.text_digest, "
        "e.language, e.received_at, p.name AS product, r.version FROM consent_event e "
        "JOIN device d ON d.id = e.device_id JOIN product q ON q.id = d.product_id "
        "LEFT JOIN release r ON r.id = e.release_id LEFT JOIN product p ON p.id = r.product_id "
        "WHERE e.tenant_id = ? AND (CAST(? AS TEXT) IS NULL OR d.uid = ?) "
        f"AND (CAST(? AS TEXT) IS NULL OR q.name = ?) AND {order} LIMIT ?",
        (
            scope.tenant_id,
            device_id,
            device_id,
            scope.product,
            scope.product,
            after,
            after,
            max(1, min(limit, MAX_PAGE)),
        ),
    )
    return [
        {
            "id": row["id"],
            "device_id": row["uid"],
            "consent_number": row["number"],
            "release": f"{row['product']}/{row['version']}" if row["product"] else None,
            "update_class": row["update_class"],
            "answer": row["answer"],
            "actor": row["actor"],
            "via": row["via"],
            "at": row["at"],
            "until": row["until"],
            "text_digest": row["text_digest"],
            "language": row["language"],
            "received_at": row["received_at"],
        }
        for row in rows
    ]


def require_notes(
    connection: Connection, scope: Scope, manifest: Manifest, now: datetime, *, device_row: int | None = None
) -> None:
    """Refuse a release that its owners are asked about and that says nothing to them: raises ConflictError.

    With a device: whether that one asks. Without: whether the tenant's rule or any device of the
    release's product does, by an operator's rule or its owner's.
    """
    if missing_notes(manifest, asking=1) is None:
        return
    if device_row is not None:
        asking = int(rulings(connection, scope, [device_row], manifest.update_class, now)[device_row].asks)
    else:
        asking = count_asking(connection, scope, manifest.product, manifest.update_class, now)
    missing = missing_notes(manifest, asking=asking)
    if missing is not None:
        raise ConflictError(missing["message"], code=missing["code"], release=manifest.release_id)


def missing_notes(manifest: Manifest, *, asking: int) -> dict[str, str] | None:
    """Return a blocker for a plan where owners are asked about a release that has no notes for them."""
    if asking == 0 or any(text.strip() for text in manifest.notes.values()):
        return None
    return {
        "code": "consent/no-notes",
        "message": f"{asking} {'device asks its' if asking == 1 else 'devices ask their'} owner, "
        "and the release has no notes for owners",
        "hint": "Build the release again with --notes, one text per language.",
    }
