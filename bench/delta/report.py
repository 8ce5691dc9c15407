"""Write docs/performance/delta.md from measured rows (report.md is its frame)."""

import os
import platform
import statistics
from pathlib import Path

from measure import OURS
from tools import CHUNKS, HERE, PUBLISHED, TOOLS

EXECUTABLES = ("a1", "a2", "b1", "c2", "c3", "c5")
STEADY = "detools lzma"
"""detools' sequential patch, which streams: the bar for apply CPU counts in it."""


def sizes(rows):
    return {name: row["bytes"] for name, row in rows.items() if row.get("bytes")}


def best_of(rows, names):
    found = {name: length for name, length in sizes(rows).items() if name in names}
    return min(found, key=found.get) if found else None


def used(rows, name, key):
    row = rows.get(name, {})
    return f"{row[key][0]:.2f} s / {row[key][1]:.0f} MiB" if key in row else "-"


def table_of(head, rows):
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


class Pair:
    """One pair's rows, and what follows from them."""

    def __init__(self, name, found):
        self.name, self.size, self.rows = name, found["size"], found["methods"]
        length = sizes(self.rows)
        self.ours, self.best = best_of(self.rows, OURS), best_of(self.rows, (*TOOLS, CHUNKS))
        self.chosen = best_of(self.rows, (*OURS, *PUBLISHED))
        self.alone = length[self.ours] / length[self.best]
        self.ratio = length[self.chosen] / length[self.best]

    def result(self):
        length = sizes(self.rows)
        return [
            self.name, f"{self.size / 1e6:.2f} MB", *(f"{length[name]:,}" if name in length else "-" for name in OURS),
            f"{length[self.best]:,}", self.best, f"{self.alone:.3f}", self.chosen, f"{self.ratio:.3f}",
        ]  # fmt: skip

    def every(self):
        length = sizes(self.rows)
        names = (*OURS, *TOOLS, CHUNKS)
        return [
            self.name,
            *(f"{length[n]:,}" if n in length else self.rows.get(n, {}).get("problem", "-") for n in names),
        ]

    def costs(self):
        rows, ours, best = self.rows, self.ours, self.best
        own = [used(rows, ours, key) for key in ("encode", "apply", "apply_sealed")]
        them = [best, used(rows, best, "encode"), used(rows, best, "apply"), used(rows, STEADY, "apply")]
        return [self.name, ours, *own, *them]


def line(values):
    return f"median {statistics.median(values):.2f}, worst {max(values):.2f}, {len(values)} pairs" if values else "none"


def report(results, absent, command):
    pairs = [Pair(name, found) for name, found in results.items() if best_of(found["methods"], OURS)]
    tuned, aside = ([pair for pair in pairs if pair.name.startswith("k") is kept] for kept in (False, True))
    head = ["pair", "new image", *OURS, "best other", "", "ratio", "chosen", "ratio"]
    cost_head = ["pair", "ours", "make", "apply", "sealed, apply", "best other", "make", "apply", f"{STEADY} apply"]
    python = f"{os.cpu_count()} cores, Python {platform.python_version()}"
    cpus = [row.split(":")[1].strip() for row in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in row]
    when = sorted(row["at"] for found in results.values() for row in found["methods"].values())
    chosen = [pair.ratio for pair in tuned]
    last = f"median {statistics.median(chosen):.2f}, worst {max(chosen):.2f}" if chosen else "none"
    return (HERE / "report.md").read_text().format(
        command=command,
        machine=", ".join([platform.machine(), *cpus[:1], python]),
        first=when[0] if when else "-",
        last=when[-1] if when else "-",
        summary=table_of(head, [pair.result() for pair in tuned]),
        aside=table_of(head, [pair.result() for pair in aside]),
        tables=table_of(["pair", *OURS, *TOOLS, CHUNKS], [pair.every() for pair in pairs]),
        costs=table_of(cost_head, [pair.costs() for pair in pairs]),
        alone=line([pair.alone for pair in tuned]),
        executables=line([pair.ratio for pair in tuned if pair.name[:2] in EXECUTABLES]),
        kept=line([pair.ratio for pair in aside]),
        absent=f"Left out of this run: {', '.join(absent)}." if absent else "Every pair is in this run.",
        chosen=last,
    )  # fmt: skip
