"""Shapes of notifications and outlets (see shapes.py)."""

from __future__ import annotations

from typing_extensions import TypedDict  # pydantic reads no other before Python 3.12


class Outlet(TypedDict):
    """Somewhere to deliver to; its secret is shown only when it is made."""

    name: str
    kind: str
    takes: str
    target: str
    kinds: list[str]
    is_escalation: bool
    cursor: int
    failures: int
    disabled_at: int | None
    muted_until: int


class NewOutlet(Outlet):
    """With the secret that signs its deliveries, shown once; empty where nothing is signed."""

    secret: str


class Outlets(TypedDict):
    """Every outlet."""

    outlets: list[Outlet]


class Delivery(TypedDict):
    """One try."""

    event_number: int | None
    message_id: int | None
    at: int
    ok: bool
    answer: str
    duration_ms: int


class Deliveries(TypedDict):
    """The newest tries, newest first."""

    deliveries: list[Delivery]


class Tested(TypedDict):
    """What came of a test."""

    ok: bool
    answer: str
    duration_ms: int


class Notification(TypedDict):
    """One change of state that people are told."""

    id: int
    subject: str
    event_number: int
    severity: str
    title: str
    text: str
    link: str
    at: int
    sent_at: int | None
    repeats: int
    escalated_at: int | None
    acknowledged_at: int | None
    acknowledged_by: str
    closed_at: int | None


class Notifications(TypedDict):
    """A page, newest first."""

    notifications: list[Notification]
    next: int | None


class Preview(TypedDict):
    """How a stop would be told."""

    severity: str
    title: str
    text: str
