"""Values of the outbox, and when to try again: pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from random import Random  # noqa: TID251 - the generator is an argument

FIRST_WAIT_S: Final = 5
MAX_WAIT_S: Final = 3600
"""Longest pause between two tries of one outlet."""
DISABLE_AFTER: Final = 20
"""Failures in a row: with the pauses above about twelve hours."""


class OutletKind(StrEnum):
    """How it gets there."""

    WEBHOOK = "webhook"
    SMTP = "smtp"
    MQTT = "mqtt"


class Takes(StrEnum):
    """What an outlet is given."""

    EVENTS = "events"
    """Each domain event as JSON, in order."""
    NOTIFICATIONS = "notifications"
    """Sentences for people, one per change of state."""


@dataclass(frozen=True, slots=True)
class Outlet:
    """Somewhere to deliver to."""

    row_id: int
    tenant_id: int
    name: str
    kind: OutletKind
    takes: Takes
    target: str
    """``https://...``, a mail address, or a topic."""
    sealed_secret: str
    kinds: tuple[str, ...]
    """Event kinds that are wanted, a subject with a dot for all of it; empty for every event."""
    is_escalation: bool
    cursor: int
    failures: int
    next_at: int
    disabled_at: int | None
    muted_until: int

    def wants(self, kind: str) -> bool:
        """Whether an event of this kind is delivered here."""
        return not self.kinds or any(
            kind == wanted or (wanted.endswith(".") and kind.startswith(wanted)) for wanted in self.kinds
        )


@dataclass(frozen=True, slots=True)
class Parcel:
    """One thing to deliver: JSON for machines, title and body for people."""

    number: int
    """The event's number, or the message's; the receiver can tell a repeat by it."""
    kind: str
    at: int
    title: str
    body: str
    value: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """How a delivery went."""

    ok: bool
    text: str
    duration_ms: int = 0


class Sender(Protocol):
    """Carries parcels to outlets of one kind. Never raises for what the other side does."""

    async def send(self, outlet: Outlet, parcel: Parcel) -> Answer:
        """Deliver one parcel."""


class NullSender:
    """Delivers nothing and says it went well; remembers what it was given."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Parcel]] = []

    async def send(self, outlet: Outlet, parcel: Parcel) -> Answer:
        """See the port."""
        self.sent.append((outlet.name, parcel))
        return Answer(ok=True, text="kept")


class FailingSender:
    """Fails `times` times, then hands on to another; for tests and for trying out alarms."""

    def __init__(self, then: Sender, *, times: int) -> None:
        self.left = times
        self._then = then

    async def send(self, outlet: Outlet, parcel: Parcel) -> Answer:
        """See the port."""
        if self.left > 0:
            self.left -= 1
            return Answer(ok=False, text="it was told to fail")
        return await self._then.send(outlet, parcel)


def wait_s(failures: int, rng: Random) -> int:
    """Return the pause after so many failures in a row: doubled each time, the upper half by chance.

    Chance, so that many outlets that failed together do not come back together.
    """
    longest: int = min(MAX_WAIT_S, FIRST_WAIT_S * 2 ** min(max(failures - 1, 0), 16))
    return longest // 2 + rng.randint(0, longest - longest // 2)


def is_given_up(failures: int) -> bool:
    """Whether an outlet is switched off after so many failures in a row."""
    return failures >= DISABLE_AFTER
