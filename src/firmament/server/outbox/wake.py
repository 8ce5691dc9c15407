"""Waking devices by MQTT: one retained message a bucket, never one a device.

A device subscribes to the topic of its bucket. When a wave opens, the buckets of its devices
get ``{"v": 1, "rev": number of the event, "spread_s": ...}``; a device then polls at a random
moment within the spread. The message decides nothing: losing it costs a poll interval.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from firmament.log import logger
from firmament.protocol.v1.wake import WAKE_TOPICS, Wake, wake_topic
from firmament.server import events
from firmament.server.events import Event
from firmament.server.scope import Scope

if TYPE_CHECKING:
    from firmament.server.database.port import Connection, Database
    from firmament.server.outbox.senders import BrokerSender

log = logger("server.wake")

CROWDED: Final = 20 * WAKE_TOPICS
"""A wave of so many devices has some in every bucket: one without any is woken for nothing, and nobody minds."""
CURSOR: Final = "wake-cursor:"

_SIZE: Final = """
SELECT SUM(c.n) AS n FROM rollout_counter c JOIN rollout r ON r.id = c.rollout_id
WHERE r.tenant_id = ? AND r.uid = ? AND c.wave = ?
"""
_OF_WAVE: Final = """
SELECT DISTINCT d.bucket AS bucket FROM rollout_target t JOIN rollout r ON r.id = t.rollout_id
JOIN device d ON d.id = t.device_id WHERE r.tenant_id = ? AND r.uid = ? AND t.wave = ?
"""


class Waker:
    """Publishes for the events that give devices something to do."""

    def __init__(self, database: Database, broker: BrokerSender, *, spread_s: int) -> None:
        self._database = database
        self._broker = broker
        self._spread_s = spread_s
        self.published = 0

    async def run_once(self) -> None:
        """Look at new events of each tenant; publish at most one message a bucket for all of them."""
        for tenant_id in await self._database.read(_tenants):
            cursor = await self._database.read(lambda connection, tenant=tenant_id: _cursor(connection, tenant))  # type: ignore[misc]  # bound now
            buckets, upto = await self._database.scan(
                lambda connection, tenant=tenant_id, after=cursor: _to_wake(connection, tenant, after)  # type: ignore[misc]  # bound now
            )
            if upto == cursor:
                continue
            if buckets:
                body = json.dumps(Wake(upto, self._spread_s).to_json()).encode()
                answer = await self._broker.publish(
                    [(wake_topic(tenant_id, bucket), body) for bucket in sorted(buckets)], retain=True
                )
                if not answer.ok:
                    log.warning("wake.failed", tenant_id=tenant_id, answer=answer.text)
                    return  # the same again at the next turn
                self.published += len(buckets)
            await self._database.submit(
                lambda connection, tenant=tenant_id, upto=upto: _move(connection, tenant, upto)  # type: ignore[misc]  # bound now
            )


def _tenants(connection: Connection) -> list[int]:
    return [row["tenant_id"] for row in connection.execute("SELECT tenant_id FROM chain_head ORDER BY tenant_id")]


def _cursor(connection: Connection, tenant_id: int) -> int:
    row = connection.execute("SELECT value FROM number WHERE name = ?", (f"{CURSOR}{tenant_id}",)).fetchone()
    return 0 if row is None else int(row["value"])


def _move(connection: Connection, tenant_id: int, upto: int) -> None:
    connection.execute(
        "INSERT INTO number(name, value) VALUES (?, ?) ON CONFLICT(name) DO UPDATE SET value = excluded.value",
        (f"{CURSOR}{tenant_id}", upto),
    )


def _to_wake(connection: Connection, tenant_id: int, after: int) -> tuple[set[int], int]:
    """Return the buckets that the next events concern, and the number of the last event looked at."""
    buckets: set[int] = set()
    found = events.find_events(connection, Scope(tenant_id, "server"), events.Wanted(), after=after)
    for event in found:
        if event["kind"] == Event.WAVE_OPENED.value:
            buckets |= _of_wave(connection, tenant_id, event["subject"], event["facts"].get("wave"))
        elif event["kind"] == Event.ATTEMPT_ASSIGNED.value:
            row = connection.execute(
                "SELECT bucket FROM device WHERE tenant_id = ? AND uid = ?", (tenant_id, event["subject"])
            ).fetchone()
            buckets |= {int(row["bucket"]) % WAKE_TOPICS} if row is not None else set()
    return buckets, (found[-1]["id"] if found else after)


def _of_wave(connection: Connection, tenant_id: int, rollout_id: str, wave: int) -> set[int]:
    """Return the buckets of a wave's devices: by its counters if it is large, looking at each target if not."""
    key = (tenant_id, rollout_id, wave)
    size = connection.execute(_SIZE, key).fetchone()["n"] or 0
    if size >= CROWDED:
        return set(range(WAKE_TOPICS))
    return {int(row["bucket"]) % WAKE_TOPICS for row in connection.execute(_OF_WAVE, key)}
