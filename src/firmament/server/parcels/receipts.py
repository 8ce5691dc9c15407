"""Receipts: what a device did without a network, believed because its own key signed it, twice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from firmament.core.digest import Digest
from firmament.errors import ConflictError, DisagreementError
from firmament.protocol.parcel import RECEIPT_TYPE, decode_receipt
from firmament.protocol.status import AttemptStatus
from firmament.server import device_link, events
from firmament.server.attempts import service as attempts
from firmament.server.device_link import Session, UpdateInventory
from firmament.server.events import Event
from firmament.server.inventory.store import decode_manifest
from firmament.server.reports import open_report, open_signed

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from firmament.protocol.parcel import Receipt, ReceiptFile
    from firmament.protocol.v1.messages import Report
    from firmament.server.attempts.model import OpenAttempt
    from firmament.server.database.port import Connection
    from firmament.server.inventory.model import Device
    from firmament.server.scope import Scope


@dataclass(frozen=True, slots=True)
class Opened:
    """A receipt file whose signatures are those of the device it names."""

    receipt: Receipt
    report: Report
    signed: bytes
    """The report's bytes."""


def open_file(file: ReceiptFile, device: Device, identity_key: bytes) -> Opened:
    """Verify both envelopes; raises SignatureError, MalformedError, or DisagreementError when they differ."""
    keyid = device.identity_keyid
    receipt = decode_receipt(open_signed(file.receipt, RECEIPT_TYPE, identity_key=identity_key, keyid=keyid).payload)
    report, signed = open_report(file.report, identity_key=identity_key, keyid=keyid)
    told = (receipt.device_id, receipt.attempt_id, receipt.outcome, receipt.report_number, receipt.report_digest)
    if told != (report.device_id, report.attempt_id, report.status, report.report_number, Digest.of(signed)):
        raise DisagreementError("Receipt and report do not belong together", attempt_id=receipt.attempt_id)
    return Opened(receipt, report, signed)


def take(
    connection: Connection,
    scope: Scope,
    device: Device,
    attempt: OpenAttempt | None,
    opened: Opened,
    now: datetime,
) -> bool:
    """Record what a receipt says, once; whether it was new. Raises ReplayError, ConflictError.

    It counts like the report that it holds. An older one than the server has heard since tells
    about its attempt, and nothing about what runs now.
    """
    report, signed = opened.report, opened.signed
    if attempts.was_accepted(connection, device, report.report_number, Digest.of(signed).value):
        return False
    newer = connection.execute(
        "SELECT 1 FROM report WHERE device_id = ? AND number > ?", (device.row_id, report.report_number)
    ).fetchone()
    if attempt is None:
        _record_local(connection, scope, device, opened, now)
    _, effects = device_link.on_report(Session(device, attempt), report, signed)
    if attempt is None and report.status is AttemptStatus.CONFIRMED:
        effects.append(
            UpdateInventory(
                report.version, report.sequence_number, opened.receipt.image_digest, report.boot_id, device.attributes
            )
        )
    kept = [effect for effect in effects if newer is None or not isinstance(effect, UpdateInventory)]
    attempts.carry_out(connection, scope, device, kept, now)
    events.append(
        connection,
        scope,
        Event.RECEIPT_IMPORTED,
        now,
        subject=device.device_id,
        attempt_id=report.attempt_id,
        release=opened.receipt.release_id,
        state=report.status.value,
        code=report.code,
    )
    return True


def _record_local(connection: Connection, scope: Scope, device: Device, opened: Opened, now: datetime) -> None:
    """Write down an attempt that only the device knew of: a parcel without a director.

    Raises ConflictError for a release that was not published here: nothing could be said about it.
    """
    receipt, report = opened.receipt, opened.report
    product, _, version = receipt.release_id.partition("/")
    row = connection.execute(
        "SELECT r.id, r.manifest FROM release r JOIN product p ON p.id = r.product_id "
        "WHERE r.tenant_id = ? AND p.name = ? AND r.version = ?",
        (scope.tenant_id, product, version),
    ).fetchone()
    if row is None or product != device.product:
        raise ConflictError("The release of the receipt was not published here", release=receipt.release_id)
    manifest = decode_manifest(bytes(row["manifest"]))
    if report.status is AttemptStatus.CONFIRMED and (
        receipt.image_digest,
        report.sequence_number,
        report.version,
    ) != (str(manifest.image.digest), manifest.sequence_number, manifest.version):
        raise ConflictError("The device confirmed another image than the release", release=receipt.release_id)
    moment = int(now.timestamp())
    connection.execute(
        "INSERT INTO attempt(tenant_id, uid, device_id, release_id, state, active, code, message, boot_id, "
        "created_at, updated_at) VALUES (?, ?, ?, ?, ?, 0, ?, ?, ?, ?, ?)",
        (
            scope.tenant_id,
            report.attempt_id,
            device.row_id,
            row["id"],
            report.status.value,
            report.code,
            report.message,
            report.boot_id,
            moment,
            moment,
        ),
    )


def answer(opened: Opened, *, is_new: bool) -> Mapping[str, Any]:
    """Return what the operator is told."""
    receipt = opened.receipt
    return {
        "device_id": receipt.device_id,
        "attempt_id": receipt.attempt_id,
        "release": receipt.release_id,
        "outcome": receipt.outcome.value,
        "new": is_new,
    }
