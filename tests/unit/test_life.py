"""What tests start does not outlive them, and what a killed run left behind is removed by the next."""

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

from support.life import YOUNG_S, own_directory

TESTS = Path(__file__).parents[1]
RUN = """
import subprocess, sys
from support.life import die_with_parent, own_directory
child = subprocess.Popen(["sleep", "600"], preexec_fn=die_with_parent, start_new_session=True)
print(own_directory(sys.argv[1]), child.pid, flush=True)
sys.stdin.read()
"""


def test_a_killed_run_leaves_no_process_and_no_directory():
    prefix = f"firmament-life-{uuid.uuid4()}-"
    run = subprocess.Popen(
        [sys.executable, "-c", RUN, prefix], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=TESTS
    )
    with run:
        directory, child = run.stdout.readline().split()
        beside = own_directory(prefix)  # both live
        assert Path(directory).is_dir()
        run.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and " Z " not in Path(f"/proc/{child}/stat").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    others = [own_directory(prefix)]
    assert not Path(directory).exists()
    assert beside.is_dir()
    unknown = beside.parent / f"{prefix}unknown"
    unknown.mkdir()
    others.append(own_directory(prefix))
    assert unknown.is_dir(), "somebody may be about to lock it"
    os.utime(unknown, (0, time.time() - YOUNG_S - 1))
    others.append(own_directory(prefix))
    assert not unknown.exists()
    for made in (beside, *others):
        (made / "lives").unlink()
        made.rmdir()
