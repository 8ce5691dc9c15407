"""The server's bars, each against a baseline measured in the same run: `make bench-server`.

python bench/server/run.py [--small] [--rows 1,2,4] [--devices N] [--json FILE] [--report FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

sys.path.insert(0, str(Path(__file__).parent))

import harness
from harness import SMALL, Line, Scale

ALL = ("1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14")


def measure(place: Path, scale: Scale, rows: set[str]) -> tuple[list[Line], str, int]:
    """Measure the wanted rows; return also the table of a poll's parts, and how many failed."""
    import client
    import downloads
    import parts
    import polls
    import reports
    import rollouts
    import seen
    import wake

    lines: list[Line] = []
    failed: list[object] = []

    def add(take: Callable[[], list[Line]]) -> None:
        try:
            found = take()
        except (Exception, SystemExit):  # noqa: BLE001 - one measurement that fails must not cost the others
            traceback.print_exc()
            failed.append(take)
            return
        for line in found:
            if line.row in rows:
                lines.append(line)
                say(line)

    sqlite = harness.home(place / "fleet") / "database" / "firmament.db"
    if rows & {"1", "2", "4", "5", "9", "10", "11", "14"}:
        harness.fill_sqlite(sqlite, scale.devices)
    shares = parts.table(sqlite.parent.parent, scale) if "1" in rows else ""
    if rows & {"1", "2", "4"}:
        add(lambda: polls.on_sqlite(place, sqlite.parent.parent, scale))
    with contextlib.ExitStack() as stack:
        if rows & {"3", "5", "12"}:
            cluster = stack.enter_context(harness.postgres())
            target = cluster.target(cluster.fresh())
            harness.fill_postgres(target, scale.devices)
        if "3" in rows:
            add(lambda: polls.on_postgres(place, cluster, target, scale))
        if "5" in rows:
            add(lambda: seen.measure(target, sqlite, scale))
        if "12" in rows:
            add(lambda: reports.measure(cluster, target, scale))
    if rows & {"6", "7", "8"}:
        add(lambda: downloads.measure(place, scale))
    if rows & {"9", "10", "11", "14"}:

        def of_rollouts() -> list[Line]:
            found, large = rollouts.measure(sqlite, place, scale)
            if "14" in rows:
                small = harness.home(place / "village") / "database" / "firmament.db"
                harness.fill_sqlite(small, scale.devices // 100)
                found += wake.measure(place, [rollouts.small_rollout(small), large], scale)
            return found

        add(of_rollouts)
    if "13" in rows:
        add(lambda: client.measure(scale))
    return sorted(lines, key=lambda line: int(line.row)), shares, len(failed)


def say(line: Line) -> None:
    ratio = "" if line.ratio is None else f"{line.ratio:.3g} x"
    state = "" if line.holds is None else "holds" if line.holds else "RED"
    bar = f" (bar {line.bar})" if line.bar else ""
    print(f"{line.row:>2} {state:5} {line.what}: {line.ours}; {line.baseline}; {ratio}{bar}", flush=True)


def table(lines: list[Line]) -> str:
    """Write the lines as Markdown."""
    text = ["| row | what | ours | baseline | ratio | bar | holds |", "|---|---|---|---|---|---|---|"]
    for line in lines:
        ratio = "" if line.ratio is None else f"{line.ratio:.2f}" if line.ratio >= 0.01 else f"{line.ratio:.1e}"
        holds = "" if line.holds is None else "yes" if line.holds else "**no**"
        text.append(f"| {line.row} | {line.what} | {line.ours} | {line.baseline} | {ratio} | {line.bar} | {holds} |")
    return "\n".join(text)


def replace(path: Path, name: str, text: str) -> None:
    """Put a table where a page wants it."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    head, _, rest = path.read_text().partition(begin)
    _, _, tail = rest.partition(end)
    path.write_text(f"{head}{begin}\n{text}\n{end}{tail}")


def machine() -> str:
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return f"{platform.machine()}, {model}, {os.cpu_count()} cores, Python {platform.python_version()}"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--small", action="store_true", help="only show that everything runs")
    parser.add_argument("--rows", default=",".join(ALL))
    parser.add_argument("--devices", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--report", type=Path, help="a page whose table is replaced")
    options = parser.parse_args()
    scale = SMALL if options.small else Scale()
    if options.devices:
        scale = dataclasses.replace(scale, devices=options.devices)
    if options.rounds:
        scale = dataclasses.replace(scale, rounds=options.rounds)
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="firmament-bench-") as place:
        Path(place).chmod(0o755)  # PostgreSQL and nginx are not root
        lines, parts, failed = measure(Path(place), scale, set(options.rows.split(",")))
    lasted_s = time.monotonic() - started_s
    barred = [line.holds for line in lines if line.holds is not None]
    print(f"{sum(barred)} of {len(barred)} bars hold; {lasted_s:.0f} s on {machine()}")
    if options.json:
        options.json.write_text(json.dumps([dataclasses.asdict(line) for line in lines], indent=1) + "\n")
    if options.report:
        machine_line = f"Machine: {machine()}. {scale.devices:,} devices, medians of {scale.rounds} rounds."
        replace(options.report, "table", f"{machine_line}\n\n{table(lines)}")
        if parts:
            replace(options.report, "parts", parts)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
