"""The journal in hand: the only place that moves the install machine.

`go` takes one fact about the world through both tables and makes the result durable in one
store: the new state, the report about it and what the attempt must remember. Callers act first
and then say so here, except where the comment at the call argues otherwise (house rule 3).

When the store fails, the record in memory stays as it was too: the agent knows no more than its
journal, and says nothing that a power cut could make untrue.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from firmament.agent.events import StateChanged
from firmament.agent.journal import Journal
from firmament.agent.machine import FINAL, Event, State, longest_path, step
from firmament.agent.outcome import decide
from firmament.agent.owner import with_said
from firmament.agent.record import Attempt, Ended, Reason, Record, Release, with_ended, with_report
from firmament.core.manifest import MAX_PAYLOADS
from firmament.durable import make_directory_durably
from firmament.errors import FirmamentError
from firmament.log import logger
from firmament.protocol.status import Outcome
from firmament.protocol.v1.messages import MAX_LOG_LINES, ConsentEvent, Report

if TYPE_CHECKING:
    from collections.abc import Iterable

    from firmament.agent.owner import Owner
    from firmament.agent.parts import Parts
    from firmament.core.ids import AttemptId
    from firmament.protocol.status import AttemptStatus, ConsentAnswer

log = logger("agent.ledger")

MAX_STARTS_OVER: Final = 2
# One for a prefix that rotted while the device was off, one more for bad luck; a third is a broken disk.
MAX_TRIES: Final = 20
# Failed fetches without one byte of progress, while the server answers. With backoff up to an
# hour that is most of a day; being offline does not count.
MAX_RESTARTS: Final = 5
# Restarts after which the armed slot was not even tried.
MAX_LIVES: Final = 10
# Starts of the agent in one state of one attempt: more is a loop of crashes.
MAX_JOURNAL_WRITES: Final = longest_path() + 2 * MAX_STARTS_OVER + MAX_TRIES + MAX_RESTARTS + MAX_LIVES + MAX_PAYLOADS
# Everything an attempt may store without getting further; whatever stores more goes in a circle.


class Ledger:
    """`record` is what the journal holds."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._journal = Journal(parts.disk, parts.state_directory)
        self.record = Record()

    def open(self) -> None:
        """Load the journal, or begin one; raises StateError or a storage error."""
        make_directory_durably(self._parts.disk, self._parts.state_directory)
        record = self._journal.load()
        if record is None:
            record = self._journal.store(Record(running=self._parts.initial))
        self.record = record
        if record.attempt is not None and record.state not in FINAL:
            try:
                self.note(lives=record.attempt.lives + 1)
            except FirmamentError as error:
                # A device that cannot write must still be able to find out that it has to go back.
                log.warning("ledger.life-not-counted", code=error.code, problem=error.problem)

    @property
    def state(self) -> State:
        """Where the machine is."""
        return self.record.state

    @property
    def attempt(self) -> Attempt:
        """The attempt in hand; a RuntimeError while idle."""
        if self.record.attempt is None:
            msg = "no attempt is in hand"
            raise RuntimeError(msg)
        return self.record.attempt

    def begin(self, event: Event, attempt: Attempt) -> None:
        """Take up an attempt: idle -> offered, or idle -> refused."""
        self._move(event, attempt, self.record)

    def go(self, event: Event, *, reason: Reason | None = None, **changes: Any) -> None:
        """Record that `event` happened, with `changes` to the attempt and why.

        Without a reason an earlier one is forgotten (it was about the state before), except when
        the attempt settles.
        """
        attempt = self.attempt
        if event is not Event.SETTLED:
            changes["reason"] = reason or Reason()
        attempt = replace(attempt, **{"lives": 0, "tries": 0, **changes}, stores=attempt.stores + 1)
        self._move(event, attempt, self.record)

    def note(self, **changes: Any) -> None:
        """Remember something about the attempt; the machine stays where it is."""
        attempt = replace(self.attempt, **changes)
        if attempt.offset > self.attempt.offset or attempt.stored > self.attempt.stored:
            attempt = replace(attempt, lives=0, tries=0, stores=0)
        else:
            attempt = replace(attempt, stores=attempt.stores + 1)
        self._store(replace(self.record, attempt=attempt))

    def say(self, answer: ConsentAnswer, *, owner: Owner | None = None, **facts: Any) -> ConsentEvent:
        """Record what the owner was asked or said, with what it changes, in one store; return the event.

        `facts` are fields of the event; `consent`, `asked_at` and `postponed` change the attempt.
        Owners may change their mind as often as they like.
        """
        record = self.record
        changes = {name: facts.pop(name) for name in ("consent", "asked_at", "postponed") if name in facts}
        event = ConsentEvent(
            device_id=self._parts.device_id,
            consent_number=record.consent_number + 1,
            answer=answer,
            at=self._parts.clock.now(),
            **facts,
        )
        attempt = record.attempt
        if attempt is not None and changes:
            attempt = replace(attempt, **changes)
        self._store(
            replace(
                record,
                attempt=attempt,
                owner=owner or record.owner,
                consents=with_said(record.consents, event),
                consent_number=event.consent_number,
            )
        )
        log.info("consent.said", answer=answer, release_id=event.release_id, actor=event.actor, via=event.via)
        return event

    def decide(self, owner: Owner) -> None:
        """Remember what the owner decided for good."""
        self._store(replace(self.record, owner=owner))

    def unsaid(self) -> tuple[ConsentEvent, ...]:
        """Return the consent events that the server does not have, oldest first."""
        return tuple(said.event for said in self.record.consents if not said.is_stored)

    def heard(self, accepted: Iterable[int]) -> None:
        """Remember which consent events the server has stored for good.

        In memory; the next store writes it down. Sending one twice is harmless.
        """
        numbers = set(accepted)
        kept = tuple(
            replace(said, is_stored=said.is_stored or said.event.consent_number in numbers)
            for said in self.record.consents
        )
        record = replace(self.record, consents=kept)
        if kept != self.record.consents and record.state is State.IDLE:
            self._store(record)
        self.record = record

    def explain(self, reason: Reason) -> None:
        """Report why the attempt is where it is (disk full, no consent); once per reason."""
        if self.attempt.reason.code != reason.code and self.state.status is not None:
            attempt = replace(self.attempt, reason=reason, stores=self.attempt.stores + 1)
            record = replace(self.record, attempt=attempt)
            self._store(with_report(record, self._report(record, attempt.attempt_id, self.state.status, reason)))

    def tell_again(self, ended: Ended) -> None:
        """Report once more how an attempt ended: the server asks for it again, so it has forgotten."""
        if not any(report.attempt_id == ended.attempt_id for report in self.record.outbox):
            reason = Reason(ended.code, ended.message)
            self._store(with_report(self.record, self._report(self.record, ended.attempt_id, ended.status, reason)))

    def forget(self, accepted: Iterable[int]) -> None:
        """Drop reports that the server has stored for good.

        Where another store is about to follow, they are dropped from memory only: sending one
        twice is harmless, its number is the same.
        """
        numbers = set(accepted)
        dropped = [report for report in self.record.outbox if report.report_number in numbers]
        record = replace(self.record, outbox=tuple(report for report in self.record.outbox if report not in dropped))
        if dropped and record.state is State.IDLE:
            self._store(record)
        self.record = record

    def runs(self, running: Release | None, previous: Release | None) -> None:
        """Record what the boot control says runs, while idle."""
        self._store(replace(self.record, running=running, previous=previous))

    def is_circling(self) -> bool:
        """Whether the attempt stores or restarts without getting further."""
        attempt = self.record.attempt
        return attempt is not None and (attempt.lives > MAX_LIVES or attempt.stores > MAX_JOURNAL_WRITES)

    def _move(self, event: Event, attempt: Attempt, record: Record) -> None:
        before = record.state
        state = step(before, event)
        outcome = decide(record.outcome, event)
        if state is State.CONFIRMED:
            record = replace(record, running=self._confirmed(attempt), previous=record.running)
        if state is State.FETCHING and attempt.takes_back is None:
            # Said before the slot is written: "the previous image is gone" while it is still there
            # only costs a way back; the opposite would promise one that is not.
            record = replace(record, previous=None)
        if state is State.IDLE:
            if event is Event.SETTLED:
                record = with_ended(record, self._ended(attempt, before))
            record = replace(record, state=state, outcome=Outcome.OPEN, attempt=None)
        else:
            record = replace(record, state=state, outcome=outcome, attempt=attempt)
        if state.status is not None and state is not before:
            record = with_report(record, self._report(record, attempt.attempt_id, state.status, attempt.reason))
        self._store(record)
        log.info(
            "attempt.moved",
            state=state,
            attempt_id=attempt.attempt_id,
            release_id=attempt.release_id,
            slot=attempt.slot,
            because=event,
            code=attempt.reason.code,
        )
        if state is not before:
            self._parts.events.tell(
                StateChanged(
                    attempt.attempt_id, attempt.release_id, before, state, attempt.reason.code, attempt.reason.message
                )
            )

    def _confirmed(self, attempt: Attempt) -> Release:
        assert attempt.manifest is not None
        assert attempt.slot is not None
        manifest = attempt.manifest
        return Release(manifest.version, manifest.sequence_number, manifest.image, attempt.slot)

    def _ended(self, attempt: Attempt, state: State) -> Ended:
        assert state.status is not None
        return Ended(
            attempt_id=attempt.attempt_id,
            release_id=attempt.release_id or "",
            status=state.status,
            at=self._parts.clock.now(),
            code=attempt.reason.code,
            message=attempt.reason.message,
        )

    def _report(self, record: Record, attempt_id: AttemptId, status: AttemptStatus, reason: Reason) -> Report:
        running, attempt = record.running, record.attempt
        is_about_it = attempt is not None and attempt.attempt_id == attempt_id
        fallbacks = [str(failed) for failed in attempt.failed] if attempt is not None and is_about_it else []
        return Report(
            device_id=self._parts.device_id,
            report_number=record.report_number + 1,
            attempt_id=attempt_id,
            status=status,
            version=running.version if running is not None else "",
            sequence_number=running.sequence_number if running is not None else 0,
            boot_id=self._parts.boot.boot_id(),
            at=self._parts.clock.now(),
            code=reason.code,
            message=reason.message,
            log=(*fallbacks, *reason.log)[-MAX_LOG_LINES:],
        )

    def _store(self, record: Record) -> None:
        self.record = self._journal.store(record)
