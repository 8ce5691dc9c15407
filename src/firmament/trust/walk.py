"""The verification walk: from one answer of the director to one payload that may be fetched.

All of it happens before the first payload byte. The numbers below are the steps of
docs/protocol/verification.md; the comments in the code carry the same numbers.

The director, one answer for one device and one nonce:

1.  Root: from the provisioned director root, each next version is signed by the threshold of the
    one before and by its own (TUF 5.3).
2.  Timestamp, snapshot and targets of the answer are signed by the keys that root names, fit each
    other, and no version is below its floor. The device's own clock plays no part.
3.  ``x-nonce`` in the timestamp is the nonce of this poll, so the answer is fresh.
4.  ``x-device`` in the timestamp and in the targets is this device.
5.  The signed time t is ``x-issued``; it is not earlier than the time floor.
6.  Neither root, timestamp, snapshot nor targets is expired at t. As the root's expiry bounds t,
    a stolen online key cannot push a device far into the future.
7.  Versions and t become floors.
8.  No target: there is nothing to do, and the walk ends. More than one target is refused.
9.  The assignment (`custom` of the target) has a version and an action that are known here, names
    this device, an attempt and a payload.

The image repository, at the time t:

10. Root from the provisioned image root, then timestamp, snapshot and targets: signed, fitting,
    not expired at t, no version below its floor (TUF 5.3 to 5.6).
11. The target is found through the delegation of its product and its path is well formed.
12. Length and digests of the target are the same in both repositories.
13. The manifest (`custom` of the target in the image repository) has a version known here and
    speaks about the product and version of its own path: nobody signs for another product.
14. The product is this device's.
15. The hardware list contains this device's hardware.
16. The sequence number is not below the floor.
17. What the manifest requires is met: the stepping stone and the level of this agent.
18. The payload that the director chose is one of the manifest's, this device knows its method, a
    precursor is the image that runs here, and the payload's own target in the image repository
    has the length and digest that the manifest states.

A refusal after step 9 carries ``attempt_id`` in its facts, so that it can be reported.

What was carried by hand in a parcel (docs/protocol/parcel.md) takes the same steps, with two
changes: in step 3 ``x-parcel`` names this parcel and there is no nonce, and in step 6 expiry is
judged at the latest of t, the time floor and the device's own clock. A parcel without a director
(`verify_carried_release`) takes steps 10, 11 and 13 to 18 at the later of floor and clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from firmament.core import manifest as manifests
from firmament.core.consent import Mode
from firmament.core.digest import strongest
from firmament.core.fields import Fields
from firmament.core.ids import TARGET_PATH, UUID, AttemptId, DeviceId
from firmament.errors import (
    ApplicabilityError,
    DeviceMismatchError,
    DisagreementError,
    HardwareMismatchError,
    MalformedError,
    MalformedMetadataError,
    NoInstallerError,
    PrecursorMismatchError,
    ProductMismatchError,
    ReplayError,
    RequirementError,
    RollbackError,
    TooLargeError,
    TrustError,
    UnknownManifestError,
    UnknownTargetError,
)

if TYPE_CHECKING:
    from collections.abc import Container

    from tuf.api.metadata import TargetFile, Targets, Timestamp

    from firmament.core.digest import Digest
    from firmament.core.manifest import Manifest, Payload
    from firmament.trust.client import DirectorClient, TrustedClient

ASSIGNMENT_VERSION: Final = 1
MAX_KEY_WRAP_LENGTH_BYTES: Final = 1716
# A wrap is 1 168 bytes with ML-KEM-768 + X25519, 1 713 with ML-KEM-1024 + P-384 (trust.md §4.2).
MAX_PATH_LENGTH: Final = 512
"""As in the manifest's reader (core/manifest.py)."""
TIME_TOLERANCE: Final = timedelta(minutes=10)
# Replicas of one server disagree by seconds. The floor stays the reference for expiry, so the
# tolerance gives an attacker nothing; without it a skewed replica would look like an attack.
BEGINNING: Final = datetime(1970, 1, 1, tzinfo=UTC)
"""Reference time of step 2: freshness comes from the nonce, expiry is judged in step 6."""


class Action(StrEnum):
    """What a director may ask for."""

    INSTALL = "install"
    REVERT = "revert"
    """Go back to the earlier release that the other slot still holds, if its author permitted it."""


@dataclass(frozen=True, slots=True)
class Device:
    """What the walk compares with: who this device is and what it runs."""

    device_id: DeviceId
    product: str
    hardware: str
    agent_level: int
    methods: frozenset[str]
    """Payload methods it can apply, ``<method>/<method_version>``."""
    sequence_number: int
    """Of the confirmed image; 0 before the first."""
    sequence_floor: int
    """From the floors store; not lower than `sequence_number` in a healthy device."""
    image_digest: str = ""
    """Digest of the confirmed image, ``sha256:<hex>``; empty if unknown."""
    held_digest: str = ""
    """Digest of the earlier confirmed image that the other slot still holds; empty if none."""
    installed_by: str = ""
    """The attempt that brought what runs now."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """Step 9: what the director asks of this device."""

    attempt_id: AttemptId
    target: TargetFile
    payload: str
    key_wrap: bytes | None
    takes_back: AttemptId | None = None
    """With `Action.REVERT`: the attempt that brought what runs now."""
    fallback: str = ""
    fallback_wrap: bytes | None = None
    consent: Mode = Mode.AUTOMATIC
    """What the operator asks at least."""


@dataclass(frozen=True, slots=True)
class Release:
    """What the author signed, found fit for this device."""

    manifest: Manifest
    payload: Payload


@dataclass(frozen=True, slots=True)
class Finding:
    """The end of a walk without a refusal."""

    issued_at: datetime
    """The signed time t of step 5."""
    assignment: Assignment | None
    release: Release | None


# --- director ------------------------------------------------------------------------------


def verify_director(client: DirectorClient, *, nonce: bytes, device_id: DeviceId) -> tuple[datetime, Assignment | None]:
    """Take steps 1 to 9; returns t and the assignment, None when there is nothing to do."""
    client.refresh()  # 1, 2
    timestamp, targets = client.signed("timestamp"), client.signed("targets")
    require_fresh(timestamp, nonce=nonce)
    require_mine(timestamp, targets, device_id=device_id)
    issued_at = require_time(timestamp, floor=client.time_floor())
    client.require_unexpired(max(filter(None, (issued_at, client.time_floor()))))  # 6
    client.record_floors(time=issued_at)  # 7
    return issued_at, read_assignment(targets, device_id=device_id)


def require_fresh(timestamp: Timestamp, *, nonce: bytes) -> None:
    """Step 3; raises ReplayError."""
    if timestamp.unrecognized_fields.get("x-nonce") != nonce.hex():
        raise ReplayError("The director's answer is not for the question that was asked")


def verify_carried(
    client: DirectorClient, *, parcel_id: str, device_id: DeviceId, now: datetime
) -> tuple[datetime, datetime, Assignment]:
    """Take steps 1 to 9 for a parcel; returns t, the moment at which expiry is judged, and the assignment.

    `now` is the device's own clock: if it is wrong, it can make a good parcel look expired, and
    never an expired one good, because the moment is not before t and the floor.
    """
    client.refresh()  # 1, 2
    timestamp, targets = client.signed("timestamp"), client.signed("targets")
    marks = timestamp.unrecognized_fields
    if marks.get("x-parcel") != parcel_id or "x-nonce" in marks:
        raise ReplayError("The director's word is not for this parcel")  # 3
    require_mine(timestamp, targets, device_id=device_id)
    floor = client.time_floor()
    issued_at = require_time(timestamp, floor=floor)
    moment = max(filter(None, (issued_at, floor, now)))
    client.require_unexpired(moment)  # 6
    client.record_floors(time=issued_at)  # 7
    assignment = read_assignment(targets, device_id=device_id)
    if assignment is None:
        raise MalformedMetadataError("The director's word in the parcel names no release")
    return issued_at, moment, assignment


def require_mine(timestamp: Timestamp, targets: Targets, *, device_id: DeviceId) -> None:
    """Step 4; raises DeviceMismatchError."""
    for signed in (timestamp, targets):
        found = signed.unrecognized_fields.get("x-device")
        if found != device_id:
            raise DeviceMismatchError(
                "The director's answer is for another device", role=signed.type, expected=device_id, got=found
            )


def require_time(timestamp: Timestamp, *, floor: datetime | None) -> datetime:
    """Step 5; returns t. Raises MalformedMetadataError or RollbackError."""
    try:
        issued_at = Fields(timestamp.unrecognized_fields, what="timestamp").time("x-issued")
    except MalformedError as error:
        raise MalformedMetadataError(error.problem, **error.facts) from error
    if floor is not None and issued_at < floor - TIME_TOLERANCE:
        raise RollbackError("The director's signed time is earlier than one seen before", floor=floor, got=issued_at)
    return issued_at


def read_assignment(targets: Targets, *, device_id: DeviceId) -> Assignment | None:
    """Take steps 8 and 9; raises MalformedMetadataError, UnknownManifestError or DeviceMismatchError."""
    if not targets.targets:
        return None  # 8
    if len(targets.targets) > 1:
        raise MalformedMetadataError("The director names more than one release", targets=len(targets.targets))
    (target,) = targets.targets.values()
    try:
        fields = Fields(target.custom, what="assignment")
        version = fields.integer("v")
        attempt_id = AttemptId(fields.text("attempt_id", pattern=UUID))
        if version != ASSIGNMENT_VERSION:
            raise UnknownManifestError(
                "The assignment has a version this agent does not know",
                found=version,
                known=ASSIGNMENT_VERSION,
                attempt_id=attempt_id,
            )
        action = fields.text("action", max_length=64)
        named = fields.text("device", max_length=64)
        wrap = fields.base64_bytes("key_wrap", max_length=MAX_KEY_WRAP_LENGTH_BYTES) if "key_wrap" in fields else None
        payload = fields.text("payload", max_length=MAX_PATH_LENGTH, pattern=TARGET_PATH)
        takes_back = AttemptId(fields.text("takes_back", pattern=UUID)) if action == Action.REVERT else None
        other = fields.object("fallback", optional=True)
        fallback = other.text("payload", max_length=MAX_PATH_LENGTH, pattern=TARGET_PATH) if other.value else ""
        other_wrap = other.base64_bytes("key_wrap", max_length=MAX_KEY_WRAP_LENGTH_BYTES) if other.value else None
        consent = fields.text("consent", max_length=64, default=Mode.AUTOMATIC.value)
    except MalformedError as error:
        raise MalformedMetadataError(error.problem, **error.facts) from error
    if action not in set(Action):
        raise UnknownManifestError(
            "The director asks for an action this agent does not know", found=action, attempt_id=attempt_id
        )
    if named != device_id:
        raise DeviceMismatchError(
            "The assignment is for another device", expected=device_id, got=named, attempt_id=attempt_id
        )
    # A word of a later server can only be another way to hold an update back: then the owner is asked.
    least = Mode(consent) if consent in set(Mode) else Mode.ASK
    return Assignment(attempt_id, target, payload, wrap, takes_back, fallback, other_wrap, least)


# --- image repository ----------------------------------------------------------------------


def verify_image(client: TrustedClient, assignment: Assignment, *, device: Device) -> Release:
    """Take steps 10 to 18 for an assignment; refusals carry its attempt."""
    try:
        client.refresh()  # 10
        primary = find_target(client, assignment.target.path)  # 11
        require_agreement(assignment.target, primary)  # 12
        if assignment.takes_back is not None:
            return _verify_way_back(client, primary, assignment.takes_back, device=device)
        return _verify_release(client, primary, payload=assignment.payload, device=device)
    except (TrustError, ApplicabilityError) as error:
        error.facts.setdefault("attempt_id", assignment.attempt_id)
        raise


def verify_release(client: TrustedClient, target: str, *, payload: str, device: Device) -> Release:
    """Take steps 10, 11 and 13 to 18 without a director, at the client's reference time."""
    client.refresh()
    return _verify_release(client, find_target(client, target), payload=payload, device=device)


def verify_carried_release(client: TrustedClient, target: str, *, carried: Container[str], device: Device) -> Release:
    """Take the same steps for a parcel without a director, which holds the payloads of these digests (hex).

    The device chooses: the smallest that it can apply. Raises NoInstallerError when there is none.
    A sealed payload is none: only a director can give its key.
    """
    client.refresh()
    primary = find_target(client, target)
    manifest = read_manifest(primary)
    require_applicable(manifest, device)
    fitting = [
        payload
        for payload in manifest.payloads
        if payload.digest.hex in carried
        and not payload.is_sealed
        and device.methods.issuperset(payload.needs)
        and str(payload.precursor_digest or device.image_digest) == device.image_digest
    ]
    if not fitting:
        raise NoInstallerError("No payload in the parcel fits this device", release=manifest.release_id)
    chosen = min(fitting, key=lambda payload: payload.length_bytes)
    require_same_payload(chosen, find_target(client, chosen.target))
    return Release(manifest, chosen)


def _verify_release(client: TrustedClient, primary: TargetFile, *, payload: str, device: Device) -> Release:
    manifest = read_manifest(primary)
    require_applicable(manifest, device)
    chosen = choose_payload(manifest, payload, device)
    require_same_payload(chosen, find_target(client, chosen.target))
    return Release(manifest, chosen)


def _verify_way_back(client: TrustedClient, primary: TargetFile, takes_back: AttemptId, *, device: Device) -> Release:
    """Take the steps of going back (docs/protocol/director.md, ADR-0018) in place of 13 to 18.

    Raises RollbackError where the author of what runs did not permit it, PrecursorMismatchError
    when the other slot does not hold it, ReplayError for another attempt than brought what runs.
    """
    earlier = read_manifest(primary)
    if earlier.product != device.product:
        raise ProductMismatchError("The release is for another product", device=device.product, got=earlier.product)
    if device.hardware not in earlier.hardware:
        raise HardwareMismatchError(
            "The release is for other hardware", device=device.hardware, release=" ".join(earlier.hardware)
        )
    if takes_back != device.installed_by:
        raise ReplayError(
            "The director takes back another attempt than brought what runs here",
            installed_by=device.installed_by or "unknown",
            got=takes_back,
        )
    lowest = permitted_way_back(client, device)
    if lowest is None or not lowest <= earlier.sequence_number <= device.sequence_number:
        raise RollbackError(
            "The author of what runs here did not permit going back to that release",
            permitted="nothing" if lowest is None else lowest,
            got=earlier.sequence_number,
        )
    if str(earlier.image.digest) != device.held_digest:
        raise PrecursorMismatchError(
            "The other slot does not hold the release to go back to",
            held=device.held_digest or "nothing",
            needed=earlier.image.digest,
        )
    return Release(earlier, earlier.payloads[0])


def permitted_way_back(client: TrustedClient, device: Device) -> int | None:
    """Return `revertible_to` of the release that runs, as its author signs it now; None: not permitted.

    Call it after `find_target` of the same product: the product's role is verified then.
    """
    for target in client.signed(device.product).targets.values():
        custom = target.custom
        # Only what can be the running release is decoded: a product may have thousands.
        if isinstance(custom, dict) and custom.get("sequence_number") == device.sequence_number and "image" in custom:
            manifest = read_manifest(target)
            if str(manifest.image.digest) == device.image_digest:
                return manifest.revertible_to
    return None


def find_target(client: TrustedClient, path: str) -> TargetFile:
    """Step 11; raises UnknownTargetError or MalformedMetadataError."""
    if len(path) > MAX_PATH_LENGTH or not TARGET_PATH.fullmatch(path):
        raise MalformedMetadataError("The target path is not well formed", path=path[:80])
    found = client.get_targetinfo(path)
    if found is None:
        raise UnknownTargetError("The image repository does not know this target", target=path)
    return found


def require_agreement(assigned: TargetFile, signed: TargetFile) -> None:
    """Step 12; raises DisagreementError."""
    if (assigned.length, assigned.hashes) != (signed.length, signed.hashes):
        raise DisagreementError(
            "The director describes other bytes than the author signed",
            target=signed.path,
            signed_length=signed.length,
            got_length=assigned.length,
        )


def read_manifest(primary: TargetFile) -> Manifest:
    """Step 13; raises MalformedMetadataError, UnknownManifestError or DisagreementError."""
    custom: Any = primary.custom
    if custom is None:
        raise MalformedMetadataError("The target carries no manifest", target=primary.path)
    try:
        manifest = manifests.decode(custom)
    except (MalformedError, TooLargeError) as error:
        raise MalformedMetadataError(error.problem, **{**error.facts, "target": primary.path}) from error
    if not primary.path.startswith(f"{manifest.release_id}/"):
        raise DisagreementError(
            "The manifest speaks about another release than its path", target=primary.path, found=manifest.release_id
        )
    return manifest


def require_applicable(manifest: Manifest, device: Device) -> None:
    """Take steps 14 to 17; raises ApplicabilityError or RollbackError."""
    if manifest.product != device.product:  # 14
        raise ProductMismatchError("The release is for another product", device=device.product, got=manifest.product)
    if device.hardware not in manifest.hardware:  # 15
        raise HardwareMismatchError(
            "The release is for other hardware", device=device.hardware, release=" ".join(manifest.hardware)
        )
    if manifest.sequence_number < device.sequence_floor:  # 16
        raise RollbackError(
            "The release is older than the one that was confirmed",
            floor=device.sequence_floor,
            got=manifest.sequence_number,
        )
    if device.sequence_number < manifest.requires.min_sequence_number:  # 17
        raise RequirementError(
            "Another release must be installed first",
            needs_sequence_number=manifest.requires.min_sequence_number,
            installed=device.sequence_number,
        )
    if device.agent_level < manifest.requires.min_agent:
        raise RequirementError(
            "The release needs a newer agent", needs_level=manifest.requires.min_agent, level=device.agent_level
        )


def choose_payload(manifest: Manifest, target: str, device: Device) -> Payload:
    """Step 18, first half: the director's choice is one of the manifest's and can be applied here."""
    for payload in manifest.payloads:
        if payload.target == target:
            break
    else:
        raise DisagreementError("The director chose a payload that the manifest does not name", payload=target)
    unknown = [method for method in payload.needs if method not in device.methods]
    if unknown:
        raise NoInstallerError("This device cannot apply the payload's method", method=" ".join(unknown))
    if payload.precursor_digest is not None and str(payload.precursor_digest) != device.image_digest:
        raise RequirementError(
            "The payload changes another image than the one that runs here",
            needs=payload.precursor_digest,
            running=device.image_digest or "unknown",
        )
    return payload


def require_same_payload(payload: Payload, signed: TargetFile) -> None:
    """Step 18, second half; raises MalformedMetadataError for a weak digest, or DisagreementError."""
    digest = _allowed(signed)
    if (payload.length_bytes, payload.digest) != (signed.length, digest):
        raise DisagreementError(
            "Manifest and target describe different bytes",
            payload=payload.target,
            manifest_digest=payload.digest,
            target_digest=digest,
        )


def _allowed(target: TargetFile) -> Digest:
    try:
        return strongest(target.hashes, what=f"The target {target.path}")
    except MalformedError as error:
        raise MalformedMetadataError(error.problem, **error.facts) from error
