"""The measurements of `make bench-server` run, and write their page; what they find is not judged here."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = "# Page\n\n<!-- table: begin -->\nstale\n<!-- table: end -->\n\nRest.\n"


def test_a_small_run_measures_a_rollout_and_writes_its_table(tmp_path):
    page, found = tmp_path / "page", tmp_path / "found.json"
    page.write_text(PAGE)
    subprocess.run(
        [
            sys.executable,
            ROOT / "bench/server/run.py",
            "--small",
            *("--rows", "9,10,11", "--devices", "500", "--json", found, "--report", page),
        ],
        check=True,
        timeout=120,
    )
    lines = json.loads(found.read_text())
    assert [line["row"] for line in lines] == ["9", "9", "10", "10", "10", "11", "11"]
    holds = {line["what"]: line["holds"] for line in lines}
    # These do not depend on how busy the machine is.
    assert holds["rows of devices and targets among them"]
    assert holds["rows that opening a wave writes, events and chain included"]
    assert holds["counters that differ from a recount after 1 kill -9"]
    text = page.read_text()
    assert text.startswith("# Page\n")
    assert text.endswith("\n\nRest.\n")
    assert "stale" not in text
    assert "| row | what | ours | baseline | ratio | bar | holds |" in text
    assert all(f"| {line['row']} | {line['what']} | {line['ours']} |" in text for line in lines)
