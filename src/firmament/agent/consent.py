"""Asking the owner and taking their answer: what is journalled, what it changes, when it is too late.

An answer may be changed or withdrawn until the new image is armed: up to then the running image
has not been touched. Silence is never a yes: no timeout, no empty input and no unknown word leads
to `ConsentAnswer.NOW` or `TONIGHT`. Every answer is one journal store that holds the answer, what
it changes and the consent event for the server (owner.py, docs/protocol/consent.md).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from firmament.agent.machine import BEFORE_TRIAL
from firmament.agent.owner import Owner, Postponing, postponing
from firmament.agent.policy import NIGHT, Answer, Consent, Policy
from firmament.core.consent import Mode
from firmament.core.manifest import UpdateClass
from firmament.core.offer import OfferFacts, OfferText, offer_text
from firmament.errors import NothingToDoError, SettingError
from firmament.protocol.status import ConsentAnswer

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from firmament.agent.ledger import Ledger
    from firmament.agent.parts import Parts
    from firmament.agent.record import Attempt, Record

ANSWERS: Final = {answer: ConsentAnswer(answer.value) for answer in Answer}
YES: Final = frozenset({Answer.NOW, Answer.TONIGHT})


@dataclass(frozen=True, slots=True)
class Who:
    """Who says something, and where (docs/protocol/consent.md)."""

    actor: str
    via: str


BY_RULE: Final = Who("policy", "agent")


class Consents:
    """The owner's side of one device; `Agent` asks it and moves the machine by what it says."""

    def __init__(self, parts: Parts, ledger: Ledger) -> None:
        self._parts = parts
        self._ledger = ledger

    @property
    def policy(self) -> Policy:
        """The policy in force."""
        return in_force(self._ledger.record, self._parts.policy)

    @property
    def is_skipped(self) -> bool:
        """Whether the owner declined the version in hand for good, in this attempt or an earlier one."""
        attempt = self._ledger.record.attempt
        return attempt is not None and attempt.release_id in self._ledger.record.owner.skipped

    def text(self) -> OfferText | None:
        """Return what the owner reads about the release in hand; None when nothing is offered."""
        return text_of(self._ledger.record, language=self._parts.language, offline_s=self._parts.offline_s)

    def note_asked(self) -> None:
        """Write down, once per attempt, that the offer was put before the owner."""
        if self._ledger.attempt.asked_at is None:
            facts = self._facts(BY_RULE)
            self._ledger.say(ConsentAnswer.ASKED, asked_at=self._parts.clock.now(), **facts)

    def answer(self, answer: Answer, who: Who, wish: timedelta | None = None) -> None:
        """Take an answer to the release in hand.

        `wish` is how long to put it off. Raises NothingToDoError when nothing can be answered any
        more, PostponeLimitError when it cannot be put off.
        """
        attempt, now = self._answerable(), self._parts.clock.now()
        changes: dict[str, Any] = {"asked_at": attempt.asked_at or now}
        facts = self._facts(who)
        owner = None
        match answer:
            case Answer.LATER:
                until = self.postponing(now).moment(now, wish)
                changes |= {"consent": Consent(answer, now, until), "postponed": attempt.postponed + 1}
                facts["until"] = until
            case Answer.SKIP:
                owner = self._ledger.record.owner.skipping(str(attempt.release_id))
            case Answer.TONIGHT:
                changes["consent"] = Consent(answer, now)
                facts["until"] = (self.policy.window or NIGHT).opens_at(now, self.policy.zone)
            case Answer.NOW:
                changes["consent"] = Consent(answer, now)
        self._ledger.say(ANSWERS[answer], owner=owner, **changes, **facts)

    def withdraw(self, who: Who) -> None:
        """Take a yes back: the owner is asked again; raises NothingToDoError when there is none."""
        attempt = self._answerable()
        if attempt.consent is None or attempt.consent.answer not in YES:
            raise NothingToDoError("There is no yes to take back", state=self._ledger.state)
        self._ledger.say(ConsentAnswer.WITHDRAWN, consent=None, **self._facts(who))

    def opt_out(self, who: Who) -> None:
        """Let nothing install by itself from now on; a yes that was given stays one."""
        owner = replace(self._ledger.record.owner, is_opted_out=True)
        self._ledger.say(ConsentAnswer.OPT_OUT, owner=owner, actor=who.actor, via=who.via)

    def opt_in(self, who: Who) -> None:
        """Follow the policy again, and forget which versions were skipped."""
        owner = replace(self._ledger.record.owner, is_opted_out=False, skipped=())
        self._ledger.say(ConsentAnswer.OPT_IN, owner=owner, actor=who.actor, via=who.via)

    def choose(self, modes: dict[UpdateClass, Mode | None]) -> None:
        """Set the owner's mode for classes of updates, None: as the settings say; raises SettingError."""
        if Mode.WINDOW in modes.values() and self._parts.policy.window is None:
            raise SettingError('The mode "window" needs a window', expected='window = "02:00-04:00" in [policy]')
        owner: Owner = self._ledger.record.owner
        self._ledger.decide(
            replace(
                owner,
                security=modes.get(UpdateClass.SECURITY, owner.security),
                feature=modes.get(UpdateClass.FEATURE, owner.feature),
            )
        )

    def postponing(self, now: datetime) -> Postponing:
        """Return how far the release in hand may still be put off."""
        attempt = self._ledger.attempt
        assert attempt.manifest is not None
        return postponing(
            self.policy,
            update_class=attempt.manifest.update_class,
            asked_at=attempt.asked_at,
            times=attempt.postponed,
            now=now,
        )

    def _answerable(self) -> Attempt:
        attempt = self._ledger.record.attempt
        if attempt is None or attempt.manifest is None or self._ledger.state not in BEFORE_TRIAL:
            raise NothingToDoError("Nothing is offered that could still be answered", state=self._ledger.state)
        return attempt

    def _facts(self, who: Who) -> dict[str, Any]:
        attempt, text = self._ledger.attempt, self.text()
        assert attempt.manifest is not None
        assert text is not None
        return {
            "actor": who.actor,
            "via": who.via,
            "attempt_id": attempt.attempt_id,
            "release_id": str(attempt.release_id),
            "update_class": attempt.manifest.update_class,
            "text_digest": str(text.digest),
            "language": text.language,
        }


def in_force(record: Record, settings: Policy) -> Policy:
    """Return the settings, the owner's decisions over them, then what the operator asks at least (ADR-0026)."""
    policy = record.owner.applied_to(settings)
    if record.attempt is None or record.attempt.manifest is None:
        return policy
    return policy.at_least(record.attempt.least, record.attempt.manifest.update_class)


def text_of(record: Record, *, language: str, offline_s: int) -> OfferText | None:
    """Return the offer's text that a record and the settings make."""
    attempt = record.attempt
    if attempt is None or attempt.manifest is None:
        return None
    manifest = attempt.manifest
    facts = OfferFacts(
        version=manifest.version,
        running=record.running.version if record.running is not None else "",
        update_class=manifest.update_class,
        notes=manifest.notes,
        length_bytes=attempt.chosen.length_bytes,
        offline_s=offline_s,
    )
    return offer_text(facts, wanted=language)
