"""Row 12: taking reports on PostgreSQL, many at once and one by one; what was acknowledged survives kill -9."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime

from harness import Line, Scale, at_least, device_id, limit, median

from firmament.core import canonical
from firmament.core.clock import SystemClock
from firmament.core.ids import AttemptId, DeviceId
from firmament.protocol.status import AttemptStatus
from firmament.protocol.v1.messages import Report
from firmament.server.attempts.taking import Told, take_reports
from firmament.server.database.postgres import PostgresDatabase, connect, transact
from firmament.server.database.target import PostgresTarget
from firmament.server.device_link import Session
from firmament.server.inventory.store import LinkReader

AT = datetime(2026, 11, 20, 12, tzinfo=UTC)
SINGLE = 50
FIRST_MOVED = 20
"""Those before report without end until the kill."""


def attempt_id(number: int) -> AttemptId:
    return AttemptId(device_id((1 << 64) + number))


def open_attempts(target, count: int) -> None:
    """Give the first devices an attempt of a running rollout that was offered, with its target and counters."""
    from rollouts import create, publish

    def fill(connection) -> None:
        publish(connection)
        release = connection.execute("SELECT id FROM release").fetchone()["id"]
        rollout = create(connection, AT).row_id
        connection.execute("UPDATE rollout SET state = 'running', fill_step = 'done' WHERE id = ?", (rollout,))
        connection.execute("DELETE FROM rollout_wave WHERE rollout_id = ?", (rollout,))
        connection.execute(
            "INSERT INTO rollout_wave(rollout_id, number, tenant_id, name, state, opened_at) "
            "VALUES (?, 1, 1, 'all', 'open', 0)",
            (rollout,),
        )
        connection.executemany(
            "INSERT INTO attempt(id, tenant_id, uid, device_id, release_id, state, created_at, updated_at, rollout_id) "
            "VALUES (?, 1, ?, ?, ?, 'offered', 0, 0, ?)",
            [(number + 1, attempt_id(number), number + 1, release, rollout) for number in range(count)],
        )
        connection.executemany(
            "INSERT INTO rollout_target(rollout_id, device_id, tenant_id, wave, place, status, active, holds_slot, "
            "tries, attempt_id, updated_at) VALUES (?, ?, 1, 1, ?, 'offered', 1, 1, 1, ?, 0)",
            [(rollout, number + 1, number, number + 1) for number in range(count)],
        )
        connection.execute(
            "INSERT INTO rollout_counter(rollout_id, wave, status, tenant_id, n) VALUES (?, 1, 'offered', 1, ?)",
            (rollout, count),
        )

    connection = connect(target)
    try:
        transact(connection, fill)
        connection.execute("ANALYZE")
    finally:
        connection.close()


async def verified(reader, device: int, number: int, status: AttemptStatus) -> Told:
    """Return a report as the device API has it when its signature was verified."""
    found = await reader.find(device_id(device))
    report = Report(
        device_id=DeviceId(device_id(device)),
        report_number=number,
        attempt_id=attempt_id(device),
        status=status,
        version="1.0",
        sequence_number=1,
        boot_id="a",
        at=AT,
    )
    return Told(Session(found[0], found[1]), report, canonical.encode(report.to_json()), AT)


async def rates(target, scale: Scale) -> tuple[float, float]:
    """Return verified reports a second stored and acknowledged: as many as there are together, and one by one.

    Both move the attempt and its target, with counters, event and chain, through the same code.
    """
    database = PostgresDatabase(target, SystemClock())
    reader = LinkReader(database)
    each = scale.reports + SINGLE
    together, alone = [], []
    try:
        for turn in range(scale.rounds + 1):
            # Other devices each time: every report moves an attempt, with its event in the chain.
            first = FIRST_MOVED + turn * each
            told = [await verified(reader, first + n, 1, AttemptStatus.FETCHING) for n in range(each)]
            started_s = time.monotonic()
            await asyncio.gather(*(database.submit_among(take_reports, one) for one in told[: scale.reports]))
            together.append(scale.reports / (time.monotonic() - started_s))
            started_s = time.monotonic()
            for one in told[scale.reports :]:
                await database.submit_among(take_reports, one)
            alone.append(SINGLE / (time.monotonic() - started_s))
    finally:
        await database.end()
        database.close()
    return median(together[1:]), median(alone[1:])


async def acknowledge(target) -> None:
    """Take reports and print each number once it is stored, until somebody kills this process."""
    database = PostgresDatabase(target, SystemClock())
    reader = LinkReader(database)

    async def one_device(device: int) -> None:
        for number in range(1_000_000, 2_000_000):
            told = await verified(reader, device, number, AttemptStatus.FETCHING)
            await database.submit_among(take_reports, told)
            print(device + 1, number, flush=True)

    await asyncio.gather(*(one_device(device) for device in range(FIRST_MOVED)))


def survive(cluster, target) -> Line:
    """Kill -9 server and database while reports are taken; count what was acknowledged and is gone."""
    argv = [sys.executable, __file__, target.url, target.password]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as worker:
        said = [worker.stdout.readline()]
        time.sleep(1)
        cluster.kill()
        worker.send_signal(signal.SIGKILL)
        said += worker.stdout.read().splitlines()
    cluster.start()
    connection = connect(target)
    try:
        rows = connection.execute("SELECT device_id, number FROM report WHERE number >= 1000000").fetchall()
    finally:
        connection.close()
    stored = {(row["device_id"], row["number"]) for row in rows}
    told = {tuple(map(int, line.split())) for line in said if len(line.split()) == 2}
    assert told, "nothing was acknowledged before the kill"
    line = limit(
        "12",
        "acknowledged reports that are gone after kill -9 of server and database",
        len(told - stored),
        0,
        unit="reports",
    )
    line.baseline = f"acknowledged before: {len(told):,}"
    return line


def measure(cluster, target, scale: Scale) -> list[Line]:
    """Row 12."""
    open_attempts(target, FIRST_MOVED + (scale.rounds + 1) * (scale.reports + SINGLE))
    together, alone = asyncio.run(rates(target, scale))
    return [
        at_least(
            "12",
            "storing verified reports on PostgreSQL, 500 to a commit",
            together,
            alone,
            30,
            unit="/s",
            name="one commit each",
        ),
        survive(cluster, target),
    ]


if __name__ == "__main__":
    asyncio.run(acknowledge(PostgresTarget(sys.argv[1], sys.argv[2], readers=2)))
