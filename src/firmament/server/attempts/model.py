"""Values of the attempts domain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from firmament.server.attempts.machine import AttemptState

if TYPE_CHECKING:
    from firmament.core.ids import AttemptId
    from firmament.core.manifest import Manifest
    from firmament.server.database.port import Row


@dataclass(frozen=True, slots=True)
class OpenAttempt:
    """The attempt a device has now, with what the director needs to know about the release."""

    row_id: int
    attempt_id: AttemptId
    state: AttemptState
    code: str
    boot_id_before: str
    target: str
    manifest: Manifest
    takes_back: AttemptId | None = None
    """The attempt that this one takes back: the device goes to the slot it still holds."""


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """One attempt as operators see it."""

    attempt_id: str
    device_id: str
    release: str
    state: AttemptState
    active: bool
    code: str
    message: str
    log: str
    boot_id_before: str
    boot_id: str
    created_at: int
    updated_at: int

    @classmethod
    def of_row(cls, row: Row) -> AttemptRecord:
        """Read a row of `store.SELECT`."""
        return cls(
            attempt_id=row["uid"],
            device_id=row["device_uid"],
            release=f"{row['product']}/{row['version']}",
            state=AttemptState(row["state"]),
            active=bool(row["active"]),
            code=row["code"],
            message=row["message"],
            log=row["log"],
            boot_id_before=row["boot_id_before"],
            boot_id=row["boot_id"],
            created_at=row["created_at"],
            updated_at=row["updated_at"],
        )
