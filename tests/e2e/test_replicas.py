"""Two real servers on one real PostgreSQL: whichever answers, it is one server to devices and people."""

import json
import os
import signal
import time

import pytest
from support import documents
from support.databases import fresh_database
from support.server_world import Client, World, replica_of, run_command, submission

from firmament.protocol.v1 import paths
from firmament.server.audit.signer import STATE, Signed, decode_audit_state
from firmament.server.leader import FAIL_OVER_S

DEADLINE_S = 20
pytestmark = pytest.mark.one_database("postgresql", because="SQLite is for one server")


@pytest.fixture(scope="module")
def world(tmp_path_factory, database_kind):
    directory = tmp_path_factory.mktemp("replicas")
    world = World(directory, database=fresh_database(database_kind)).begin()
    yield world
    world.close()


@pytest.fixture(scope="module")
def other(world):
    """The second server; the first leads, because it was there first."""
    server = replica_of(world.server, world.directory / "other").start()
    yield server
    server.stop()


def until(what, deadline_s=DEADLINE_S):
    """Wait for something true; return it."""
    deadline = time.monotonic() + deadline_s
    while not (found := what()):
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
    return found


def role(server):
    with Client(server) as client:
        return client.ask("GET", "/readyz").json["role"]


def timestamp(device):
    answer = device.client.ask("GET", f"{paths.IMAGE_METADATA}timestamp.json")
    assert answer.status == 200, answer.body
    return json.loads(answer.body)["signed"]["version"]


def test_the_first_leads_and_the_other_follows(world, other):
    assert (role(world.server), role(other)) == ("leader", "follower")


def test_a_device_enrols_at_one_server_and_polls_at_the_other(world, other):
    device = world.device()
    device.connect(other)
    assert device.assignment() is None


def test_a_release_published_by_one_is_served_by_the_other_at_once(world, other):
    device = world.device()
    device.connect(other)
    for version in (2, 3):
        world.publish_release("thermo", f"1.{version}", version, f"release {version}".encode())
        state = world.admin.ask("GET", "/api/v1/image/state").json
        assert timestamp(device) == state["timestamp_version"]
        name = f"{paths.IMAGE_METADATA}{state['snapshot_version']}.snapshot.json"
        assert device.client.ask("GET", name).status == 200
        target = json.loads(
            device.client.ask("GET", f"{paths.IMAGE_METADATA}{state['roles']['thermo']}.thermo.json").body
        )
        for path, entry in target["signed"]["targets"].items():
            place, _, file = path.rpartition("/")
            found = device.client.ask("GET", f"{paths.IMAGE_TARGETS}{place}/{entry['hashes']['sha256']}.{file}")
            assert (found.status, len(found.body)) == (200, entry["length"])


def test_both_publish_in_turn_and_versions_only_rise(world, other):
    device = world.device()
    seen = 0
    for round_number in range(6):
        at, elsewhere = (world.server, other) if round_number % 2 else (other, world.server)
        with Client(at, token=world.admin.token) as admin:
            # Signed again without a change: within one second, by two signers that know only their own.
            answer = admin.ask("POST", "/api/v1/image/publish", submission(world.author.product("pump")))
        assert answer.status == 200, answer.body
        device.connect(elsewhere)
        found = timestamp(device)
        assert found > seen
        seen = found


def test_a_device_that_alternates_in_a_rollout_never_sees_an_older_version(world, other):
    manifest = world.publish_release("thermo", "2.0", 20, b"the second")
    devices = [world.device() for _ in range(3)]
    body = {
        "release": "thermo/2.0",
        "name": "alternating",
        "selector": "product=thermo",
        "waves": [{"percent": 100}],
        "gate": {"limit_ratio": "0.6", "min_finished": 2},
    }
    made = world.admin.ask("POST", "/api/v1/rollouts", body)
    assert made.status == 201, made.body
    lowest_image = 0
    said = {device.device_id: [] for device in devices}
    installing: dict[str, str] = {}
    for turn in range(120):
        device = devices[turn % len(devices)]
        device.connect((world.server, other)[turn // len(devices) % 2])
        assignment = device.assignment()  # asserts that the director's version rose
        said[device.device_id].append(device.director_version)
        image = timestamp(device)
        assert image >= lowest_image
        lowest_image = image
        if assignment and device.device_id not in installing:
            installing[device.device_id] = assignment["attempt_id"]
            assert device.tell(assignment["attempt_id"], "fetching").status == 200
        if len(installing) == len(devices) and turn > 60:
            break
        time.sleep(0.05 if len(installing) < len(devices) else 0)
    assert len(installing) == len(devices), "the rollout did not reach them"
    assert manifest.sequence_number == 20
    for device in devices:
        for server, status in ((world.server, "trial"), (other, "confirmed")):
            device.connect(server)
            told = device.tell(installing[device.device_id], status, boot_id="b", version="2.0", sequence_number=20)
            assert told.json["accepted"], told.body
    path = f"/api/v1/rollouts/{made.json['rollout_id']}"
    with Client(other, token=world.admin.token) as admin:
        shown = admin.ask("GET", path).json
    assert shown["counts"]["updated"] >= len(devices)
    assert world.admin.ask("POST", f"{path}/abort", {"reason": "the end of the test"}).status == 200


def test_what_a_device_trusts_counts_whatever_the_clock_says(world, other):
    device = world.device()
    ahead = int(time.time()) + 1000  # as if a server whose clock is ahead had answered before
    device.director_version = ahead
    for server in (world.server, other, world.server):
        device.connect(server)
        device.assignment()
    assert device.director_version == ahead + 3
    fresh = world.device()
    fresh.assignment()
    assert fresh.director_version < ahead, "one device's word moves nobody else's numbers"


def test_the_event_stream_of_one_tells_what_happens_at_the_other(world, other):
    with Client(other, token=world.admin.token) as admin:
        answer = admin.pool.request(
            "GET",
            f"{other.url}/api/v1/events/stream",
            headers={"authorization": f"Bearer {admin.token}"},
            preload_content=False,
        )
        assert answer.status == 200
        device = world.device()
        for chunk in answer.stream(1024):
            if device.device_id.encode() in chunk:
                break
        answer.close()


def test_a_session_of_one_is_good_at_the_other_and_ends_at_both(world, other):
    session = world.sign_in("admin")
    with Client(other, token=session.token) as there:
        assert there.ask("GET", "/api/v1/me").status == 200
        assert session.ask("POST", "/api/v1/logout").status == 204
        assert there.ask("GET", "/api/v1/me").status == 401


def test_doctor_and_metrics_name_the_roles(world, other):
    found = run_command("server", "doctor", "-d", other.directory, "--json", check=False)
    seen = [one["seen"] for one in documents.loads(found.stdout)["findings"] if one["check"] == "replicas"]
    assert len(seen) == 2
    assert "leader, holds the lock for" in seen[0]
    assert seen[1].endswith("follower")
    with Client(other) as client:
        lines = client.ask("GET", "/metrics").body.decode().splitlines()
    assert {"firmament_leader 0", "firmament_leader_seconds 0", "firmament_replicas 2"} <= set(lines)


def test_a_killed_leader_is_followed_in_time_and_comes_back_as_a_follower(world, other):
    before = world.server.rows("SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS BIGINT) AS now")[0]["now"]
    world.server.process.send_signal(signal.SIGKILL)
    world.server.process.wait()
    until(lambda: role(other) == "leader")
    # When it began, by the database's clock: asking takes its own time on a busy machine.
    (since,) = world.server.rows("SELECT leads_since FROM replica WHERE port = ?", other.port)
    assert since["leads_since"] - before <= FAIL_OVER_S
    world.server.start()
    assert role(world.server) == "follower"


def test_a_leader_that_hangs_loses_its_session_and_changes_nothing_afterwards(world, other):
    epochs = "SELECT value FROM number WHERE name = 'leader-epoch'"
    before = world.server.rows(epochs)[0]["value"]
    other.process.send_signal(signal.SIGSTOP)
    try:
        until(lambda: role(world.server) == "leader", 30)
    finally:
        other.process.send_signal(signal.SIGCONT)
    assert world.server.rows(epochs)[0]["value"] == before + 1
    assert role(other) == "follower"


def test_sigterm_drains_before_connections_are_refused(world, other):
    draining = replica_of(world.server, world.directory / "draining")
    draining.env = {**draining.env, "FIRMAMENT_SERVER_DRAIN_S": "3"}
    draining.start()
    with Client(draining) as client:
        assert client.ask("GET", "/readyz").status == 200
        os.kill(draining.process.pid, signal.SIGTERM)
        until(lambda: client.ask("GET", "/readyz").status == 503)
        assert client.ask("GET", "/healthz").status == 200  # it still works
        assert draining.process.wait(timeout=10) == 0
    with Client(other) as client:
        assert client.ask("GET", "/readyz").status == 200


def test_after_a_cut_each_servers_signer_is_told_and_only_that_one(world, other):
    def known(server):
        return decode_audit_state((server.directory / "signer" / STATE).read_bytes())

    for server in (world.server, other):  # an export is signed by the server that is asked
        world.token("viewer")  # something to sign
        with Client(server, token=world.admin.token) as client:
            assert client.ask("GET", "/api/v1/audit/export").status == 200
    before = known(world.server)
    assert known(other)[1].number > 0
    other.stop()
    command = ("audit", "restart", "--directory", other.directory, "--reason", "a known cut", "--json")
    said = documents.loads(run_command(*command).stdout)
    assert known(other)[1] == Signed()
    assert known(world.server)[1].number >= before[1].number > 0
    (event,) = world.server.events("audit.restarted")
    assert (event["facts"]["reason"], event["facts"]["signed_number"]) == ("a known cut", said["number"])
    other.start()
