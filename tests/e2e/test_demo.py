"""The demonstration, for real: every outcome it promises, and nothing left behind however it ends."""

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import documents

from firmament.sim import device

FIRMAMENT = Path(sys.executable).parent / "firmament"
THERMOS = ("thermo-1", "thermo-2")
EVERYWHERE = (*THERMOS, "gateway-1")


def left_over(world: Path) -> list[int]:
    """Processes that still hang on the plug of a world or of one of its parts."""
    plugs = [f"world:{world}", *(f"world:{world}#{name}" for name in ("server", *EVERYWHERE))]
    return [process for plug in plugs for process in device.on_plug(plug)]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_outcome_is_as_it_must_be(tmp_path):
    world = tmp_path / "world"
    done = subprocess.run(
        [FIRMAMENT, "demo", "--json", "--directory", world], capture_output=True, text=True, check=False, timeout=590
    )
    assert done.returncode == 0, done.stderr[-4000:]
    document = documents.loads(done.stdout)
    assert document["schema"] == "firmament.demo/1"
    assert document["ok"] is True
    found = {
        (row["device"], row["offered"], row["story"]): (row["outcome"], row["code"], row["runs"])
        for row in document["rows"]
    }
    for name in EVERYWHERE:
        assert found.pop((name, "1.1", "a good release")) == ("confirmed", "", "1.1")
        assert found.pop((name, "1.2", "not healthy")) == ("reverted", "slot/health", "1.1")
        assert found.pop((name, "1.3", "altered on the server")) == ("refused", "trust/digest-mismatch", "1.1")
        assert found.pop((name, "1.4", "power cut")) == ("confirmed", "", "1.4")
    assert sorted(key[0] for key in found) == ["gateway-1", "thermo-1", "thermo-2"]
    assert set(found.values()) == {("refused", "trust/rollback", "1.1")}
    assert {key[2] for key in found} == {"old release assigned", "old repository served"}
    for row in document["rows"]:
        if row["story"].startswith("power cut"):
            assert row["why"].startswith("resumed at byte ")

    assert left_over(world) == []
    for secret in (world / "secrets").iterdir():
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    said = done.stderr + done.stdout + (world / "logs/commands.log").read_text()
    for secret in (world / "secrets").iterdir():
        assert secret.read_text().strip() not in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_when_it_is_interrupted(tmp_path, number):
    world = tmp_path / "world"
    with subprocess.Popen(
        [FIRMAMENT, "demo", "--directory", world],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as running:
        until((world / "server/port").exists, 120)
        assert left_over(world)
        os.kill(running.pid, number)
        code = running.wait(60)
    assert code == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[number]
    until(lambda: left_over(world) == [], 30 if number is signal.SIGKILL else 0.1)


def test_what_differs_is_told_with_the_place_of_the_logs(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [FIRMAMENT, "demo", "--directory", tmp_path / "world", "--port", port],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    assert done.returncode == 1
    assert "NOT AS IT MUST BE: server ended by itself" in done.stderr
    assert f"Logs: {tmp_path / 'world/logs'}" in done.stderr
    assert "local/address-in-use" in (tmp_path / "world/logs/server.log").read_text()
    assert left_over(tmp_path / "world") == []


def test_a_folder_that_is_in_use_is_left_alone(tmp_path):
    (tmp_path / "mine").touch()
    done = subprocess.run([FIRMAMENT, "demo", "--directory", tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 84
    assert "request/conflict" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def until(holds, timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.05)
