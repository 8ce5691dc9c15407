"""SQL of the inventory. Plain and portable; every query takes the scope first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from firmament.core import manifest as manifests
from firmament.core.canonical import decode_object
from firmament.core.ids import AttemptId
from firmament.errors import NotFoundError
from firmament.server.attempts.machine import AttemptState
from firmament.server.attempts.model import OpenAttempt
from firmament.server.inventory.model import Device, DeviceRecord
from firmament.server.rollouts.board import PendingTarget
from firmament.server.rollouts.machine import TargetStatus

if TYPE_CHECKING:
    from firmament.core.manifest import Manifest
    from firmament.server.database.port import Connection, Database, Row
    from firmament.server.scope import Scope

LINK_QUERY: Final = """
SELECT d.uid AS look_up_key,
       d.id, d.tenant_id, d.uid, p.name AS product, d.hardware, d.identity_keyid, d.disabled, d.version,
       d.sequence_number, d.image_digest, d.boot_id, d.attributes,
       a.id AS attempt_row, a.uid AS attempt_uid, a.state, a.code, a.boot_id_before, a.takes_back,
       r.id AS release_row, r.target, r.manifest,
       t.rollout_id AS target_rollout, t.wave AS target_wave, t.status AS target_status, t.not_before
FROM device d
JOIN product p ON p.id = d.product_id
LEFT JOIN attempt a ON a.device_id = d.id AND a.active = 1
LEFT JOIN rollout_target t ON t.device_id = d.id AND t.active = 1
LEFT JOIN release r ON r.id = a.release_id AND r.withdrawn_at IS NULL
WHERE d.uid = ?
"""
"""The poll's one read: four look-ups by key (stack.md §3)."""
GLANCE_QUERY: Final = """
SELECT d.uid AS look_up_key, d.id, d.identity_keyid, d.disabled, a.id AS attempt_row, d.sequence_number, d.attributes,
       t.rollout_id, t.wave, t.status, t.not_before
FROM device d
LEFT JOIN attempt a ON a.device_id = d.id AND a.active = 1
LEFT JOIN rollout_target t ON t.device_id = d.id AND t.active = 1
WHERE d.uid = ?
"""
"""The same tables as the poll's, for one that only asks whether there is anything (ADR-0037)."""

ATTEMPT_QUERY: Final = """
SELECT a.uid AS look_up_key,
       a.id AS attempt_row, a.uid AS attempt_uid, a.state, a.code, a.boot_id_before, a.device_id, a.takes_back,
       r.id AS release_row, r.target, r.manifest
FROM attempt a JOIN release r ON r.id = a.release_id WHERE a.uid = ?
"""
KEY_QUERY: Final = "SELECT uid AS look_up_key, identity_key FROM device WHERE uid = ?"
LIST_QUERY: Final = """
SELECT d.id, d.uid, p.name AS product, d.hardware, d.serial, d.disabled, d.version, d.sequence_number,
       d.image_digest, d.boot_id, d.attributes, d.enrolled_at, s.last_seen
FROM device d
JOIN product p ON p.id = d.product_id
LEFT JOIN device_seen s ON s.device_id = d.id
WHERE d.tenant_id = ? AND (CAST(? AS TEXT) IS NULL OR p.name = ?)
"""
MAX_CACHED_MANIFESTS: Final = 256


class LinkReader:
    """Point reads for the device edge: on SQLite in the event loop, about 10 microseconds each."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._manifests: dict[int, Manifest] = {}

    async def find(self, device_id: str) -> tuple[Device, OpenAttempt | None, PendingTarget | None] | None:
        """Return a device by the name in its certificate, its open attempt, and the rollout that wants it."""
        row = await self._database.look_up(LINK_QUERY, device_id)
        if row is None:
            return None
        attempt = None
        if row["attempt_row"] is not None and row["release_row"] is not None:
            attempt = self._attempt(row)
        target = None
        if row["target_rollout"] is not None:
            target = PendingTarget(
                row["target_rollout"], row["target_wave"], TargetStatus(row["target_status"]), row["not_before"]
            )
        return Device.of_row(row), attempt, target

    async def attempt(self, attempt_id: str) -> tuple[OpenAttempt, int] | None:
        """Return any attempt and the row id of the device it belongs to."""
        row = await self._database.look_up(ATTEMPT_QUERY, attempt_id)
        return None if row is None else (self._attempt(row), int(row["device_id"]))

    async def identity_key(self, device: Device) -> bytes:
        """Return the public key that a device enrolled with (SubjectPublicKeyInfo, DER)."""
        row = await self._database.look_up(KEY_QUERY, device.device_id)
        return bytes(row["identity_key"])

    def _attempt(self, row: Row) -> OpenAttempt:
        return OpenAttempt(
            row_id=row["attempt_row"],
            attempt_id=AttemptId(row["attempt_uid"]),
            state=AttemptState(row["state"]),
            code=row["code"],
            boot_id_before=row["boot_id_before"],
            target=row["target"],
            manifest=self._manifest(row["release_row"], row["manifest"]),
            takes_back=None if row["takes_back"] is None else AttemptId(row["takes_back"]),
        )

    def _manifest(self, release_row: int, data: bytes) -> Manifest:
        # A release never changes, so its manifest is decoded once.
        found = self._manifests.get(release_row)
        if found is None:
            if len(self._manifests) >= MAX_CACHED_MANIFESTS:
                self._manifests.clear()
            found = decode_manifest(data)
            self._manifests[release_row] = found
        return found


def decode_manifest(data: bytes) -> Manifest:
    """Read a stored manifest."""
    limit = manifests.MAX_MANIFEST_LENGTH_BYTES
    return manifests.decode(decode_object(data, limit_bytes=limit, what="manifest"))


def get_device(connection: Connection, scope: Scope, device_id: str) -> DeviceRecord:
    """Return one device; raises NotFoundError, also for a device of another tenant or product."""
    row = connection.execute(
        LIST_QUERY + " AND d.uid = ?", (scope.tenant_id, scope.product, scope.product, device_id)
    ).fetchone()
    if row is None:
        raise NotFoundError("There is no such device", device_id=device_id[:80])
    return DeviceRecord.of_row(row)
