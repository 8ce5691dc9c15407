"""Measure this project's deltas beside every tool that is packaged, pair by pair (design: docs/performance/delta.md).

    python bench/delta/run.py CORPUS [--pairs a1,b1] [--large] [--report docs/performance/delta.md] [--command TEXT]

Every payload is applied and compared. Each encode and apply is a process of its own; CPU is user + system time, memory
is the peak resident set. Results are kept in CORPUS/results.json after each step, so that a run that was stopped goes
on; `--fresh` forgets them.
"""

import argparse
import filecmp
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PYTHON = sys.executable
EXECUTABLES = ("a1", "a2", "b1", "c2", "c3", "c5")
CORTEX_M, AARCH64 = ("a1", "a2"), ("a5", "b1")


def tool(name):
    encode = lambda old, new, out: [PYTHON, HERE / "tool.py", name, "encode", old, new, out]  # noqa: E731
    apply = lambda old, payload, out: [PYTHON, HERE / "tool.py", name, "apply", old, payload, out]  # noqa: E731
    return encode, apply


TOOLS = {
    "hdiffpatch lzma2": tool("hdiffpatch-lzma2"),
    "hdiffpatch zstd": tool("hdiffpatch-zstd"),
    "detools hdiffpatch": tool("detools-hdiffpatch"),
    "detools lzma": tool("detools-bsdiff"),
    "detools arm-cortex-m4": tool("detools-arm-cortex-m4"),
    "detools aarch64": tool("detools-aarch64"),
    "bsdiff": (
        lambda old, new, out: ["bsdiff", old, new, out],
        lambda old, payload, out: ["bspatch", old, out, payload],
    ),
    "zstd -19 --patch-from": (
        lambda old, new, out: ["zstd", "-19", "--long=31", "-qf", f"--patch-from={old}", new, "-o", out],
        lambda old, payload, out: ["zstd", "-d", "--long=31", "-qf", f"--patch-from={old}", payload, "-o", out],
    ),
    "xdelta3 -9": (
        lambda old, new, out: [
            "xdelta3",
            "-e",
            "-9",
            "-f",
            "-B",
            str(max(old.stat().st_size, 1 << 20)),
            "-s",
            old,
            new,
            out,
        ],
        lambda old, payload, out: [
            "xdelta3",
            "-d",
            "-f",
            "-B",
            str(max(old.stat().st_size, 1 << 20)),
            "-s",
            old,
            payload,
            out,
        ],
    ),
    "xz -9e (whole)": (
        lambda _, new, out: ["sh", "-c", 'exec xz -9e -T1 -c "$0" > "$1"', new, out],
        lambda _, payload, out: ["sh", "-c", 'exec xz -dc "$0" > "$1"', payload, out],
    ),
}
NOT_LARGE = {
    "detools hdiffpatch",
    "detools lzma",
    "detools aarch64",
    "detools arm-cortex-m4",
    "bsdiff",
    "hdiffpatch zstd",
}
OURS = "refdelta"
LIBRARIES = {
    "hdiffpatch lzma2": "hdiff/1",
    "detools hdiffpatch": "detools/1",
    "bsdiff": "bsdiff/1",
    "zstd -19 --patch-from": "zstd-patch/1",
}


def measured(command):
    """Run; return (CPU seconds, peak MiB, standard output), or None if it failed."""
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    out = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stdout.close()
    return None if status else (round(used.ru_utime + used.ru_stime, 2), round(used.ru_maxrss / 1024, 1), out)


def compare(encode, apply, old, new, scratch):
    payload, out = scratch / "payload", scratch / "out"
    made = measured(encode(old, new, payload))
    if made is None:
        return {"problem": "failed to make"}
    used = measured(apply(old, payload, out))
    if used is None or not filecmp.cmp(new, out, shallow=False):
        return {"problem": "failed to apply"}
    return {"bytes": payload.stat().st_size, "encode": made[:2], "apply": used[:2]}


def ours(old, new, scratch):
    """Our own: encode, apply plain and sealed; memory above a bare interpreter."""
    payload, sealed, out = scratch / "payload", scratch / "sealed", scratch / "out"
    made = measured([PYTHON, HERE / "tool.py", "ours-refdelta", "encode", old, new, payload])
    if made is None:
        return {"problem": "failed to make"}
    found = {"bytes": payload.stat().st_size, "encode": made[:2]}
    seal = (
        "import sys; from pathlib import Path; from firmament.payload.readers import FileReader; "
        "from firmament.payload.sealed import seal; s = FileReader(Path(sys.argv[1])); "
        "f = open(sys.argv[2], 'wb'); seal(s, s.length_bytes, bytes(32), f.write); f.close()"
    )
    subprocess.run([PYTHON, "-c", seal, payload, sealed], check=True)
    for kind, source, more in (("apply", payload, []), ("apply_sealed", sealed, ["seal"])):
        used = measured([PYTHON, HERE / "apply.py", "refdelta/1", old, source, out, new.stat().st_size, *more])
        if used is None or not filecmp.cmp(new, out, shallow=False):
            return {"problem": "failed to apply"}
        facts = json.loads(used[2])
        found[kind] = [used[0], round((facts["peak_kib"] - facts["bare_kib"]) / 1024, 1)]
    return found


def chunks(old, new, scratch):
    """casync: the compressed chunks of the new image that the old one does not have."""
    store = scratch / "store"
    subprocess.run(["rm", "-rf", store], check=True)
    total = lambda: sum(path.stat().st_size for path in store.rglob("*.cacnk"))  # noqa: E731
    for path in (old, new):
        before = total() if store.exists() else 0
        if measured(["casync", "make", f"--store={store}", scratch / "index.caibx", path]) is None:
            return {"problem": "failed to make"}
    return {"bytes": total() - before + (scratch / "index.caibx").stat().st_size}


def run(corpus, pairs, large, tools):
    scratch = corpus / "scratch"
    scratch.mkdir(exist_ok=True)
    store = corpus / "results.json"
    results = json.loads(store.read_text()) if store.exists() else {}
    for pair in pairs:
        old, new = (corpus / "pairs" / pair / side for side in ("old", "new"))
        big = new.stat().st_size > 100e6
        rows = results.setdefault(pair, {"size": new.stat().st_size, "methods": {}})["methods"]
        for name in (OURS, *TOOLS, "casync 64K"):
            short = pair[:2]
            odd = (name.endswith("cortex-m4") and short not in CORTEX_M) or (
                name.endswith("aarch64") and short not in AARCH64
            )
            unwanted = tools and name != OURS and name not in tools
            if name in rows or odd or unwanted or (big and (name in NOT_LARGE or not large)):
                continue
            if name == OURS:
                rows[name] = ours(old, new, scratch)
            elif name == "casync 64K":
                rows[name] = chunks(old, new, scratch)
            else:
                rows[name] = compare(*TOOLS[name], old, new, scratch)
            print(f"{pair:24} {name:24} {rows[name]}", flush=True)
            store.write_text(json.dumps(results, indent=1))
    return {pair: results[pair] for pair in pairs if results[pair]["methods"].get(OURS, {}).get("bytes")}


def report(results, command, pairs):
    names = [OURS, *TOOLS, "casync 64K"]
    head = ["pair", "new image", "refdelta", "best other", "", "ratio", "chosen", "ratio"]
    first, second, third = [], [], []
    alone, chosen, executables = [], [], []
    for pair, result in results.items():
        rows = result["methods"]
        size = {name: rows[name]["bytes"] for name in names if rows.get(name, {}).get("bytes")}
        others = {name: length for name, length in size.items() if name != OURS}
        best = min(others, key=others.get)
        ratio = size[OURS] / others[best]
        table = {
            name: length for name, length in size.items() if name == OURS or name in LIBRARIES or name.startswith("xz")
        }
        pick = min(table, key=table.get)
        alone.append(ratio)
        chosen.append(table[pick] / others[best])
        if pair[:2] in EXECUTABLES:
            executables.append(chosen[-1])
        cells = [
            pair,
            f"{result['size'] / 1e6:.2f} MB",
            f"{size[OURS]:,}",
            f"{others[best]:,}",
            best,
            f"{ratio:.3f}",
            pick,
            f"{chosen[-1]:.3f}",
        ]
        first.append(cells)
        second.append(
            [pair, *(f"{size[name]:,}" if name in size else rows.get(name, {}).get("problem", "-") for name in names)]
        )
        us, them = rows[OURS], rows[best]
        used = lambda row, key: f"{row[key][0]:.2f} s / {row[key][1]:.0f} MiB" if key in row else "-"  # noqa: E731
        steady = rows.get("detools hdiffpatch", {})
        third.append(
            [
                pair,
                used(us, "encode"),
                used(us, "apply"),
                used(us, "apply_sealed"),
                best,
                used(them, "encode"),
                used(them, "apply"),
                used(steady, "apply"),
            ]
        )
    lines = table_of(head, first)
    tables = table_of(["pair", *names], second)
    costs = table_of(
        [
            "pair",
            "refdelta make",
            "refdelta apply",
            "sealed, apply",
            "best other",
            "its make",
            "its apply",
            "detools apply",
        ],
        third,
    )
    line = lambda values: f"median {statistics.median(values):.2f}, worst {max(values):.2f}" if values else "none"  # noqa: E731
    processor = next(
        (
            row.split(":")[1].strip()
            for row in Path("/proc/cpuinfo").read_text().splitlines()
            if row.startswith("model name")
        ),
        "",
    )
    text = (HERE / "report.md").read_text()
    left = [pair for pair in pairs if pair not in results]
    return text.format(
        command=command,
        machine=f"{platform.machine()}, {processor}, {os.cpu_count()} cores, Python {platform.python_version()}",
        summary=lines,
        tables=tables,
        costs=costs,
        alone=line(alone),
        chosen=line(chosen),
        executables=line(executables),
        pairs=len(chosen),
        missing=f"Built but not measured in this run: {', '.join(left)}. " if left else "",
    )


def table_of(head, rows):
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--pairs", default="")
    parser.add_argument("--tools", default="", help="only these, beside refdelta")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    parser.add_argument("--only-report", action="store_true", help="measure nothing, write what is there")
    parser.add_argument("--report", type=Path)
    parser.add_argument("--command", default="make bench-delta")
    options = parser.parse_args()
    if options.fresh:
        (options.corpus / "results.json").unlink(missing_ok=True)
    wanted = options.pairs.split(",")
    pairs = sorted(path.name for path in (options.corpus / "pairs").iterdir())
    pairs = [pair for pair in pairs if any(pair.startswith(start) for start in wanted)]
    if not options.large:
        pairs = [pair for pair in pairs if not pair.startswith("d")]
    if options.only_report:
        known = json.loads((options.corpus / "results.json").read_text())
        results = {
            pair: known[pair] for pair in pairs if known.get(pair, {}).get("methods", {}).get(OURS, {}).get("bytes")
        }
    else:
        results = run(options.corpus, pairs, options.large, list(filter(None, options.tools.split(","))))
    text = report(results, options.command, sorted(path.name for path in (options.corpus / "pairs").iterdir()))
    if options.report:
        options.report.write_text(text)
    print(text[text.index("## Result") :])
    print(text.strip().splitlines()[-1].strip("*`"))


main()
