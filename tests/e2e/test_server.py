"""The main job over real TLS: publish, enrol, assign, poll, download, report."""

import json
import os

import pytest
from support import documents
from support.databases import fresh_database
from support.server_world import Client, World, run_command, sha256, submission
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

DATA = os.urandom(300_000)


@pytest.fixture(scope="module")
def world(tmp_path_factory, database_kind):
    made = World(tmp_path_factory.mktemp("world"), database=fresh_database(database_kind)).begin()
    yield made
    made.close()


def test_the_whole_story_of_one_update(world):
    world.publish_release("thermo", "1.1", 2, DATA)
    device = world.device()
    assert device.assignment() is None
    attempt_id = world.assign(device, "thermo/1.1")
    assert world.attempt(device)["status"] == "assigned"

    reply = device.poll().json
    custom = json.loads(reply["targets"])["signed"]["targets"]["thermo/1.1/firmware.img"]["custom"]
    assert custom == {
        "v": 1,
        "device": device.device_id,
        "attempt_id": attempt_id,
        "action": "install",
        "payload": "thermo/1.1/firmware.img",
    }
    assert world.attempt(device)["status"] == "offered"

    got = device.client.ask("GET", f"/v1/image/targets/thermo/1.1/{sha256(DATA)}.firmware.img")
    assert (got.status, got.body) == (200, DATA)
    for status in ("fetching", "verified", "staged"):
        assert device.tell(attempt_id, status).json["accepted"] == [device.numbers]
        assert world.attempt(device)["status"] == status
    device.tell(attempt_id, "trial", boot_id="boot-b", version="1.1", sequence_number=2)
    device.tell(attempt_id, "confirmed", boot_id="boot-b", version="1.1", sequence_number=2)
    attempt = world.attempt(device)
    assert (attempt["status"], attempt["active"], attempt["boot_id"]) == ("confirmed", False, "boot-b")
    shown = world.admin.ask("GET", f"/api/v1/devices/{device.device_id}").json
    assert (shown["version"], shown["sequence_number"]) == ("1.1", 2)
    assert device.assignment(version="1.1", sequence_number=2, boot_id="boot-b") is None
    moves = [
        event["facts"]["state"]
        for event in world.server.events("attempt.moved")
        if event["subject"] == device.device_id
    ]
    assert moves == ["offered", "fetching", "verified", "staged", "trial", "confirmed"]


def test_success_reported_before_the_new_image_booted_is_not_believed(world):
    world.publish_release("thermo", "1.2", 3, b"1.2")
    device = world.device()
    attempt_id = world.assign(device, "thermo/1.2")
    device.assignment()
    device.tell(attempt_id, "trial", boot_id="boot-b", version="1.2", sequence_number=3)
    for lie in (
        {"boot_id": "boot-a", "version": "1.2", "sequence_number": 3},  # the boot it was offered in
        {"boot_id": "boot-b", "version": "1.0", "sequence_number": 1},  # the old image
        {"boot_id": "", "version": "1.2", "sequence_number": 3},
    ):
        assert device.tell(attempt_id, "confirmed", **lie).status == 200
        assert world.attempt(device)["status"] == "trial"
    device.tell(attempt_id, "confirmed", boot_id="boot-b", version="1.2", sequence_number=3)
    assert world.attempt(device)["status"] == "confirmed"
    ignored = [event for event in world.server.events("report.ignored") if event["subject"] == device.device_id]
    assert len(ignored) == 3


def test_image_metadata_is_a_tuf_repository(world):
    device = world.device()

    def get(name):
        answer = device.client.ask("GET", f"/v1/image/metadata/{name}")
        assert answer.status == 200, name
        return answer

    root = Metadata[Root].from_bytes(get("1.root.json").body)
    timestamp = get("timestamp.json")
    assert timestamp.headers["cache-control"] == "no-cache"
    parsed = Metadata[Timestamp].from_bytes(timestamp.body)
    root.signed.verify_delegate("timestamp", parsed.signed_bytes, parsed.signatures)
    snapshot_answer = get(f"{parsed.signed.snapshot_meta.version}.snapshot.json")
    assert "immutable" in snapshot_answer.headers["cache-control"]
    snapshot = Metadata[Snapshot].from_bytes(snapshot_answer.body)
    root.signed.verify_delegate("snapshot", snapshot.signed_bytes, snapshot.signatures)
    versions = {name: meta.version for name, meta in snapshot.signed.meta.items()}
    targets = Metadata[Targets].from_bytes(get(f"{versions['targets.json']}.targets.json").body)
    product = Metadata[Targets].from_bytes(get(f"{versions['thermo.json']}.thermo.json").body)
    targets.signed.verify_delegate("thermo", product.signed_bytes, product.signatures)
    assert device.client.ask("GET", "/v1/image/metadata/2.root.json").status == 404
    assert device.client.ask("GET", "/v1/director/1.root.json").status == 200
    assert device.client.ask("GET", "/v1/director/timestamp.json").status == 404


@pytest.mark.parametrize(
    "path",
    [
        "/v1/image/metadata/../../../server.lock",
        "/v1/image/metadata/..%2f..%2f..%2fserver.lock",
        "/v1/image/targets/../../signer/snapshot.pem",
        "/v1/image/targets/thermo/..%2f..%2f/x",
        "/v1/image/metadata/%00.json",
        "/v1/image/metadata//etc/passwd",
        "/v1/director/1.targets.json",
        "/v1/nothing",
    ],
)
def test_no_path_leads_out_of_the_repository(world, path):
    device = world.devices[0] if world.devices else world.device()
    answer = device.client.ask("GET", path)
    assert (answer.status, answer.code) == (404, "request/not-found")


def test_without_a_certificate_nothing_is_served(world):
    with Client(world.server) as client:
        for path in ("/v1/image/metadata/timestamp.json", "/v1/director/1.root.json"):
            assert client.ask("GET", path).code == "request/unauthenticated"
        assert client.ask("POST", "/v1/poll", {}).code == "request/unauthenticated"
        assert client.ask("POST", "/v1/report", {}).code == "request/unauthenticated"


def test_director_versions_rise_for_each_device_and_across_a_restart(world):
    device = world.device()

    def version():
        return json.loads(device.poll().json["timestamp"])["signed"]["version"]

    before = [version() for _ in range(5)]
    assert before == sorted(set(before))
    assert world.restart() == 0
    assert version() > before[-1]


def test_ranges_and_conditions(world):
    data = os.urandom(200_001)
    world.publish_release("pump", "7.0", 7, data)
    device = world.device(product="pump")
    path = f"/v1/image/targets/pump/7.0/{sha256(data)}.firmware.img"

    def get(method="GET", **headers):
        return device.client.ask(method, path, headers={k.replace("_", "-"): v for k, v in headers.items()})

    whole = get()
    etag = whole.headers["etag"]
    assert (whole.status, whole.headers["accept-ranges"], whole.headers["content-length"]) == (200, "bytes", "200001")
    head = get("HEAD")
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", "200001")
    part = get(range="bytes=100000-")
    assert (part.status, part.body) == (206, data[100_000:])
    assert part.headers["content-range"] == "bytes 100000-200000/200001"
    assert get(range="bytes=5-9").body == data[5:10]
    assert get(range="bytes=-7").body == data[-7:]
    behind = get(range="bytes=200001-")
    assert (behind.status, behind.headers["content-range"]) == (416, "bytes */200001")
    assert get(range="bytes=0-1,5-6").status == 200
    assert get(if_none_match=etag).status == 304
    assert get(range="bytes=5-", if_range=etag).status == 206
    assert get(range="bytes=5-", if_range='"other"').status == 200


def test_disabled_devices_are_refused_at_every_door(world):
    device = world.device()
    assert world.admin.ask("POST", f"/api/v1/devices/{device.device_id}/disable").status == 204
    assert device.poll().code == "request/forbidden"
    assert device.client.ask("GET", "/v1/image/metadata/timestamp.json").code == "request/forbidden"
    assert device.report().code == "request/forbidden"
    assert world.admin.ask("POST", f"/api/v1/devices/{device.device_id}/enable").status == 204
    assert device.poll().status == 200


def test_assigning_what_the_device_would_refuse_is_refused_at_once(world):
    device = world.device()
    other = world.device(hardware="rpi5")
    device.poll(version="9", sequence_number=99)

    def assign(to, release):
        return world.admin.ask("POST", f"/api/v1/devices/{to.device_id}/assign", {"release": release}).code

    assert assign(device, "thermo/1.1") == "trust/rollback"
    assert assign(device, "pump/7.0") == "applicability/product-mismatch"
    assert assign(other, "thermo/1.1") == "applicability/hardware-mismatch"
    assert assign(other, "thermo/404") == "request/not-found"
    assert assign(other, "thermo") == "request/malformed"


def test_a_withdrawn_release_is_offered_no_more(world):
    world.publish_release("thermo", "1.9", 50, b"bad build")
    device = world.device()
    world.assign(device, "thermo/1.9")
    assert device.assignment() is not None
    world.author.targets["thermo"].pop("thermo/1.9/firmware.img")
    assert world.publish(submission(world.author.product("thermo"))).status == 200
    assert device.assignment() is None
    assert world.attempt(device)["status"] == "cancelled"
    answer = world.admin.ask("POST", f"/api/v1/devices/{device.device_id}/assign", {"release": "thermo/1.9"})
    assert answer.code == "request/conflict"


def test_the_command_line_speaks_to_the_server(world, tmp_path):
    token_file = tmp_path / "token"
    server = ("--server", world.server.url, "--ca", world.server.ca)
    run_command("operator", "login", "admin", *server, "--password-file", world.password_file, "--out", token_file)
    assert token_file.stat().st_mode & 0o777 == 0o600
    server = (*server, "--token-file", token_file)
    device = world.device()
    listed = documents.loads(run_command("device", "list", *server, "--json").stdout)
    assert device.device_id in {row["device_id"] for row in listed["devices"]}
    run_command("device", "assign", device.device_id, "thermo/1.1", *server)
    shown = documents.loads(run_command("device", "show", device.device_id, *server, "--json").stdout)
    assert shown["attempts"][0]["release"] == "thermo/1.1"
    run_command("device", "unassign", device.device_id, *server)
    assert world.attempt(device)["status"] == "cancelled"
    refused = run_command("device", "assign", device.device_id, "thermo/404", *server, check=False)
    assert refused.returncode == 83
    assert "code: request/not-found" in refused.stderr


def test_a_provisioning_file_carries_the_anchors_of_the_workspace(world, tmp_path):
    for folder in ("repository", "director"):
        (tmp_path / folder / "metadata").mkdir(parents=True)
        for number in (2, 10):
            (tmp_path / folder / "metadata" / f"{number}.root.json").write_text(f"{folder} {number}")
    (tmp_path / "ca.pem").write_bytes(world.server.ca.read_bytes())
    (tmp_path / "firmament.toml").write_text(f'[server]\nurl = "{world.server.url}"\nca = "ca.pem"\n')
    out = tmp_path / "device.json"
    run_command(
        "device", "provision-file", "--workspace", tmp_path, "--product", "thermo", "--hardware", "rpi4", "--out", out,
        env={"FIRMAMENT_TOKEN": world.admin.token},
    )  # fmt: skip
    assert out.stat().st_mode & 0o777 == 0o600
    value = json.loads(out.read_text())
    assert (value["image_root"], value["director_root"]) == ("repository 10", "director 10")
    device = world.new_device()
    assert device.enrol(world.server, value["token"]).status == 200


def test_the_stateless_questions(world):
    world.publish_release("pump", "8.0", 80, b"eight", notes={"en": "Quieter."})
    device = world.device(product="pump")
    ask = world.token("operator").ask

    def check(version):
        return ask("GET", f"/api/v1/updates/check?device_type=pump&version={version}").json

    assert check("7.0")["update_available"] is False  # nothing is promoted yet
    assert world.admin.ask("POST", "/api/v1/releases/pump/8.0/promote", {"channel": "stable"}).status == 200
    found = check("7.0")
    assert (found["update_available"], found["version"], found["notes"]) == (True, "8.0", {"en": "Quieter."})
    assert check("8.0")["update_available"] is False
    assert (check("unheard-of")["update_available"], check("unheard-of")["is_known"]) == (True, False)
    download = ask("GET", "/api/v1/updates/download?device_type=pump").json
    assert device.client.ask("GET", download["path"]).body == b"eight"
    said = {"device_id": device.device_id, "old_version": "7.0", "new_version": "8.0", "status": "success"}
    assert ask("POST", "/api/v1/updates/record", said).status == 204
    recorded = world.server.events("update.recorded")[-1]
    assert (recorded["subject"], recorded["facts"]["is_verified"]) == (device.device_id, False)
    assert ask("POST", "/api/v1/updates/record", {**said, "device_id": "nobody"}).code == "request/not-found"
    info = ask("GET", f"/api/v1/updates/device/{device.device_id}").json
    assert (info["device_type"], info["hardware"]) == ("pump", "rpi4")


def test_last_seen_is_written_behind_and_at_the_stop(world):
    device = world.device()
    device.poll()
    world.restart()
    shown = world.admin.ask("GET", f"/api/v1/devices/{device.device_id}").json
    assert shown["last_seen"] is not None


def test_a_fleet_is_listed_in_pages(world):
    everything = {device["device_id"] for device in world.admin.ask("GET", "/api/v1/devices?limit=500").json["devices"]}
    found, cursor = [], "0"
    while cursor is not None:
        page = world.admin.ask("GET", f"/api/v1/devices?limit=2&cursor={cursor}").json
        assert len(page["devices"]) <= 2
        found += [device["device_id"] for device in page["devices"]]
        cursor = page["next"]
    assert len(found) == len(set(found))
    assert set(found) == everything


def test_a_public_repository_needs_no_certificate_but_the_director_does(tmp_path, database_kind):
    env = {"FIRMAMENT_SERVER_REPOSITORY_ACCESS": "public"}
    world = World(tmp_path, env=env, database=fresh_database(database_kind)).begin()
    try:
        world.publish_release("thermo", "1.0", 1, b"one")
        with Client(world.server) as client:
            assert client.ask("GET", "/v1/image/metadata/timestamp.json").status == 200
            assert client.ask("GET", f"/v1/image/targets/thermo/1.0/{sha256(b'one')}.firmware.img").body == b"one"
            assert client.ask("GET", "/v1/director/1.root.json").code == "request/unauthenticated"
            assert client.ask("POST", "/v1/poll", {}).code == "request/unauthenticated"
    finally:
        world.close()
