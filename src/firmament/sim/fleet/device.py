"""One virtual device: it polls, installs, reports and goes back, in messages of the real protocol.

What it does between messages is chance and waiting; `wake` does what is due and returns when it
wants to be woken again. It knows nothing of the server but what the director's answer says.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Protocol

from firmament.core import canonical
from firmament.core.ids import AttemptId, DeviceId
from firmament.protocol.status import AttemptStatus
from firmament.protocol.v1.envelope import REPORT_TYPE, Envelope, pre_authentication_encoding
from firmament.protocol.v1.messages import NONCE_LENGTH_BYTES, PollRequest, Report

if TYPE_CHECKING:
    import random  # noqa: TID251 - an argument here

    from firmament.sim.fleet.model import Scenario
    from firmament.trust.device_keys import IdentityKey

RETRY_S: Final = 30
RESTART_S: Final = 40
NEW_VERSION: Final = "2.0"
NEW_SEQUENCE: Final = 2
OLD_VERSION: Final = "1.0"
OLD_SEQUENCE: Final = 1
CONSENT_CODE: Final = "policy/waiting-for-consent"


class Next(StrEnum):
    """What a device does when it wakes."""

    POLL = "poll"
    FETCHED = "fetched"
    RESTARTED = "restarted"
    PROVED = "proved"
    ANSWERED = "answered"
    NOTHING = "nothing"
    """It will never wake again."""


class Line(Protocol):
    """The way to the server."""

    def poll(self, device: VirtualDevice, request: PollRequest) -> dict[str, Any] | None:
        """Ask; return the assignment's `custom`, None when there is nothing to do."""
        ...

    def report(self, device: VirtualDevice, envelope: dict[str, Any]) -> None:
        """Deliver one signed report."""
        ...


@dataclass(slots=True)
class Fate:
    """What chance has in store for this device; drawn once, from the fleet's seed."""

    interval_s: int
    fails: bool
    never_returns: bool
    is_asked: bool
    answer: str
    """``yes``, ``no`` or empty for no answer."""
    fetch_s: int
    first_s: int


class VirtualDevice:
    """See the head of this file."""

    __slots__ = (
        "_chance",
        "_next",
        "_scenario",
        "attempt_id",
        "attributes",
        "boot",
        "device_id",
        "fate",
        "hardware",
        "is_back",
        "key",
        "line",
        "number",
        "reports",
        "sequence_number",
        "version",
    )

    def __init__(
        self, number: int, *, key: IdentityKey, hardware: str, fate: Fate, chance: random.Random, scenario: Scenario
    ) -> None:
        self.number = number
        self.key = key
        self.hardware = hardware
        self.fate = fate
        self.device_id = DeviceId("")
        self.line: Line | None = None
        self.version = OLD_VERSION
        self.sequence_number = OLD_SEQUENCE
        self.boot = 1
        self.reports = 0
        self.attempt_id: AttemptId | None = None
        self.is_back = False
        self.attributes: dict[str, str] = {}
        self._chance = chance
        self._scenario = scenario
        self._next = Next.POLL

    def wake(self, now_s: float) -> float | None:
        """Do what is due; return the second of the next waking, None for never."""
        match self._next:
            case Next.POLL:
                return self._poll(now_s)
            case Next.FETCHED:
                return self._fetched(now_s)
            case Next.RESTARTED:
                return self._restarted(now_s)
            case Next.PROVED:
                return self._proved(now_s)
            case Next.ANSWERED:
                return self._answered(now_s)
            case Next.NOTHING:
                return None

    def _poll(self, now_s: float) -> float:
        if self._is_lost():
            return now_s + RETRY_S
        assert self.line is not None
        custom = self.line.poll(self, self.request())
        if custom is None:
            self.attempt_id = None
            return now_s + self.fate.interval_s
        is_known = custom["attempt_id"] == self.attempt_id
        self.attempt_id = AttemptId(custom["attempt_id"])
        self.is_back = custom["action"] == "revert"
        if self.fate.is_asked and not self.is_back:
            if not is_known:
                self._tell(AttemptStatus.WAITING, now_s, code=CONSENT_CODE)
                if self.fate.answer:
                    self._next = Next.ANSWERED
                    return now_s + self._scenario.build.answer_s * self._chance.uniform(0.1, 1.0)
            return now_s + self.fate.interval_s
        return self._begin(now_s)

    def _answered(self, now_s: float) -> float:
        self._next = Next.POLL
        if self.fate.answer == "no":
            self._tell(AttemptStatus.DECLINED, now_s)
            return now_s + self.fate.interval_s
        # Whether it is still offered is asked first, as an agent does.
        assert self.line is not None
        custom = self.line.poll(self, self.request())
        if custom is None or custom["attempt_id"] != self.attempt_id:
            return now_s + self.fate.interval_s
        return self._begin(now_s)

    def _begin(self, now_s: float) -> float:
        if self.is_back:
            return self._restart(now_s)
        self._tell(AttemptStatus.FETCHING, now_s)
        self._next = Next.FETCHED
        return now_s + self.fate.fetch_s

    def _fetched(self, now_s: float) -> float:
        if self._chance.random() < self._scenario.weather.broken_fetch_ratio:
            self._tell(AttemptStatus.FAILED, now_s, code="transfer/unreachable")
            self._next = Next.POLL
            return now_s + self._scenario.crowd.active_s
        return self._restart(now_s)

    def _restart(self, now_s: float) -> float:
        self._tell(AttemptStatus.STAGED, now_s)
        self._next = Next.RESTARTED
        return now_s + RESTART_S

    def _restarted(self, now_s: float) -> float | None:
        self.boot += 1
        if self.is_back:
            self.version, self.sequence_number = OLD_VERSION, OLD_SEQUENCE
            self._tell(AttemptStatus.CONFIRMED, now_s)
            self._next = Next.POLL
            return now_s + self.fate.interval_s
        if self.fate.never_returns:
            self._next = Next.NOTHING
            return None
        self.version, self.sequence_number = NEW_VERSION, NEW_SEQUENCE
        self._next = Next.PROVED
        return now_s + self._scenario.build.trial_s

    def _proved(self, now_s: float) -> float:
        if self.fate.fails:
            self.boot += 1
            self.version, self.sequence_number = OLD_VERSION, OLD_SEQUENCE
            self._tell(AttemptStatus.REVERTED, now_s, code="slot/health")
        else:
            self._tell(AttemptStatus.CONFIRMED, now_s)
        self._next = Next.POLL
        return now_s + self._scenario.crowd.active_s

    def request(self) -> PollRequest:
        """Return the question it asks."""
        return PollRequest(
            nonce=self._chance.randbytes(NONCE_LENGTH_BYTES),
            version=self.version,
            sequence_number=self.sequence_number,
            boot_id=f"boot-{self.boot}",
            attributes=self.attributes,
        )

    def _tell(self, status: AttemptStatus, now_s: float, *, code: str = "") -> None:
        assert self.attempt_id is not None
        self.reports += 1
        report = Report(
            device_id=self.device_id,
            report_number=self.reports,
            attempt_id=self.attempt_id,
            status=status,
            version=self.version,
            sequence_number=self.sequence_number,
            boot_id=f"boot-{self.boot}",
            at=datetime.fromtimestamp(int(now_s), UTC),
            code=code,
        )
        payload = canonical.encode(report.to_json())
        signature = self.key.sign(pre_authentication_encoding(REPORT_TYPE, payload))
        assert self.line is not None
        self.line.report(self, Envelope(payload, REPORT_TYPE, self.key.keyid, signature).to_json())

    def _is_lost(self) -> bool:
        ratio = self._scenario.weather.lost_ratio
        return ratio > 0 and self._chance.random() < ratio


def assignment_in(targets: str) -> dict[str, Any] | None:
    """Return what a director's targets file assigns, as a device reads it."""
    named = json.loads(targets)["signed"]["targets"]
    return next(iter(named.values()))["custom"] if named else None
