"""The agent's contact with its server: polls that take offers up or give them up, and reports.

Everything here happens before a trial or after it; while a new image is on trial nobody waits for
the network. An offer is taken up once: an attempt that ended here, however it ended, is never
begun again; a person assigns the release anew, which makes a new attempt.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from firmament.agent.fetching import reason_for
from firmament.agent.machine import BEFORE_FETCH, BEFORE_TRIAL, Event, State
from firmament.agent.policy import backoff_s, next_poll_s
from firmament.agent.ports import Running
from firmament.agent.record import MAX_PARCEL_PATH_LENGTH, Attempt
from firmament.core.ids import UUID, AttemptId
from firmament.durable import public_mode_of, replace_durably
from firmament.errors import ApplicabilityError, FileError, FirmamentError, NothingToDoError, TrustError
from firmament.log import logger
from firmament.protocol.status import FINAL_STATUSES
from firmament.protocol.v1.messages import MAX_REPORTS

if TYPE_CHECKING:
    from firmament.agent.fetching import Fetching
    from firmament.agent.ledger import Ledger
    from firmament.agent.parts import Parts
    from firmament.agent.ports import Answer, Offer
    from firmament.agent.trial import Trial
    from firmament.durable import Disk

log = logger("agent.contact")


@dataclass(frozen=True, slots=True)
class _Quiet:
    """A signed "nothing to do", while the server need not sign another one."""

    tag: str
    told: Running
    """What the device told of itself to get it."""
    poll_after_s: int
    until_s: float
    """Monotonic; from then on the device wants it signed."""


class Contact:
    """Polls and delivers; `poll_at_s` and `send_at_s` (monotonic) say when it is time again."""

    def __init__(self, parts: Parts, ledger: Ledger, trial: Trial, fetching: Fetching) -> None:
        self._parts = parts
        self._ledger = ledger
        self._trial = trial
        self._fetching = fetching
        self._poll_failures = 0
        self._send_failures = 0
        self._consent_failures = 0
        self._quiet: _Quiet | None = None
        self.consents_at_s = 0.0
        self.poll_at_s = 0.0
        self.send_at_s = 0.0

    @property
    def may_poll(self) -> bool:
        """Whether an answer could change anything now."""
        return self._ledger.state is State.IDLE or self._ledger.state in BEFORE_TRIAL

    def begin(self) -> None:
        """Choose when to poll first."""
        first = self._parts.policy.first_poll_within_s
        self.poll_at_s = self._now_s() + (self._parts.chance.uniform(0, first) if first else 0.0)

    def hint(self, at_s: float) -> None:
        """Poll by `at_s` if that is earlier, and the last poll was answered."""
        if not self._poll_failures:
            self.poll_at_s = min(self.poll_at_s, at_s)

    def poll(self, *, in_full: bool = True) -> None:
        """Ask the server and take up, go on with, or give up what it names.

        Unless `in_full`, a server that says that nothing changed since its last signed "nothing to
        do" is not asked for another one yet (ADR-0037). Raises TransferError, or why what is named
        is refused; a refusal that names an attempt is recorded first. Every failure sets the next
        poll later.
        """
        try:
            quiet = None if in_full else self._still_quiet()
            answer = self._ask() if quiet is None else None
        except FirmamentError:
            self._poll_failures += 1
            self.poll_at_s = self._now_s() + backoff_s(self._poll_failures, self._parts.chance)
            raise
        self._poll_failures = 0
        wish_s = answer.poll_after_s if answer is not None else quiet.poll_after_s if quiet is not None else 0
        self.poll_at_s = self._now_s() + next_poll_s(self._parts.policy, wish_s, self._parts.chance)
        if answer is None:
            log.info("poll.unchanged")
            return
        log.info("poll.answered", offered=answer.offer.manifest.release_id if answer.offer else None)
        self._take_up(answer.offer)

    def _still_quiet(self) -> _Quiet | None:
        """Return the last "nothing to do" if the server says that it still holds, None if a poll is due."""
        quiet, self._quiet = self._quiet, None
        if (
            quiet is None
            or self._now_s() >= quiet.until_s
            or self._ledger.state is not State.IDLE
            or quiet.told != self._running()
            or not self._parts.link.is_unchanged(quiet.tag)
        ):
            return None
        self._quiet = quiet
        return quiet

    def carry(self, parcel: Path) -> None:
        """Take up what a parcel names, as a poll would; or go on from it with the attempt in hand.

        What is refused changes nothing, is not reported, and may be tried again: a stick proves
        nothing about the server's will. Raises why, and NothingToDoError for an attempt that ended
        here before, whose outcome is then told once more.
        """
        path = str(parcel)
        if len(path) > MAX_PARCEL_PATH_LENGTH or not path.isprintable():
            raise FileError("The path of the parcel is too long", length=len(path), limit=MAX_PARCEL_PATH_LENGTH)
        offer = self._parts.link.carry(parcel, self._running()).offer
        assert offer is not None
        self._fetching.check_offer(offer)
        running = self._ledger.record.running
        if offer.is_local and running is not None and running.image == offer.manifest.image:
            raise NothingToDoError("The device runs what the parcel holds", running=running.version)
        self._take_up(offer, parcel=path)
        ledger = self._ledger
        if ledger.state is State.IDLE:
            ended = ledger.record.has_ended(offer.attempt_id)
            status = ended.status if ended is not None else ""
            raise NothingToDoError("What the parcel asks for ended here before", status=status)
        if ledger.attempt.parcel != path:
            ledger.note(parcel=path)

    def _running(self) -> Running:
        record = self._ledger.record
        running = record.running
        return Running(
            version=running.version if running is not None else "",
            sequence_number=running.sequence_number if running is not None else 0,
            image_digest=str(running.image.digest) if running is not None else "",
            boot_id=self._parts.boot.boot_id(),
            # A device's own facts come last: an owner's rule says what holds, whatever the settings call so.
            attributes={**self._parts.attributes, **record.owner.applied_to(self._parts.policy).told()},
            held_digest=str(record.previous.image.digest) if record.previous is not None else "",
            installed_by=record.installed_by(),
            failed_payloads=tuple(failed.target for failed in record.attempt.failed) if record.attempt else (),
        )

    def _ask(self) -> Answer:
        self._quiet, running = None, self._running()
        try:
            answer = self._parts.link.poll(running)
        except (TrustError, ApplicabilityError) as error:
            self._refuse(error, str(error.facts.get("attempt_id", "")))
            raise
        if answer.offer is not None:
            try:
                self._fetching.check_offer(answer.offer)
            except ApplicabilityError as error:
                self._refuse(error, answer.offer.attempt_id)
                raise
        elif answer.tag:
            until_s = self._now_s() + self._parts.policy.full_poll_s
            self._quiet = _Quiet(answer.tag, running, answer.poll_after_s, until_s)
        return answer

    def _take_up(self, offer: Offer | None, *, parcel: str = "") -> None:
        ledger = self._ledger
        in_hand = ledger.record.attempt
        if in_hand is not None and ledger.state in BEFORE_TRIAL and _takes_back(offer, in_hand):
            self._trial.disarm()
            ledger.go(Event.OFFER_WITHDRAWN)
        if ledger.state in BEFORE_FETCH and offer is not None and offer.consent is not ledger.attempt.least:
            ledger.note(least=offer.consent)  # the operator changed their mind before anything began
        if offer is None or ledger.state is not State.IDLE:
            return
        ended = ledger.record.has_ended(offer.attempt_id)
        if ended is not None:
            # It ended here; the server has not heard, or has forgotten. Never begin it again.
            ledger.tell_again(ended)
            return
        ledger.begin(
            Event.OFFER_VERIFIED,
            Attempt(
                attempt_id=offer.attempt_id,
                manifest=offer.manifest,
                payload=offer.payload.target,
                key_wrap=offer.key_wrap,
                takes_back=offer.takes_back,
                issued_at=offer.issued_at,
                fallback=offer.fallback,
                fallback_wrap=offer.fallback_wrap,
                least=offer.consent,
                parcel=parcel,
                is_local=offer.is_local,
            ),
        )

    def _refuse(self, error: TrustError | ApplicabilityError, named: str) -> None:
        """Record the refusal of an attempt, once; an error that names none is only raised."""
        attempt_id, ledger = AttemptId(named), self._ledger
        if not UUID.fullmatch(named) or ledger.record.has_ended(attempt_id) is not None:
            return
        log.warning("offer.refused", attempt_id=attempt_id, code=error.code, problem=error.problem)
        in_hand = ledger.record.attempt
        if in_hand is not None and ledger.state in BEFORE_TRIAL:
            self._trial.disarm()
            if in_hand.attempt_id == attempt_id:
                ledger.go(Event.OFFER_REFUSED, reason=reason_for(error))
            else:
                ledger.go(Event.OFFER_WITHDRAWN)
        if ledger.state is State.IDLE:
            ledger.begin(Event.OFFER_REFUSED, Attempt(attempt_id, reason=reason_for(error)))

    def write_receipt(self) -> None:
        """Write the signed receipt of the attempt that just ended beside its parcel, if that is still there.

        Failing is no trouble: the report waits in the outbox, and `receipts` makes it again.
        """
        attempt = self._ledger.attempt
        if not attempt.parcel:
            return
        for name, data in self.receipts(only=attempt).items():
            path = Path(attempt.parcel).with_name(name)
            try:
                write_anywhere(self._parts.disk, path, data)
            except FirmamentError as error:
                log.warning("receipt.not-written", path=str(path), code=error.code, problem=error.problem)
            else:
                log.info("receipt.written", path=str(path), attempt_id=attempt.attempt_id)

    def receipts(self, *, only: Attempt | None = None) -> dict[str, bytes]:
        """Return a signed receipt for each outcome that the server has not got, by file name."""
        from firmament.protocol.parcel import RECEIPT_SUFFIX

        record, made = self._ledger.record, {}
        running = record.running
        for report in record.outbox:
            if report.status not in FINAL_STATUSES or (only is not None and report.attempt_id != only.attempt_id):
                continue
            ended = record.has_ended(report.attempt_id)
            release_id = only.release_id or "" if only is not None else ended.release_id if ended is not None else ""
            is_same = running is not None and running.version == report.version
            digest = str(running.image.digest) if running is not None and is_same else ""
            name = f"{report.device_id}.{report.attempt_id}{RECEIPT_SUFFIX}"
            made[name] = self._parts.link.receipt(report, release_id=release_id, image_digest=digest)
        return made

    def deliver(self) -> None:
        """Send what waits in the outbox; failing is no trouble, it stays there."""
        self._deliver_consents()
        outbox = self._ledger.record.outbox
        if not outbox or self._now_s() < self.send_at_s:
            return
        try:
            self._ledger.forget(self._parts.link.send(outbox[:MAX_REPORTS]))
        except FirmamentError as error:
            log.info("report.not-sent", code=error.code, problem=error.problem, waiting=len(outbox))
        self._send_failures = self._send_failures + 1 if self._ledger.record.outbox else 0
        if self._send_failures:
            self.send_at_s = self._now_s() + backoff_s(self._send_failures, self._parts.chance)

    def _deliver_consents(self) -> None:
        """Send what the owner said, apart from reports: a server that does not know them yet answers 404."""
        events = self._ledger.unsaid()
        if not events or self._now_s() < self.consents_at_s:
            return
        try:
            self._ledger.heard(self._parts.link.send_consents(events))
        except FirmamentError as error:
            log.info("consent.not-sent", code=error.code, problem=error.problem, waiting=len(events))
        self._consent_failures = self._consent_failures + 1 if self._ledger.unsaid() else 0
        if self._consent_failures:
            self.consents_at_s = self._now_s() + backoff_s(self._consent_failures, self._parts.chance)

    def _now_s(self) -> float:
        return self._parts.clock.monotonic_s()


def _takes_back(offer: Offer | None, in_hand: Attempt) -> bool:
    """Whether what the server names now withdraws the attempt in hand."""
    if offer is None:
        return not in_hand.is_local
    return offer.attempt_id != in_hand.attempt_id


def write_anywhere(disk: Disk, path: Path, data: bytes) -> None:
    """Write a file that is not secret onto whatever file system is there, whole or not at all."""
    replace_durably(disk, path, data, mode=public_mode_of(disk, path.parent))
