"""`firmament demo --console`: a live rollout that stops by itself (acceptance check 1 of the console)."""

import json
import os
import subprocess
import sys


def test_the_demonstration_stops_by_itself(tmp_path):
    code = "from firmament.cli.main import main; main()"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FIRMAMENT_")}
    done = subprocess.run(
        [sys.executable, "-c", code, "demo", "--console", "--devices", "20", "--until-halted", "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
        cwd=tmp_path,
        env={**environment, "PATH": ""},  # no node, no npm, nothing but this interpreter
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout)
    assert said["halt"].startswith("Stopped in wave 2")
    assert "Console:   https://localhost:" in done.stderr
    assert "password:" in done.stderr
