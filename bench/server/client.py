"""Row 13: what the agent's HTTP client adds to a bare interpreter, against urllib3 alone."""

from __future__ import annotations

import json
import subprocess
import sys

from harness import Line, Scale, at_most, limit, median

PROBE = """
import json, resource, time
def usage():
    for line in open("/proc/self/status"):
        if line.startswith("VmRSS"):
            return time.process_time(), int(line.split()[1]) / 1024
import sys
there = set(sys.modules)
before = usage()
{program}
after = usage()
tops = {{name.partition(".")[0] for name in set(sys.modules) - there}} - {{"firmament"}}
from importlib.metadata import packages_distributions
known = packages_distributions()
found = sorted({{dist for top in tops for dist in known.get(top, ())}})
print(json.dumps([1000 * (after[0] - before[0]), after[1] - before[1], found]))
"""
PROGRAMS = {
    "urllib3": "import urllib3; urllib3.PoolManager()",
    "ours": (
        "from firmament.agent.fetch import HttpTransport, TransferSettings\n"
        "from firmament.core.clock import SystemClock\n"
        "HttpTransport(SystemClock(), settings=TransferSettings(), tls=None)"
    ),
}


def probe(program: str) -> tuple[float, float, list[str]]:
    code = PROBE.format(program=program)
    found = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    return tuple(json.loads(found.stdout))


def measure(scale: Scale) -> list[Line]:
    """Row 13."""
    found = {name: [] for name in PROGRAMS}
    for _ in range(2 * scale.rounds + 1):
        for name, program in PROGRAMS.items():
            found[name].append(probe(program))
    cpu = {name: median([each[0] for each in runs]) for name, runs in found.items()}
    memory = {name: median([each[1] for each in runs]) for name, runs in found.items()}
    names = found["ours"][0][2]
    grown = limit("13", "agent's HTTP client: memory over a bare interpreter", memory["ours"], 12, unit="MiB")
    grown.baseline, grown.ratio = f"urllib3 alone: {memory['urllib3']:.3g} MiB", memory["ours"] / memory["urllib3"]
    needed = limit("13", f"the same: distributions it loads ({', '.join(names)})", len(names), 1, unit="")
    return [
        grown,
        at_most(
            "13", "the same: CPU of import and start", cpu["ours"], cpu["urllib3"], 1.5, unit="ms", name="urllib3 alone"
        ),
        needed,
    ]
