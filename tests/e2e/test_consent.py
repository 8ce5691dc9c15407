"""Consent by commands on a real device against a real server: exit code 11, answers, and what the server counts."""

import pytest
from support import documents
from support.agent_device import Device
from support.databases import fresh_database
from support.server_world import World, submission

from firmament.core.manifest import UpdateClass


@pytest.fixture(scope="module")
def world(tmp_path_factory, database_kind):
    made = World(tmp_path_factory.mktemp("world"), database=fresh_database(database_kind)).begin()
    made.publish_release(
        "thermo", "1.1", 2, b"x" * 5000, notes={"en": "Fixes readings."}, update_class=UpdateClass.SECURITY
    )
    yield made
    made.close()


@pytest.fixture
def device(tmp_path, world):
    made = Device(tmp_path, world, policy='mode = "ask"').provision()
    world.assign(made, "thermo/1.1")
    return made


def events(world, device):
    found = world.admin.ask("GET", "/api/v1/consent/events?limit=500").json["events"]
    return [event["answer"] for event in found if event["device_id"] == device.device_id][::-1]


def test_an_owner_answers_by_commands_and_the_server_has_it_signed(device, world):
    assert device.run("check", code=11)["consent"]["needs_answer"]
    device.run("all", code=11)
    shown = device.run("consent", "show", code=11)
    assert shown["offer"]["sections"][0]["lines"][0] == "Fixes readings."
    assert "Fixes readings." in device.run("consent", "show", code=11, json_too=False)
    assert device.run("consent", "tonight", code=0)["consent"]["answer"] == "tonight"
    postponed = device.run("consent", "postpone", "8h", code=0)["consent"]
    assert (postponed["answer"], postponed["postpones_left"]) == ("later", 2)
    assert device.run("consent", "show", code=0)["consent"]["again_at"]
    device.run("consent", "postpone", "soon", code=2)
    device.run("consent", "postpone", code=0)
    device.run("consent", "postpone", code=0)
    device.run("consent", "postpone", code=95)
    assert documents.loads(device.stderr.splitlines()[-1])["code"] == "policy/postpone-limit"
    device.run("consent", "accept", code=0)
    device.run("consent", "withdraw", code=0)
    assert device.run("consent", "opt-out", code=0)["consent"]["opted_out"]
    assert "known holes stay open" in device.stderr
    device.run("consent", "opt-in", code=0)
    assert device.run("consent", "policy", "--feature", "manual", code=0)["consent"]["feature"] == "manual"
    assert device.run("consent", "skip", code=0)["state"] == "idle"
    device.run("check")
    said = ["asked", "tonight", "later", "later", "later", "now", "withdrawn", "opt-out", "opt-in", "skip"]
    assert sorted(events(world, device)) == sorted(said)
    assert device.run("history")["attempts"][-1]["status"] == "declined"
    report = world.admin.ask("GET", "/api/v1/consent/report").json
    answered = report["agreed"] + report["postponed"] + report["declined"] + report["no_answer"]
    assert report["asked"] == answered >= 1


def test_an_operators_question_reaches_a_device_that_would_install_by_itself(tmp_path, world):
    """Of both rules the stricter holds; the server knows the owner's, and asks for notes where somebody is asked."""
    made = Device(tmp_path, world, policy='mode = "automatic"').provision()
    made.run("check")
    path = f"/api/v1/devices/{made.device_id}"
    told = world.admin.ask("GET", path).json["attributes"]
    assert (told["policy.security"], told["policy.feature"]) == ("automatic", "automatic")
    rule = {"level": "device", "subject": made.device_id, "update_class": "security", "mode": "ask"}
    assert world.admin.ask("PUT", "/api/v1/consent/policy", rule).status == 204
    world.assign(made, "thermo/1.1")
    assert made.run("check", code=11)["consent"]["security"] == "ask"
    made.run("consent", "show", code=11)
    # Nobody is to be asked about a release that says nothing.
    world.author.release("thermo", "1.2", 3, b"y" * 5000, update_class=UpdateClass.SECURITY)
    world.upload()
    refused = world.publish(submission(world.author.product("thermo")))
    assert refused.code == "request/conflict"
    assert b"consent/no-notes" in refused.body
