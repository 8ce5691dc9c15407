"""`make chaos`, short: nothing acknowledged is lost, no limit is exceeded, and planted losses are found."""

import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parents[1] / "chaos" / "run.py"


def test_servers_leader_and_postgresql_are_killed_in_a_rollout_and_nothing_is_lost():
    arguments = ("--servers", "2", "--faults", "3", "--devices", "8")
    found = subprocess.run([sys.executable, PROGRAM, *arguments], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout.splitlines()[-1:]) == (0, ["faults: 3, lost: 0"]), (
        found.stdout + found.stderr
    )
    assert "planted losses found: 8 of 8" in found.stdout
