"""A rollout over the real server: planned, made, stopped by a failure, explained, and brought back."""

import time

import pytest
from support.databases import fresh_database
from support.server_world import World


@pytest.fixture(scope="module")
def world(tmp_path_factory, database_kind):
    made = World(tmp_path_factory.mktemp("world"), database=fresh_database(database_kind)).begin()
    made.publish_release("thermo", "1.0", 1, b"one")
    made.publish_release("thermo", "2.0", 2, b"two", revertible_to=1)
    yield made
    made.close()


def wait_for(ask, wanted, seconds=20):
    deadline = time.monotonic() + seconds
    while True:
        found = ask()
        if wanted(found):
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.1)


def test_the_whole_story_of_a_rollout(world):
    good, bad = world.device(), world.device()
    for device in (good, bad):
        assert device.assignment() is None
    admin = world.admin
    body = {
        "release": "thermo/2.0",
        "selector": "product=thermo",
        "waves": [{"percent": 100}],
        "gate": {"limit_ratio": "0.6", "min_finished": 2},
    }
    planned = admin.ask("POST", "/api/v1/rollouts/plan", body).json
    assert (planned["count"], planned["waves"]) == (2, [{"number": 1, "name": "wave 1", "count": 2}])
    assert planned["sources"] == [{"version": "1.0", "count": 2, "payload_bytes": 3, "is_delta": False}]
    stale = admin.ask("POST", "/api/v1/rollouts", {**body, "name": "two", "expect_count": 5})
    assert (stale.status, stale.code) == (409, "request/conflict")
    made = admin.ask("POST", "/api/v1/rollouts", {**body, "name": "two", "expect_count": 2})
    assert made.status == 201, made.body
    path = f"/api/v1/rollouts/{made.json['rollout_id']}"

    def show():
        return admin.ask("GET", path).json

    wait_for(show, lambda shown: shown["waves"] and shown["waves"][0]["state"] == "open")
    attempt = wait_for(good.assignment, lambda found: found is not None)
    assert (attempt["action"], bad.assignment()["action"]) == ("install", "install")
    good.tell(attempt["attempt_id"], "fetching")
    good.tell(attempt["attempt_id"], "trial", boot_id="b", version="2.0", sequence_number=2)
    good.tell(attempt["attempt_id"], "confirmed", boot_id="b", version="2.0", sequence_number=2)
    assert show()["counts"] == {"updated": 1, "offered": 1}
    bad.tell(bad.assignment()["attempt_id"], "reverted", code="slot/health")
    assert show()["counts"] == {"updated": 1, "failed": 1}
    wait_for(show, lambda shown: shown["state"] == "finished")
    assert [item["code"] for item in admin.ask("GET", f"{path}/reasons").json["reasons"]] == ["slot/health"]
    (failed,) = admin.ask("GET", f"{path}/targets", fields={"status": "failed"}).json["targets"]
    assert (failed["device_id"], failed["code"]) == (bad.device_id, "slot/health")
    why = admin.ask("GET", f"/api/v1/devices/{bad.device_id}/why", fields={"release": "thermo/2.0"}).json
    assert why["first_blocking"] == "not-failed-here"
    assert [rule["verdict"] for rule in why["rules"]][:8] == ["pass"] * 6 + ["block", "pass"]

    preview = admin.ask("GET", f"{path}/actions/revert").json
    assert (preview["count"], preview["needs_reason"], preview["is_possible"]) == (1, True, True)
    assert admin.ask("POST", f"{path}/revert", {}).code == "request/malformed"
    assert admin.ask("POST", f"{path}/revert", {"reason": "the other half failed"}).json["state"] == "reverting"

    def ask_back():
        return good.assignment(version="2.0", sequence_number=2, boot_id="b")

    back = wait_for(ask_back, lambda found: found is not None)
    assert (back["action"], back["takes_back"]) == ("revert", attempt["attempt_id"])
    good.tell(back["attempt_id"], "confirmed", boot_id="c", version="1.0", sequence_number=1)
    shown = wait_for(show, lambda shown: shown["state"] == "reverted")
    assert shown["counts"] == {"went-back": 1, "failed": 1}
    timeline = admin.ask("GET", f"/api/v1/devices/{good.device_id}/timeline").json["entries"]
    assert [(entry["kind"], entry["status"]) for entry in timeline] == [
        ("revert", "confirmed"),
        ("attempt", "confirmed"),
    ]
    listed = admin.ask("GET", "/api/v1/rollouts", fields={"state": "reverted"}).json["rollouts"]
    assert [item["rollout_id"] for item in listed] == [made.json["rollout_id"]]
    assert admin.ask("GET", f"{path}/series").json["limit_ratio"] == 0.6


def test_a_viewer_looks_and_changes_nothing(world):
    viewer = world.token("viewer")
    body = {"release": "thermo/2.0", "name": "x"}
    assert viewer.ask("POST", "/api/v1/rollouts/plan", body).status == 200
    assert viewer.ask("POST", "/api/v1/rollouts", body).status == 403
    assert viewer.ask("GET", "/api/v1/rollouts").status == 200
    assert world.admin.ask("GET", "/api/v1/rollouts/none").code == "request/not-found"
