"""Rows 9 to 11: a rollout to the whole fleet: writing its targets, opening a wave, counting."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from harness import Line, Scale, at_least, at_most, limit, median

from firmament.core import canonical
from firmament.core.clock import SystemClock
from firmament.core.digest import Digest
from firmament.core.manifest import Image, Manifest, Payload
from firmament.server.database.connection import SqliteDatabase, connect, transact
from firmament.server.rollouts import loops, service
from firmament.server.rollouts.actions import Request, act
from firmament.server.rollouts.machine import TargetStatus
from firmament.server.rollouts.model import Policy
from firmament.server.rollouts.pace import Pace, run_chunk
from firmament.server.rollouts.plan import find_reach
from firmament.server.rollouts.store import by_row
from firmament.server.rollouts.targets import Target, counters, find_target, move_target
from firmament.server.scope import Role, Scope

OPERATOR = Scope(1, "person:olga", Role.OPERATOR)
OTHER = Scope(1, "person:ada", Role.ADMIN)
COLUMNS = "rollout_id, device_id, tenant_id, wave, place, status, active, source, site_id, gateway_id, updated_at"
STEP = 200


def publish(connection) -> None:
    """Index a release for the fleet."""
    data, target = b"image", "thermo/2.0/firmware.img"
    manifest = Manifest(
        product="thermo",
        version="2.0",
        sequence_number=2,
        hardware=("rpi4",),
        installer="image",
        image=Image(Digest.of(data), len(data)),
        payloads=(Payload("whole", 1, target, len(data), Digest.of(data)),),
        created_at=datetime(2026, 11, 20, tzinfo=UTC),
    )
    connection.execute(
        "INSERT INTO release(tenant_id, product_id, version, sequence_number, target, length_bytes, digest, manifest, "
        "published_at) VALUES (1, 1, '2.0', 2, ?, ?, ?, ?, 0)",
        (target, len(data), str(Digest.of(data)), canonical.encode(manifest.to_json())),
    )


def create(connection, now, reach=None):
    return service.create(
        connection, OPERATOR, name="spring", release="thermo/2.0", selector="", policy=Policy(), reach=reach, now=now
    )


async def fill(path: Path, *, beside: bool = False) -> tuple[int, float, float]:
    """Create a rollout and write its targets, as the server does, with another writer `beside` or alone.

    Return its row, CPU seconds, and another writer's worst wait in milliseconds.
    """
    database, clock = SqliteDatabase(path), SystemClock()
    now, pace = clock.now(), Pace()
    worst, is_done = 0.0, False

    async def another_writer() -> None:
        nonlocal worst
        while not is_done:
            started_s = time.monotonic()
            await database.submit(lambda connection: connection.execute("UPDATE product SET created_at = created_at"))
            worst = max(worst, time.monotonic() - started_s)
            await asyncio.sleep(0.01)

    try:
        await database.submit(publish)
        writing = asyncio.create_task(another_writer()) if beside else None
        started_s = time.process_time()
        reach = await database.scan(
            lambda connection: find_reach(connection, OPERATOR, release="thermo/2.0", selector="", now=now)
        )
        made = await database.submit(lambda connection: create(connection, now, reach))
        while not (await database.read(lambda connection: by_row(connection, made.row_id))).is_filled:
            await run_chunk(database, clock, pace, now)
        spent_s = time.process_time() - started_s
        is_done = True
        if writing is not None:
            await writing
    finally:
        database.close()
    return made.row_id, spent_s, 1000 * worst


def bare(path: Path) -> float:
    """Write the same rows with one INSERT..SELECT in one transaction; return CPU seconds."""
    with contextlib.closing(connect(path)) as connection:
        transact(connection, publish)
        row = transact(connection, lambda inner: create(inner, SystemClock().now())).row_id
        started_s = time.process_time()
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(
            f"INSERT INTO rollout_target({COLUMNS}) SELECT ?, d.id, d.tenant_id, 1, d.bucket, 'waiting', 1, d.version, "
            "NULL, NULL, 0 FROM device d WHERE d.product_id = 1 ORDER BY d.id",
            (row,),
        )
        connection.execute("COMMIT")
        return time.process_time() - started_s


def opening(path: Path, rollout: int) -> list[Line]:
    """Row 10: opening each wave, the first by a tick, the others by a person; against rewriting the largest's targets.

    CPU and rows are those of the wave that took most.
    """
    with contextlib.closing(connect(path)) as connection:
        connection.execute("CREATE TEMP TABLE touched(name TEXT)")
        for table in ("device", "rollout_target"):
            for change in ("INSERT", "UPDATE", "DELETE"):
                connection.execute(
                    f"CREATE TEMP TRIGGER touched_{table}_{change} AFTER {change} ON main.{table} "
                    f"BEGIN INSERT INTO touched VALUES ('{table}'); END"
                )
        now = SystemClock().now() + timedelta(minutes=1)
        name, lasted_ms, written = by_row(connection, rollout).rollout_id, 0.0, 0
        waves = connection.execute("SELECT COUNT(*) AS n FROM rollout_wave WHERE rollout_id = ?", (rollout,)).fetchone()
        for number in range(1, waves["n"] + 1):
            before, started_s = connection.total_changes, time.process_time()
            if number == 1:
                transact(connection, lambda inner: loops.tick(inner, now))
            else:
                asked = Request(reason="measured")
                transact(connection, lambda inner, asked=asked: act(inner, OTHER, name, "next-wave", asked, now))
            lasted_ms = max(lasted_ms, 1000 * (time.process_time() - started_s))
            written = max(written, connection.total_changes - before)
            opened = connection.execute(
                "SELECT COUNT(*) AS n FROM rollout_wave WHERE rollout_id = ? AND opened_at IS NOT NULL", (rollout,)
            ).fetchone()["n"]
            assert opened == number, opened
        touched = connection.execute("SELECT COUNT(*) AS n FROM touched").fetchone()["n"]
        for table in ("device", "rollout_target"):
            for change in ("INSERT", "UPDATE", "DELETE"):
                connection.execute(f"DROP TRIGGER touched_{table}_{change}")
        wave, n = connection.execute(
            "SELECT wave, COUNT(*) AS n FROM rollout_target WHERE rollout_id = ? GROUP BY wave ORDER BY n DESC",
            (rollout,),
        ).fetchone()
        connection.execute("BEGIN IMMEDIATE")
        started_s = time.process_time()
        connection.execute(
            "UPDATE rollout_target SET updated_at = 1 WHERE rollout_id = ? AND wave = ?", (rollout, wave)
        )
        rewriting_ms = 1000 * (time.process_time() - started_s)
        connection.execute("ROLLBACK")
    line = limit("10", "opening a wave, CPU", lasted_ms, 50, unit="ms")
    line.baseline, line.ratio = f"rewriting its {n:,} targets: {rewriting_ms:.3g} ms", lasted_ms / rewriting_ms
    rows = limit("10", "rows that opening a wave writes, events and chain included", written, 20, unit="rows")
    rows.baseline, rows.ratio = f"targets of the wave: {n:,} rows", written / n
    return [line, rows, limit("10", "rows of devices and targets among them", touched, 0, unit="rows")]


def counting(path: Path, rollout: int, scale: Scale) -> Line:
    """Row 11: the counters against a GROUP BY."""
    kept, scanned = [], []
    with contextlib.closing(connect(path, read_only=True)) as connection:
        for _ in range(scale.rounds):
            started_s = time.process_time()
            for _ in range(100):
                ours = counters(connection, rollout)
            kept.append((time.process_time() - started_s) * 10)
            started_s = time.process_time()
            theirs = recount(connection, rollout)
            scanned.append((time.process_time() - started_s) * 1000)
            assert without_zeros(ours) == theirs
    return at_least(
        "11",
        "counters, times faster than a GROUP BY",
        1 / median(kept),
        1 / median(scanned),
        50,
        unit="/ms",
        name="GROUP BY",
    )


def recount(connection, rollout: int) -> dict[int, dict[str, int]]:
    found: dict[int, dict[str, int]] = {}
    for row in connection.execute(
        "SELECT wave, status, COUNT(*) AS n FROM rollout_target WHERE rollout_id = ? GROUP BY wave, status", (rollout,)
    ):
        found.setdefault(row["wave"], {})[row["status"]] = row["n"]
    return found


def without_zeros(counts) -> dict[int, dict[str, int]]:
    found = {wave: {status: n for status, n in of.items() if n} for wave, of in counts.items()}
    return {wave: of for wave, of in found.items() if of}


def keep_moving(path: Path, rollout: int, seed: int) -> None:
    """Offer and take back, in transactions of many sizes, until somebody kills this process."""
    chance = random.Random(seed)
    steps = {TargetStatus.WAITING: TargetStatus.OFFERED, TargetStatus.OFFERED: TargetStatus.WAITING}
    with contextlib.closing(connect(path)) as connection:
        last = connection.execute(
            "SELECT MAX(device_id) AS n FROM rollout_target WHERE rollout_id = ?", (rollout,)
        ).fetchone()["n"]

        def some(inner) -> None:
            for _ in range(chance.randrange(1, STEP)):
                target: Target | None = find_target(inner, rollout, chance.randrange(1, last + 1))
                assert target is not None
                assert move_target(inner, target, steps[target.status], now_s=1) is not None

        print("moving", flush=True)
        while True:
            transact(connection, some)


def crashes(path: Path, rollout: int, times: int) -> Line:
    """Row 11: kill -9 in the middle of moves; the counters must equal a recount."""
    chance, wrong, moved = random.Random(11), 0, 0
    for turn in range(times):
        argv = [sys.executable, __file__, str(path), str(rollout), str(turn)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as worker:
            assert worker.stdout.readline() == b"moving\n"
            time.sleep(chance.uniform(0.1, 0.4))
            worker.send_signal(signal.SIGKILL)
        with contextlib.closing(connect(path)) as connection:
            found = recount(connection, rollout)
            wrong += without_zeros(counters(connection, rollout)) != found
            moved += sum(of.get("offered", 0) for of in found.values())
    assert moved, "nothing was moved before the kills"
    return limit("11", f"counters that differ from a recount after {times} kill -9", wrong, 0, unit="times")


def measure(path: Path, place: Path, scale: Scale) -> tuple[list[Line], tuple[Path, str, int, int]]:
    """Rows 9 to 11 on a filled database; return also the rollout for row 14."""
    copy = place / "bare.db"
    shutil.copy(path, copy)
    bare_s = bare(copy)
    copy.unlink()
    shutil.copy(path, copy)
    _, ours_s, _ = asyncio.run(fill(copy))
    copy.unlink()
    rollout, _, wait_ms = asyncio.run(fill(path, beside=True))
    n = f"{scale.devices:,} targets"
    lines = [
        at_most("9", f"a rollout's {n}, CPU", ours_s, bare_s, 2, unit="s", name="one INSERT..SELECT"),
        limit("9", "another writer's longest wait meanwhile", wait_ms, 100, unit="ms"),
        *opening(path, rollout),
        counting(path, rollout, scale),
        crashes(path, rollout, 5 if scale.rounds > 1 else 1),
    ]
    return lines, describe(path, rollout)


def describe(path: Path, rollout: int) -> tuple[Path, str, int, int]:
    """Return database, rollout, and the wave with the most devices."""
    with contextlib.closing(connect(path, read_only=True)) as connection:
        wave, n = connection.execute(
            "SELECT wave, COUNT(*) AS n FROM rollout_target WHERE rollout_id = ? GROUP BY wave ORDER BY n DESC",
            (rollout,),
        ).fetchone()
        return path, by_row(connection, rollout).rollout_id, wave, n


def small_rollout(path: Path) -> tuple[Path, str, int, int]:
    """Make a rollout for a small fleet."""
    return describe(path, asyncio.run(fill(path))[0])


if __name__ == "__main__":
    keep_moving(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
