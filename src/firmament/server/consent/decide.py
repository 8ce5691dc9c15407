"""What consent means for one device and one release, pure: no database, no clock.

    decide(ruling, UpdateClass.SECURITY, answers, now, is_writing=False) -> Verdict

`ruling` is what holds for the device and class (`rules.rulings`), `answers` what its owner said
about this release (`answers.of_release`), `now` aware. Nothing here is a failure: a verdict that
does not go ahead says what is waited for, and until when where that is known.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from firmament.core.consent import Mode
from firmament.server.consent.model import LIMITS, Answers, Ruling, Word

if TYPE_CHECKING:
    from firmament.core.manifest import UpdateClass

DEFAULT_POSTPONEMENT: Final = timedelta(hours=24)
"""After "later" without a time the owner is asked again no earlier than this, as on the device."""


class Standing(StrEnum):
    """Where an update stands with its owner. None of these is a failure."""

    NOT_NEEDED = "not-needed"
    """The rule is automatic or a window: nobody is asked."""
    AGREED = "agreed"
    ASKED = "asked"
    """Asked, or to be asked, and no answer that counts now."""
    POSTPONED = "postponed"
    DECLINED = "declined"
    """This version was skipped."""
    OPTED_OUT = "opted-out"
    """The owner switched updates off: they are told of this one, and it installs if they say so."""
    BY_HAND = "by-hand"
    """The rule is manual: somebody starts it at the device."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the release may be offered, whether it may be installed now, and why not."""

    standing: Standing
    may_offer: bool
    """Whether the director should name it: an owner who is to be asked needs the offer."""
    may_install: bool
    """Whether nothing about consent or window is missing now."""
    sentence: str
    until: datetime | None = None
    """When to look again, if somebody does not act before."""
    is_last_postponement: bool = False
    """After this one, "later" does not count any more."""
    facts: dict[str, object] = field(default_factory=dict)


def decide(
    ruling: Ruling, update_class: UpdateClass, answers: Answers, now: datetime, *, is_writing: bool = False
) -> Verdict:
    """Return what holds now. `is_writing`: the device writes already; then no answer takes it back."""
    rule = ruling.holding
    facts: dict[str, object] = {"mode": rule.mode.value, "set_for": rule.level.value, "set_by": rule.set_by}
    if is_writing:
        # Consent can be withdrawn until writing starts, not after.
        return Verdict(Standing.AGREED, may_offer=True, may_install=True, sentence="It is being written", facts=facts)
    if answers.latest is Word.SKIP:
        return Verdict(
            Standing.DECLINED,
            may_offer=False,
            may_install=False,
            sentence="The owner skipped this version; the next one is asked about again",
            facts=facts,
        )
    if answers.latest is Word.NOW:
        return Verdict(Standing.AGREED, may_offer=True, may_install=True, sentence="The owner agreed", facts=facts)
    if answers.latest is Word.TONIGHT:
        return _tonight(answers, now, facts)
    if ruling.opted_out_at is not None:
        return Verdict(
            Standing.OPTED_OUT,
            may_offer=True,
            may_install=False,
            sentence="The owner switched updates off, and installs them one by one",
            facts={**facts, "since": ruling.opted_out_at},
        )
    if answers.latest is Word.LATER:
        postponed = _later(update_class, answers, now, facts)
        if postponed is not None:
            return postponed
    if rule.mode is Mode.MANUAL:
        return Verdict(
            Standing.BY_HAND,
            may_offer=True,
            may_install=False,
            sentence="Updates of this class are started by hand at the device",
            facts=facts,
        )
    if rule.mode is Mode.ASK or answers.latest is Word.WITHDRAWN:
        return Verdict(Standing.ASKED, may_offer=True, may_install=False, sentence=_asking(answers), facts=facts)
    if rule.mode is Mode.WINDOW and rule.window is not None and not rule.window.is_open(now, ruling.zone):
        opens = rule.window.opens_at(now, ruling.zone)
        return Verdict(
            Standing.NOT_NEEDED,
            may_offer=True,
            may_install=False,
            sentence=f"The window {rule.window} is closed",
            until=opens,
            facts={**facts, "window": str(rule.window)},
        )
    return Verdict(Standing.NOT_NEEDED, may_offer=True, may_install=True, sentence="Nobody needs to agree", facts=facts)


def _asking(answers: Answers) -> str:
    if answers.latest is Word.WITHDRAWN:
        return "The owner took their consent back and is asked again"
    if answers.latest is Word.LATER:
        return "The owner is asked again: it was postponed, and that time is over"
    return "The owner was asked and has not answered" if answers.latest is Word.ASKED else "The owner is to be asked"


def _tonight(answers: Answers, now: datetime, facts: dict[str, object]) -> Verdict:
    is_waiting = answers.until is not None and now < answers.until
    return Verdict(
        Standing.AGREED,
        may_offer=True,
        may_install=not is_waiting,
        sentence="The owner agreed, for tonight",
        until=answers.until if is_waiting else None,
        facts=facts,
    )


def _later(update_class: UpdateClass, answers: Answers, now: datetime, facts: dict[str, object]) -> Verdict | None:
    """Return the verdict while a postponement counts; None when its time or its limit is over."""
    limit = LIMITS[update_class]
    if limit.times is not None and answers.postponements > limit.times:
        return None
    again = answers.until or (answers.at or datetime.min.replace(tzinfo=UTC)) + DEFAULT_POSTPONEMENT
    is_last = limit.times is not None and answers.postponements == limit.times
    if limit.longest is not None and answers.first_asked_at is not None:
        end = answers.first_asked_at + limit.longest
        is_last = is_last or again >= end
        again = min(again, end)
    if now >= again:
        return None
    left = "" if not is_last else "; it cannot be put off again"
    return Verdict(
        Standing.POSTPONED,
        may_offer=True,
        may_install=False,
        sentence=f"The owner said later{left}",
        until=again,
        is_last_postponement=is_last,
        facts={**facts, "postponements": answers.postponements},
    )
