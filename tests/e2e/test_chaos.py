"""`make chaos`, short: nothing acknowledged is lost, and a planted loss is found."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "chaos" / "run.py"


@pytest.mark.parametrize(
    ("arguments", "code", "last"),
    [(("--faults", "2"), 0, "faults: 2, lost: 0"), (("--faults", "1", "--plant"), 1, "faults: 1, lost: 3")],
)
def test_chaos_counts_what_was_lost(arguments, code, last):
    found = subprocess.run([sys.executable, PROGRAM, *arguments], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout.splitlines()[-1].endswith(last)) == (code, True), found.stdout + found.stderr
