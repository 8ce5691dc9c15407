"""Content keys in the database, and for which device they may be wrapped.

A key is a tenant's own, as the blob it opens. It is wrapped for a device only while the device's
wrapping key is not revoked; what was wrapped before cannot be taken back (docs/operate/content-keys.md).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from firmament.errors import ConflictError
from firmament.payload import wrap
from firmament.payload.wrap import Custody
from firmament.server import events
from firmament.server.events import Event
from firmament.server.scope import Action

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from datetime import datetime

    from firmament.core.digest import Digest
    from firmament.core.manifest import Manifest, Payload
    from firmament.server.database.port import Connection
    from firmament.server.payloads.custody import Custodian
    from firmament.server.scope import Scope

REVOKED: Final = "the device's wrapping key was revoked"
NO_KEY: Final = "the device has no usable wrapping key"
WITHHELD: Final = "the server was not given the content keys"
LOST: Final = "the server lost the key file that its content keys are wrapped for"
HINTS: Final = {
    REVOKED: "Register a new wrapping key of the device.",
    NO_KEY: "Register a wrapping key of the device.",
    WITHHELD: "Give the server the keys with `firmament release give-keys`.",
    LOST: "Put content/ back from a backup, or give the keys again with `firmament release give-keys`.",
}


@dataclass(frozen=True, slots=True)
class Held:
    """One content key as it lies in the database."""

    wrapped: bytes
    keyid: str
    custody: Custody


@dataclass(frozen=True, slots=True)
class Openable:
    """Which sealed payloads of a release one device can be given the key of, and why not the others."""

    held: Mapping[str, Held] = field(default_factory=dict)
    """By target path."""
    reason: str = ""
    public_key: bytes = b""

    def wrap_for(self, custodian: Custodian, payload: Payload | None, *, device_id: str) -> bytes | None:
        """Return the wrap that goes along with a payload, None where none is needed; raises KeyWrapError."""
        if payload is None or not payload.is_sealed:
            return None
        one = self.held[payload.target]
        return custodian.wrap_for(one.wrapped, one.keyid, one.custody, device_id=device_id, public_key=self.public_key)

    def within(self, custodian: Custodian) -> Openable:
        """Return it without what this server cannot open: a lost key file must not end the device's polls."""
        held = {target: one for target, one in self.held.items() if one.keyid in custodian.keyids}
        return self if len(held) == len(self.held) else replace(self, held=held, reason=LOST)


NOTHING_SEALED: Final = Openable()


def is_sealed(manifest: Manifest) -> bool:
    """Whether a release has sealed payloads."""
    return any(payload.is_sealed for payload in manifest.payloads)


def openable(connection: Connection, tenant_id: int, device_row: int, manifest: Manifest) -> Openable:
    """Return what a device can be given of a release; two look-ups by key, none for a release that is not sealed."""
    sealed = {str(payload.digest): payload for payload in manifest.payloads if payload.is_sealed}
    if not sealed:
        return NOTHING_SEALED
    device = connection.execute(
        "SELECT d.hpke_public_key, r.at AS revoked_at FROM device d "
        "LEFT JOIN revoked_wrapping_key r ON r.device_id = d.id WHERE d.id = ? AND d.tenant_id = ?",
        (device_row, tenant_id),
    ).fetchone()
    if device is None or not wrap.is_usable(bytes(device["hpke_public_key"])):
        return Openable(reason=NO_KEY)
    if device["revoked_at"] is not None:
        return Openable(reason=REVOKED)
    rows = connection.execute(
        "SELECT digest, release, keyid, wrapped FROM content_key "  # noqa: S608 - question marks
        f"WHERE tenant_id = ? AND digest IN ({', '.join('?' * len(sealed))})",
        (tenant_id, *sealed),
    )
    held = {
        sealed[row["digest"]].target: Held(
            bytes(row["wrapped"]), row["keyid"], Custody(row["release"], sealed[row["digest"]].digest.value)
        )
        for row in rows
        if row["release"] == manifest.release_id
    }
    return Openable(held, "" if len(held) == len(sealed) else WITHHELD, bytes(device["hpke_public_key"]))


def put_key(  # one row
    connection: Connection, scope: Scope, digest: Digest, *, release: str, keyid: str, wrapped: bytes, now: datetime
) -> None:
    """Keep the key of a container for this tenant; the same again, wrapped anew, replaces it.

    Raises ForbiddenError, and ConflictError when the container was kept for another release.
    """
    scope.require(Action.UPLOAD, product=release.partition("/")[0])
    known = connection.execute(
        "SELECT release FROM content_key WHERE tenant_id = ? AND digest = ?", (scope.tenant_id, str(digest))
    ).fetchone()
    if known is not None and known["release"] != release:
        raise ConflictError("This container's key was given for another release", known=known["release"], got=release)
    connection.execute(
        "INSERT INTO content_key(tenant_id, digest, release, keyid, wrapped, added_at) VALUES (?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (tenant_id, digest) DO UPDATE SET keyid = excluded.keyid, wrapped = excluded.wrapped",
        (scope.tenant_id, str(digest), release, keyid, wrapped, int(now.timestamp())),
    )
    if known is None:
        events.append(connection, scope, Event.CONTENT_KEY_ADDED, now, subject=release, digest=digest, keyid=keyid)


def count_held(connection: Connection, scope: Scope, manifest: Manifest) -> int:
    """Return of how many sealed payloads of a release the server has the key."""
    sealed = [str(payload.digest) for payload in manifest.payloads if payload.is_sealed]
    if not sealed:
        return 0
    row = connection.execute(
        "SELECT COUNT(*) AS n FROM content_key "  # noqa: S608 - question marks
        f"WHERE tenant_id = ? AND release = ? AND digest IN ({', '.join('?' * len(sealed))})",
        (scope.tenant_id, manifest.release_id, *sealed),
    ).fetchone()
    return int(row["n"])


def count_lost(connection: Connection, keyids: Collection[str]) -> int:
    """Return how many content keys of all tenants are wrapped for a key that is none of these."""
    rows = connection.execute("SELECT keyid, COUNT(*) AS n FROM content_key GROUP BY keyid")
    return sum(int(row["n"]) for row in rows if row["keyid"] not in keyids)


def renew_all(connection: Connection, custodian: Custodian) -> int:
    """Wrap every content key of every tenant for the newest of the server's keys; return how many."""
    rows = connection.execute(
        "SELECT tenant_id, digest, release, keyid, wrapped FROM content_key WHERE keyid <> ?", (custodian.keyid,)
    ).fetchall()
    for row in rows:
        custody = Custody(row["release"], bytes.fromhex(row["digest"].partition(":")[2]))
        connection.execute(
            "UPDATE content_key SET keyid = ?, wrapped = ? WHERE tenant_id = ? AND digest = ?",
            (
                custodian.keyid,
                custodian.renew(bytes(row["wrapped"]), row["keyid"], custody),
                row["tenant_id"],
                row["digest"],
            ),
        )
    return len(rows)
