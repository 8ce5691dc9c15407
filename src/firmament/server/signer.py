"""The isolated online signer: ``python -m firmament.server.signer DIRECTORY [USER]``.

It alone reads the keys of snapshot and timestamp. It speaks a tiny typed protocol over its
standard input, a socket pair made by its parent; end of file ends it. It signs versions that go
up and nothing else: what it signed last is recorded durably *before* an answer leaves (a number
that was recorded and not used is harmless, one used and not recorded is not), so that a parent
that was taken over, or a directory restored from an old backup, cannot make it go back
(trust.md §10, cases 1 to 4 and 64).

Messages are canonical JSON after a 4-byte big-endian length.
``{"op": "publish", "versions": {role: n}, "snapshot": n, "timestamp": n}`` makes the next snapshot
and timestamp, above those served; ``refresh`` with the same fields renews what is about to expire;
``carried`` with the same fields and ``lifetime_s`` signs what is served for a parcel;
``{"op": "public"}`` names the keys. ``audit-public``, ``audit-state``, ``checkpoint`` and
``tree-head`` belong to the audit key (audit/signer.py).
Answers: ``{"files": {name: text}, ...}`` or ``{"error": code, "problem": ..., "facts": {...}}``.
"""

from __future__ import annotations

import os
import pwd
import socket
import sys
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from securesystemslib.signer import CryptoSigner

from firmament.core import canonical
from firmament.core.clock import Clock, SystemClock
from firmament.core.fields import Fields, format_time
from firmament.core.ids import PRODUCT, check
from firmament.durable import RealDisk, read_file, replace_durably
from firmament.errors import (
    CorruptStateError,
    FirmamentError,
    MalformedError,
    RollbackError,
    SettingError,
    TooLargeError,
    TornPublishError,
)
from firmament.server.audit.signer import AuditSigner
from firmament.server.keys import load_signer
from firmament.trust import repository
from firmament.trust.director import MAX_CARRIED_LIFETIME
from firmament.trust.roles import SNAPSHOT_LIFETIME, TIMESTAMP_LIFETIME

if TYPE_CHECKING:
    from securesystemslib.signer import Signer

    from firmament.durable import Disk

SNAPSHOT_RENEW_BEFORE: Final = timedelta(days=7)
TIMESTAMP_RENEW_AFTER: Final = timedelta(days=1)
"""trust.md §3.1: a timestamp lives 3 days and is made anew daily, so two missed days are harmless."""
MAX_CATCH_UP: Final = 1000
"""Above what was signed, or above the clock: several signers of one repository differ by seconds."""
MAX_MESSAGE_LENGTH_BYTES: Final = 4 * 1024 * 1024
# A snapshot of 10 000 roles is 300 KiB (trust.md §1.4).
STATE: Final = "state.json"
MAX_STATE_LENGTH_BYTES: Final = 2 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class SignerState:
    """What was signed last; versions never fall."""

    snapshot: int = 0
    timestamp: int = 0
    versions: dict[str, int] = field(default_factory=dict)
    snapshot_at: datetime | None = None
    timestamp_at: datetime | None = None

    def to_json(self) -> dict[str, Any]:
        """Write for the state file."""
        return {
            "v": 1,
            "snapshot": self.snapshot,
            "timestamp": self.timestamp,
            "versions": self.versions,
            "snapshot_at": format_time(self.snapshot_at) if self.snapshot_at else None,
            "timestamp_at": format_time(self.timestamp_at) if self.timestamp_at else None,
        }


def decode_state(data: bytes) -> SignerState:
    """Read the state file; raises CorruptStateError: a signer that forgot must not start at 1."""
    try:
        fields = Fields(canonical.decode_object(data, limit_bytes=MAX_STATE_LENGTH_BYTES, what="state"), what="state")
        versions = fields.object("versions")
        return SignerState(
            snapshot=fields.integer("snapshot"),
            timestamp=fields.integer("timestamp"),
            versions={name: versions.integer(name) for name in versions.value},
            snapshot_at=fields.maybe("snapshot_at", fields.time),
            timestamp_at=fields.maybe("timestamp_at", fields.time),
        )
    except (MalformedError, TooLargeError) as error:
        raise CorruptStateError("The signer's state cannot be read", reason=error.problem) from error


class OnlineSigner:
    """Snapshot and timestamp keys, and the memory of what they signed."""

    def __init__(self, disk: Disk, directory: Path, clock: Clock) -> None:
        self._disk = disk
        self._path = directory / STATE
        self._clock = clock
        self._snapshot: Signer = load_signer(disk, directory / "snapshot.pem")
        self._timestamp: Signer = load_signer(disk, directory / "timestamp.pem")
        exists = disk.exists(self._path)
        self.state = (
            decode_state(read_file(disk, self._path, limit_bytes=MAX_STATE_LENGTH_BYTES)) if exists else SignerState()
        )

    def public(self) -> dict[str, Any]:
        """Name the keys."""
        return {"snapshot": self._snapshot.public_key.keyid, "timestamp": self._timestamp.public_key.keyid}

    def adopt(self, snapshot: int, timestamp: int) -> None:
        """Go on above what is served: an old backup was restored, or another server's signer made it.

        Only upwards, and only so far: whoever asks may be lying, and must not use up the numbers.
        """
        state, now_s = self.state, int(self._clock.now().timestamp())
        self.state = replace(
            state,
            snapshot=max(state.snapshot, min(snapshot, max(state.snapshot, now_s) + MAX_CATCH_UP)),
            timestamp=max(state.timestamp, min(timestamp, max(state.timestamp, now_s) + MAX_CATCH_UP)),
        )

    def publish(self, versions: dict[str, int]) -> dict[str, Any]:
        """Sign the next snapshot over these role versions, and a timestamp over it.

        Raises RollbackError when a role's version falls or a role disappears: devices refuse a
        snapshot that lost an entry (trust.md §9, pitfall 6).
        """
        for role, version in self.state.versions.items():
            if versions.get(role, 0) < version:
                raise RollbackError(
                    "The signer signed a higher version before", role=role, signed=version, got=versions.get(role, 0)
                )
        now = self._clock.now()
        return self._sign(
            replace(self.state, versions=dict(versions), snapshot=_next(self.state.snapshot, now), snapshot_at=now), now
        )

    def refresh(self, snapshot: int, versions: dict[str, int]) -> dict[str, Any]:
        """Sign anew what is about to expire; nothing if all is fresh or nothing was published yet.

        `snapshot` and `versions` are what is served. When something newer was signed than is
        served, a publish was cut short: a new snapshot over what is served if that goes back for
        no role, else TornPublishError, until the author publishes again. The same new snapshot
        when another server's signer made what is served: each signer knows only its own.
        """
        state, now = self.state, self._clock.now()
        if state.timestamp_at is None or state.snapshot_at is None:
            return self.publish(versions) if versions else {"files": {}}
        if snapshot != state.snapshot or versions != state.versions:
            try:
                return self.publish(versions)
            except RollbackError as error:
                raise TornPublishError(
                    "What was signed last is not what is served", signed=state.snapshot, served=snapshot
                ) from error
        if now >= state.snapshot_at + SNAPSHOT_LIFETIME - SNAPSHOT_RENEW_BEFORE:
            return self._sign(replace(state, snapshot=_next(state.snapshot, now), snapshot_at=now), now)
        if now >= state.timestamp_at + TIMESTAMP_RENEW_AFTER:
            return self._sign(state, now)
        return {"files": {}}

    def carried(self, served: tuple[int, int, dict[str, int]], lifetime_s: int) -> dict[str, Any]:
        """Sign what is served once more, for a parcel: the same versions, good for longer (ADR-0028).

        `served` is snapshot, timestamp and role versions; another server's signer may have signed
        them last. Nothing new is said, so nothing is recorded. Raises TornPublishError when this
        signer signed something later, or the numbers are ahead of the clock; MalformedError for a
        lifetime that is too long.
        """
        snapshot_version, timestamp_version, versions = served
        state, now = self.state, self._clock.now()
        ahead = int(now.timestamp()) + MAX_CATCH_UP
        if (
            not state.snapshot <= snapshot_version <= max(ahead, state.snapshot)
            or not state.timestamp <= timestamp_version <= max(ahead, state.timestamp)
            or not snapshot_version
            or any(versions.get(role, 0) < version for role, version in state.versions.items())
        ):
            raise TornPublishError(
                "What was signed last is not what is served", signed=state.timestamp, served=timestamp_version
            )
        lifetime = timedelta(seconds=lifetime_s)
        if not timedelta() < lifetime <= MAX_CARRIED_LIFETIME:
            raise MalformedError("A parcel is good for a month at most", lifetime_s=lifetime_s)
        expires_at = now + lifetime
        snapshot = repository.make_snapshot(version=snapshot_version, expires_at=expires_at, versions=versions)
        timestamp = repository.make_timestamp(
            version=timestamp_version, expires_at=expires_at, snapshot_version=snapshot_version
        )
        name = repository.file_name("snapshot", snapshot)
        files = {
            name: repository.encode(repository.sign(snapshot, self._snapshot)).decode(),
            repository.TIMESTAMP_FILE: repository.encode(repository.sign(timestamp, self._timestamp)).decode(),
        }
        return {"files": files}

    def _sign(self, state: SignerState, now: datetime) -> dict[str, Any]:
        state = replace(state, timestamp=_next(state.timestamp, now), timestamp_at=now)
        replace_durably(self._disk, self._path, canonical.encode(state.to_json()))
        is_new_snapshot = state.snapshot != self.state.snapshot
        self.state = state
        files: dict[str, str] = {}
        if is_new_snapshot:
            snapshot = repository.make_snapshot(
                version=state.snapshot, expires_at=now + SNAPSHOT_LIFETIME, versions=state.versions
            )
            repository.sign(snapshot, self._snapshot)
            files[repository.file_name("snapshot", snapshot)] = repository.encode(snapshot).decode()
        timestamp = repository.make_timestamp(
            version=state.timestamp, expires_at=now + TIMESTAMP_LIFETIME, snapshot_version=state.snapshot
        )
        repository.sign(timestamp, self._timestamp)
        files[repository.TIMESTAMP_FILE] = repository.encode(timestamp).decode()
        return {"files": files, "snapshot_version": state.snapshot, "timestamp_version": state.timestamp}


def _next(version: int, now: datetime) -> int:
    """Return the next version, as the director's never below the clock.

    A server that was restored as a whole from a backup has forgotten what it signed since; counting
    on from there would be a rollback for every device that saw more (case 64).
    """
    return max(version + 1, int(now.timestamp()))


def answer(signer: OnlineSigner, message: bytes, audit: AuditSigner | None = None) -> dict[str, Any]:
    """Answer one message; an error becomes an answer too."""
    try:
        fields = Fields(
            canonical.decode_object(message, limit_bytes=MAX_MESSAGE_LENGTH_BYTES, what="request"), what="request"
        )
        op = fields.text("op")
        if audit is not None and (answered := audit.answer(op, fields)) is not None:
            return answered
        match op:
            case "publish" | "refresh":
                snapshot, versions = fields.integer("snapshot"), _versions(fields)
                signer.adopt(snapshot, fields.integer("timestamp"))
                return signer.publish(versions) if op == "publish" else signer.refresh(snapshot, versions)
            case "carried":
                served = (fields.integer("snapshot"), fields.integer("timestamp"), _versions(fields))
                return signer.carried(served, fields.integer("lifetime_s"))
            case "public":
                return signer.public()
            case _:
                raise MalformedError("The signer knows no such operation", op=op)
    except FirmamentError as error:
        facts = {name: str(value) for name, value in error.facts.items()}
        return {"error": error.code, "problem": error.problem, "facts": facts}


def _versions(fields: Fields) -> dict[str, int]:
    versions = fields.object("versions")
    return {check(role, PRODUCT, what="The role"): versions.integer(role, minimum=1) for role in versions.value}


def serve(connection: socket.socket, signer: OnlineSigner, audit: AuditSigner | None = None) -> None:
    """Answer until the parent closes its end."""
    while (message := receive(connection)) is not None:
        send(connection, canonical.encode(answer(signer, message, audit)))


def receive(connection: socket.socket) -> bytes | None:
    """Read one framed message; None at the end; raises TooLargeError."""
    header = _exactly(connection, 4)
    if header is None:
        return None
    length = int.from_bytes(header)
    if length > MAX_MESSAGE_LENGTH_BYTES:
        raise TooLargeError("A message to the signer is too long", length_bytes=length)
    return _exactly(connection, length)


def send(connection: socket.socket, message: bytes) -> None:
    """Write one framed message."""
    connection.sendall(len(message).to_bytes(4) + message)


def _exactly(connection: socket.socket, length: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < length:
        part = connection.recv(length - len(parts))
        if not part:
            return None
        parts += part
    return bytes(parts)


def become(user: str) -> None:
    """Give up root for good and go on as `user`; raises SettingError when that is not possible.

    Done here, before any key is opened, and not by the parent: the program may lie where that
    user cannot read, so all of it is loaded first, by signing something with a throwaway key.
    """
    try:
        moment = SystemClock().now()
        trial = repository.make_timestamp(version=1, expires_at=moment, snapshot_version=1)
        repository.encode(repository.sign(trial, CryptoSigner.generate_ed25519()))
        found = pwd.getpwnam(user)
        os.setgroups([])
        os.setgid(found.pw_gid)
        os.setuid(found.pw_uid)
    except (KeyError, PermissionError) as error:
        raise SettingError("The signer's user cannot be used", user=user, reason=error) from error


def main() -> int:
    """Serve the parent on standard input until it goes away."""
    directory = Path(sys.argv[1]).absolute()
    connection = socket.socket(fileno=0)
    os.umask(0o077)
    try:
        if len(sys.argv) > 2 and sys.argv[2]:  # noqa: PLR2004 - the optional second argument
            become(sys.argv[2])
        signer = OnlineSigner(RealDisk(), directory, SystemClock())
        audit = AuditSigner(RealDisk(), directory, SystemClock())
    except FirmamentError as error:
        facts = {name: str(value) for name, value in error.facts.items()}
        send(connection, canonical.encode({"error": error.code, "problem": error.problem, "facts": facts}))
        return error.exit_code
    send(connection, canonical.encode({"ready": signer.public()}))
    serve(connection, signer, audit)
    return 0


if __name__ == "__main__":
    sys.exit(main())
