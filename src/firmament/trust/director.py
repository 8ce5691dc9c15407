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
from collections import OrderedDict
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
SAY_AGAIN_S: Final = 12 * 3600
"""How long the targets of a device with nothing to do are given again: they have as long to live then."""
MAX_SAID: Final = 100_000
"""Devices whose last answer is kept, 1.1 KB each; beyond that an answer costs its second signature."""
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
    What is one device's own are timestamp and targets (ADR-0030).
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
            found = _signed(
                f'{{"_type":"snapshot","expires":"{expires}","meta":{{"targets.json":{{"version":{version}}}}},'
                f'"spec_version":"{SPEC_VERSION}","version":{version}}}',
                self._signer,
            )
            self._texts[version, expires] = found
        return found


@dataclass(slots=True)
class Said:
    """What a device was told last, when that was "nothing to do": it may be told so again."""

    version: int
    """Of the timestamp; whoever trusts exactly this one trusts no later snapshot or targets either."""
    signed_s: int
    """When snapshot and targets were signed, seconds since 1970."""
    signed_version: int
    """Of snapshot and targets."""
    snapshot: str
    targets: str


class LastSaid:
    """The last "nothing to do" of many devices; those heard longest ago are forgotten first (ADR-0033).

    An answer that says again what the device trusts needs a signature less: only the timestamp bears
    the nonce. It is given only to a device that says it trusts the very answer that was given here
    last. So whatever came between (an answer that was lost, another server's, a parcel) is followed
    by files that are signed anew, with versions above all that the device may have seen.
    """

    def __init__(self, max_devices: int = MAX_SAID) -> None:
        self._max_devices = max_devices
        self._said: OrderedDict[str, Said] = OrderedDict()

    def __len__(self) -> int:
        """How many devices are remembered."""
        return len(self._said)

    def find(self, device_id: str, *, trusted: int, now_s: int) -> Said | None:
        """Return what may be said again to a device that trusts the timestamp version `trusted`."""
        found = self._said.get(device_id)
        if found is None or found.version != trusted or not 0 <= now_s - found.signed_s < SAY_AGAIN_S:
            return None
        return found

    def said_again(self, device_id: str, version: int) -> None:
        """Remember that the device was told the same in a timestamp of this version."""
        self._said[device_id].version = version
        self._said.move_to_end(device_id)

    def keep(self, device_id: str, said: Said) -> None:
        """Remember what the device was told."""
        self.forget(device_id)
        self._said[device_id] = said
        if len(self._said) > self._max_devices:
            self._said.popitem(last=False)

    def forget(self, device_id: str) -> None:
        """Remember nothing of a device that was told to do something."""
        self._said.pop(device_id, None)


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
    expires_at = now.replace(microsecond=0) + REPLY_LIFETIME
    return _make(
        keys,
        _marks(device_id, nonce, now),
        assignment,
        version=version,
        expires_at=expires_at,
        poll_after_s=poll_after_s,
        snapshots=snapshots,
    )


def say_nothing_to_do(
    keys: DirectorKeys,
    last: LastSaid,
    *,
    device_id: DeviceId,
    nonce: bytes,
    now: datetime,
    version: int,
    trusted: int,
    poll_after_s: int,
    snapshots: Snapshots,
) -> PollReply:
    """Answer as `make_reply` without an assignment; a device that trusts `last` gets its snapshot and targets again.

    Only the timestamp is signed then: for this nonce, with `version`, over the snapshot that the
    device has. Raises MalformedError for a nonce of the wrong length.
    """
    now_s = int(now.timestamp())
    before = last.find(device_id, trusted=trusted, now_s=now_s)
    if before is None:
        made = make_reply(
            keys,
            device_id=device_id,
            nonce=nonce,
            assignment=None,
            now=now,
            version=version,
            poll_after_s=poll_after_s,
            snapshots=snapshots,
        )
        last.keep(device_id, Said(version, now_s, version, made.snapshot, made.targets))
        return made
    expires = format_time(now.replace(microsecond=0) + REPLY_LIFETIME)
    timestamp = _timestamp(_marks(device_id, nonce, now), version, before.signed_version, expires, keys.timestamp)
    last.said_again(device_id, version)
    return PollReply(timestamp, before.snapshot, before.targets, poll_after_s)


def _marks(device_id: DeviceId, nonce: bytes, now: datetime) -> dict[str, str]:
    if len(nonce) != NONCE_LENGTH_BYTES:
        raise MalformedError("The nonce has the wrong length", length_bytes=len(nonce), expected=NONCE_LENGTH_BYTES)
    return {"x-device": device_id, "x-issued": format_time(now), "x-nonce": nonce.hex()}


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
    marks = {"x-device": device_id, "x-issued": format_time(now), "x-parcel": parcel_id}
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
    expires = format_time(expires_at)
    chosen = "{}"
    if assignment is not None:
        what = {
            "length": assignment.length_bytes,
            "hashes": assignment.digest.to_json(),
            "custom": assignment.custom(device_id),
        }
        chosen = canonical.encode({assignment.target: what}).decode()
    targets = (
        f'{{"_type":"targets","expires":"{expires}","spec_version":"{SPEC_VERSION}","targets":{chosen},'
        f'"version":{version},"x-device":"{device_id}"}}'
    )
    return PollReply(
        timestamp=_timestamp(marks, version, version, expires, keys.timestamp),
        snapshot=(snapshots or Snapshots(keys.snapshot)).text(version, expires),
        targets=_signed(targets, keys.targets),
        poll_after_s=poll_after_s,
    )


def _timestamp(marks: dict[str, str], version: int, snapshot_version: int, expires: str, signer: Signer) -> str:
    """Sign a timestamp; `marks` come in the order of their names."""
    marked = ",".join([f'"{name}":"{value}"' for name, value in marks.items()])
    return _signed(
        f'{{"_type":"timestamp","expires":"{expires}","meta":{{"snapshot.json":{{"version":{snapshot_version}}}}},'
        f'"spec_version":"{SPEC_VERSION}","version":{version},{marked}}}',
        signer,
    )


def _signed(content: str, signer: Signer) -> str:
    # The canonical form, written down: keys in order, and every value matches a grammar or is a number,
    # hexadecimal or base64, so none needs escaping. tuf's own objects make the same bytes
    # (tests/unit/trust/test_director.py) at many times the cost, in every poll.
    signature = signer.sign(content.encode())
    return f'{{"signatures":[{{"keyid":"{signature.keyid}","sig":"{signature.signature}"}}],"signed":{content}}}'
