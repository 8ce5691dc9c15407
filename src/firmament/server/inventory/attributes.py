"""What devices report about themselves, one row a fact, so that queries find it by index."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from firmament.core.canonical import decode_object

if TYPE_CHECKING:
    from firmament.server.database.port import Connection

MAX_LENGTH_BYTES: Final = 64 * 1024
ZONE: Final = "zone"
"""The device's time zone (IANA name), for windows on its own clock."""
HEALTH: Final = "health"
"""What the device's own checks say after the trial: ``ok`` or ``failing``."""


def decode_attributes(text: str) -> dict[str, str]:
    """Read the canonical JSON of `device.attributes`."""
    value = decode_object(text.encode(), limit_bytes=MAX_LENGTH_BYTES, what="attributes")
    return {name: item for name, item in value.items() if isinstance(item, str)}


def write_attributes(connection: Connection, tenant_id: int, device_row: int, *, was: str, now: str) -> None:
    """Bring a device's rows from one description to the next, in the caller's transaction."""
    if was == now:
        return
    before, after = decode_attributes(was), decode_attributes(now)
    gone = [(device_row, name) for name in before if name not in after]
    # PostgreSQL's text has no NUL; a fact with one cannot be asked about.
    new = [
        (device_row, name, tenant_id, value)
        for name, value in after.items()
        if before.get(name) != value and "\0" not in name + value
    ]
    if gone:
        connection.executemany("DELETE FROM device_attribute WHERE device_id = ? AND name = ?", gone)
    if new:
        connection.executemany(
            "INSERT INTO device_attribute(device_id, name, tenant_id, value) VALUES (?, ?, ?, ?) "
            "ON CONFLICT(device_id, name) DO UPDATE SET value = excluded.value",
            new,
        )
