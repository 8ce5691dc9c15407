"""`firmament-agent` as its user meets it: real processes, a real server, real TLS."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support import documents
from support.agent_device import AGENT, Device, until
from support.databases import fresh_database
from support.programs import Program
from support.server_world import World, run_command

from firmament.agent.socket import ControlClient
from firmament.durable import RealDisk
from firmament.errors import LockedError, MalformedError
from firmament.trust.floors import Floors


@pytest.fixture(scope="module")
def world(tmp_path_factory, database_kind):
    made = World(tmp_path_factory.mktemp("world"), database=fresh_database(database_kind)).begin()
    yield made
    made.close()


@pytest.fixture
def device(tmp_path, world):
    return Device(tmp_path, world).provision()


@pytest.fixture
def releases(world):
    """Give each test its own release: `releases(data)` publishes, `assign` names it to a device."""

    def publish(device, data=b"firmware", **changes):
        number = world.next_number = getattr(world, "next_number", 1) + 1
        version = f"1.{number}"
        # One owner of the product wants to be asked: then each release has to tell them something.
        world.publish_release("thermo", version, number, data, **{"notes": {"en": "Better."}, **changes})
        world.assign(device, f"thermo/{version}")
        return version

    return publish


def attempt(world, device):
    return world.attempt(device)


# --- without a daemon ----------------------------------------------------------------------


def test_a_new_device_from_provisioning_to_a_confirmed_image(device, world, releases):
    assert device.run("check", code=5) == ""
    version = releases(device, b"new image" * 1000)
    found = device.run("check", code=0)
    assert (found["state"], found["attempt"]["release_id"]) == ("offered", f"thermo/{version}")
    assert device.run("download", code=0)["state"] == "verified"
    assert device.run("verify", code=0)["state"] == "verified"
    assert (device.directory / "b.img").read_bytes().startswith(b"new image" * 1000)
    device.run("apply", code=10)
    assert device.run("status", code=0)["state"] in {"staged", "trial"}
    with device.daemon():  # the machine comes back
        until(lambda: device.run("status")["running"])
    assert world.attempt(device)["status"] == "confirmed"
    history = device.run("history", code=0)["attempts"]
    assert [(item["release_id"], item["status"]) for item in history] == [(f"thermo/{version}", "confirmed")]


def test_commands_say_what_is_wrong_with_a_code(tmp_path, world):
    device = Device(tmp_path, world)
    assert device.error("check")["code"] == "state/not-enrolled"
    assert device.code == 74
    device.config.write_text("nonsense")
    assert device.error("status")["code"] == "local/setting"
    device.config.unlink()
    error = device.error("run")
    assert (error["code"], device.code) == ("local/file", 102)
    assert "install-service" in error["message"]


def test_provisioning_twice_is_refused(device):
    file = device.directory / "provisioning.json"
    assert device.error("provision", str(file))["code"] == "request/conflict"
    assert device.error("provision", str(file), "--force")["code"] == "transfer/http-status"  # the token is used
    assert device.run("check", code=5) == ""


def test_the_factory_path(tmp_path, world):
    device = Device(tmp_path, world)
    device.provision = lambda: None
    value = {
        "v": 1,
        "server_url": world.server.url,
        "ca_pem": world.server.ca.read_text(),
        "product": "thermo",
        "hardware": "rpi4",
        "image_root": world.author.root("image").decode(),
        "director_root": world.author.root("director").decode(),
    }
    file, request, answer = (tmp_path / name for name in ("p.json", "request.json", "answer.json"))
    file.write_text(json.dumps(value))
    assert device.error("provision", str(file))["code"] == "local/setting"
    device.run("provision", str(file), "--csr-out", str(request), code=0)
    assert device.error("check")["code"] == "state/not-enrolled"
    (tmp_path / "token").write_text(world.admin.token)
    (tmp_path / "token").chmod(0o600)
    where = ("--server", world.server.url, "--ca", world.server.ca, "--token-file", tmp_path / "token")
    made = run_command("device", "sign-csr", request, *where, "--out", answer, "--json")
    assert documents.loads(made.stdout)["file"] == str(answer)
    device.run("provision", str(file), "--certificate", str(answer), code=0)
    device.run("check", code=5)


def test_an_older_release_is_refused_and_reported(device, world, releases):
    Floors(RealDisk(), device.directory / "state" / "enrolment" / "floors").raise_sequence(1000)
    releases(device)
    error = device.error("check")
    assert (error["code"], device.code) == ("trust/rollback", 22)
    assert world.attempt(device)["status"] == "refused"
    assert not (device.directory / "b.img").exists()


def test_an_owner_who_wants_to_be_asked(tmp_path, world, releases):
    device = Device(tmp_path, world, policy='mode = "ask"').provision()
    releases(device)
    assert device.run("check", code=11)["state"] == "offered"
    assert device.error("download")["code"] == "policy/waiting-for-consent"
    assert device.code == 11
    assert device.run("answer", "skip", code=0)["state"] == "idle"
    assert world.attempt(device)["status"] == "declined"
    releases(device)
    assert device.run("download", "--yes", code=0)["state"] == "verified"


def test_the_doctor_looks_at_everything(device, world):
    slots = device.run("slots", code=0)["slots"]
    assert [(slot["slot"], slot["booted"]) for slot in slots] == [("a", True), ("b", False)]
    found = {item["check"]: item for item in device.run("doctor", code=0)["findings"]}
    assert set(found) >= {"enrolment", "floors", "clock", "certificate", "roots", "space", "slots", "boot", "server"}
    assert {item["verdict"] for name, item in found.items() if name != "health"} == {"good"}
    (device.directory / "state" / "enrolment" / "identity.key").chmod(0o644)
    for name in ("floors.a", "floors.b"):
        (device.directory / "state" / "enrolment" / "floors" / name).write_bytes(b"")
    findings = device.run("doctor", code=1)["findings"]
    bad = {item["check"] for item in findings if item["verdict"] == "bad"}
    assert {"permissions", "floors"} <= bad
    assert all(item["action"] for item in findings if item["verdict"] != "good")


def test_the_doctor_of_a_device_that_was_never_provisioned(tmp_path, world):
    device = Device(tmp_path, world)
    (tmp_path / "state").mkdir()
    findings = {item["check"]: item for item in device.run("doctor", code=1)["findings"]}
    assert findings["enrolment"]["verdict"] == "bad"
    assert "provision" in findings["enrolment"]["action"]


# --- with the daemon -----------------------------------------------------------------------


def test_the_daemon_does_the_commands_work(device, world, releases):
    with device.daemon() as process:
        assert device.run("status", code=0)["state"] == "idle"
        assert device.run("check", code=5) == ""
        releases(device)
        assert device.error("all")["code"] == "policy/restart-needed"
        assert process.wait(20) == 10
    with device.daemon() as process:
        until(lambda: device.run("status")["running"])
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert not device.socket.exists()


def test_a_second_agent_is_refused(device):
    """Case 50."""
    with device.daemon():
        assert device.error("run")["code"] == "state/locked"
        client = ControlClient.connect(device.socket)
        device.socket.rename(device.directory / "hidden.sock")
        assert device.error("check")["code"] == "state/locked"
        assert device.run("status", code=0)["state"] == "idle"  # reading is always possible
        (device.directory / "hidden.sock").rename(device.socket)
        assert client.ask("status", {})["state"] == "idle"


def test_a_device_waits_for_its_provisioning_with_the_daemon_running(tmp_path, world):
    device = Device(tmp_path, world)
    with device.daemon():
        assert device.run("status", code=0)["error"]["code"] == "state/not-enrolled"
        device.provision()
        assert until(lambda: device.run("status")["state"]) == "idle"


def test_a_program_runs_although_updates_cannot(tmp_path, world):
    """Damaged state must not take the device with it."""
    mark = tmp_path / "alive"
    boot = f"""kind = "supervisor"
command = ["{sys.executable}", "-c", "import time; open('{mark}', 'w'); time.sleep(100)"]"""
    device = Device(tmp_path, world, boot=boot)
    text = device.config.read_text().replace('kind = "image"', f'kind = "bundle"\ndirectory = "{tmp_path}/app"')
    device.config.write_text(
        "\n".join(line for line in text.splitlines() if not line.strip().startswith(("a =", "b =")))
    )
    (tmp_path / "app" / "a").mkdir(parents=True)
    with device.daemon():
        until(mark.exists)
        assert device.run("status", code=0)["error"]["code"] == "state/not-enrolled"


def test_watching_shows_what_happens(device, world, releases):
    with device.daemon():
        watcher = Program(
            [AGENT, "--config", device.config, "status", "--watch", "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            first = documents.loads(watcher.stdout.readline())
            assert (first["event"], first["state"]) == ("status", "idle")
            releases(device, bytes(300_000))
            device.run("download")
            seen = []
            while "verified" not in seen:
                event = documents.loads(watcher.stdout.readline())
                seen.append(event.get("state") or event["event"])
            assert seen[0] == "offered"
            assert "progress" in seen
        finally:
            watcher.terminate()
            watcher.communicate(timeout=10)


def test_hooks_hear_what_happens(tmp_path, world, releases):
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    for name in ("on_offer", "on_progress", "on_restart_in", "on_done"):
        (hooks / name).write_text(f"#!/bin/sh\necho {name} $FIRMAMENT_RELEASE $FIRMAMENT_PERCENT >> {tmp_path}/heard\n")
        (hooks / name).chmod(0o755)
    (hooks / "on_done").chmod(0o777)  # others may write it: it is not run
    device = Device(tmp_path, world, extra=f'\n[hooks]\ndirectory = "{hooks}"\n').provision()
    version = releases(device)
    with device.daemon() as process:
        process.wait(20)
    with device.daemon():
        until(lambda: device.run("status")["running"])
    heard = (tmp_path / "heard").read_text().splitlines()
    assert heard[0] == f"on_offer thermo/{version} 1"
    assert f"on_restart_in thermo/{version} 88" in heard
    assert not any(line.startswith("on_done") for line in heard)
    assert "hook.not-trusted" in device.log


def test_systemd_is_told(device):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        path = device.directory / "notify"
        manager.bind(str(path))
        manager.settimeout(20)
        device.env["NOTIFY_SOCKET"] = str(path)
        with device.daemon():
            assert manager.recv(4096).startswith(b"READY=1\n")
            said = b""
            while b"STATUS=idle" not in said:
                said = manager.recv(4096)
                assert said.startswith(b"WATCHDOG=1")
        while b"STOPPING" not in said:
            said = manager.recv(4096)


def test_bad_requests_are_answered_with_an_error(device):
    requests = (
        b"\n",
        b"hello\n",
        b"{}\n",
        b'{"v":2,"command":"status"}\n',
        b'{"v":1,"command":"rm"}\n',
        b'{"v":1,"command":"answer","arguments":{"answer":"perhaps"}}\n',
        b"x" * 10_000,
        b"[" * 4000 + b"\n",
    )
    with device.daemon():
        for data in requests:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
                client.settimeout(10)
                client.connect(str(device.socket))
                with contextlib.suppress(BrokenPipeError):
                    client.sendall(data)
                with client.makefile("rb") as lines:
                    answer = json.loads(lines.readline())
            assert answer["error"]["code"].startswith("request/"), data
        assert device.run("status", code=0)["state"] == "idle"


def test_many_clients_do_not_stop_it(device):
    with device.daemon():
        idle = [socket.socket(socket.AF_UNIX) for _ in range(20)]
        for client in idle:
            client.connect(str(device.socket))
        for client in idle:
            client.close()
        found = until(lambda: device.run("status"))  # refused while the places of those who hung up are not free yet
        assert found["state"] == "idle"


def test_an_unknown_command_and_a_lost_daemon(device):
    with device.daemon() as process:
        with pytest.raises(MalformedError):
            ControlClient.connect(device.socket).ask("rm", {})
        process.kill()
        process.wait(10)
    assert ControlClient.connect(device.socket) is None
    device.run("check", code=5)  # the stale socket and the old lock do not matter
    with device.daemon():
        assert until(lambda: device.run("status", code=0)["state"]) == "idle"


def test_the_daemon_ends_in_the_middle_of_a_download(tmp_path, world, releases):
    device = Device(tmp_path, world, extra="\n[transfer]\nmax_rate_bytes_per_s = 500000\n").provision()
    releases(device, os.urandom(4_000_000))
    with device.daemon() as process:
        until(lambda: (device.run("status")["attempt"] or {}).get("done_bytes"))
        process.terminate()
        assert process.wait(10) == 0
    done = device.run("status", code=0)["attempt"]["done_bytes"]
    assert 0 < done < 4_000_000
    device.config.write_text(device.config.read_text().replace("= 500000", "= 0"))
    assert device.run("download", code=0)["state"] == "verified"


def test_the_direct_way_is_refused_while_the_lock_is_held(device):
    from firmament.agent.lock import InstanceLock

    with InstanceLock(device.directory / "state"), pytest.raises(LockedError):
        InstanceLock(device.directory / "state").acquire()
    assert Path(device.directory / "state" / "agent.lock").exists()
