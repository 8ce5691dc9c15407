"""Prometheus metrics (text format 0.0.4): few series, whatever the size of the fleet.

Labels come from enums of this code, never from devices, releases or people, so the number of
series has a ceiling. What is counted in the database is counted at most every `FRESH_S`.
"""

from __future__ import annotations

import hmac
import ipaddress
from typing import TYPE_CHECKING, Any, Final

from firmament.errors import ForbiddenError, UnauthenticatedError
from firmament.server import leader

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from firmament.server.database.port import Connection

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
FRESH_S: Final = 15.0
MAX_LABELS: Final = 100

Sample = tuple[str, "Mapping[str, str]", float]

HELP: Final[dict[str, tuple[str, str]]] = {
    "firmament_info": ("gauge", "Version of the server."),
    "firmament_leader": ("gauge", "1 on the one server that does what happens by itself, else 0."),
    "firmament_leader_seconds": ("gauge", "How long this server has led; 0 when it does not."),
    "firmament_replicas": ("gauge", "Servers on this database that were heard of lately; 0 on SQLite."),
    "firmament_audit_events_total": ("counter", "Events in the audit chains of all tenants."),
    "firmament_audit_unsigned_events": ("gauge", "Events that no checkpoint covers yet."),
    "firmament_devices": ("gauge", "Enrolled devices that are not disabled."),
    "firmament_devices_seen_recently": ("gauge", "Devices that asked within the last hour."),
    "firmament_attempts_open": ("gauge", "Open attempts by status."),
    "firmament_rollouts": ("gauge", "Rollouts by state."),
    "firmament_notifications_open": ("gauge", "Notifications whose state has not ended, by severity."),
    "firmament_outlets_disabled": ("gauge", "Outlets that were switched off after failures."),
    "firmament_deliveries_total": ("counter", "Deliveries of this process, by outcome."),
    "firmament_metadata_expires_seconds": ("gauge", "Unix time at which a role's metadata expires."),
}


def require_reader(*, token: str, address: str, authorization: str) -> None:
    """Raise unless the reader has the token, or is on this machine when there is none."""
    if token:
        kind, _, given = authorization.partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), token.encode()):
            raise UnauthenticatedError("Metrics need the token of the setting metrics_token")
        return
    try:
        is_here = ipaddress.ip_address(address).is_loopback
    except ValueError:
        is_here = False
    if not is_here:
        raise ForbiddenError("Metrics are read on this machine only; set metrics_token to read them from elsewhere")


def count(connection: Connection, now: int) -> list[Sample]:
    """Count what the database knows."""

    def one(sql: str, *parameters: Any) -> float:
        return float(connection.execute(sql, parameters).fetchone()["n"] or 0)

    samples: list[Sample] = [
        ("firmament_audit_events_total", {}, one("SELECT sum(number) AS n FROM chain_head")),
        (
            "firmament_audit_unsigned_events",
            {},
            one(
                "SELECT sum(h.number - (SELECT COALESCE(max(c.number), 0) FROM checkpoint c "
                "WHERE c.tenant_id = h.tenant_id)) AS n FROM chain_head h"
            ),
        ),
        ("firmament_devices", {}, one("SELECT count(*) AS n FROM device WHERE disabled = 0")),
        (
            "firmament_devices_seen_recently",
            {},
            one("SELECT count(*) AS n FROM device_seen WHERE last_seen >= ?", now - 3600),
        ),
        ("firmament_replicas", {}, float(len(leader.peers(connection)))),
        ("firmament_outlets_disabled", {}, one("SELECT count(*) AS n FROM outlet WHERE disabled_at IS NOT NULL")),
    ]
    for name, label, sql in (
        ("firmament_attempts_open", "status", "SELECT state AS l, count(*) AS n FROM attempt WHERE active = 1"),
        ("firmament_rollouts", "state", "SELECT state AS l, count(*) AS n FROM rollout"),
        (
            "firmament_notifications_open",
            "severity",
            "SELECT severity AS l, count(*) AS n FROM notification WHERE closed_at IS NULL",
        ),
    ):
        rows = connection.execute(f"{sql} GROUP BY 1 ORDER BY 1 LIMIT ?", (MAX_LABELS,))
        samples += [(name, {label: str(row["l"])}, float(row["n"])) for row in rows]
    return samples


def write(samples: Iterable[Sample]) -> bytes:
    """Return the text that Prometheus reads."""
    grouped: dict[str, list[str]] = {}
    for name, labels, value in samples:
        text = ",".join(f'{label}="{_escaped(found)}"' for label, found in labels.items())
        number = str(int(value)) if value == int(value) else repr(value)
        grouped.setdefault(name, []).append(f"{name}{{{text}}} {number}" if text else f"{name} {number}")
    lines: list[str] = []
    for name, found in grouped.items():
        kind, meaning = HELP[name]
        lines += [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}", *found]
    return ("\n".join(lines) + "\n").encode()


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
