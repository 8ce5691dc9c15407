"""Row 5: writing down when devices were heard, in batches and one by one."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

from harness import Line, Scale, at_least, limit, median

from firmament.core.clock import SystemClock
from firmament.server.database.connection import SqliteDatabase, connect
from firmament.server.database.postgres import PostgresDatabase
from firmament.server.seen import MAX_ROWS_PER_TRANSACTION, LastSeen, write_seen

if TYPE_CHECKING:
    from pathlib import Path

SINGLE = 200


def heard(first: int, count: int, moment: int) -> list[tuple[int, int, str, int]]:
    """Let devices be heard; return what the server would write."""
    known = LastSeen()
    for row in range(first + 1, first + count + 1):
        known.note(row, moment, "192.0.2.1", is_idle_poll=True)
    return known.take()


async def postgres_rates(target, scale: Scale) -> tuple[float, float]:
    """Return rows a second in batches, and one commit each."""
    database, now_s = PostgresDatabase(target, SystemClock()), int(SystemClock().now().timestamp())
    batch = min(MAX_ROWS_PER_TRANSACTION, scale.devices)
    single = min(SINGLE, scale.devices)
    many, one = [], []
    try:
        for turn in range(scale.rounds + 1):
            rows = heard(0, batch, now_s + 60 * turn)
            started_s = time.monotonic()
            await database.submit(lambda connection, rows=rows: write_seen(connection, rows))
            many.append(batch / (time.monotonic() - started_s))
            started_s = time.monotonic()
            for row in heard(0, single, now_s + 60 * turn + 30):
                await database.submit(lambda connection, row=row: write_seen(connection, [row]))
            one.append(single / (time.monotonic() - started_s))
    finally:
        await database.end()
        database.close()
    return median(many[1:]), median(one[1:])


async def worst_lag_ms(until: asyncio.Event) -> float:
    """Return how late the loop came back from a sleep of a millisecond, at worst."""
    worst = 0.0
    while not until.is_set():
        started_s = time.monotonic()
        await asyncio.sleep(0.001)
        worst = max(worst, time.monotonic() - started_s - 0.001)
    return 1000 * worst


async def sqlite_cost(path: Path, scale: Scale) -> tuple[float, float, float, float]:
    """Return CPU us a row, of a bare UPDATE too, and the loop's worst lag while writing and idle."""
    batch = min(MAX_ROWS_PER_TRANSACTION, scale.devices)
    database, now_s = SqliteDatabase(path), int(SystemClock().now().timestamp())
    ours, bare, lags, idle = [], [], [], []
    try:
        for turn in range(scale.rounds + 1):
            rows = heard(0, batch, now_s + 60 * turn)
            done = asyncio.Event()
            watching = asyncio.create_task(worst_lag_ms(done))
            await asyncio.sleep(0)
            started_s, started_cpu_s = time.monotonic(), time.process_time()
            for _ in range(4):
                await database.submit(lambda connection, rows=rows: write_seen(connection, rows))
            ours.append((time.process_time() - started_cpu_s) / (4 * batch) * 1e6)
            lasted_s = time.monotonic() - started_s
            done.set()
            lags.append(await watching)
            done = asyncio.Event()
            watching = asyncio.create_task(worst_lag_ms(done))
            await asyncio.sleep(lasted_s)
            done.set()
            idle.append(await watching)
            pairs = [(row[1], row[0]) for row in rows]
            with contextlib.closing(connect(path)) as connection:
                started_cpu_s = time.process_time()
                for _ in range(4):
                    connection.execute("BEGIN IMMEDIATE")
                    connection.executemany("UPDATE device_seen SET last_seen = ? WHERE device_id = ?", pairs)
                    connection.execute("COMMIT")
                bare.append((time.process_time() - started_cpu_s) / (4 * batch) * 1e6)
    finally:
        database.close()
    return median(ours[1:]), median(bare[1:]), median(lags[1:]), median(idle[1:])


def measure(target, path: Path, scale: Scale) -> list[Line]:
    """Row 5."""
    many, one = asyncio.run(postgres_rates(target, scale))
    ours, bare, lag, idle = asyncio.run(sqlite_cost(path, scale))
    cost = limit("5", "last seen on SQLite in batches, CPU a row", ours, 12, unit="us")
    cost.baseline, cost.ratio = f"bare UPDATE of one column: {bare:.3g} us", ours / bare
    late = limit("5", "the loop's worst lag meanwhile", lag, 15, unit="ms")
    late.baseline, late.ratio = f"idle: {idle:.3g} ms", lag / idle
    return [
        at_least("5", "last seen on PostgreSQL in batches", many, one, 50, unit="rows/s", name="one commit each"),
        cost,
        late,
    ]
