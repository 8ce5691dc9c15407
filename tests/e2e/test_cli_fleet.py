"""The operator's commands against a real server: groups, queries, tags; settings from files."""

import json
import os
import subprocess
import sys

import pytest
from support.server_world import World

FIRMAMENT = [sys.executable, "-c", "from firmament.cli.main import main; main()"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    made = World(tmp_path_factory.mktemp("world")).begin()
    made.ids = [made.device(hardware=hardware).device_id for hardware in ("rpi4", "rpi4", "rpi5")]
    yield made
    made.close()


@pytest.fixture
def run(world, tmp_path):
    """Run a command; server, CA and token come from a settings file alone."""
    (tmp_path / "token").write_text(world.admin.token)
    (tmp_path / "token").chmod(0o600)
    (tmp_path / "config.toml").write_text(
        f'[profile.lab]\nserver = "{world.server.url}"\nca = "{world.server.ca}"\ntoken_file = "token"\n'
    )
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("FIRMAMENT_")},
        "FIRMAMENT_CONFIG": str(tmp_path / "config.toml"),
        "FIRMAMENT_SYSTEM_CONFIG": str(tmp_path / "none.toml"),
    }

    def command(*arguments, code=0, json_too=True):
        done = subprocess.run(
            [*FIRMAMENT, "--profile", "lab", *arguments, *(["--json"] if json_too else [])],
            capture_output=True, text=True, check=False, timeout=60, env=environment, cwd=tmp_path, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        command.stderr = done.stderr
        return json.loads(done.stdout) if json_too and done.stdout else done.stdout

    return command


def test_a_group_by_query_and_by_hand(run, world):
    assert run("group", "preview", "-q", "hardware=rpi4")["count"] == 2
    assert run("group", "create", "fours", "-q", "hardware=rpi4")["count"] == 2
    assert run("group", "create", "mine")["count"] == 0
    assert run("group", "add", "mine", *world.ids[:1])["changed"] == 1
    shown = run("group", "show", "mine")
    assert [device["device_id"] for device in shown["sample"]] == world.ids[:1]
    assert run("group", "edit", "fours", "-q", "hardware=rpi5")["count"] == 1
    listed = run("group", "list", json_too=False)
    assert "fours\t1\thardware=rpi5" in listed
    assert run("group", "remove", "mine", *world.ids[:1])["changed"] == 1
    run("group", "delete", "mine")
    run("group", "show", "mine", code=83)
    assert json.loads(run.stderr)["code"] == "request/not-found"


def test_devices_are_selected_by_a_query(run, world):
    found = run("device", "list", "-q", "hardware=rpi4")["devices"]
    assert {device["device_id"] for device in found} == set(world.ids[:2])
    assert len(run("device", "list", "--limit", "1")["devices"]) == 1
    run("device", "list", "-q", "hardware=(", code=81)


def test_tagging_many_says_how_many_and_refuses_when_that_changed(run):
    assert run("device", "tag", "-q", "hardware=rpi4", "--add", "beta", "--dry-run")["count"] == 2
    run("device", "tag", "-q", "hardware=rpi4", "--add", "beta", code=2)
    assert json.loads(run.stderr)["code"] == "usage"
    run("device", "tag", "-q", "hardware=rpi4", "--add", "beta", "--expect-count", "3", code=84)
    error = json.loads(run.stderr)
    assert (error["code"], error["facts"]) == ("request/conflict", {"expected": 3, "found": 2})
    assert run("device", "tag", "-q", "hardware=rpi4", "--add", "beta", "--expect-count", "2")["changed"] == 2
    assert len(run("device", "list", "-q", "tag=beta")["devices"]) == 2
    assert run("device", "tag", "-q", "tag=beta", "--remove", "beta", "--yes")["changed"] == 2
