"""Updates by hand: exported from a real server, installed by a real agent that reaches nobody, and told back."""

import base64
import hashlib
import json
import uuid
from pathlib import Path

import pytest
from support import documents
from support.agent_device import Device, until
from support.databases import fresh_database
from support.server_world import World, run_command

from firmament.protocol.parcel import RECEIPT_TYPE
from firmament.protocol.v1.envelope import Envelope, pre_authentication_encoding


@pytest.fixture(scope="module")
def world(tmp_path_factory, database_kind):
    made = World(tmp_path_factory.mktemp("world"), database=fresh_database(database_kind)).begin()
    yield made
    made.close()


@pytest.fixture(scope="module")
def operator(world, tmp_path_factory):
    """Run `firmament` as an operator of this server."""
    token = tmp_path_factory.mktemp("token") / "token"
    token.touch(mode=0o600)
    token.write_text(world.token("operator").token)

    def run(*arguments, check=True):
        where = ("--server", world.server.url, "--ca", world.server.ca, "--token-file", token, "--json")
        done = run_command(*arguments, *where, check=check)
        return documents.loads(done.stdout) if done.returncode == 0 else documents.loads(done.stderr.splitlines()[-1])

    return run


IMAGE = b"carried image" * 5000


@pytest.fixture(scope="module")
def carried(world, operator, tmp_path_factory):
    """A device without a network, a parcel for it, and the stick they share."""
    directory = tmp_path_factory.mktemp("site")
    device = Device(directory / "device", world).provision()
    stick = directory / "stick"
    stick.mkdir()
    world.publish_release("thermo", "2.0", 20, IMAGE)
    made = operator("parcel", "export", "thermo/2.0", "--device", device.device_id, "-o", stick / "site.parcel")
    assert made["devices"] == [device.device_id]
    device.cut_off()
    return device, stick


def test_a_device_without_a_network_installs_and_the_fleet_knows_afterwards(world, operator, carried):
    device, stick = carried
    device.run("install", str(stick / "site.parcel"), code=10)
    with device.daemon():  # the machine comes back, and its server does not
        until(lambda: list(stick.glob("*.receipt")))
    (receipt,) = stick.glob("*.receipt")
    written = device.run("receipt", str(stick), code=0)["receipts"]
    assert written == [str(receipt)]
    assert (device.directory / "b.img").read_bytes().startswith(IMAGE)
    assert device.error("install", str(stick / "site.parcel"))["code"] == "policy/nothing-to-do"

    assert world.attempt(device)["status"] == "assigned"
    told = operator("parcel", "receipt", "import", receipt)["receipts"][0]
    assert (told["outcome"], told["release"], told["new"]) == ("confirmed", "thermo/2.0", True)
    assert world.attempt(device)["status"] == "confirmed"
    shown = operator("device", "show", device.device_id)["device"]
    assert (shown["version"], shown["sequence_number"]) == ("2.0", 20)
    again = operator("parcel", "receipt", "import", receipt)["receipts"][0]
    assert again["new"] is False
    assert len(world.server.events("receipt.imported")) == 1

    forged = json.loads(receipt.read_text())
    forged["receipt"]["signature"] = forged["report"]["signature"]
    other = stick / "forged.receipt"
    other.write_text(json.dumps(forged))
    assert operator("parcel", "receipt", "import", other, check=False)["code"] == "trust/signature"


def test_a_parcel_without_a_director_needs_the_owners_setting(world, operator, tmp_path):
    device = Device(tmp_path / "device", world, policy="repository_parcels = true").provision()
    wary = Device(tmp_path / "wary", world).provision()
    world.publish_release("thermo", "2.1", 21, IMAGE + b"1")
    parcel = tmp_path / "any.parcel"
    made = operator("parcel", "export", "thermo/2.1", "--any-device", "-o", parcel)
    assert (made["kind"], made["devices"]) == ("repository", [])
    assert operator_inspect(parcel)["release"] == "thermo/2.1"
    assert wary.error("install", str(parcel))["code"] == "request/forbidden"
    device.cut_off()
    device.run("install", str(parcel), code=10)
    with device.daemon():
        until(lambda: list(tmp_path.glob("*.receipt")))
    (receipt,) = tmp_path.glob("*.receipt")
    told = operator("parcel", "receipt", "import", receipt)["receipts"][0]
    assert (told["outcome"], told["new"]) == ("confirmed", True)
    assert world.attempt(device)["status"] == "confirmed"
    assert operator("device", "show", device.device_id)["device"]["version"] == "2.1"


def operator_inspect(parcel: Path) -> dict:
    return documents.loads(run_command("parcel", "inspect", parcel, "--json").stdout)


def test_a_cut_short_export_leaves_nothing_and_no_file_is_overwritten(operator, tmp_path):
    there = tmp_path / "there.parcel"
    there.write_text("mine")
    assert (
        operator("parcel", "export", "thermo/2.0", "--any-device", "-o", there, check=False)["code"]
        == "request/conflict"
    )
    assert there.read_text() == "mine"
    gone = operator("parcel", "export", "thermo/9.9", "--any-device", "-o", tmp_path / "no.parcel", check=False)
    assert gone["code"] == "request/not-found"
    assert list(tmp_path.iterdir()) == [there]


def receipt_of(device, attempt_id, *, status="confirmed", key=None, **changes):
    """What a device writes, with the signatures of whomever."""
    report = device.envelope(attempt_id, status, boot_id="boot-b", key=key, **changes)
    signed = base64.b64decode(report["payload"])
    told = json.loads(signed)
    value = {
        "v": 1,
        "device_id": told["device_id"],
        "attempt_id": attempt_id,
        "release_id": f"thermo/{told['version']}",
        "outcome": status,
        "report_number": told["report_number"],
        "report_sha256": hashlib.sha256(signed).hexdigest(),
        "version": told["version"],
        "sequence_number": told["sequence_number"],
        "image_digest": f"sha256:{hashlib.sha256(IMAGE).hexdigest()}",
        "at": told["at"],
    }
    signer, data = key or device.key, json.dumps(value).encode()
    signature = signer.sign(pre_authentication_encoding(RECEIPT_TYPE, data))
    envelope = Envelope(data, RECEIPT_TYPE, signer.keyid, signature).to_json()
    return {"v": 1, "device_id": told["device_id"], "receipt": envelope, "report": report}


def test_49_receipts_that_nobody_believes(world, operator):
    """Forged by another key, for another device, mixed from two, replayed as something else, of nobody's release."""
    device, other = world.device(), world.device()
    attempt_id = world.assign(device, "thermo/2.0")
    now = {"version": "2.0", "sequence_number": 20}

    def code(value, status=None):
        answer = world.admin.ask("POST", "/api/v1/receipts", value)
        return answer.code if status is None else answer.json["new"]

    good = receipt_of(device, attempt_id, **now)
    assert code(receipt_of(device, attempt_id, key=other.key, **now)) == "trust/signature"
    assert code({**good, "device_id": other.device_id}) == "trust/signature"
    assert code(receipt_of(other, attempt_id, **now)) == "request/forbidden"
    mixed = receipt_of(device, attempt_id, status="failed", number=1000, **now)
    assert code({**good, "report": mixed["report"]}) == "trust/disagreement"
    assert code({**good, "receipt": good["report"]}) == "request/malformed"
    assert code({**good, "device_id": str(uuid.UUID(int=9))}) == "request/not-found"
    nowhere = receipt_of(device, str(uuid.uuid4()), version="8.8", sequence_number=88)
    assert code(nowhere) == "request/conflict"
    assert world.attempt(device)["status"] == "assigned"
    assert len(world.server.events("report.refused")) >= 6
    assert world.token("viewer").ask("POST", "/api/v1/receipts", good).code == "request/forbidden"

    assert code(good, 200) is True
    assert code(good, 200) is False
    number = json.loads(base64.b64decode(good["report"]["payload"]))["report_number"]
    assert code(receipt_of(device, attempt_id, status="reverted", number=number, **now)) == "trust/replay"
    assert world.attempt(device)["status"] == "confirmed"


def test_an_old_receipt_says_nothing_about_what_runs_now(world):
    device = world.device()
    first = world.assign(device, "thermo/2.0")
    late = receipt_of(device, first, version="2.0", sequence_number=20)
    world.publish_release("thermo", "2.2", 22, IMAGE + b"2")
    second = world.assign(device, "thermo/2.2")
    assert device.tell(second, "confirmed", version="2.2", sequence_number=22, boot_id="boot-c").status == 200
    assert world.admin.ask("POST", "/api/v1/receipts", late).json["new"] is True
    found = world.admin.ask("GET", f"/api/v1/devices/{device.device_id}").json
    assert (found["version"], found["sequence_number"]) == ("2.2", 22)
    states = world.admin.ask("GET", f"/api/v1/devices/{device.device_id}/attempts").json["attempts"]
    assert {item["attempt_id"]: item["status"] for item in states} == {first: "confirmed", second: "confirmed"}


def test_exports_that_are_refused(world):
    device = world.device()

    def code(**changes):
        body = {"release": "thermo/2.0", "ids": [device.device_id], **changes}
        return world.admin.ask("POST", "/api/v1/parcels", {k: v for k, v in body.items() if v is not None}).code

    assert code(ids=None) == "request/malformed"
    assert code(query="hardware=rpi4") == "request/malformed"
    assert code(kind="repository") == "request/malformed"
    assert code(ids=None, query="hardware=none") == "request/malformed"
    assert code(lifetime_s=31 * 86_400) == "request/malformed"
    assert code(release="thermo/0.0") == "request/not-found"
    assert world.token("viewer").ask("POST", "/api/v1/parcels", {"release": "thermo/2.0"}).code == "request/forbidden"


def test_a_device_is_provisioned_from_a_parcel(world, operator, tmp_path):
    device = Device(tmp_path / "device", world)
    file = device.write_provisioning()
    parcel = tmp_path / "first.parcel"
    operator("parcel", "export", "thermo/2.0", "--any-device", "--provisioning", file, "-o", parcel)
    assert device.run("provision", str(parcel), code=0)["product"] == "thermo"
