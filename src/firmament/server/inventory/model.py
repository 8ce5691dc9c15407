"""Values of the inventory."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from firmament.core.ids import DeviceId
    from firmament.server.database.port import Row


class Mark(StrEnum):
    """What people set on one device; queries say ``state=pinned``."""

    PINNED = "pinned"
    """It stays on what it runs."""
    MUTED = "muted"
    """Its alarms wake nobody."""


@dataclass(frozen=True, slots=True)
class Device:
    """One enrolled device, as the server last knew it."""

    row_id: int
    tenant_id: int
    device_id: DeviceId
    product: str
    hardware: str
    identity_keyid: str
    is_disabled: bool
    version: str
    sequence_number: int
    image_digest: str
    boot_id: str
    attributes: str
    """Canonical JSON, so that a change is seen by comparing."""

    @classmethod
    def of_row(cls, row: Row) -> Device:
        """Read a row of `store.LINK_QUERY`."""
        return cls(
            row_id=row["id"],
            tenant_id=row["tenant_id"],
            device_id=row["uid"],
            product=row["product"],
            hardware=row["hardware"],
            identity_keyid=row["identity_keyid"],
            is_disabled=bool(row["disabled"]),
            version=row["version"],
            sequence_number=row["sequence_number"],
            image_digest=row["image_digest"],
            boot_id=row["boot_id"],
            attributes=row["attributes"],
        )


@dataclass(frozen=True, slots=True)
class DeviceRecord:
    """One device as operators see it."""

    device_id: str
    product: str
    hardware: str
    serial: str
    disabled: bool
    version: str
    sequence_number: int
    image_digest: str
    boot_id: str
    attributes: str
    enrolled_at: int
    last_seen: int | None
    row_id: int

    @classmethod
    def of_row(cls, row: Row) -> DeviceRecord:
        """Read a row of `store.LIST_QUERY`."""
        return cls(
            device_id=row["uid"],
            product=row["product"],
            hardware=row["hardware"],
            serial=row["serial"],
            disabled=bool(row["disabled"]),
            version=row["version"],
            sequence_number=row["sequence_number"],
            image_digest=row["image_digest"],
            boot_id=row["boot_id"],
            attributes=row["attributes"],
            enrolled_at=row["enrolled_at"],
            last_seen=row["last_seen"],
            row_id=row["id"],
        )
