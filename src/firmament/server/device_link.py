"""What the server says to a device and does about it: (session, message) -> (session, effects).

Pure: no socket, no database, no clock. The edges (HTTP v1 now, others later) read a `Session`
from the database, call `on_poll` or `on_report`, and carry out the effects in order; the effects
of one message are written in one transaction before the answer goes out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from firmament.core import canonical
from firmament.core.consent import Mode
from firmament.core.digest import Digest
from firmament.errors import ForbiddenError, NoContentKeyError, NoInstallerError, RequirementError
from firmament.server.attempts.machine import FINAL, AttemptState, is_credible, move
from firmament.server.events import Event
from firmament.trust.director import Assignment

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from firmament.core.manifest import Manifest, Payload
    from firmament.errors import FirmamentError
    from firmament.protocol.v1.messages import PollRequest, Report
    from firmament.server.attempts.model import OpenAttempt
    from firmament.server.inventory.model import Device
    from firmament.server.rollouts.board import PendingTarget


@dataclass(frozen=True, slots=True)
class Session:
    """What the server knows about a device when it speaks."""

    device: Device
    attempt: OpenAttempt | None
    """The open attempt at a poll; the one a report names when it reports."""
    target: PendingTarget | None = None
    """At a poll: the rollout that wants something of this device."""


@dataclass(frozen=True, slots=True)
class UpdateInventory:
    """The device runs something else than we knew, or describes itself differently."""

    version: str
    sequence_number: int
    image_digest: str
    boot_id: str
    attributes: str


@dataclass(frozen=True, slots=True)
class MoveAttempt:
    """The open attempt goes to another state; `boot_id_before` is remembered when it is offered."""

    row_id: int
    to: AttemptState
    code: str = ""
    message: str = ""
    log: tuple[str, ...] = ()
    boot_id: str = ""
    boot_id_before: str | None = None


@dataclass(frozen=True, slots=True)
class BlockAttempt:
    """The device cannot take the release as things are; say why, once."""

    row_id: int
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class AcceptReport:
    """This report's number is used up, whatever it changed."""

    number: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Note:
    """Something for the record that changes no state."""

    event: Event
    facts: tuple[tuple[str, object], ...]


@dataclass(frozen=True, slots=True)
class Reply:
    """What the director should sign."""

    assignment: Assignment | None
    poll_after_s: int
    chosen: Payload | None = None
    """What the assignment names: if it is sealed its key is to be wrapped (payloads/content_keys.py)."""
    fallback: Payload | None = None
    """Sealed payload whose key goes along."""


Effect = UpdateInventory | MoveAttempt | BlockAttempt | AcceptReport | Note | Reply


@dataclass(frozen=True, slots=True)
class Intervals:
    """When devices should ask again."""

    idle_s: int
    active_s: int


def require_enabled(device: Device) -> None:
    """Raise ForbiddenError for a device that was disabled (case 62, revoked identities)."""
    _require_enabled(device.device_id, is_disabled=device.is_disabled)


def require_identity(device_id: str, *, is_disabled: bool, enrolled: str, shown: str) -> None:
    """Raise ForbiddenError for a disabled device, or one that shows another key than the one it enrolled with."""
    if enrolled != shown:
        raise ForbiddenError("The certificate is for another key than was enrolled", device_id=device_id)
    _require_enabled(device_id, is_disabled=is_disabled)


def _require_enabled(device_id: str, *, is_disabled: bool) -> None:
    if is_disabled:
        raise ForbiddenError("This device was disabled", device_id=device_id)


def on_poll(
    session: Session,
    poll: PollRequest,
    *,
    intervals: Intervals,
    openable: Container[str] = (),
    why_closed: str = "",
    consent: Mode = Mode.AUTOMATIC,
) -> tuple[Session, list[Effect]]:
    """Answer a poll: learn what the device runs, and name its attempt if it can take it.

    `openable` holds the targets of sealed payloads whose keys may be wrapped for this device;
    `why_closed` says why it is not all of them. `consent` is what operators ask of it at least for
    the class of its open attempt.
    """
    require_enabled(session.device)
    effects: list[Effect] = []
    device = _learn(session.device, poll, effects)
    attempt = session.attempt
    if attempt is None:
        effects.append(Reply(None, intervals.idle_s))
        return session if device is session.device else replace(session, device=device), effects
    try:
        # To go back, nothing travels: the image is in the other slot already.
        payload = (
            attempt.manifest.payloads[0]
            if attempt.takes_back
            else choose_payload(attempt.manifest, poll, openable=openable, why_closed=why_closed)
        )
    except (NoContentKeyError, NoInstallerError, RequirementError) as error:
        if attempt.code != error.code:
            effects.append(BlockAttempt(attempt.row_id, error.code, error.problem))
        effects.append(Reply(None, intervals.idle_s))
        return replace(session, device=device, attempt=replace(attempt, code=error.code)), effects
    if attempt.state is AttemptState.ASSIGNED:
        effects.append(MoveAttempt(attempt.row_id, AttemptState.OFFERED, boot_id_before=poll.boot_id))
        attempt = replace(attempt, state=AttemptState.OFFERED, boot_id_before=poll.boot_id)
    primary = attempt.manifest.payloads[0]
    assignment = Assignment(
        attempt_id=attempt.attempt_id,
        target=attempt.target,
        length_bytes=primary.length_bytes,
        digest=primary.digest,
        payload=payload.target,
        takes_back=attempt.takes_back,
        consent=consent,
    )
    is_forth = attempt.takes_back is None
    fallback = choose_fallback(attempt.manifest, poll, payload, openable=openable) if is_forth else None
    effects.append(Reply(assignment, intervals.active_s, chosen=payload if is_forth else None, fallback=fallback))
    return replace(session, device=device, attempt=attempt), effects


def choose_payload(
    manifest: Manifest, poll: PollRequest, *, openable: Container[str] = (), why_closed: str = ""
) -> Payload:
    """Return the smallest payload that the device can apply to what it runs (ADR-0010).

    Not one that it said failed, and a sealed one only if its key can be wrapped for this device:
    `openable` holds the targets of those. Of equally long ones the author's order decides. Raises
    RequirementError for an agent that is too old, NoContentKeyError when only sealed payloads fit
    and none can be opened, NoInstallerError when nothing fits.
    """
    if poll.agent_level < manifest.requires.min_agent:
        raise RequirementError(
            "The agent is too old for this release", level=poll.agent_level, needed=manifest.requires.min_agent
        )
    fitting = [payload for payload in manifest.payloads if _fits(payload, poll, openable)]
    if fitting:
        return min(fitting, key=lambda payload: payload.length_bytes)
    if any(_fits(payload, poll, [payload.target]) for payload in manifest.payloads):
        raise NoContentKeyError(
            f"The release is sealed, and {why_closed or 'no content key can be wrapped for the device'}",
            release=manifest.release_id,
        )
    raise NoInstallerError(
        "No payload of this release fits the device",
        offered=" ".join(dict.fromkeys("+".join(payload.needs) for payload in manifest.payloads)),
        known=" ".join(poll.methods),
    )


def choose_fallback(
    manifest: Manifest, poll: PollRequest, chosen: Payload, *, openable: Container[str] = ()
) -> Payload | None:
    """Return the sealed payload whose key goes along for a device that cannot apply the chosen one.

    None where none is needed: the chosen one has no precursor, or one that is not sealed is there.
    """
    if chosen.precursor_digest is None:
        return None
    whole = [
        payload for payload in manifest.payloads if payload.precursor_digest is None and _fits(payload, poll, openable)
    ]
    if not all(payload.is_sealed for payload in whole):
        return None
    return min(whole, key=lambda payload: payload.length_bytes, default=None)


def _fits(payload: Payload, poll: PollRequest, openable: Container[str]) -> bool:
    return (
        set(poll.methods).issuperset(payload.needs)
        and (payload.precursor_digest is None or str(payload.precursor_digest) == poll.image_digest)
        and payload.target not in poll.failed_payloads
        and (not payload.is_sealed or payload.target in openable)
    )


def on_report(session: Session, report: Report, payload: bytes) -> tuple[Session, list[Effect]]:
    """Take one report whose signature was verified and whose number is new.

    `payload` is the exact bytes that were signed. `session.attempt` is the attempt the report
    names if it is this device's, else None: another device's was refused before (`check_report`).
    """
    effects: list[Effect] = [AcceptReport(report.report_number, Digest.of(payload).value)]
    attempt = session.attempt
    to = AttemptState(report.status.value)
    if attempt is None:
        # A server restored from a backup may have forgotten it; the device must not ask for ever.
        effects.append(_ignored(report, "unknown attempt"))
        return session, effects
    if not is_credible(
        report,
        version=attempt.manifest.version,
        sequence_number=attempt.manifest.sequence_number,
        boot_id_before=attempt.boot_id_before,
    ):
        effects.append(_ignored(report, "confirmed, but not by the new image after a new boot"))
        return session, effects
    if move(attempt.state, to) is None:
        if attempt.state is not to:
            effects.append(_ignored(report, f"{to} cannot follow {attempt.state}"))
        return session, effects
    boot_id_before = report.boot_id if _should_remember_boot(attempt, to) else None
    effects.append(
        MoveAttempt(
            attempt.row_id,
            to,
            code=report.code,
            message=report.message,
            log=report.log,
            boot_id=report.boot_id,
            boot_id_before=boot_id_before,
        )
    )
    device = session.device
    if to is AttemptState.CONFIRMED:
        # What it runs now is signed and credible: do not show the old version until the next poll.
        device = replace(
            device,
            version=report.version,
            sequence_number=report.sequence_number,
            image_digest=str(attempt.manifest.image.digest),
            boot_id=report.boot_id,
        )
        effects.append(
            UpdateInventory(
                device.version, device.sequence_number, device.image_digest, device.boot_id, device.attributes
            )
        )
    moved = replace(
        attempt, state=to, boot_id_before=attempt.boot_id_before if boot_id_before is None else boot_id_before
    )
    return replace(session, device=device, attempt=moved), effects


def check_report(session: Session, report: Report, *, owner_row_id: int | None) -> None:
    """Raise ForbiddenError when a report speaks for another device or about its attempt (case 49)."""
    require_enabled(session.device)
    if report.device_id != session.device.device_id:
        raise ForbiddenError(
            "A report speaks for another device", device_id=session.device.device_id, claimed=report.device_id
        )
    if owner_row_id is not None and owner_row_id != session.device.row_id:
        raise ForbiddenError("A report is about another device's attempt", attempt_id=report.attempt_id)


def refusal_note(error: FirmamentError, *, number: int | None) -> Note:
    """Record that a report was refused, with the code: refusals for reasons of trust are events."""
    return Note(Event.REPORT_REFUSED, (("code", error.code), ("problem", error.problem), ("report_number", number)))


def is_finished(state: AttemptState) -> bool:
    """Whether the device is free for another attempt."""
    return state in FINAL


def replies(effects: Sequence[Effect]) -> Reply:
    """Return the reply among the effects of a poll."""
    return next(effect for effect in effects if isinstance(effect, Reply))


def _should_remember_boot(attempt: OpenAttempt, to: AttemptState) -> bool:
    # A device may reboot for other reasons before it fetches. Later reports are not used: after a
    # power cut a queued "staged" can be signed by the boot that already runs the new image.
    return to is AttemptState.FETCHING and not is_finished(attempt.state)


def _ignored(report: Report, reason: str) -> Note:
    return Note(
        Event.REPORT_IGNORED,
        (
            ("attempt_id", report.attempt_id),
            ("report_number", report.report_number),
            ("status", report.status.value),
            ("reason", reason),
        ),
    )


def _learn(device: Device, poll: PollRequest, effects: list[Effect]) -> Device:
    attributes = canonical.encode(dict(poll.attributes)).decode() if poll.attributes else "{}"
    known = (device.version, device.sequence_number, device.image_digest, device.boot_id, device.attributes)
    told = (poll.version, poll.sequence_number, poll.image_digest, poll.boot_id, attributes)
    if known == told:
        return device
    effects.append(UpdateInventory(*told))
    return replace(
        device,
        version=poll.version,
        sequence_number=poll.sequence_number,
        image_digest=poll.image_digest,
        boot_id=poll.boot_id,
        attributes=attributes,
    )
