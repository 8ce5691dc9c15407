"""Taking reports, a set at a time: decided one by one in the order they came, read and written together.

What a set leaves is what the same reports leave one after the other (ADR-0039): rows, counters,
limits, events and their chain. A report reads a dozen rows and changes as many; as statements of
their own these cost far more than the work, so a set has one statement for each table.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from firmament.core.digest import Digest
from firmament.errors import ReplayError
from firmament.server import device_link, events
from firmament.server.attempts.machine import FINAL, AttemptState, move
from firmament.server.events import Event, NewEvent
from firmament.server.rollouts import follow
from firmament.server.rollouts.book import HeldBook
from firmament.server.scope import of_device

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from firmament.protocol.v1.messages import Report
    from firmament.server.attempts.model import OpenAttempt
    from firmament.server.database.port import Connection, Row
    from firmament.server.device_link import Session
    from firmament.server.inventory.model import Device

_USE_UP: Final = (
    "INSERT INTO report(device_id, number, digest, received_at) "
    "SELECT device_id, number, digest, received_at FROM given WHERE 1 = 1 "
    "ON CONFLICT (device_id, number) DO NOTHING RETURNING device_id, number"
)
_USED: Final = (
    "SELECT r.device_id, r.number, r.digest FROM given "
    "JOIN report r ON r.device_id = given.device_id AND r.number = given.number"
)
_ATTEMPTS: Final = (
    "SELECT a.id, a.uid, a.state, a.active, a.boot_id_before, a.device_id, a.rollout_id, a.takes_back, "
    "p.name AS product, r.version FROM given JOIN attempt a ON a.id = given.id "
    "JOIN release r ON r.id = a.release_id JOIN product p ON p.id = r.product_id"
)
_MOVE: Final = (
    "UPDATE attempt SET state = given.state, active = given.active, code = given.code, message = given.message, "
    "log = given.log, boot_id = given.boot_id, boot_id_before = given.boot_id_before, updated_at = given.updated_at "
    "FROM given WHERE attempt.id = given.id"
)
_MOVE_COLUMNS: Final = (
    "id bigint, state text, active bigint, code text, message text, log text, boot_id text, boot_id_before text, "
    "updated_at bigint"
)
_LEARN: Final = (
    "UPDATE device SET version = given.version, sequence_number = given.sequence_number, "
    "image_digest = given.image_digest, boot_id = given.boot_id FROM given WHERE device.id = given.id"
)
"""A report says nothing about the attributes."""
_LEARN_COLUMNS: Final = "id bigint, version text, sequence_number bigint, image_digest text, boot_id text"


@dataclass(frozen=True, slots=True)
class Told:
    """A report whose signature was verified, and what the server knew about its device then."""

    session: Session
    """Its attempt may have moved since: where it is, is read again in the transaction."""
    report: Report
    payload: bytes
    """The exact bytes that were signed."""
    now: datetime

    @property
    def key(self) -> tuple[int, int]:
        """What a report's number is used up for."""
        return self.session.device.row_id, self.report.report_number


def take_report(connection: Connection, session: Session, report: Report, payload: bytes, now: datetime) -> None:
    """Store one verified report and what it changes; the same again changes nothing.

    "Accepted before" and the change share a transaction, so that of two copies that arrive
    together one is the repeat. Raises ReplayError for a number that was used.
    """
    (answer,) = take_reports(connection, [Told(session, report, payload, now)])
    if answer is not None:
        raise answer


def take_reports(connection: Connection, told: Sequence[Told]) -> list[ReplayError | None]:
    """Store verified reports of any devices, as `take_report` one by one; return for each what it would raise."""
    answers, fresh = _use_up(connection, told)
    if fresh:
        work = _Work(connection, fresh)
        for item in fresh:
            work.take(item)
        work.write()
    return answers


def _use_up(connection: Connection, told: Sequence[Told]) -> tuple[list[ReplayError | None], list[Told]]:
    """Use the reports' numbers up; return those that are new, and what is to be said to each."""
    first: dict[tuple[int, int], tuple[Told, bytes]] = {}
    digests = [Digest.of(item.payload).value for item in told]
    for item, digest in zip(told, digests, strict=True):
        first.setdefault(item.key, (item, digest))
    rows = [(*key, digest, int(item.now.timestamp())) for key, (item, digest) in first.items()]
    inserted = connection.find_many(_USE_UP, "device_id bigint, number bigint, digest bytea, received_at bigint", rows)
    new = {(row["device_id"], row["number"]) for row in inserted}
    before = [key for key in first if key not in new]
    known = {key: digest for key, (_, digest) in first.items()}
    for row in connection.find_many(_USED, "device_id bigint, number bigint", before):
        known[row["device_id"], row["number"]] = bytes(row["digest"])
    answers = [
        None
        if known[item.key] == digest
        else ReplayError(
            "This report number was used before for another report", report_number=item.report.report_number
        )
        for item, digest in zip(told, digests, strict=True)
    ]
    return answers, [first[key][0] for key in first if key in new]


@dataclass(slots=True)
class _Attempt:
    """An attempt's row, as it is after the reports taken so far."""

    row_id: int
    uid: str
    state: AttemptState
    is_active: bool
    boot_id_before: str
    device_row: int
    rollout_row: int | None
    is_way_back: bool
    release: str
    last: device_link.MoveAttempt | None = None
    updated_at: int = 0

    @classmethod
    def of_row(cls, row: Row) -> _Attempt:
        return cls(
            row_id=row["id"],
            uid=row["uid"],
            state=AttemptState(row["state"]),
            is_active=bool(row["active"]),
            boot_id_before=row["boot_id_before"],
            device_row=row["device_id"],
            rollout_row=row["rollout_id"],
            is_way_back=row["takes_back"] is not None,
            release=f"{row['product']}/{row['version']}",
        )

    def has_moved_since(self, seen: OpenAttempt) -> bool:
        return seen.state is not self.state or seen.boot_id_before != self.boot_id_before


class _Work:
    """One set: what was read, what became of it, and what is not written yet."""

    def __init__(self, connection: Connection, told: Sequence[Told]) -> None:
        self._connection = connection
        named = {item.session.attempt.row_id for item in told if item.session.attempt is not None}
        rows = connection.find_many(_ATTEMPTS, "id bigint", [(row_id,) for row_id in sorted(named)])
        self._attempts = {row["id"]: _Attempt.of_row(row) for row in rows}
        keys = [
            (attempt.rollout_row, attempt.device_row)
            for attempt in self._attempts.values()
            if attempt.rollout_row is not None
        ]
        self._book = HeldBook(connection, dict.fromkeys(keys), self.write)
        self._learned: dict[int, device_link.UpdateInventory] = {}
        self._events: list[NewEvent] = []

    def take(self, told: Told) -> None:
        """Decide about one report and hold what it changes."""
        session = told.session
        attempt = None if session.attempt is None else self._attempts.get(session.attempt.row_id)
        if session.attempt is None or attempt is None:
            session = replace(session, attempt=None)
        elif attempt.has_moved_since(session.attempt):
            now = replace(session.attempt, state=attempt.state, boot_id_before=attempt.boot_id_before)
            session = replace(session, attempt=now)
        device = session.device
        _, effects = device_link.on_report(session, told.report, told.payload)
        for effect in effects:
            match effect:
                case device_link.MoveAttempt():
                    assert attempt is not None
                    self._move(device, attempt, effect, told.now)
                case device_link.UpdateInventory():
                    self._learned[device.row_id] = effect
                case device_link.Note():
                    self._note(device, effect.event, told.now, dict(effect.facts))
                case _:
                    pass  # its number is used up

    def _move(self, device: Device, attempt: _Attempt, effect: device_link.MoveAttempt, now: datetime) -> None:
        was = attempt.state
        assert move(was, effect.to) is not None  # decided from this very state
        attempt.state = effect.to
        attempt.is_active = attempt.is_active and effect.to not in FINAL
        if effect.boot_id_before is not None:
            attempt.boot_id_before = effect.boot_id_before
        attempt.last, attempt.updated_at = effect, int(now.timestamp())
        facts = {
            "attempt_id": attempt.uid,
            "release": attempt.release,
            "was": was.value,
            "state": effect.to.value,
            "code": effect.code,
        }
        self._note(device, Event.ATTEMPT_MOVED, now, facts)
        if attempt.rollout_row is not None:
            follow.on_attempt(
                self._book,
                rollout_row=attempt.rollout_row,
                device_row=device.row_id,
                attempt_row=attempt.row_id,
                is_way_back=attempt.is_way_back,
                state=effect.to,
                code=effect.code,
                now=now,
            )

    def _note(self, device: Device, event: Event, now: datetime, facts: Mapping[str, object]) -> None:
        scope = of_device(device.tenant_id, device.device_id)
        self._events.append(NewEvent(scope, event, now, device.device_id, facts))

    def write(self) -> None:
        """Write what is held, and hold nothing any more."""
        moved = [
            (
                attempt.row_id,
                attempt.state.value,
                int(attempt.is_active),
                attempt.last.code,
                attempt.last.message,
                json.dumps(list(attempt.last.log)),
                attempt.last.boot_id,
                attempt.boot_id_before,
                attempt.updated_at,
            )
            for attempt in self._attempts.values()
            if attempt.last is not None
        ]
        for attempt in self._attempts.values():
            attempt.last = None
        self._connection.change_many(_MOVE, _MOVE_COLUMNS, moved)
        learned = [
            (row_id, known.version, known.sequence_number, known.image_digest, known.boot_id)
            for row_id, known in self._learned.items()
        ]
        self._learned.clear()
        self._connection.change_many(_LEARN, _LEARN_COLUMNS, learned)
        self._book.write()
        new, self._events = self._events, []
        events.append_many(self._connection, new)
