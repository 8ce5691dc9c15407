"""The supervisor with real programs: groups, signals, output, and what outlives the agent."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from firmament.agent.bootctl.processes import MARK, LinuxProcesses, _marked
from firmament.agent.bootctl.supervisor import Supervisor, SupervisorSettings
from firmament.agent.slots.port import Label
from firmament.core.clock import SystemClock
from firmament.durable import RealDisk
from firmament.errors import BootControlError

PROGRAM = """
import os, signal, subprocess, sys, time
print("slot", os.environ["FIRMAMENT_SLOT"], os.getcwd(), flush=True)
{extra}
while True:
    time.sleep(1)
"""


def wait_for(condition, timeout_s=15):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def supervisor(tmp_path):
    made = []

    def make(a="", b="", command=(sys.executable, "main.py"), stop_timeout_s=1.0):
        for label, extra in zip(Label, (a, b), strict=True):
            (tmp_path / "app" / label).mkdir(parents=True, exist_ok=True)
            (tmp_path / "app" / label / "main.py").write_text(PROGRAM.format(extra=textwrap.dedent(extra)))
        settings = SupervisorSettings(tuple(map(str, command)), stop_timeout_s=stop_timeout_s)
        made.append(Supervisor(RealDisk(), tmp_path / "app", tmp_path / "state", settings, SystemClock()))
        return made[-1]

    yield make
    for each in made:
        each.stop()
    assert _marked(str(tmp_path / "app")) == []


def test_it_runs_swaps_and_gives_back(supervisor, tmp_path):
    boot = supervisor()
    boot.start()
    wait_for(lambda: f"slot a {tmp_path}/app/a" in boot._program.output())
    boot.arm(Label.B)
    boot.restart()
    wait_for(lambda: f"slot b {tmp_path}/app/b" in boot._program.output())
    assert (tmp_path / "app/current").readlink() == Path("b")
    assert boot.trouble() is None
    boot.revert(Label.A)
    boot.restart()
    wait_for(lambda: "slot a" in boot._program.output())
    assert (tmp_path / "app/current").readlink() == Path("a")
    assert not list(tmp_path.rglob("__pycache__"))


def test_a_crash_on_trial_is_told_with_its_last_words(supervisor):
    boot = supervisor(b="raise SystemError('the sensor is missing')")
    boot.start()
    boot.arm(Label.B)
    boot.restart()
    wait_for(lambda: boot.trouble() is not None)
    assert "exit code 1" in boot.trouble()
    assert "the sensor is missing" in boot.trouble()


def test_a_command_that_does_not_exist_is_told(supervisor):
    boot = supervisor(command=["/no/such/program"])
    boot.start()
    boot.arm(Label.B)
    boot.restart()
    assert "cannot be started" in boot.trouble()


def test_a_program_that_ignores_signals_and_its_children_end(supervisor, tmp_path):
    stubborn = """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen([sys.executable, "-c", "import signal,time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"])
        print("kid:", child.pid, flush=True)
    """
    boot = supervisor(a=stubborn)
    boot.start()
    wait_for(lambda: "up" in boot._program.output() and "kid: " in boot._program.output())
    child = int(boot._program.output().split("kid: ")[1].split()[0])
    boot.stop()
    wait_for(lambda: not alive(child))


def test_children_of_a_program_that_died_are_ended_before_it_is_started_again(supervisor):
    dies = """
        child = subprocess.Popen(["sleep", "600"])
        print("kid:", child.pid, flush=True)
        sys.exit(3)
    """
    boot = supervisor(a=dies)
    boot.start()
    program = boot._program
    wait_for(lambda: "kid: " in program.output())
    child = int(program.output().split("kid: ")[1].split()[0])
    wait_for(lambda: boot.tend() and boot._program is not program)
    wait_for(lambda: not alive(child))


def test_what_a_killed_agent_left_behind_is_ended(supervisor, tmp_path):
    mark = str(tmp_path / "app")
    orphan = subprocess.Popen(["sleep", "600"], env={**os.environ, MARK: mark}, start_new_session=True)
    try:
        wait_for(lambda: _marked(mark) == [orphan.pid])
        boot = supervisor()
        boot.start()
        assert orphan.wait(5) == -signal.SIGTERM
        wait_for(boot._program.output)
        assert len(_marked(mark)) == 1
    finally:
        orphan.kill()
        orphan.wait()


def test_endless_output_costs_no_memory(supervisor):
    boot = supervisor(
        a="""
        line = "x" * 1_000_000
        for _ in range(20):
            sys.stdout.write(line)
        print("", flush=True)
        print("done", flush=True)
    """
    )
    boot.start()
    wait_for(lambda: boot._program.output().endswith("done"))
    assert len(boot._program.output()) <= 4096


def test_a_user_that_does_not_exist_is_told(tmp_path):
    with pytest.raises(BootControlError):
        LinuxProcesses(user="nosuchuser").start(["true"], tmp_path, {})


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_the_program_runs_as_the_user_named(tmp_path):
    program = LinuxProcesses(user="nobody").start(["id", "-un"], Path("/"), {})
    wait_for(lambda: program.poll() is not None)
    assert program.output() == "nobody"
