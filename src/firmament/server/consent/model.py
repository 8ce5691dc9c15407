"""Values of consent: who decided how, and what an owner said about one release.

The rule that applies to a device and an update class is the most specific one that an operator
set: the device's, else its group's, else the tenant's, else `BUILT_IN`. The owner's own rule, as
their device reports it, is laid over it: the stricter of the two holds (`Ruling.mode`), and an
opt-out holds against everything.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from enum import StrEnum
from typing import Final

from firmament.core.consent import STRICTNESS, Mode, Window
from firmament.core.manifest import UpdateClass


class Level(StrEnum):
    """Whose rule it is, from the most general to the most specific."""

    BUILT_IN = "built-in"
    TENANT = "tenant"
    GROUP = "group"
    DEVICE = "device"
    OWNER = "owner"
    """The rule in the device's own settings, as the device reports it."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule and who set it when."""

    mode: Mode
    window: Window | None = None
    level: Level = Level.BUILT_IN
    subject: str = ""
    """Name of the group or id of the device it was set for."""
    set_by: str = ""
    set_at: int = 0


BUILT_IN: Final = Rule(Mode.AUTOMATIC)
"""Without a rule updates install by themselves: security updates must by default (CRA Annex I, part I (2)(c))."""


@dataclass(frozen=True, slots=True)
class Ruling:
    """What holds for one device and update class: the operator's rule with the owner's laid over it."""

    operator: Rule = BUILT_IN
    owner: Rule | None = None
    """What the device reports; None: nothing yet."""
    opted_out_at: int | None = None
    """When the owner said: nothing by itself any more. Holds until they opt in again."""
    zone: tzinfo = UTC

    @property
    def holding(self) -> Rule:
        """The stricter of the operator's and the owner's rule; the owner's where they are equal."""
        if self.owner is not None and STRICTNESS[self.owner.mode] >= STRICTNESS[self.operator.mode]:
            return self.owner
        return self.operator

    @property
    def asks(self) -> bool:
        """Whether the owner is asked: by rule, or because they opted out of updates by themselves."""
        mode = self.holding.mode
        return mode is Mode.ASK or (self.opted_out_at is not None and STRICTNESS[mode] < STRICTNESS[Mode.ASK])


class Word(StrEnum):
    """The latest thing an owner said about one release."""

    ASKED = "asked"
    NOW = "now"
    TONIGHT = "tonight"
    LATER = "later"
    SKIP = "skip"
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True, slots=True)
class Answers:
    """What one owner said about one release, summed up."""

    latest: Word | None = None
    """None: the device has not told of asking yet."""
    at: datetime | None = None
    until: datetime | None = None
    """When it will be asked again (later) or is to be installed (tonight), as the device told."""
    first_asked_at: datetime | None = None
    postponements: int = 0


@dataclass(frozen=True, slots=True)
class Limit:
    """How often and how long an update of a class may be put off."""

    times: int | None
    longest: timedelta | None


LIMITS: Final = {
    UpdateClass.SECURITY: Limit(times=3, longest=timedelta(days=14)),
    # console.md §1.4: a postponement has an end that is visible beforehand.
    UpdateClass.FEATURE: Limit(times=None, longest=None),
}
