"""Starting a command, its help and its completion is cheap: tab starts it at every press (console.md §4.1)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
HEAVY = {"rich", "fastapi", "starlette", "sqlalchemy", "alembic", "jinja2", "textual", "uvicorn", "pydantic"}
HTTP = {"urllib3", "http.client", "requests", "httpx", "ssl", "asyncio", "tuf", "cryptography", "urllib.request"}
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


@pytest.mark.parametrize("typed", ["", "firmament re"], ids=["version", "completion"])
def test_starting_takes_at_most_six_times_a_bare_interpreter(typed):
    program = [str(BIN / "firmament"), *([] if typed else ["--version"])]
    env = environment("firmament", typed)
    bare, full = [], []
    for _ in range(7):
        bare.append(cpu_s([sys.executable, "-c", "pass"], env))
        full.append(cpu_s(program, env))
    assert min(full) <= MAX_RATIO * min(bare), f"{min(full) * 1000:.0f} ms against {min(bare) * 1000:.0f} ms"
