"""What ``firmament-agent status`` and the socket say: the record, without what only the engine needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from firmament.agent.applying import is_direct
from firmament.agent.consent import in_force, text_of
from firmament.agent.events import FETCHED_PERCENT, PERCENT
from firmament.agent.machine import BEFORE_TRIAL, State
from firmament.agent.owner import consequence, postponing
from firmament.agent.policy import Answer
from firmament.agent.steps import blocked, steps
from firmament.core.consent import Mode
from firmament.core.fields import format_time

if TYPE_CHECKING:
    from datetime import datetime

    from firmament.agent.policy import Found, Policy
    from firmament.agent.record import Attempt, Ended, Record, Release
    from firmament.agent.slots.port import Label
    from firmament.core.offer import OfferText
    from firmament.errors import FirmamentError
    from firmament.protocol.status import Outcome


@dataclass(frozen=True, slots=True)
class Status:
    """One device at one moment."""

    state: State
    outcome: Outcome
    booted: Label
    boot_id: str
    running: Release | None
    previous: Release | None
    """Where `revert` can go while idle."""
    attempt: Attempt | None
    percent: int
    reports_waiting: int
    waits_for: FirmamentError | None
    """Consent, a window or a precondition."""
    last_error: FirmamentError | None
    """What is being retried."""
    last: Ended | None = None
    """How the attempt before ended."""
    offer: OfferText | None = None
    """What the owner reads about the release in hand."""
    consent: dict[str, Any] = field(default_factory=dict)
    """What was asked and said, and what may still be said."""
    back_in_s: int | None = None
    """While the machine restarts: how long that usually takes."""
    offline_s: int = 0
    """How long the device is usually away for a restart."""
    found: Found | None = None
    """Space, power and link."""

    def to_json(self) -> dict[str, Any]:
        """Return the form of ``status --json`` (additive changes only)."""
        attempt = self.attempt
        return {
            "v": 1,
            "state": self.state.value,
            "outcome": self.outcome.value,
            "booted": self.booted.value,
            "boot_id": self.boot_id,
            "running": _release(self.running),
            "previous": _release(self.previous),
            "attempt": None
            if attempt is None
            else {
                "attempt_id": attempt.attempt_id,
                "release_id": attempt.release_id,
                "slot": attempt.slot.value if attempt.slot is not None else None,
                "done_bytes": _fetched_bytes(attempt),
                "total_bytes": attempt.chosen.length_bytes if attempt.manifest is not None else None,
                "payload": attempt.payload,
                "fell_back_from": [failed.to_json() for failed in attempt.failed],
                "notes": dict(attempt.manifest.notes) if attempt.manifest is not None else {},
                "class": attempt.manifest.update_class.value if attempt.manifest is not None else None,
                "consent": attempt.consent.to_json() if attempt.consent is not None else None,
                "code": attempt.reason.code,
                "message": attempt.reason.message,
            },
            "percent": self.percent,
            "reports_waiting": self.reports_waiting,
            "waits_for": _error(self.waits_for),
            "last_error": _error(self.last_error),
            "last": self.last.to_json() if self.last is not None else None,
            "steps": [{"name": name, "mark": mark.value} for name, mark in steps(self.state)],
            "blocked": self._blocked(),
            "back_in_s": self.back_in_s,
            "offline_s": self.offline_s,
            "surroundings": None
            if self.found is None
            else {
                "free_bytes": self.found.free_bytes,
                "battery_percent": self.found.battery_percent,
                "mains_power": self.found.mains_power,
                "unmetered_link": self.found.unmetered_link,
            },
            "consent": self.consent,
            "offer": None
            if self.offer is None
            else {
                "title": self.offer.title,
                "sections": [{"heading": part.heading, "lines": list(part.lines)} for part in self.offer.sections],
                "facts": self.offer.facts,
                "language": self.offer.language,
                "text_digest": str(self.offer.digest),
            },
        }

    def _blocked(self) -> str | None:
        attempt = self.attempt
        if self.waits_for is None or attempt is None or attempt.manifest is None or self.state not in BEFORE_TRIAL:
            return None
        return blocked(attempt.manifest.version, self.state, self.waits_for)


@dataclass(frozen=True, slots=True)
class Facts:
    """What a status needs beside the record and the boot control."""

    policy: Policy
    """As the settings say; the owner's decisions are in the record."""
    language: str
    offline_s: int
    now: datetime
    found: Found | None = None


def status_of(
    record: Record,
    *,
    booted: Label,
    boot_id: str,
    waits_for: FirmamentError | None,
    last_error: FirmamentError | None,
    device: Facts,
) -> Status:
    """Return the status that a record and the boot control tell."""
    attempt = record.attempt
    percent = PERCENT[record.state]
    if record.state is State.FETCHING and attempt is not None and attempt.manifest is not None:
        percent += (FETCHED_PERCENT - percent) * _fetched_bytes(attempt) // max(1, attempt.chosen.length_bytes)
    return Status(
        state=record.state,
        outcome=record.outcome,
        booted=booted,
        boot_id=boot_id,
        running=record.running,
        previous=record.previous,
        attempt=attempt,
        percent=percent,
        reports_waiting=len(record.outbox),
        waits_for=waits_for,
        last_error=last_error,
        last=record.history[-1] if record.history else None,
        offer=text_of(record, language=device.language, offline_s=device.offline_s),
        consent=_consent(record, device),
        back_in_s=device.offline_s if record.state is State.STAGED else None,
        offline_s=device.offline_s,
        found=device.found,
    )


def _consent(record: Record, device: Facts) -> dict[str, Any]:
    owner, attempt, now = record.owner, record.attempt, device.now
    policy = in_force(record, device.policy)
    value: dict[str, Any] = {
        "security": policy.security.value,
        "feature": policy.feature.value,
        "opted_out": owner.is_opted_out,
        "skipped": list(owner.skipped),
        "events_waiting": sum(not said.is_stored for said in record.consents),
    }
    if attempt is None or attempt.manifest is None or record.state not in BEFORE_TRIAL:
        return {**value, "needs_answer": False}
    update_class = attempt.manifest.update_class
    mode = policy.mode_for(update_class)
    left = postponing(policy, update_class=update_class, asked_at=attempt.asked_at, times=attempt.postponed, now=now)
    answer = attempt.consent.answer if attempt.consent is not None else None
    is_put_off = attempt.consent is not None and answer is Answer.LATER and now < attempt.consent.again_at
    return {
        **value,
        "mode": mode.value,
        "asked_at": _time(attempt.asked_at),
        "answer": answer.value if answer is not None else None,
        "again_at": _time(attempt.consent.again_at) if attempt.consent is not None and is_put_off else None,
        "needs_answer": mode in {Mode.ASK, Mode.MANUAL}
        and (answer is None or (answer is Answer.LATER and not is_put_off)),
        "may_postpone": left.is_possible(now),
        "postpones_left": left.times_left,
        "postpone_until": _time(left.until),
        "consequence": consequence(mode, left, now),
    }


def _time(moment: datetime | None) -> str | None:
    return format_time(moment) if moment is not None else None


def _fetched_bytes(attempt: Attempt) -> int:
    """Return how much of the chosen payload is durable: in the slot for a whole one, else in its own file."""
    is_whole = attempt.manifest is None or is_direct(attempt.chosen)
    return attempt.offset if is_whole else attempt.stored


def _release(release: Release | None) -> dict[str, Any] | None:
    return None if release is None else release.to_json()


def _error(error: FirmamentError | None) -> dict[str, Any] | None:
    return None if error is None else {"code": error.code, "message": str(error)}
