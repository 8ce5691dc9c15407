"""What the agent must remember across a power cut, as one typed value.

Each field says why it must survive. `to_json` and `record_from` are inverses; fields that a later
agent wrote are kept (house rule 12), because after a revert the older agent must not lose them.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Self

from firmament.agent.machine import State
from firmament.agent.outcome import POSSIBLE
from firmament.agent.owner import MAX_CONSENTS, Owner, Said
from firmament.agent.policy import Consent
from firmament.agent.slots.port import Label
from firmament.core import manifest as manifests
from firmament.core.consent import Mode
from firmament.core.digest import Digest
from firmament.core.fields import Fields, format_time
from firmament.core.ids import UUID, VERSION, AttemptId, DeviceId, ReleaseId
from firmament.core.manifest import Image, Manifest, Payload
from firmament.errors import MalformedError
from firmament.protocol.status import FINAL_STATUSES, AttemptStatus, Outcome
from firmament.protocol.v1.messages import MAX_LOG_LINES, Report

if TYPE_CHECKING:
    from datetime import datetime

MAX_HISTORY: Final = 64
# One release a month is five years. Also the attempts that are not begun a second time.
MAX_OUTBOX: Final = 16
# Per attempt one final and one intermediate report wait at a time: eight attempts without a server.
MAX_LOG_LINE_LENGTH: Final = 200
MAX_MESSAGE_LENGTH: Final = 500
# Sixteen reports with full logs are 16 x 20 x 200 characters = 64 KB of ASCII.
MAX_KEY_WRAP_LENGTH_BYTES: Final = 1716
# A wrap is 1168 bytes with ML-KEM-768 + X25519, 1713 with ML-KEM-1024 + P-384 (trust.md §4.2);
# the journal has room for two.
MAX_PARCEL_PATH_LENGTH: Final = 255
# Of one parcel at a time; mount points and file names are short.
MAX_CODE_LENGTH: Final = 40
# The longest published code has 32 characters.
MAX_FAILED_PAYLOADS: Final = 2
# A delta, then a compressed image: the whole one is left, and fails like any release.


@dataclass(frozen=True, slots=True)
class Release:
    """A confirmed image and where it is."""

    version: str
    sequence_number: int
    image: Image
    """Its digest names the possible precursor of a delta, and proves that the slot still holds it."""
    slot: Label

    def to_json(self) -> dict[str, Any]:
        """Return the journal's form."""
        return {
            "version": self.version,
            "sequence_number": self.sequence_number,
            "image": self.image.to_json(),
            "slot": self.slot.value,
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Read the journal's form."""
        image = fields.object("image")
        return cls(
            version=fields.text("version", pattern=VERSION),
            sequence_number=fields.integer("sequence_number"),
            image=Image(
                digest=Digest.from_json(image.object("digest").value, what=f"{image.what}.digest"),
                length_bytes=image.integer("length_bytes", maximum=manifests.MAX_IMAGE_LENGTH_BYTES),
            ),
            slot=fields.one_of("slot", Label),
        )


@dataclass(frozen=True, slots=True)
class Reason:
    """Why an attempt is where it is: what its report will say."""

    code: str = ""
    message: str = ""
    log: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Keep to the bounds that make the journal fit its file, whatever a failing program wrote."""
        object.__setattr__(self, "message", _line(self.message, MAX_MESSAGE_LENGTH))
        lines = tuple(_line(line, MAX_LOG_LINE_LENGTH) for line in self.log[-MAX_LOG_LINES:])
        object.__setattr__(self, "log", lines)

    def to_json(self) -> dict[str, Any]:
        """Return the journal's form."""
        return {"code": self.code, "message": self.message, "log": list(self.log)}

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Read the journal's form."""
        return cls(
            code=fields.text("code", max_length=64, default=""),
            message=fields.text("message", max_length=MAX_MESSAGE_LENGTH, default=""),
            log=fields.texts("log", max_items=MAX_LOG_LINES, max_length=MAX_LOG_LINE_LENGTH, optional=True),
        )


def _line(text: str, limit: int) -> str:
    # Printable only: a control character costs six bytes in JSON and rewrites a terminal.
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[:limit])


@dataclass(frozen=True, slots=True)
class FailedPayload:
    """A payload that did not lead to the image here, and why."""

    target: str
    code: str

    def to_json(self) -> dict[str, Any]:
        """Return the journal's form."""
        return {"target": self.target, "code": self.code}

    def __str__(self) -> str:
        """Return the line that every later report of the attempt carries."""
        return f"fell back from {self.target.rpartition('/')[2][:100]}: {self.code}"


@dataclass(frozen=True, slots=True)
class Attempt:
    """The attempt in hand."""

    attempt_id: AttemptId
    """So that every report and log line after a restart names the same attempt."""
    manifest: Manifest | None = None
    """Verified when it was offered; needed to fetch on without asking again. None: refused."""
    payload: str = ""
    """TUF target path of the payload chosen; bytes fetched so far are of this one."""
    key_wrap: bytes | None = None
    """Only the director has it; without it a sealed payload cannot be opened after a restart."""
    takes_back: AttemptId | None = None
    """The attempt this one takes back: the other slot holds the image already, and nothing is fetched."""
    issued_at: datetime | None = None
    """The director's signed time: a clock at 1970 after a restart is put right by it."""
    slot: Label | None = None
    """Which slot is written; decided once, so that a fallback cannot turn the write on what runs."""
    offset: int = 0
    """Image bytes known to be durable in the slot; never ahead of the slot."""
    stored: int = 0
    """Payload bytes known to be durable in the payload's own file; stays 0 for a whole payload, which has none."""
    failed: tuple[FailedPayload, ...] = ()
    """Payloads given up for another one, so that none is asked for twice; said in every report."""
    fallback: str = ""
    """Sealed payload without a precursor that the director gave a key for, beside the chosen one."""
    fallback_wrap: bytes | None = None
    """That key, wrapped: a device that cannot apply the delta goes on without asking again."""
    parcel: str = ""
    """Path of the parcel it came in, or was found in later: bytes come from there, and the receipt goes beside it."""
    is_local: bool = False
    """From a parcel without a director: a server that names nothing takes nothing back."""
    starts_over: int = 0
    """How often the fetch began again at 0; bounded, or a broken disk is written for ever."""
    tries: int = 0
    """Failed fetches since the last progress; bounded, or a broken server is asked for ever."""
    restarts: int = 0
    """Restarts asked for; counted before each, or a machine that comes back armed loops."""
    armed_boot_id: str = ""
    """The boot in which the slot was armed: a restart has happened when it differs."""
    trial_boot_id: str = ""
    """The boot that is on trial: the deadline below counts in this boot only."""
    deadline_s: int = 0
    """Monotonic second of the trial boot by which the image must have proven itself."""
    lives: int = 0
    """Starts of the agent since the attempt last got further: breaks a loop of crashes."""
    stores: int = 0
    """Journal writes of this attempt that were not download progress: breaks any other loop."""
    least: Mode = Mode.AUTOMATIC
    """What the operator asks at least (ADR-0026); laid over the owner's rule for this attempt."""
    consent: Consent | None = None
    """The owner's answer; nobody likes to be asked twice."""
    asked_at: datetime | None = None
    """When the owner was asked first: the limit of postponing counts from here."""
    postponed: int = 0
    """How often they put it off; bounded for security updates."""
    reason: Reason = Reason()
    """Why it was decided to refuse, fail or go back, with the last log lines: after the restart
    into the previous image nobody else knows."""

    @property
    def release_id(self) -> ReleaseId | None:
        """``<product>/<version>``, None when refused before the manifest could be believed."""
        return self.manifest.release_id if self.manifest is not None else None

    @property
    def chosen(self) -> Payload:
        """The payload to fetch; a RuntimeError if the manifest has none of this name."""
        for payload in self.manifest.payloads if self.manifest is not None else ():
            if payload.target == self.payload:
                return payload
        msg = f"attempt {self.attempt_id} has no payload {self.payload!r}"
        raise RuntimeError(msg)

    def to_json(self) -> dict[str, Any]:
        """Return the journal's form."""
        return {
            "attempt_id": self.attempt_id,
            "manifest": self.manifest.to_json() if self.manifest is not None else None,
            "payload": self.payload,
            "key_wrap": base64.b64encode(self.key_wrap).decode() if self.key_wrap is not None else None,
            "takes_back": self.takes_back,
            "issued_at": format_time(self.issued_at) if self.issued_at is not None else None,
            "slot": self.slot.value if self.slot is not None else None,
            "offset": self.offset,
            "stored": self.stored,
            "failed": [failed.to_json() for failed in self.failed],
            "fallback": self.fallback,
            "fallback_wrap": base64.b64encode(self.fallback_wrap).decode() if self.fallback_wrap is not None else None,
            "parcel": self.parcel,
            "is_local": self.is_local,
            "starts_over": self.starts_over,
            "tries": self.tries,
            "restarts": self.restarts,
            "armed_boot_id": self.armed_boot_id,
            "trial_boot_id": self.trial_boot_id,
            "deadline_s": self.deadline_s,
            "lives": self.lives,
            "stores": self.stores,
            "least": self.least.value,
            "consent": self.consent.to_json() if self.consent is not None else None,
            "asked_at": format_time(self.asked_at) if self.asked_at is not None else None,
            "postponed": self.postponed,
            "reason": self.reason.to_json(),
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Read the journal's form."""
        return cls(
            attempt_id=AttemptId(fields.text("attempt_id", pattern=UUID)),
            manifest=manifests.decode(fields.object("manifest").value) if "manifest" in fields else None,
            payload=fields.text("payload", max_length=512, default=""),
            key_wrap=fields.base64_bytes("key_wrap", max_length=MAX_KEY_WRAP_LENGTH_BYTES)
            if "key_wrap" in fields
            else None,
            takes_back=AttemptId(fields.text("takes_back", pattern=UUID)) if "takes_back" in fields else None,
            issued_at=fields.maybe("issued_at", fields.time),
            slot=fields.one_of("slot", Label) if "slot" in fields else None,
            offset=fields.integer("offset", default=0),
            stored=fields.integer("stored", default=0),
            failed=tuple(
                FailedPayload(item.text("target", max_length=512), item.text("code", max_length=MAX_CODE_LENGTH))
                for item in fields.objects("failed", max_items=MAX_FAILED_PAYLOADS, optional=True)
            ),
            fallback=fields.text("fallback", max_length=512, default=""),
            fallback_wrap=fields.base64_bytes("fallback_wrap", max_length=MAX_KEY_WRAP_LENGTH_BYTES)
            if "fallback_wrap" in fields
            else None,
            parcel=fields.text("parcel", max_length=MAX_PARCEL_PATH_LENGTH, default=""),
            is_local=fields.boolean("is_local", default=False),
            starts_over=fields.integer("starts_over", default=0),
            tries=fields.integer("tries", default=0),
            restarts=fields.integer("restarts", default=0),
            armed_boot_id=fields.text("armed_boot_id", max_length=64, default=""),
            trial_boot_id=fields.text("trial_boot_id", max_length=64, default=""),
            deadline_s=fields.integer("deadline_s", default=0),
            lives=fields.integer("lives", default=0),
            stores=fields.integer("stores", default=0),
            least=fields.one_of("least", Mode, default=Mode.AUTOMATIC),
            consent=Consent.from_fields(fields.object("consent")) if "consent" in fields else None,
            asked_at=fields.maybe("asked_at", fields.time),
            postponed=fields.integer("postponed", maximum=1_000_000, default=0),
            reason=Reason.from_fields(fields.object("reason", optional=True)),
        )


@dataclass(frozen=True, slots=True)
class Ended:
    """An attempt that is over: for people, and so that it is not begun a second time."""

    attempt_id: AttemptId
    release_id: str
    status: AttemptStatus
    at: datetime
    code: str = ""
    message: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the journal's form, also that of ``firmament-agent history --json``."""
        return {
            "attempt_id": self.attempt_id,
            "release_id": self.release_id,
            "status": self.status.value,
            "at": format_time(self.at),
            "code": self.code,
            "message": self.message,
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Read the journal's form."""
        return cls(
            attempt_id=AttemptId(fields.text("attempt_id", pattern=UUID)),
            release_id=fields.text("release_id", max_length=128, default=""),
            status=fields.one_of("status", AttemptStatus),
            at=fields.time("at"),
            code=fields.text("code", max_length=64, default=""),
            message=fields.text("message", max_length=MAX_MESSAGE_LENGTH, default=""),
        )


NO_DECISIONS: Final = Owner()


@dataclass(frozen=True, slots=True)
class Record:
    """Everything, at one moment."""

    state: State = State.IDLE
    """Where to continue; see `machine.RESUME_AT`."""
    outcome: Outcome = Outcome.OPEN
    """That it was decided to go back must survive the restart that goes back."""
    attempt: Attempt | None = None
    running: Release | None = None
    """The confirmed image; None until the first one, if nothing was known at provisioning."""
    previous: Release | None = None
    """The confirmed image before it, while the other slot still holds it: where `revert` can go."""
    history: tuple[Ended, ...] = ()
    """Oldest first."""
    outbox: tuple[Report, ...] = ()
    """Reports the server has not stored yet, oldest first: an outcome is told once and for all."""
    report_number: int = 0
    """The last one given out; counts up for ever, or the server would take a report for a replay."""
    owner: Owner = NO_DECISIONS
    """What the owner decided for good; an update must not undo it."""
    consents: tuple[Said, ...] = ()
    """What the owner was asked and said, oldest first, until the server has it and room is needed."""
    consent_number: int = 0
    """The last one given out, as `report_number`."""
    unknown: dict[str, Any] = field(default_factory=dict)
    """What a later agent wrote."""

    def __post_init__(self) -> None:
        """Refuse combinations that cannot be."""
        if self.outcome not in POSSIBLE[self.state]:
            raise MalformedError("State and outcome do not belong together", state=self.state, outcome=self.outcome)
        if (self.attempt is None) != (self.state is State.IDLE):
            raise MalformedError("There is an attempt exactly when the state is not idle", state=self.state)

    def has_ended(self, attempt_id: AttemptId) -> Ended | None:
        """Return how this attempt ended here, None if it did not."""
        return next((ended for ended in reversed(self.history) if ended.attempt_id == attempt_id), None)

    def installed_by(self) -> str:
        """Return the attempt that brought what runs now; empty when it is not remembered."""
        confirmed = (ended for ended in reversed(self.history) if ended.status is AttemptStatus.CONFIRMED)
        last = next(confirmed, None)
        return last.attempt_id if last is not None else ""

    def to_json(self) -> dict[str, Any]:
        """Return the journal's form."""
        return {
            **self.unknown,
            "state": self.state.value,
            "outcome": self.outcome.value,
            "attempt": self.attempt.to_json() if self.attempt is not None else None,
            "running": self.running.to_json() if self.running is not None else None,
            "previous": self.previous.to_json() if self.previous is not None else None,
            "history": [ended.to_json() for ended in self.history],
            "outbox": [report.to_json() for report in self.outbox],
            "report_number": self.report_number,
            "owner": self.owner.to_json(),
            "consents": [said.to_json() for said in self.consents],
            "consent_number": self.consent_number,
        }


def record_from(value: dict[str, Any]) -> Record:
    """Read the journal's form; raises MalformedError."""
    fields = Fields(value, what="journal")
    return Record(
        state=fields.one_of("state", State),
        outcome=fields.one_of("outcome", Outcome),
        attempt=Attempt.from_fields(fields.object("attempt")) if "attempt" in fields else None,
        running=Release.from_fields(fields.object("running")) if "running" in fields else None,
        previous=Release.from_fields(fields.object("previous")) if "previous" in fields else None,
        history=tuple(Ended.from_fields(item) for item in fields.objects("history", max_items=MAX_HISTORY)),
        outbox=tuple(_report(item) for item in fields.objects("outbox", max_items=MAX_OUTBOX)),
        report_number=fields.integer("report_number"),
        owner=Owner.from_fields(fields.object("owner", optional=True)),
        consents=tuple(
            Said.from_fields(item) for item in fields.objects("consents", max_items=MAX_CONSENTS, optional=True)
        ),
        consent_number=fields.integer("consent_number", default=0),
        unknown={name: item for name, item in value.items() if name not in Record.__dataclass_fields__},
    )


def _report(fields: Fields) -> Report:
    return Report(
        device_id=DeviceId(fields.text("device_id", pattern=UUID)),
        report_number=fields.integer("report_number", minimum=1),
        attempt_id=AttemptId(fields.text("attempt_id", pattern=UUID)),
        status=fields.one_of("status", AttemptStatus),
        version=fields.text("version", max_length=64, default=""),
        sequence_number=fields.integer("sequence_number"),
        boot_id=fields.text("boot_id", max_length=64, default=""),
        at=fields.time("at"),
        code=fields.text("code", max_length=64, default=""),
        message=fields.text("message", max_length=MAX_MESSAGE_LENGTH, default=""),
        log=fields.texts("log", max_items=MAX_LOG_LINES, max_length=MAX_LOG_LINE_LENGTH, optional=True),
    )


def with_report(record: Record, report: Report) -> Record:
    """Return the record with `report` last in its outbox, and the outbox within its bound.

    A newer report about an attempt makes its unsent intermediate ones useless; when the outbox is
    full, the oldest intermediate goes first, then the oldest final one.
    """
    kept = [item for item in record.outbox if item.attempt_id != report.attempt_id or item.status in FINAL_STATUSES]
    while len(kept) >= MAX_OUTBOX:
        kept.pop(next((index for index, item in enumerate(kept) if item.status not in FINAL_STATUSES), 0))
    return replace(record, outbox=(*kept, report), report_number=report.report_number)


def with_ended(record: Record, ended: Ended) -> Record:
    """Return the record with `ended` last in its history, and the history within its bound."""
    return replace(record, history=(*record.history, ended)[-MAX_HISTORY:])
