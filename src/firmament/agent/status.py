"""What ``firmament-agent status`` and the socket say: the record, without what only the engine needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from firmament.agent.events import FETCHED_PERCENT, PERCENT
from firmament.agent.machine import State

if TYPE_CHECKING:
    from firmament.agent.record import Attempt, Record, Release
    from firmament.agent.slots.port import Label
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
                "done_bytes": attempt.offset,
                "total_bytes": attempt.chosen.length_bytes if attempt.manifest is not None else None,
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
        }


def status_of(
    record: Record,
    *,
    booted: Label,
    boot_id: str,
    waits_for: FirmamentError | None,
    last_error: FirmamentError | None,
) -> Status:
    """Return the status that a record and the boot control tell."""
    attempt = record.attempt
    percent = PERCENT[record.state]
    if record.state is State.FETCHING and attempt is not None and attempt.manifest is not None:
        percent += (FETCHED_PERCENT - percent) * attempt.offset // max(1, attempt.chosen.length_bytes)
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
    )


def _release(release: Release | None) -> dict[str, Any] | None:
    return None if release is None else release.to_json()


def _error(error: FirmamentError | None) -> dict[str, Any] | None:
    return None if error is None else {"code": error.code, "message": str(error)}
