"""When which notification goes out: pure. Time is an argument, rows are values.

Critical news goes at once. Other news waits for the batch window, so that what happens together
is told together, and for the end of the quiet hours. Critical news is repeated until somebody
acknowledges it or its state ends, and goes to the escalation outlets when nobody did in time.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

MINUTE_S: Final = 60
HOUR_S: Final = 3600
EXPIRY_DAYS: Final = (60, 30, 14, 7, 3, 1)
"""Before an expiry, people are told on these days, and every day from the last on."""
CRITICAL_DAYS: Final = 3


class Severity(StrEnum):
    """How much it is worth waking somebody."""

    CRITICAL = "critical"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True, slots=True)
class News:
    """One change of state, told once."""

    subject: str
    """What it is about, e.g. ``rollout:42``; later news about the same ends what was before."""
    event_number: int
    severity: Severity
    title: str
    body: str
    link: str
    at: int


@dataclass(frozen=True, slots=True)
class Open:
    """A notification whose state has not ended."""

    row_id: int
    severity: Severity
    title: str
    body: str
    at: int
    sent_at: int | None = None
    repeats: int = 0
    escalated_at: int | None = None
    acknowledged_at: int | None = None


@dataclass(frozen=True, slots=True)
class Rules:
    """How a tenant wants to be told; times of day are minutes since midnight in `zone`."""

    batch_window_s: int = 30
    repeat_every_s: int = 2 * HOUR_S
    escalate_after_s: int = 15 * MINUTE_S
    quiet_from: int = 0
    quiet_until: int = 0
    """The same as `quiet_from`: no quiet hours."""
    zone: tzinfo = UTC


@dataclass(frozen=True, slots=True)
class Send:
    """Tell one or more notifications in one message."""

    ids: tuple[int, ...]
    severity: Severity
    title: str
    body: str
    is_escalation: bool = False
    is_repeat: bool = False


def is_quiet(now: int, rules: Rules) -> bool:
    """Whether it is a time at which only critical news may go out."""
    wall = datetime.fromtimestamp(now, rules.zone)
    minute = 60 * wall.hour + wall.minute
    if rules.quiet_from <= rules.quiet_until:
        return rules.quiet_from <= minute < rules.quiet_until
    return minute >= rules.quiet_from or minute < rules.quiet_until


def decide(found: Sequence[Open], now: int, rules: Rules) -> list[Send]:
    """Return what is to be sent now, most urgent first."""
    sends: list[Send] = []
    for each in found:
        if each.severity is Severity.CRITICAL:
            sends += _critical(each, now, rules)
    waiting = [each for each in found if each.severity is not Severity.CRITICAL and each.sent_at is None]
    if waiting and not is_quiet(now, rules) and now - min(each.at for each in waiting) >= rules.batch_window_s:
        sends.append(_together(waiting))
    return sends


def _critical(each: Open, now: int, rules: Rules) -> list[Send]:
    sends: list[Send] = []
    ids = (each.row_id,)
    if each.sent_at is None:
        sends.append(Send(ids, each.severity, each.title, each.body))
    elif each.acknowledged_at is None and now - each.sent_at >= rules.repeat_every_s:
        age = f"{_age(now - each.at)}"
        sends.append(
            Send(
                ids,
                each.severity,
                f"still {each.title}, {age}",
                f"Still so after {age}.\n\n{each.body}",
                is_repeat=True,
            )
        )
    if each.acknowledged_at is None and each.escalated_at is None and now - each.at >= rules.escalate_after_s:
        text = f"Nobody has acknowledged this for {_age(now - each.at)}.\n\n{each.body}"
        sends.append(Send(ids, each.severity, f"not acknowledged: {each.title}", text, is_escalation=True))
    return sends


def _together(waiting: Sequence[Open]) -> Send:
    ids = tuple(each.row_id for each in waiting)
    severity = Severity.WARNING if any(each.severity is Severity.WARNING for each in waiting) else Severity.INFO
    if len(waiting) == 1:
        return Send(ids, severity, waiting[0].title, waiting[0].body)
    title = f"{waiting[0].title} and {len(waiting) - 1} more"
    return Send(ids, severity, title, "\n\n".join(each.body for each in waiting))


def _age(duration_s: int) -> str:
    if duration_s < HOUR_S:
        return f"{max(1, duration_s // MINUTE_S)} min"
    if duration_s < 48 * HOUR_S:
        return f"{duration_s // HOUR_S} h"
    return f"{duration_s // (24 * HOUR_S)} days"


def expiry_step(days_left: int) -> int | None:
    """Return the step an expiry is at: the smallest of 60, 30 ... that is not below it; None above all.

    On and after the last step every day is a step of its own; 0 and below is expired.
    """
    if days_left <= EXPIRY_DAYS[-1]:
        return days_left
    return min((step for step in EXPIRY_DAYS if days_left <= step), default=None)


def expiry_news(name: str, *, days_left: int, step: int, consequence: str, link: str, at: int) -> News:
    """Tell that a key or a role expires, and what happens if nobody does anything."""
    severity = Severity.CRITICAL if step <= CRITICAL_DAYS else Severity.WARNING
    when = "has expired" if days_left <= 0 else f"expires in {days_left} {'day' if days_left == 1 else 'days'}"
    body = f"{name} {when}. If you do nothing: {consequence}"
    return News(f"expiry:{name}", 0, severity, f"{name} {when}", f"{body} {link}".strip(), link, at)
