"""What the owner of a device decides for good, and what may still be postponed; pure.

The integrator's settings say how updates go by themselves (policy.py). An owner may say more:
another mode for a class of updates, opt out of automatic updates altogether, never again this
version. These are journalled here, and `Owner.applied_to` lays them over the policy: an owner
never makes updates more automatic than the integrator allows by `manual`.

Postponing security updates has a limit in days and in times (console.md §1.4). What then happens
depends on the mode, and is said beforehand: an automatic update goes ahead when the window opens;
where the owner is asked, silence is never a yes, so they are asked again and the hole stays open.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Self

from firmament.agent.policy import REMIND_AFTER, Policy
from firmament.core.consent import Mode
from firmament.core.fields import format_time
from firmament.core.manifest import UpdateClass
from firmament.errors import PostponeLimitError
from firmament.protocol.status import ConsentAnswer
from firmament.protocol.v1.messages import ConsentEvent, consent_event_from

if TYPE_CHECKING:
    from datetime import datetime

    from firmament.core.fields import Fields

MAX_SKIPPED: Final = 8
# A version that is skipped is rarely offered again after the next one; the oldest are forgotten.
MAX_CONSENTS: Final = 12
# 12 x 0.7 kB: half a year of monthly releases, asked and answered, without a server; the largest record must fit.
MIN_POSTPONE: Final = timedelta(minutes=1)

OPT_OUT_RISK: Final = (
    "From now on no update installs by itself, security updates included: known holes stay open until you "
    "install their update yourself. You will still be told about updates. `opt-in` takes this back."
)


@dataclass(frozen=True, slots=True)
class Owner:
    """The owner's standing decisions."""

    is_opted_out: bool = False
    security: Mode | None = None
    """The owner's mode for security updates; None: as the settings say."""
    feature: Mode | None = None
    skipped: tuple[str, ...] = ()
    """Release ids that were declined for good, oldest first."""

    def applied_to(self, policy: Policy) -> Policy:
        """Return the policy in force."""
        return replace(
            policy,
            security=self._mode(policy, policy.security, self.security),
            feature=self._mode(policy, policy.feature, self.feature),
        )

    def _mode(self, policy: Policy, integrator: Mode, owner: Mode | None) -> Mode:
        if Mode.MANUAL in {integrator, owner}:
            return Mode.MANUAL
        if self.is_opted_out:
            return Mode.ASK
        if owner is Mode.WINDOW and policy.window is None:
            return integrator  # the window was taken out of the settings since
        return owner or integrator

    def skipping(self, release_id: str) -> Self:
        """Return this with one more version that is never to be offered again."""
        kept = tuple(item for item in self.skipped if item != release_id)
        return replace(self, skipped=(*kept, release_id)[-MAX_SKIPPED:])

    def to_json(self) -> dict[str, Any]:
        """Return the journal's form."""
        return {
            "opted_out": self.is_opted_out,
            "security": self.security.value if self.security is not None else None,
            "feature": self.feature.value if self.feature is not None else None,
            "skipped": list(self.skipped),
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Read the journal's form."""
        return cls(
            is_opted_out=fields.boolean("opted_out", default=False),
            security=fields.one_of("security", Mode) if "security" in fields else None,
            feature=fields.one_of("feature", Mode) if "feature" in fields else None,
            skipped=fields.texts("skipped", max_items=MAX_SKIPPED, max_length=128, optional=True),
        )


@dataclass(frozen=True, slots=True)
class Said:
    """A consent event and whether the server has it for good."""

    event: ConsentEvent
    is_stored: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the journal's form."""
        return {**self.event.to_json(), "stored": self.is_stored}

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Read the journal's form."""
        return cls(consent_event_from(fields), fields.boolean("stored", default=False))


def with_said(said: tuple[Said, ...], event: ConsentEvent) -> tuple[Said, ...]:
    """Return the events with `event` last, within their bound.

    What the server has goes first, then that somebody was asked, then the oldest answer.
    """
    kept = list(said)
    while len(kept) >= MAX_CONSENTS:
        index = next((i for i, item in enumerate(kept) if item.is_stored), None)
        if index is None:
            index = next((i for i, item in enumerate(kept) if item.event.answer is ConsentAnswer.ASKED), 0)
        kept.pop(index)
    return (*kept, Said(event))


@dataclass(frozen=True, slots=True)
class Postponing:
    """How often and how long an update may still be put off."""

    times_left: int | None
    """None: as often as one likes."""
    until: datetime | None
    """The last moment it can be put off to; None: any."""

    def is_possible(self, now: datetime) -> bool:
        """Whether it may be put off at all."""
        return self.times_left != 0 and (self.until is None or now < self.until)

    def moment(self, now: datetime, wish: timedelta | None) -> datetime:
        """Return when the owner is asked again; raises PostponeLimitError when it cannot be put off."""
        if not self.is_possible(now):
            raise PostponeLimitError(
                "This security update cannot be postponed any more",
                times_left=self.times_left if self.times_left is not None else "any",
                until=format_time(self.until) if self.until is not None else "any",
            )
        moment = now + max(wish or REMIND_AFTER, MIN_POSTPONE)
        return min(moment, self.until) if self.until is not None else moment


def postponing(
    policy: Policy, *, update_class: UpdateClass, asked_at: datetime | None, times: int, now: datetime
) -> Postponing:
    """Return what may still be postponed; only security updates have a limit."""
    if update_class is not UpdateClass.SECURITY:
        return Postponing(None, None)
    until = (asked_at or now) + timedelta(days=policy.postpone_days)
    return Postponing(max(0, policy.postpone_times - times), until)


def consequence(mode: Mode, left: Postponing, now: datetime) -> str:
    """Say in a sentence what happens when the owner says nothing any more."""
    if mode is Mode.MANUAL:
        return "Nothing happens until somebody starts the update at the device."
    if mode is Mode.ASK:
        if left.is_possible(now):
            return "Nothing is installed until you agree."
        return "Nothing is installed until you agree. It cannot be postponed any more: you will be asked every day."
    if left.is_possible(now):
        return "It installs by itself when the time comes."
    return "It cannot be postponed any more and installs by itself when the time comes."
