"""Revoking a device's wrapping key, and registering a new one.

From a revocation on no content key is wrapped for the device. What it was given before it may have
kept: only a release with new content keys is closed to it (docs/operate/content-keys.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from firmament.errors import ConflictError, MalformedError, NotFoundError
from firmament.payload import wrap
from firmament.server import events
from firmament.server.events import Event
from firmament.server.payloads.custody import keyid_of
from firmament.server.scope import Action

if TYPE_CHECKING:
    from datetime import datetime

    from firmament.server.database.port import Connection, Row
    from firmament.server.scope import Scope

MAX_REASON_LENGTH: Final = 200


def revoke(connection: Connection, scope: Scope, device_id: str, *, reason: str, now: datetime) -> None:
    """Wrap nothing for a device's present key any more; again changes only the reason.

    Raises NotFoundError, ForbiddenError, or MalformedError without a reason.
    """
    row = _device(connection, scope, device_id)
    if not reason.strip() or len(reason) > MAX_REASON_LENGTH:
        raise MalformedError("A revocation needs a reason", most=MAX_REASON_LENGTH)
    connection.execute(
        "INSERT INTO revoked_wrapping_key(device_id, tenant_id, reason, at) VALUES (?, ?, ?, ?) "
        "ON CONFLICT (device_id) DO UPDATE SET reason = excluded.reason",
        (row["id"], scope.tenant_id, reason, int(now.timestamp())),
    )
    keyid = keyid_of(bytes(row["hpke_public_key"]))
    events.append(
        connection, scope, Event.WRAPPING_KEY_REVOKED, now, subject=device_id, keyid=keyid, reason=reason
    )  # fmt: skip


def register(connection: Connection, scope: Scope, device_id: str, *, public_key: bytes, now: datetime) -> None:
    """Take a device's new wrapping key, which its identity key signed; that ends a revocation.

    An operator vouches for it: whoever stole the old keys could sign a new one as well. Raises
    NotFoundError, ForbiddenError, MalformedError for something that is no key, ConflictError for a
    key that is registered, its own included.
    """
    row = _device(connection, scope, device_id)
    if not wrap.is_usable(public_key):
        raise MalformedError("Not a wrapping key", device_id=device_id)
    twin = connection.execute("SELECT uid FROM device WHERE hpke_public_key = ?", (public_key,)).fetchone()
    if twin is not None:
        raise ConflictError("This wrapping key is registered already", keyid=keyid_of(public_key))
    connection.execute("UPDATE device SET hpke_public_key = ? WHERE id = ?", (public_key, row["id"]))
    connection.execute("DELETE FROM revoked_wrapping_key WHERE device_id = ?", (row["id"],))
    keyid, before = keyid_of(public_key), keyid_of(bytes(row["hpke_public_key"]))
    events.append(
        connection, scope, Event.WRAPPING_KEY_REGISTERED, now, subject=device_id, keyid=keyid, before=before
    )  # fmt: skip


def identity_of(connection: Connection, scope: Scope, device_id: str) -> tuple[bytes, str]:
    """Return a device's identity key (DER) and its keyid; raises NotFoundError, ForbiddenError."""
    row = _device(connection, scope, device_id)
    return bytes(row["identity_key"]), str(row["identity_keyid"])


def _device(connection: Connection, scope: Scope, device_id: str) -> Row:
    scope.require(Action.MANAGE_DEVICES)
    row: Row | None = connection.execute(
        "SELECT id, hpke_public_key, identity_key, identity_keyid FROM device WHERE tenant_id = ? AND uid = ? AND "
        "(CAST(? AS TEXT) IS NULL OR product_id IN (SELECT id FROM product WHERE name = ?))",
        (scope.tenant_id, device_id, scope.product, scope.product),
    ).fetchone()
    if row is None:
        raise NotFoundError("There is no such device", device_id=device_id[:80])
    return row
