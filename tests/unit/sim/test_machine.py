"""The simulated machine: restarts what asks for it, and a power cut leaves nothing running."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from firmament.core.clock import SystemClock
from firmament.sim import device


def agent(tmp_path: Path, body: str) -> list[str]:
    """A stand-in for the agent: `n` counts its starts, from 1."""
    script = tmp_path / "agent.py"
    script.write_text(
        "import sys, os, time, signal, pathlib, subprocess\n"
        f"count = pathlib.Path({str(tmp_path / 'count')!r})\n"
        "n = len(count.read_text()) + 1 if count.exists() else 1\n"
        "count.write_text('x' * n)\n" + body
    )
    return [sys.executable, str(script)]


def starts(tmp_path: Path) -> int:
    return len((tmp_path / "count").read_text())


def test_exit_10_is_a_restart_and_another_code_ends(tmp_path):
    machine = device.Machine(agent(tmp_path, "sys.exit(10 if n < 3 else 85)"), SystemClock())
    assert machine.run() == 85
    assert machine.starts == starts(tmp_path) == 3


def test_an_agent_that_is_killed_or_fails_unexpectedly_starts_again(tmp_path, monkeypatch):
    monkeypatch.setattr(device, "FIRST_PAUSE_S", 0.01)
    body = "n == 1 and os.kill(os.getpid(), signal.SIGKILL)\nsys.exit(1 if n == 2 else 0)"
    machine = device.Machine(agent(tmp_path, body), SystemClock())
    assert machine.run() == 0
    assert starts(tmp_path) == 3


def test_switching_off_asks_the_agent_to_end_and_does_not_start_it_again(tmp_path):
    body = (
        f"gone = pathlib.Path({str(tmp_path / 'gone')!r})\n"
        "signal.signal(signal.SIGTERM, lambda *_: (gone.write_text('x'), sys.exit(0)))\n"
        "count.with_name('ready').touch()\ntime.sleep(60)"
    )
    machine = device.Machine(agent(tmp_path, body), SystemClock())
    thread = threading.Thread(target=machine.run)
    thread.start()
    until((tmp_path / "ready").exists)
    machine.switch_off()
    thread.join(10)
    assert not thread.is_alive()
    assert (tmp_path / "gone").exists()
    assert starts(tmp_path) == 1


def test_a_power_cut_ends_also_what_left_the_process_group(tmp_path):
    child = "import time; time.sleep(60)"
    body = (
        f"subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True)\n"
        "count.with_name('ready').touch()\ntime.sleep(60)"
    )
    plug, other = f"test:{tmp_path}", f"other:{tmp_path}"
    with (
        started(agent(tmp_path, body), plug) as running,
        started([sys.executable, "-c", child], other) as neighbour,
    ):
        until(lambda: (tmp_path / "ready").exists() and len(device.on_plug(plug)) == 2)
        assert device.cut_power(plug, SystemClock(), group=running.pid) >= 2
        running.wait(5)
        assert device.on_plug(plug) == []
        assert neighbour.poll() is None  # another device keeps its power
        neighbour.kill()


def test_a_missing_command_says_what_to_install(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(device.DependencyMissingError, match="firmament-nothing"):
        device.command_path("firmament-nothing")


def started(argv: list[str], plug: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(argv, env={device.POWER: plug, "PATH": "/usr/bin:/bin"}, start_new_session=True)


def until(condition, timeout_s: float = 10) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.01)
