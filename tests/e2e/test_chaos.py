"""`make chaos`, short: nothing acknowledged is lost, no limit is exceeded, and a planted loss is found."""

import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parents[1] / "chaos" / "run.py"


def play(*arguments):
    found = subprocess.run(
        [sys.executable, PROGRAM, "--servers", "2", *arguments], capture_output=True, text=True, check=False
    )
    return found.returncode, found.stdout.splitlines()[-1:], found.stdout + found.stderr


def test_servers_leader_and_postgresql_are_killed_in_a_rollout_and_nothing_is_lost():
    code, last, everything = play("--faults", "3", "--devices", "12")
    assert (code, last) == (0, ["faults: 3, lost: 0"]), everything


def test_a_planted_loss_is_found():
    code, last, everything = play("--faults", "0", "--devices", "3", "--plant")
    assert (code, last) == (1, ["faults: 0, lost: 3"]), everything
