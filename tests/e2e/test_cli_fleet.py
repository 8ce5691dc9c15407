"""The operator's commands against a real server: groups, queries, tags; settings from files."""

import os
import subprocess

import pytest
from support import documents, programs
from support.agent_device import until
from support.databases import fresh_database
from support.server_world import World


@pytest.fixture(scope="module")
def world(tmp_path_factory, database_kind):
    made = World(tmp_path_factory.mktemp("world"), database=fresh_database(database_kind)).begin()
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
        done = programs.run(
            ["firmament", "--profile", "lab", *arguments, *(["--json"] if json_too else [])],
            env=environment,
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == code, done.stderr
        command.stderr = done.stderr
        if code and json_too and done.stderr:
            documents.loads(done.stderr.splitlines()[-1])
        return documents.loads(done.stdout) if json_too and done.stdout else done.stdout

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
    assert documents.loads(run.stderr)["code"] == "request/not-found"


def test_devices_are_selected_by_a_query(run, world):
    found = run("device", "list", "-q", "hardware=rpi4")["devices"]
    assert {device["device_id"] for device in found} == set(world.ids[:2])
    assert len(run("device", "list", "--limit", "1")["devices"]) == 1
    run("device", "list", "-q", "hardware=(", code=81)


def test_a_device_is_pinned_and_muted_with_reasons(run, world):
    device = world.ids[2]
    assert run("device", "pin", device, "--reason", "audit")["pinned"] == "audit"
    marked = run("device", "mute", device, "--reason", "bench")
    assert (marked["pinned"], marked["muted"]) == ("audit", "bench")
    for state in ("pinned", "muted"):
        found = run("device", "list", "-q", f"state={state}")["devices"]
        assert [each["device_id"] for each in found] == [device]
    assert run("device", "unpin", device)["pinned"] is None
    assert run("device", "unmute", device)["muted"] is None
    run("device", "unpin", device, code=83)


def test_one_device_is_refused_accepted_and_assigned(run, world, release):
    device = world.ids[2]
    assert run("device", "disable", device)["device_id"] == run("device", "enable", device)["device_id"] == device
    made = run("device", "assign", device, release)["attempt_id"]
    assert run("device", "show", device)["attempts"][0]["attempt_id"] == made
    assert run("device", "unassign", device)["attempt_id"] == made
    assert [one["name"] for one in run("operator", "list")["people"]] == ["admin"]
    assert {"fours"} == {group["name"] for group in run("group", "list")["groups"]}
    places = run("config", "path")
    assert {"project", "user", "system"} < set(places)


def test_tagging_many_says_how_many_and_refuses_when_that_changed(run):
    assert run("device", "tag", "-q", "hardware=rpi4", "--add", "beta", "--dry-run")["count"] == 2
    run("device", "tag", "-q", "hardware=rpi4", "--add", "beta", code=2)
    assert documents.loads(run.stderr)["code"] == "usage"
    run("device", "tag", "-q", "hardware=rpi4", "--add", "beta", "--expect-count", "3", code=84)
    error = documents.loads(run.stderr)
    assert (error["code"], error["facts"]) == ("request/conflict", {"expected": 3, "found": 2})
    assert run("device", "tag", "-q", "hardware=rpi4", "--add", "beta", "--expect-count", "2")["changed"] == 2
    assert len(run("device", "list", "-q", "tag=beta")["devices"]) == 2
    assert run("device", "tag", "-q", "tag=beta", "--remove", "beta", "--yes")["changed"] == 2


# --- rollouts ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def release(world):
    world.publish_release("thermo", "2.0", 2, b"new" * 1000, hardware=("rpi4", "rpi5"), notes={"en": "Better."})
    return "thermo/2.0"


def test_a_forecast_says_how_long_it_takes_and_what_a_bad_build_would_do(run, release):
    assumed = ("--failing", "1", "--interval", "3600", "--seed", "4")
    found = run("rollout", "forecast", release, "-q", "hardware=rpi4", "--limit", "2%", "--hold", "10m", *assumed)
    assert (found["release"], found["devices"]) == (release, 2)
    assert found["as_assumed"]["sentence"].startswith("Takes ")
    assert found["as_assumed"]["counts"] == {"updated": 2}
    assert sum(found["bad_build"]["counts"].values()) == 2


def test_a_simulated_fleet_stops_goes_back_and_leaves_evidence_that_verifies(run, tmp_path):
    found = run(
        "sim", "fleet", "--devices", "150", "--failing", "10", "--limit", "2", "--interval", "3600", "--hold", "60",
        "--export", "evidence.jsonl",
    )  # fmt: skip
    assert (found["state"], found["evidence"]["is_whole"]) == ("reverted", True)
    assert found["sentence"].startswith("Stops by itself after")
    assert found["failed_at_halt"] + found["updated_at_halt"] <= found["touched"] < 150
    exported = (tmp_path / "evidence.jsonl").read_text()
    assert exported.count('"rollout.halted"') == 1
    assert len(exported.splitlines()) >= found["evidence"]["events"] > found["touched"]


def test_a_rollout_from_plan_to_abort(run, world, release):
    planned = run(
        "rollout", "plan", release, "-q", "hardware=rpi4", "--waves", "1,all", "--limit", "2.5%", "--hold", "2h"
    )
    assert (planned["count"], [wave["count"] for wave in planned["waves"]]) == (2, [1, 1])
    assert planned["policy"]["hold_s"] == 7200
    assert planned["policy"]["gate"]["limit_ratio"] == 0.025
    said = run("rollout", "plan", release, "-q", "hardware=rpi4", json_too=False)
    assert "Matches    2 devices, 2 would get it" in said
    assert run("rollout", "start", release, "-q", "hardware=rpi4", "--dry-run")["count"] == 2
    assert run("rollout", "list")["rollouts"] == [], "nothing was started by looking"
    run("rollout", "start", release, "-q", "hardware=rpi4", code=2)
    run("rollout", "start", release, "-q", "hardware=rpi4", "--expect-count", "5", code=84)
    made = run(
        "rollout",
        "start",
        release,
        "-q",
        "hardware=rpi4",
        "--name",
        "Autumn",
        "--waves",
        "1,all",
        "--expect-count",
        "2",
    )
    name = made["rollout_id"]
    assert [item["rollout_id"] for item in run("rollout", "list")["rollouts"]] == [name]
    until(lambda: run("rollout", "show", name)["is_filled"])
    watched = run("rollout", "watch", name, "--timeout", "1s", "--interval", "0.2", "--json", code=6, json_too=False)
    assert {documents.loads(line)["rollout_id"] for line in watched.splitlines()} == {name}, "JSON Lines"
    targets = documents.check_lines(run("rollout", "export", name, "--json", json_too=False))
    assert {target["device_id"] for target in targets} == set(world.ids[:2])
    text = run("rollout", "show", name, json_too=False)
    assert "thermo/2.0" in text
    assert "If nobody acts" not in text
    assert "not started" in text
    rows = run("rollout", "export", name, json_too=False).splitlines()
    assert rows[0].split("\t")[0] == "device_id"
    assert {row.split("\t")[0] for row in rows[1:]} == set(world.ids[:2])
    preview = run("rollout", "pause", name, "--dry-run")
    assert preview["sentence"].startswith("No new device starts.")
    assert run("rollout", "pause", name)["state"] == "paused"
    assert run("rollout", "resume", name)["state"] in {"running", "holding"}
    assert run("rollout", "reasons", name)["reasons"] == []
    run("rollout", "revert", name, "--reason", "test", "--yes", code=84)
    assert run("device", "why", world.ids[0])["release"] == release
    assert "ok  " in run("device", "why", world.ids[0], json_too=False)
    assert "entries" in run("device", "timeline", world.ids[0])
    assert run("rollout", "abort", name, "--reason", "over")["state"] == "aborted"
    run("rollout", "watch", name, code=3)


def test_a_draft_begins_when_somebody_says_so(run, release):
    made = run("rollout", "start", release, "-q", "hardware=rpi5", "--draft", "--expect-count", "1")
    name = made["rollout_id"]
    assert made["state"] == "draft"
    assert run("rollout", "start", name, "--dry-run")["action"] == "start"
    run("rollout", "start", name, code=2)  # nobody can be asked here
    run("rollout", "start", name, "--waves", "1,all", "--yes", code=2)  # it has its waves
    assert run("rollout", "start", name, "--yes")["state"] != "draft"
    run("rollout", "start", name, "--yes", code=84)
    run("rollout", "abort", name, "--reason", "over")


def test_a_script_that_runs_twice_does_it_once(run, world):
    twice = ("device", "token", "--product", "thermo", "--idempotency-key", "night 7")
    run(*twice, code=2)  # no blanks
    first, second = (run(*twice[:-1], "night-7") for _ in range(2))
    assert first["token"] == second["token"]


def test_who_one_is_and_what_needs_one(run):
    assert run("whoami")["role"] == "admin"
    assert "admin (admin)" in run("whoami", json_too=False)
    for item in run("status")["items"]:  # what other stories here left open; each says what to do about it
        run(*item["next"].split()[1:])
    assert run("status")["items"] == []
    assert run("status", json_too=False) == "Nothing needs you.\n"


def test_a_plan_that_nothing_matches_says_so(run, release):
    planned = run("rollout", "plan", release, "-q", "hardware=nothing", code=3)
    assert planned["blockers"]
