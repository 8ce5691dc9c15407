"""What the measurements share: lines of the table, processes, CPU time, load, a fleet in a database.

Every figure is a ratio against something measured in the same run, round after round in turn, and
the median of the rounds: the machine may be busy. CPU time is user + system of whole processes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import time
import uuid
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
START_DEADLINE_S = 30
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
TICKS = os.sysconf("SC_CLK_TCK")
KEYID = "0" * 64
CONNECTIONS = 32


@dataclasses.dataclass(slots=True)
class Line:
    """One line of the table. `ratio` is ours through the baseline's; `holds` says whether the bar is met.

    A line without a bar is shown for what it costs; its `holds` is None.
    """

    row: str
    what: str
    ours: str
    baseline: str
    ratio: float | None
    bar: str
    holds: bool | None


def at_most(row: str, what: str, ours: float, baseline: float, bar: float, *, unit: str, name: str) -> Line:
    """Make a line whose ratio may not be above the bar."""
    ratio = ours / baseline
    return Line(row, what, f"{ours:.3g} {unit}", f"{name}: {baseline:.3g} {unit}", ratio, f"<= {bar:g} x", ratio <= bar)


def at_least(row: str, what: str, ours: float, baseline: float, bar: float, *, unit: str, name: str) -> Line:
    """Make a line whose ratio may not be below the bar."""
    ratio = ours / baseline
    return Line(row, what, f"{ours:.3g} {unit}", f"{name}: {baseline:.3g} {unit}", ratio, f">= {bar:g} x", ratio >= bar)


def shown(row: str, what: str, ours: float, baseline: float, *, unit: str, name: str) -> Line:
    """Make a line without a bar."""
    return Line(row, what, f"{ours:.3g} {unit}", f"{name}: {baseline:.3g} {unit}", ours / baseline, "", None)


def limit(row: str, what: str, ours: float, bar: float, *, unit: str) -> Line:
    """Make a line whose bar is a quantity, not a ratio."""
    return Line(row, what, f"{ours:.3g} {unit}", "", None, f"<= {bar:g} {unit}", ours <= bar)


@dataclasses.dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured; `SMALL` only proves that everything runs."""

    devices: int = 1_000_000
    rounds: int = 5
    seconds: float = 2.0
    slow_downloads: int = 1000
    slow_s: float = 20.0
    reports: int = 2000


SMALL = Scale(devices=2000, rounds=1, seconds=0.2, slow_downloads=10, slow_s=0.5, reports=40)


def median(values) -> float:
    return float(statistics.median(values))


# --- processes -------------------------------------------------------------------------------


def cpu_s(pid: int) -> float:
    """User and system time of a process and of all that it started."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return 0.0
    own = sum(int(field) for field in fields[11:15]) / TICKS
    return own + sum(cpu_s(child) for child in children(pid))


def children(pid: int) -> list[int]:
    with contextlib.suppress(FileNotFoundError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def resident_bytes(pid: int) -> int:
    """Proportional memory of a process and its children: shared pages count once."""
    found = 0
    for each in (pid, *children(pid)):
        text = Path(f"/proc/{each}/smaps_rollup").read_text()
        found += 1024 * int(re.search(r"^Pss:\s+(\d+)", text, re.MULTILINE)[1])
    return found


@contextlib.contextmanager
def process(argv, **options):
    """Run a program until the block ends."""
    started = subprocess.Popen(argv, **options)
    try:
        yield started
    finally:
        started.terminate()
        try:
            started.wait(10)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


def wait_for_port(port: int, started: subprocess.Popen) -> None:
    """Wait until somebody answers there; raise if the program ends before."""
    deadline = time.monotonic() + START_DEADLINE_S
    while True:
        if started.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"{started.args[:3]} did not start")
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return
        except OSError:
            time.sleep(0.05)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@dataclasses.dataclass(slots=True)
class Running:
    """A server under measurement."""

    pid: int
    port: int


@contextlib.contextmanager
def server(kind: str, **options):
    """Run one of the servers of serve.py in a process of its own."""
    port = free_port()
    argv = [sys.executable, str(HERE / "serve.py"), json.dumps({"kind": kind, "port": port, **options})]
    with process(argv) as started:
        wait_for_port(port, started)
        yield Running(started.pid, port)


# --- load ------------------------------------------------------------------------------------


@dataclasses.dataclass(slots=True)
class Load:
    """What a burst of requests cost a server."""

    requests: int
    cpu_us: float
    per_s: float


def poll(
    target: Running,
    *,
    devices: int,
    seconds: float,
    path: str = "/v1/poll",
    seed: int = 1,
    again: bool = False,
    tag: str = "",
) -> Load:
    """Poll as random devices with `wrk` on keep-alive connections for some seconds.

    With `again` each says which version it trusts since its last answer, as agents do. With a `tag`
    each only asks whether anything changed since the answer that had this tag.
    """
    before, started_s = cpu_s(target.pid), time.monotonic()
    found = subprocess.run(
        [
            "wrk",
            *("-t1", f"-c{CONNECTIONS}", f"-d{max(1, round(seconds))}s", "--timeout", "20s"),
            *("-s", str(HERE / "poll.lua"), f"http://127.0.0.1:{target.port}{path}"),
        ],
        env={**os.environ, "DEVICES": str(devices), "SEED": str(seed), "AGAIN": "1" if again else "", "TAG": tag},
        capture_output=True,
        text=True,
        check=True,
    )
    spent, lasted_s = cpu_s(target.pid) - before, time.monotonic() - started_s
    requests, refused = (
        int(re.search(rf"^{name} (\d+)$", found.stdout, re.MULTILINE)[1]) for name in ("done", "refused")
    )
    if refused or not requests:
        raise SystemExit(f"the server refused {refused} of {requests} requests to {path}\n{found.stdout}")
    return Load(requests, spent / requests * 1e6, requests / lasted_s)


def tag_of(target: Running) -> str:
    """Return the tag that a device is told with "nothing to do", quoted for a header."""
    body = {"v": 1, "nonce": "00" * 16, "version": "1.0", "sequence_number": 1, "methods": ["whole/1"]}
    connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=20)
    with contextlib.closing(connection):
        connection.request("POST", "/v1/poll", json.dumps(body), {"x-bench": device_id(0)})
        return f'"{json.load(connection.getresponse())["tag"]}"'


# --- a fleet in a database -------------------------------------------------------------------


def device_id(number: int) -> str:
    return str(uuid.UUID(int=number))


DEVICE_COLUMNS = (
    "id", "tenant_id", "uid", "product_id", "hardware", "serial", "identity_keyid", "identity_key", "hpke_public_key",
    "bucket", "enrolled_at", "version", "sequence_number", "boot_id",
)  # fmt: skip


def device_row(number: int) -> tuple:
    # The wrap key is short here: a poll does not read it.
    key = number.to_bytes(8, "big")
    return (
        number + 1, 1, device_id(number), 1, "rpi4", "", KEYID + device_id(number)[-12:], b"\0", key,
        number * 7919 % 10_000, 0, "1.0", 1, "a",
    )  # fmt: skip


def fill_sqlite(path: Path, devices: int) -> None:
    """Write a fleet into a migrated SQLite file."""
    from firmament.server.database.connection import connect

    marks = ", ".join("?" * len(DEVICE_COLUMNS))
    with contextlib.closing(connect(path)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("BEGIN")
        connection.execute("INSERT INTO product(id, tenant_id, name, created_at) VALUES (1, 1, 'thermo', 0)")
        connection.executemany(
            f"INSERT INTO device({', '.join(DEVICE_COLUMNS)}) VALUES ({marks})", map(device_row, range(devices))
        )
        connection.execute("COMMIT")
        connection.execute("ANALYZE")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def fill_postgres(target, devices: int) -> None:
    """Write a fleet into a migrated PostgreSQL database."""
    import psycopg

    with psycopg.connect(target.url, password=target.password) as connection, connection.cursor() as cursor:
        cursor.execute("INSERT INTO product(id, tenant_id, name, created_at) VALUES (1, 1, 'thermo', 0)")
        with cursor.copy(f"COPY device({', '.join(DEVICE_COLUMNS)}) FROM STDIN") as copy:
            for number in range(devices):
                copy.write_row(device_row(number))
    with psycopg.connect(target.url, password=target.password, autocommit=True) as connection:
        connection.execute("ANALYZE")


def home(directory: Path) -> Path:
    """Initialise a server's directory."""
    from firmament.core.clock import SystemClock
    from firmament.server.layout import Layout
    from firmament.server.payloads.store import ServerDisk
    from firmament.server.setup import initialise

    initialise(
        ServerDisk(), Layout(directory), names=["localhost"], addresses=[], options={"port": 0}, now=SystemClock().now()
    )
    return directory


@contextlib.contextmanager
def postgres():
    """Run a PostgreSQL with fsync, as for people, that ends with the block."""
    sys.path.insert(0, str(ROOT / "tests"))
    from support.databases import Cluster

    found = Cluster(fsync=True)
    try:
        yield found
    finally:
        found.stop()
