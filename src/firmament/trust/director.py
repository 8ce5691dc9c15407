"""The director's answer to one poll: three small TUF files made for one device and one nonce.

Pure: keys, time, version and assignment come in, a `PollReply` goes out. The director never says
what an image *is*; it repeats length and digest from the image repository, which the device
compares (trust.md §3.2). So stolen director keys can delay or re-order, never ship other bytes.

Signed content: the timestamp carries ``x-nonce``, ``x-device`` and ``x-issued``, the targets
carry ``x-device`` and at most one target, the release's primary one, whose `custom` names the
attempt and the payload to fetch.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from tuf.api.metadata import SPECIFICATION_VERSION

from firmament.core import canonical
from firmament.core.consent import Mode
from firmament.core.fields import format_time
from firmament.core.ids import DeviceId
from firmament.errors import MalformedError
from firmament.protocol.v1.messages import NONCE_LENGTH_BYTES, PollReply

if TYPE_CHECKING:
    from datetime import datetime

    from securesystemslib.signer import Signer

    from firmament.core.digest import Digest
    from firmament.core.ids import AttemptId

REPLY_LIFETIME: Final = timedelta(hours=24)
"""A reply is for one nonce, so this only bounds what a device without a nonce check would take."""
MAX_CARRIED_LIFETIME: Final = timedelta(days=30)
"""How long what is carried by hand may be good: nobody can take it back meanwhile (ADR-0028)."""
MAX_SNAPSHOTS: Final = 8
"""Seconds whose snapshot is kept; a device that asks twice within one gets the next number."""
SPEC_VERSION: Final = ".".join(SPECIFICATION_VERSION)
ASSIGNMENT_VERSION: Final = 1
"""`v` of the target's custom; a device refuses any other."""


@dataclass(frozen=True, slots=True)
class DirectorKeys:
    """The three online keys; each role of the director root lists exactly one, threshold 1."""

    targets: Signer
    snapshot: Signer
    timestamp: Signer


@dataclass(frozen=True, slots=True)
class Assignment:
    """One release for one device, as the image repository describes its primary target."""

    attempt_id: AttemptId
    target: str
    """TUF target path of the release's primary target."""
    length_bytes: int
    digest: Digest
    payload: str
    """TUF target path of the payload this device should fetch; one of the manifest's."""
    key_wrap: bytes | None = None
    """HPKE-wrapped content key of a sealed payload."""
    takes_back: AttemptId | None = None
    """The attempt this one takes back: the device goes to the slot it still holds, nothing travels (ADR-0018)."""
    fallback: str = ""
    """TUF target path of a sealed payload without a precursor, for a device that cannot apply the chosen one."""
    fallback_wrap: bytes | None = None
    """Its wrapped content key. A payload that is not sealed needs no word here: the manifest names it."""
    consent: Mode = Mode.AUTOMATIC
    """What the operator asks of the device at least; it lays this over its owner's rule (ADR-0026)."""

    def custom(self, device_id: DeviceId) -> dict[str, Any]:
        """Return what is signed about this assignment beside length and digest."""
        value: dict[str, Any] = {
            "v": ASSIGNMENT_VERSION,
            "device": device_id,
            "attempt_id": self.attempt_id,
            "action": "install" if self.takes_back is None else "revert",
            "payload": self.payload,
        }
        if self.takes_back is not None:
            value["takes_back"] = self.takes_back
        if self.key_wrap is not None:
            value["key_wrap"] = base64.b64encode(self.key_wrap).decode()
        if self.consent is not Mode.AUTOMATIC:
            value["consent"] = self.consent.value
        if self.fallback_wrap is not None:
            value["fallback"] = {
                "payload": self.fallback,
                "key_wrap": base64.b64encode(self.fallback_wrap).decode(),
            }
        return value


class Snapshots:
    """Signed snapshots of the last few versions.

    A snapshot names no device and no nonce, only the version of the targets, and that is the second
    for nearly every reply. So all devices that poll within a second get the same bytes, signed once.
    What is fresh and one device's own are timestamp and targets, signed for each poll (ADR-0030).
    """

    def __init__(self, signer: Signer) -> None:
        self._signer = signer
        self._texts: dict[tuple[int, str], str] = {}

    def text(self, version: int, expires: str) -> str:
        """Return the snapshot of this version and expiry."""
        found = self._texts.get((version, expires))
        if found is None:
            if len(self._texts) >= MAX_SNAPSHOTS:
                del self._texts[next(iter(self._texts))]
            meta = {"targets.json": {"version": version}}
            common = {"expires": expires, "spec_version": SPEC_VERSION, "version": version}
            found = _signed({"_type": "snapshot", "meta": meta, **common}, self._signer)
            self._texts[version, expires] = found
        return found


def make_reply(
    keys: DirectorKeys,
    *,
    device_id: DeviceId,
    nonce: bytes,
    assignment: Assignment | None,
    now: datetime,
    version: int,
    poll_after_s: int,
    snapshots: Snapshots | None = None,
) -> PollReply:
    """Sign a fresh timestamp and targets for this device and nonce; take the snapshot from `snapshots`.

    `version` becomes the version of all three and must be higher than in any earlier reply to
    this device; the caller keeps it durable (case 64). Raises MalformedError for a nonce of the
    wrong length: a short one could be guessed and answered in advance.
    """
    if len(nonce) != NONCE_LENGTH_BYTES:
        raise MalformedError("The nonce has the wrong length", length_bytes=len(nonce), expected=NONCE_LENGTH_BYTES)
    marks = {"x-nonce": nonce.hex(), "x-device": device_id, "x-issued": format_time(now)}
    expires_at = now.replace(microsecond=0) + REPLY_LIFETIME
    return _make(
        keys,
        marks,
        assignment,
        version=version,
        expires_at=expires_at,
        poll_after_s=poll_after_s,
        snapshots=snapshots,
    )


def make_carried(
    keys: DirectorKeys,
    *,
    device_id: DeviceId,
    parcel_id: str,
    assignment: Assignment,
    now: datetime,
    expires_at: datetime,
    version: int,
) -> PollReply:
    """Sign the same three files for a device that cannot ask: for one parcel instead of one nonce.

    They bear ``x-parcel`` and no nonce, so they answer no poll, and no answer to a poll opens a
    parcel (docs/protocol/parcel.md). `version` is as in `make_reply`: whatever the device hears
    later makes this one useless. Raises MalformedError for an expiry in the past or too far away.
    """
    if not now < expires_at <= now + MAX_CARRIED_LIFETIME:
        latest = now + MAX_CARRIED_LIFETIME
        raise MalformedError(
            "A parcel expires after it was made, and within a month", expires_at=expires_at, latest=latest
        )
    marks = {"x-parcel": parcel_id, "x-device": device_id, "x-issued": format_time(now)}
    return _make(keys, marks, assignment, version=version, expires_at=expires_at, poll_after_s=0)


def _make(
    keys: DirectorKeys,
    marks: dict[str, str],
    assignment: Assignment | None,
    *,
    version: int,
    expires_at: datetime,
    poll_after_s: int,
    snapshots: Snapshots | None = None,
) -> PollReply:
    device_id = DeviceId(marks["x-device"])
    common = {"expires": format_time(expires_at), "spec_version": SPEC_VERSION, "version": version}
    chosen: dict[str, Any] = {}
    if assignment is not None:
        chosen[assignment.target] = {
            "length": assignment.length_bytes,
            "hashes": assignment.digest.to_json(),
            "custom": assignment.custom(device_id),
        }
    targets = {"_type": "targets", "targets": chosen, "x-device": device_id, **common}
    timestamp = {
        "_type": "timestamp",
        "meta": {"snapshot.json": {"version": version}},
        **marks,
        **common,
    }
    return PollReply(
        timestamp=_signed(timestamp, keys.timestamp),
        snapshot=(snapshots or Snapshots(keys.snapshot)).text(version, format_time(expires_at)),
        targets=_signed(targets, keys.targets),
        poll_after_s=poll_after_s,
    )


def _signed(content: dict[str, Any], signer: Signer) -> str:
    # Our canonical form and TUF's differ only in how control characters are escaped, and no value
    # here can hold one: all match a grammar or are hexadecimal or base64. tuf's own objects make the
    # same bytes (tests/unit/trust/test_director.py) at four times the cost, in every poll.
    signed = canonical.encode(content)
    signature = signer.sign(signed)
    entry = canonical.encode({"keyid": signature.keyid, "sig": signature.signature})
    return f'{{"signatures":[{entry.decode()}],"signed":{signed.decode()}}}'
