"""The only spelling of the words for where an attempt is and how it ended.

Journal, wire, database, console and command line use these strings (house rule 6).
"""

from __future__ import annotations

from enum import StrEnum


class AttemptStatus(StrEnum):
    """Where one device is with one release."""

    OFFERED = "offered"
    """The director named the release to this device and both repositories were verified."""
    WAITING = "waiting"
    """Offered, but consent, a window or a precondition is missing; never a failure."""
    FETCHING = "fetching"
    """Payload bytes are being written to the other slot."""
    VERIFIED = "verified"
    """All bytes are in the other slot and its read-back digest matched."""
    STAGED = "staged"
    """The boot control was asked to try the other slot once."""
    TRIAL = "trial"
    """The new image was started for the first time and has not proven itself yet."""
    CONFIRMED = "confirmed"
    """The new image proved itself healthy and is kept."""
    REVERTED = "reverted"
    """The previous image runs again."""
    REFUSED = "refused"
    """Not what an authorised author signed, or not for this device; nothing was booted."""
    FAILED = "failed"
    """Could not be fetched or stored; nothing was booted."""
    DECLINED = "declined"
    """The owner said no; never a failure."""


class Outcome(StrEnum):
    """How an attempt went, beside where it is: the second, tiny machine (anchors.md, Mender)."""

    OPEN = "open"
    CONFIRMED = "confirmed"
    REVERTED = "reverted"
    REFUSED = "refused"
    FAILED = "failed"
    DECLINED = "declined"


FINAL_STATUSES = frozenset(
    {
        AttemptStatus.CONFIRMED,
        AttemptStatus.REVERTED,
        AttemptStatus.REFUSED,
        AttemptStatus.FAILED,
        AttemptStatus.DECLINED,
    }
)
"""Nothing follows these for the same attempt."""


class ConsentAnswer(StrEnum):
    """What was said about an offer, or about updates in general (docs/protocol/consent.md)."""

    ASKED = "asked"
    """The offer was put before the owner; nothing was said yet."""
    NOW = "now"
    """Agreed: go ahead at once."""
    TONIGHT = "tonight"
    """Agreed: when the window opens."""
    LATER = "later"
    """Postponed: ask again."""
    SKIP = "skip"
    """Declined: not this version."""
    WITHDRAWN = "withdrawn"
    """An earlier yes was taken back before writing began."""
    OPT_OUT = "opt-out"
    """No update installs by itself any more, until further notice."""
    OPT_IN = "opt-in"
    """Updates follow the policy again."""
