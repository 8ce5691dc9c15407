"""Row 14: messages that wake the devices of a wave, on a real broker, for a small and a large fleet."""

from __future__ import annotations

import asyncio
import subprocess
from typing import TYPE_CHECKING

from harness import Line, Scale, free_port, limit, process, wait_for_port

from firmament.core.clock import SystemClock
from firmament.server import events
from firmament.server.database.connection import SqliteDatabase
from firmament.server.events import Event
from firmament.server.outbox.senders import BrokerSender
from firmament.server.outbox.wake import Waker
from firmament.server.scope import Scope

if TYPE_CHECKING:
    from pathlib import Path


async def opening(path: Path, port: int, rollout: str, wave: int) -> int:
    """Open a wave; return how many messages that published."""
    database, clock = SqliteDatabase(path), SystemClock()
    try:
        waker = Waker(database, BrokerSender(clock, url=f"mqtt://127.0.0.1:{port}"), spread_s=60)
        for _ in range(50):
            await waker.run_once()  # what happened before
        before = waker.published
        await database.submit(
            lambda connection: events.append(
                connection, Scope(1, "server"), Event.WAVE_OPENED, clock.now(), subject=rollout, wave=wave
            )
        )
        await waker.run_once()
        return waker.published - before
    finally:
        database.close()


def measure(place: Path, fleets: list[tuple[Path, str, int, int]], scale: Scale) -> list[Line]:
    """Row 14; `fleets` are database, rollout, wave and how many devices the wave has."""
    settings = place / "mosquitto.conf"
    port = free_port()
    settings.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n")
    lines = []
    with process(["mosquitto", "-c", str(settings)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as broker:
        wait_for_port(port, broker)
        for path, rollout, wave, devices in fleets:
            found = asyncio.run(opening(path, port, rollout, wave))
            line = limit("14", f"MQTT messages when a wave of {devices:,} devices opens", found, 256, unit="messages")
            line.baseline, line.ratio = f"one for each device: {devices:,} messages", found / max(1, devices)
            line.holds = line.holds and found > 0
            lines.append(line)
    return lines
