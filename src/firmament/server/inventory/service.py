"""Enrolment: how a device gets its name and its certificate, and how it loses them.

A token is for one product (and hardware, if it says so), a number of devices and a time. Asking
again with the same token *and* the same key gives the same name: a device whose answer was lost
is not stranded. The same key by any other way is a clone and refused.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from firmament.core.ids import HARDWARE, DeviceId, check, product_name
from firmament.errors import ConflictError, EnrolmentTokenError, MalformedError, NotFoundError
from firmament.protocol.v1 import wake
from firmament.server import events
from firmament.server.authority import ProvenRequest, issue_device_certificate, read_request
from firmament.server.events import Event
from firmament.server.products import ensure_product
from firmament.server.scope import SERVER, Action, Scope, of_device
from firmament.server.tokens import ENROLMENT_PREFIX, hash_token, make_token

if TYPE_CHECKING:
    from datetime import datetime

    from firmament.server.authority import Authority
    from firmament.server.database.port import Connection

MAX_TOKEN_LIFETIME: Final = timedelta(days=366)
MAX_TOKEN_USES: Final = 1_000_000
BUCKETS: Final = wake.BUCKETS
"""A device's bucket is fixed at enrolment; waves are ranges of it (stack.md §3)."""


@dataclass(frozen=True, slots=True)
class Applicant:
    """What a device says about itself when it enrols; its request is proof of the key."""

    product: str
    hardware: str
    serial: str
    request: ProvenRequest
    hpke_public_key: bytes


@dataclass(frozen=True, slots=True)
class Enrolled:
    """The name a device got and its certificate chain, leaf first."""

    device_id: DeviceId
    certificate_chain_pem: str


@dataclass(frozen=True, slots=True)
class Registrar:
    """The device CA and how long its certificates live."""

    authority: Authority
    certificate_days: int

    def certify(self, device_id: DeviceId, request: ProvenRequest, now: datetime) -> Enrolled:
        """Issue a certificate for a device that is registered."""
        chain = issue_device_certificate(
            self.authority, request, device_id=device_id, days=self.certificate_days, now=now
        )
        return Enrolled(device_id, chain)


def applicant(*, product: str, hardware: str, serial: str, csr_pem: str, hpke_public_key: bytes) -> Applicant:
    """Check what a device sent; raises MalformedError or SignatureError."""
    return Applicant(
        product=product_name(product),
        hardware=check(hardware, HARDWARE, what="The hardware name"),
        serial=serial,
        request=read_request(csr_pem),
        hpke_public_key=hpke_public_key,
    )


def issue_enrolment_token(
    connection: Connection,
    scope: Scope,
    *,
    product: str,
    hardware: str | None,
    lifetime: timedelta,
    uses: int,
    now: datetime,
) -> str:
    """Return a new token, shown once; raises ForbiddenError or MalformedError."""
    scope.require(Action.ENROL, product=product)
    if not timedelta(0) < lifetime <= MAX_TOKEN_LIFETIME:
        raise MalformedError("The token's lifetime is out of range", maximum_days=MAX_TOKEN_LIFETIME.days)
    if not 1 <= uses <= MAX_TOKEN_USES:
        raise MalformedError("The token's number of uses is out of range", maximum=MAX_TOKEN_USES)
    if hardware is not None:
        check(hardware, HARDWARE, what="The hardware name")
    token, hashed = make_token(ENROLMENT_PREFIX)
    expires = now + lifetime
    connection.execute(
        "INSERT INTO enrolment_token(tenant_id, hash, product_id, hardware, uses_left, created_by, created_at, "
        "expires_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            scope.tenant_id,
            hashed,
            ensure_product(connection, scope, product, now),
            hardware,
            uses,
            scope.actor,
            int(now.timestamp()),
            int(expires.timestamp()),
        ),
    )
    events.append(connection, scope, Event.ENROLMENT_TOKEN_ISSUED, now, subject=product, hardware=hardware, uses=uses)
    return token


def enrol_with_token(
    connection: Connection, registrar: Registrar, token: str, device: Applicant, now: datetime
) -> Enrolled:
    """Register a device that presents a one-time token.

    Raises EnrolmentTokenError for a token that is unknown, used up, expired or for something
    else, ConflictError for an identity that is registered already.
    """
    row = connection.execute(
        "SELECT t.id, t.tenant_id, t.hardware, t.uses_left, t.expires_at, p.name AS product, p.id AS product_id "
        "FROM enrolment_token t JOIN product p ON p.id = t.product_id WHERE t.hash = ?",
        (hash_token(token),),
    ).fetchone()
    if row is None:
        raise EnrolmentTokenError("There is no such enrolment token")
    known = connection.execute(
        "SELECT uid, disabled, hpke_public_key FROM device WHERE identity_keyid = ? AND enrolment_token_id = ?",
        (device.request.keyid, row["id"]),
    ).fetchone()
    is_repeat = known is not None and not known["disabled"] and known["hpke_public_key"] == device.hpke_public_key
    if is_repeat and now.timestamp() < row["expires_at"]:
        return registrar.certify(DeviceId(known["uid"]), device.request, now)
    if now.timestamp() >= row["expires_at"]:
        raise EnrolmentTokenError("The enrolment token has expired", expired_at=row["expires_at"])
    if row["uses_left"] < 1:
        raise EnrolmentTokenError("The enrolment token was used before")
    if row["product"] != device.product or row["hardware"] not in {None, device.hardware}:
        raise EnrolmentTokenError(
            "The enrolment token is for another kind of device", product=device.product, hardware=device.hardware
        )
    connection.execute("UPDATE enrolment_token SET uses_left = uses_left - 1 WHERE id = ?", (row["id"],))
    return _register(connection, registrar, row["tenant_id"], row["product_id"], row["id"], device, now)


def enrol_with_request(
    connection: Connection, scope: Scope, registrar: Registrar, device: Applicant, now: datetime
) -> Enrolled:
    """Register a device by its request alone, vouched for by an operator (factory path)."""
    scope.require(Action.ENROL, product=device.product)
    product_id = ensure_product(connection, scope, device.product, now)
    return _register(connection, registrar, scope.tenant_id, product_id, None, device, now)


def _register(
    connection: Connection,
    registrar: Registrar,
    tenant_id: int,
    product_id: int,
    token_id: int | None,
    device: Applicant,
    now: datetime,
) -> Enrolled:
    twin = connection.execute(
        "SELECT uid FROM device WHERE identity_keyid = ? OR hpke_public_key = ?",
        (device.request.keyid, device.hpke_public_key),
    ).fetchone()
    if twin is not None:
        # Images that were cloned after provisioning carry the same keys.
        raise ConflictError("A device with this identity is enrolled already", keyid=device.request.keyid[:16])
    device_id = DeviceId(str(uuid.uuid4()))
    connection.execute(
        "INSERT INTO device(tenant_id, uid, product_id, hardware, serial, identity_keyid, identity_key, "
        "hpke_public_key, enrolment_token_id, bucket, enrolled_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            tenant_id,
            device_id,
            product_id,
            device.hardware,
            device.serial,
            device.request.keyid,
            device.request.der,
            device.hpke_public_key,
            token_id,
            wake.bucket_of(device_id),
            int(now.timestamp()),
        ),
    )
    events.append(
        connection,
        of_device(tenant_id, device_id),
        Event.DEVICE_ENROLLED,
        now,
        subject=device_id,
        product=device.product,
        hardware=device.hardware,
        keyid=device.request.keyid,
    )
    return registrar.certify(device_id, device.request, now)


def set_disabled(connection: Connection, scope: Scope, device_id: str, *, disabled: bool, now: datetime) -> None:
    """Refuse a device from now on, or take it back; raises NotFoundError or ForbiddenError."""
    scope.require(Action.MANAGE_DEVICES)
    changed = connection.execute(
        "UPDATE device SET disabled = ? WHERE tenant_id = ? AND uid = ? AND "
        "(CAST(? AS TEXT) IS NULL OR product_id IN (SELECT id FROM product WHERE name = ?))",
        (int(disabled), scope.tenant_id, device_id, scope.product, scope.product),
    )
    if changed.rowcount != 1:
        raise NotFoundError("There is no such device", device_id=device_id[:80])
    kind = Event.DEVICE_DISABLED if disabled else Event.DEVICE_ENABLED
    events.append(connection, scope, kind, now, subject=device_id)


def note_refused_enrolment(connection: Connection, *, code: str, address: str, product: str, now: datetime) -> None:
    """Record that an enrolment was refused."""
    events.append(connection, SERVER, Event.ENROLMENT_REFUSED, now, subject=product, code=code, address=address)
