"""Measure this project's deltas beside every tool that is packaged, pair by pair (design: docs/performance/delta.md).

    python bench/delta/run.py CORPUS [--pairs a1,b1] [--tools ours] [--report docs/performance/delta.md] [--fresh]

Every payload is applied and compared. Each encode and apply is a process of its own; CPU is user + system time, memory
is the peak resident set. Results are kept in CORPUS/results.json after each step, so that a run that was stopped goes
on, and are used again as long as nothing that made them changed (measure.py); `--fresh` forgets them.
"""

import argparse
import fcntl
import json
import os
from datetime import UTC, datetime
from pathlib import Path

from measure import OURS, key_of, measure
from report import report
from tools import CHUNKS, TOOLS, fits


def load(store):
    return json.loads(store.read_text()) if store.exists() else {}


def keep(store, pair, size, name, row):
    """Add a row, so that two runs side by side (ours, theirs) lose nothing of each other's."""
    with (store.parent / "results.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        results = load(store)
        found = results.setdefault(pair, {"methods": {}})
        found["size"] = size
        found["methods"][name] = row
        store.with_suffix(".new").write_text(json.dumps(results, indent=1))
        store.with_suffix(".new").rename(store)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--pairs", default="", help="pairs that begin so, with commas between")
    parser.add_argument("--tools", choices=("all", "ours", "theirs"), default="all")
    parser.add_argument("--only", default="", help="methods by name, with commas between")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    parser.add_argument("--only-report", action="store_true", help="measure nothing; refuse what is not up to date")
    parser.add_argument("--report", type=Path)
    parser.add_argument("--command", default="make bench-delta")
    options = parser.parse_args()
    store = options.corpus / "results.json"
    if options.fresh:
        store.unlink(missing_ok=True)
    scratch = options.corpus / f"scratch-{os.getpid()}"
    scratch.mkdir()
    wanted = options.pairs.split(",")
    pairs = sorted(path.name for path in (options.corpus / "pairs").iterdir())
    absent = [pair for pair in pairs if not any(pair.startswith(start) for start in wanted)]
    pairs = [pair for pair in pairs if pair not in absent]
    names = {"all": (*OURS, *TOOLS, CHUNKS), "ours": OURS, "theirs": (*TOOLS, CHUNKS)}[options.tools]
    current = {}
    for pair in pairs:
        old, new = (options.corpus / "pairs" / pair / side for side in ("old", "new"))
        size = new.stat().st_size
        current[pair] = {"size": size, "methods": {}}
        for name in names:
            if not fits(name, pair, size) and name not in OURS:
                continue
            if options.only and name not in options.only.split(","):
                continue
            key = key_of(name, old, new)
            row = load(store).get(pair, {}).get("methods", {}).get(name)
            if row is None or row["key"] != key:
                if options.only_report:
                    print(f"{pair:24} {name:24} not measured with this code", flush=True)
                    continue
                at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ")
                row = measure(name, old, new, scratch) | {"key": key, "at": at}
                keep(store, pair, size, name, row)
                print(f"{pair:24} {name:24} { {k: v for k, v in row.items() if k != 'key'} }", flush=True)
            current[pair]["methods"][name] = row
    for path in scratch.rglob("*"):
        if path.is_file():
            path.unlink()
    if options.tools == "all":
        text = report(current, absent, options.command)
        if options.report:
            options.report.write_text(text)
        print(text[text.index("## Result") :])
        print(text.strip().splitlines()[-1])


main()
