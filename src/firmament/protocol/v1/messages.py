"""Messages between a device and the server, version 1, as values (sans-I/O).

All bodies are JSON, read with `decode_*` (ceilings, exact types) and written with `to_json`.
Additive changes only: unknown fields are ignored, fields are never renamed (house rule 12).
The paths are in `paths.py`. Signatures: `envelope.py`.

One poll (trust.md §3.2): the device sends `PollRequest` over mTLS; `PollReply` brings the three
director metadata files as text, made for this device and this nonce. What they say counts;
nothing else in the reply is trusted for security.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from json.encoder import encode_basestring as _quoted
from typing import TYPE_CHECKING, Any, Final

from firmament.core import canonical
from firmament.core.fields import MAX_INTEGER, Fields, format_time
from firmament.core.ids import HARDWARE, PRODUCT, UUID, VERSION, AttemptId, DeviceId
from firmament.core.manifest import MAX_PAYLOADS, UpdateClass
from firmament.protocol.status import AttemptStatus, ConsentAnswer

if TYPE_CHECKING:
    from datetime import datetime

PROTOCOL_VERSION: Final = 1
AGENT_LEVEL: Final = 1
"""Raised when the agent learns something a manifest may require (`requires.min_agent`)."""
NONCE_LENGTH_BYTES: Final = 16
MAX_REQUEST_LENGTH_BYTES: Final = 64 * 1024
# A poll with 64 attributes of 256 characters is 20 KiB; 32 signed reports are 40 KiB.
MAX_POLL_REPLY_LENGTH_BYTES: Final = 1024 * 1024
# Director metadata with a post-quantum key wrap is 3 KiB per target (trust.md §3.2); the root
# chain for a device that slept through rotations adds up to 47 KiB per root, fetched apart.
MAX_DIRECTOR_VERSION: Final = MAX_INTEGER - 1
"""What a device may say it trusts: there must be a higher one."""
MAX_ATTRIBUTES: Final = 64
MAX_REPORTS: Final = 32
MAX_LOG_LINES: Final = 20
MAX_CONSENT_EVENTS: Final = 32
MAX_TAG_LENGTH: Final = 64
_TAG: Final = re.compile(r"[0-9A-Za-z._-]*")
"""It goes into a header as it is."""
_VERSION_OR_NONE: Final = re.compile(f"(?:{VERSION.pattern})?")


@dataclass(frozen=True, slots=True)
class EnrolRequest:
    """A new device introduces itself with a one-time token (POST enrol; no client certificate yet)."""

    token: str
    product: str
    hardware: str
    csr_pem: str
    """PKCS#10 request signed by the identity key: proof of possession."""
    hpke_public_key: bytes
    """1216 bytes, X-Wing public key (ML-KEM-768 || X25519), made on the device."""
    serial: str = ""
    """What is printed on the case, if anything."""

    def to_json(self) -> dict[str, Any]:
        return {
            "v": PROTOCOL_VERSION,
            "token": self.token,
            "product": self.product,
            "hardware": self.hardware,
            "csr_pem": self.csr_pem,
            "hpke_public_key": self.hpke_public_key.hex(),
            "serial": self.serial,
        }


HPKE_PUBLIC_KEY_LENGTH_BYTES: Final = 1184 + 32


def decode_enrol_request(data: bytes) -> EnrolRequest:
    """Read an enrolment; raises MalformedError or TooLargeError."""
    fields = _fields(data, "enrolment")
    return EnrolRequest(
        token=fields.text("token", max_length=128),
        product=fields.text("product", pattern=PRODUCT),
        hardware=fields.text("hardware", pattern=HARDWARE),
        csr_pem=fields.text("csr_pem", max_length=8192),
        hpke_public_key=fields.hex_bytes("hpke_public_key", length=HPKE_PUBLIC_KEY_LENGTH_BYTES),
        serial=fields.text("serial", max_length=128, default=""),
    )


@dataclass(frozen=True, slots=True)
class EnrolReply:
    """The device's name and its certificate chain (leaf first)."""

    device_id: DeviceId
    certificate_chain_pem: str

    def to_json(self) -> dict[str, Any]:
        return {
            "v": PROTOCOL_VERSION,
            "device_id": self.device_id,
            "certificate_chain_pem": self.certificate_chain_pem,
        }


def decode_enrol_reply(data: bytes) -> EnrolReply:
    """Read the server's answer to an enrolment."""
    fields = _fields(data, "enrolment reply")
    return EnrolReply(
        device_id=DeviceId(fields.text("device_id", pattern=UUID)),
        certificate_chain_pem=fields.text("certificate_chain_pem", max_length=32 * 1024),
    )


@dataclass(frozen=True, slots=True)
class PollRequest:
    """Is there an attempt for me? Also tells what runs here now."""

    nonce: bytes
    version: str
    """Version label of the confirmed image; empty before the first."""
    sequence_number: int
    """Of the confirmed image; 0 before the first."""
    image_digest: str = ""
    """Digest of the confirmed image (``sha256:<hex>``), the possible precursor; empty if unknown."""
    boot_id: str = ""
    attributes: dict[str, str] = field(default_factory=dict)
    """Facts for the inventory, e.g. ``{"os": "debian 12"}``; never identifiers of persons."""
    methods: tuple[str, ...] = ("whole/1",)
    """Payload methods this device can apply, ``<method>/<method_version>``."""
    agent_level: int = AGENT_LEVEL
    failed_payloads: tuple[str, ...] = ()
    """Target paths of payloads of the open attempt that the device could not apply."""
    director_version: int = 0
    """Version of the director's metadata that the device trusts, 0 before the first (ADR-0024)."""

    def to_json(self) -> dict[str, Any]:
        optional: dict[str, Any] = {}
        if self.failed_payloads:
            optional["failed_payloads"] = list(self.failed_payloads)
        if self.director_version:
            optional["director_version"] = self.director_version
        return {
            **optional,
            "v": PROTOCOL_VERSION,
            "nonce": self.nonce.hex(),
            "version": self.version,
            "sequence_number": self.sequence_number,
            "image_digest": self.image_digest,
            "boot_id": self.boot_id,
            "attributes": self.attributes,
            "methods": list(self.methods),
            "agent_level": self.agent_level,
        }


def decode_poll_request(data: bytes) -> PollRequest:
    """Read a poll; raises MalformedError or TooLargeError."""
    fields = _fields(data, "poll")
    return PollRequest(
        nonce=fields.hex_bytes("nonce", length=NONCE_LENGTH_BYTES),
        version=fields.text("version", max_length=64, pattern=_VERSION_OR_NONE, default=""),
        sequence_number=fields.integer("sequence_number"),
        image_digest=fields.text("image_digest", max_length=140, default=""),
        boot_id=fields.text("boot_id", max_length=64, default=""),
        attributes=fields.text_map("attributes", max_items=MAX_ATTRIBUTES, max_length=256, optional=True),
        methods=fields.texts("methods", max_items=32, max_length=40, optional=True),
        agent_level=fields.integer("agent_level", maximum=10_000, default=1),
        failed_payloads=fields.texts("failed_payloads", max_items=MAX_PAYLOADS, max_length=512, optional=True),
        director_version=fields.integer("director_version", maximum=MAX_DIRECTOR_VERSION, default=0),
    )


@dataclass(frozen=True, slots=True)
class PollReply:
    """Director metadata for this device and nonce, as the exact text that was signed."""

    timestamp: str
    snapshot: str
    targets: str
    poll_after_s: int
    """When the server would like the next poll; the device adds jitter and keeps its own bounds."""
    tag: str = ""
    """If there is nothing to do: for conditional polls until that changes (ADR-0037); empty if there is none."""

    def to_json(self) -> dict[str, Any]:
        return {
            "v": PROTOCOL_VERSION,
            "timestamp": self.timestamp,
            "snapshot": self.snapshot,
            "targets": self.targets,
            "poll_after_s": self.poll_after_s,
            **({"tag": self.tag} if self.tag else {}),
        }

    def encode(self) -> bytes:
        """Return `to_json` as JSON; the server writes one for each poll."""
        tag = f',"tag":{_quoted(self.tag)}' if self.tag else ""
        return (
            f'{{"v":{PROTOCOL_VERSION},"timestamp":{_quoted(self.timestamp)},"snapshot":{_quoted(self.snapshot)},'
            f'"targets":{_quoted(self.targets)},"poll_after_s":{self.poll_after_s}{tag}}}'
        ).encode()


def decode_poll_reply(data: bytes) -> PollReply:
    """Read the director's answer; the metadata inside is verified by the trust walk, not here."""
    fields = Fields(
        canonical.decode_object(data, limit_bytes=MAX_POLL_REPLY_LENGTH_BYTES, what="poll reply"), what="poll reply"
    )
    return PollReply(
        timestamp=fields.text("timestamp", max_length=16_384),
        snapshot=fields.text("snapshot", max_length=64 * 1024),
        targets=fields.text("targets", max_length=512 * 1024),
        poll_after_s=fields.integer("poll_after_s", maximum=7 * 86_400, default=0),
        tag=fields.text("tag", max_length=MAX_TAG_LENGTH, pattern=_TAG, default=""),
    )


@dataclass(frozen=True, slots=True)
class Report:
    """What the device says about an attempt; travels inside a signed envelope."""

    device_id: DeviceId
    report_number: int
    """Counts up for ever on a device; the server accepts each number once (case 49)."""
    attempt_id: AttemptId
    status: AttemptStatus
    version: str
    """Version label of the image that runs now."""
    sequence_number: int
    boot_id: str
    at: datetime
    """The device's own idea of the time; information, never trusted."""
    code: str = ""
    """Error code when something was refused, failed or reverted."""
    message: str = ""
    log: tuple[str, ...] = ()
    """The last lines of the health check or the failing step."""

    def to_json(self) -> dict[str, Any]:
        return {
            "v": PROTOCOL_VERSION,
            "device_id": self.device_id,
            "report_number": self.report_number,
            "attempt_id": self.attempt_id,
            "status": self.status.value,
            "version": self.version,
            "sequence_number": self.sequence_number,
            "boot_id": self.boot_id,
            "at": format_time(self.at),
            "code": self.code,
            "message": self.message,
            "log": list(self.log),
        }


def decode_report(data: bytes) -> Report:
    """Read the payload of a report envelope whose signature was verified."""
    fields = _fields(data, "report")
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
        message=fields.text("message", max_length=1024, default=""),
        log=fields.texts("log", max_items=MAX_LOG_LINES, max_length=512, optional=True),
    )


@dataclass(frozen=True, slots=True)
class ReportBatch:
    """Signed report envelopes, oldest first (POST report)."""

    envelopes: tuple[dict[str, Any], ...]

    def to_json(self) -> dict[str, Any]:
        return {"v": PROTOCOL_VERSION, "reports": list(self.envelopes)}


def decode_report_batch(data: bytes) -> ReportBatch:
    """Read a batch; the envelopes are opened one by one with `envelope.open_envelope`."""
    fields = _fields(data, "report batch")
    return ReportBatch(tuple(item.value for item in fields.objects("reports", max_items=MAX_REPORTS)))


@dataclass(frozen=True, slots=True)
class ReportReply:
    """The report numbers that are stored for good; the device forgets exactly these."""

    accepted: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        return {"v": PROTOCOL_VERSION, "accepted": list(self.accepted)}


def decode_report_reply(data: bytes) -> ReportReply:
    """Read which reports the server has stored."""
    return ReportReply(_accepted(_fields(data, "report reply")))


@dataclass(frozen=True, slots=True)
class ConsentEvent:
    """What an owner said, or that they were asked; travels inside a signed envelope."""

    device_id: DeviceId
    consent_number: int
    """Counts up for ever on a device, apart from reports; the server accepts each number once."""
    answer: ConsentAnswer
    at: datetime
    """The device's own idea of the time; information, never trusted."""
    actor: str
    """Who, as far as the device can tell: ``uid:1000``, ``owner`` (who read the code off the device), ``policy``."""
    via: str
    """Where it was said: ``command``, ``menu``, ``page``, ``socket``, ``agent``."""
    attempt_id: AttemptId | None = None
    """None: about updates in general (opt-out, opt-in)."""
    release_id: str = ""
    update_class: UpdateClass | None = None
    until: datetime | None = None
    """When it will be asked again (later), or is to be installed (tonight)."""
    text_digest: str = ""
    """``sha256:<hex>`` of the UTF-8 text that was shown (docs/protocol/consent.md)."""
    language: str = ""
    """Language tag of that text."""

    def to_json(self) -> dict[str, Any]:
        return {
            "v": PROTOCOL_VERSION,
            "device_id": self.device_id,
            "consent_number": self.consent_number,
            "answer": self.answer.value,
            "at": format_time(self.at),
            "actor": self.actor,
            "via": self.via,
            "attempt_id": self.attempt_id,
            "release_id": self.release_id,
            "update_class": self.update_class.value if self.update_class is not None else None,
            "until": format_time(self.until) if self.until is not None else None,
            "text_digest": self.text_digest,
            "language": self.language,
        }


def consent_event_from(fields: Fields) -> ConsentEvent:
    """Read an event's fields, on the wire and in the journal alike; raises MalformedError."""
    return ConsentEvent(
        device_id=DeviceId(fields.text("device_id", pattern=UUID)),
        consent_number=fields.integer("consent_number", minimum=1),
        answer=fields.one_of("answer", ConsentAnswer),
        at=fields.time("at"),
        actor=fields.text("actor", max_length=64),
        via=fields.text("via", max_length=64),
        attempt_id=AttemptId(fields.text("attempt_id", pattern=UUID)) if "attempt_id" in fields else None,
        release_id=fields.text("release_id", max_length=128, default=""),
        update_class=fields.one_of("update_class", UpdateClass) if "update_class" in fields else None,
        until=fields.maybe("until", fields.time),
        text_digest=fields.text("text_digest", max_length=140, default=""),
        language=fields.text("language", max_length=35, default=""),
    )


def decode_consent_event(data: bytes) -> ConsentEvent:
    """Read the payload of a consent envelope whose signature was verified."""
    return consent_event_from(_fields(data, "consent event"))


@dataclass(frozen=True, slots=True)
class ConsentBatch:
    """Signed consent envelopes, oldest first (POST consent)."""

    envelopes: tuple[dict[str, Any], ...]

    def to_json(self) -> dict[str, Any]:
        return {"v": PROTOCOL_VERSION, "events": list(self.envelopes)}


def decode_consent_batch(data: bytes) -> ConsentBatch:
    """Read a batch; the envelopes are opened one by one with `envelope.open_envelope`."""
    fields = _fields(data, "consent batch")
    return ConsentBatch(tuple(item.value for item in fields.objects("events", max_items=MAX_CONSENT_EVENTS)))


@dataclass(frozen=True, slots=True)
class ConsentReply:
    """The consent numbers that are stored for good; the device forgets exactly these."""

    accepted: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        return {"v": PROTOCOL_VERSION, "accepted": list(self.accepted)}


def decode_consent_reply(data: bytes) -> ConsentReply:
    """Read which consent events the server has stored."""
    return ConsentReply(_accepted(_fields(data, "consent reply")))


def _accepted(fields: Fields) -> tuple[int, ...]:
    return tuple(Fields({"n": item}, what="accepted").integer("n") for item in fields.list("accepted", max_items=64))


def _fields(data: bytes, what: str) -> Fields:
    return Fields(canonical.decode_object(data, limit_bytes=MAX_REQUEST_LENGTH_BYTES, what=what), what=what)
