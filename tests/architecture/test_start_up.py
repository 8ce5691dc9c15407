"""Starting a command, its help and its completion is cheap: tab starts it at every press (console.md §4.1)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
HEAVY = {"rich", "fastapi", "starlette", "sqlalchemy", "alembic", "jinja2", "textual", "uvicorn", "pydantic"}
HTTP = {"urllib3", "http.client", "requests", "httpx", "ssl", "asyncio", "tuf", "cryptography", "urllib.request"}
MAX_CPU_S = 0.060
BARE_CPU_S = 0.010
FEWEST_RUNS, MOST_RUNS = 5, 12
MAX_RATIO = 6.0
# 60 ms where a bare interpreter takes 10 ms of CPU (console.md §4.1); measured: 3.6. Both sides
# are measured in turn, so that a loaded machine slows both.

PROBE = """
import atexit, sys
heavy = set(sys.argv[1].split(","))
def say():
    tops = {name for name in sys.modules} | {name.partition(".")[0] for name in sys.modules}
    sys.stderr.write("LOADED " + " ".join(sorted(tops & heavy)) + "\\n")
atexit.register(say)
program, words = sys.argv[2], sys.argv[3:]
sys.argv = [program, *words]
if program == "firmament":
    from firmament.cli.main import main
else:
    from firmament.cli.agent import main
main()
"""
STARTS = [
    ("firmament", ["--version"], ""),
    ("firmament", ["--help"], ""),
    ("firmament", [], "firmament "),
    ("firmament", [], "firmament re"),
    ("firmament", [], "firmament release pub"),
    ("firmament", [], "firmament device list --pro"),
    ("firmament", [], "firmament key gen"),
    ("firmament", [], "firmament server "),
    ("firmament", [], "firmament server run --"),
    ("firmament", [], "firmament server backup --"),
    ("firmament", [], "firmament operator lo"),
    ("firmament", ["completion", "bash"], ""),
    ("firmament", ["config", "list", "--origin"], ""),
    ("firmament-agent", ["--version"], ""),
    ("firmament-agent", ["--help"], ""),
    ("firmament-agent", [], "firmament-agent "),
    ("firmament-agent", [], "firmament-agent status --"),
]


def environment(program, typed):
    found = {**os.environ, "HOME": "/nonexistent"}
    if typed:
        words = typed.split(" ")
        name = f"_{program.replace('-', '_').upper()}_COMPLETE"
        found |= {name: "bash_complete", "COMP_WORDS": typed, "COMP_CWORD": str(len(words) - 1)}
    return found


@pytest.mark.parametrize(("program", "arguments", "typed"), STARTS, ids=lambda value: " ".join(value) if value else "-")
def test_starting_imports_nothing_heavy(program, arguments, typed):
    done = subprocess.run(
        [sys.executable, "-I", "-c", PROBE, ",".join(HEAVY | HTTP), program, *arguments],
        env=environment(program, typed),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "LOADED ", done.stderr
    assert done.stdout


def cpu_s(command, env):
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("typed", ["", "firmament re", "firmament server run --"])
def test_starting_is_quick(typed):
    """At most six times a bare interpreter, and at most 60 ms of CPU on a processor that is not busy.

    A core that is shared runs everything slower, the bare interpreter too: 60 ms are stretched by
    what it takes above the 10 ms it takes alone, and by nothing else. The best of several counts.
    """
    program = [str(BIN / "firmament"), *([] if typed else ["--version"])]
    env = environment("firmament", typed)
    bare, full = [], []
    for _ in range(MOST_RUNS):
        bare.append(cpu_s([sys.executable, "-c", "pass"], env))
        full.append(cpu_s(program, env))
        if len(full) >= FEWEST_RUNS and min(full) <= MAX_CPU_S:
            break
    limit_s = min(MAX_RATIO * min(bare), MAX_CPU_S * max(1.0, min(bare) / BARE_CPU_S))
    assert min(full) <= limit_s, f"{min(full) * 1000:.0f} ms against {min(bare) * 1000:.0f} ms"


def test_the_version_costs_hardly_more_than_the_interpreter():
    """Nothing is imported to say it: absolutely below 60 ms, however busy the machine is."""
    env = environment("firmament", "")
    for program in ("firmament", "firmament-agent"):
        best = MAX_CPU_S + 1
        for _ in range(MOST_RUNS):
            best = min(best, cpu_s([str(BIN / program), "--version"], env))
            if best <= MAX_CPU_S:
                break
        assert best <= MAX_CPU_S, f"{best * 1000:.0f} ms"
