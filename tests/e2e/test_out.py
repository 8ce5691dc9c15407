"""What leaves a server: webhooks, mail, MQTT, metrics and the event stream, to real receivers."""

import hashlib
import hmac
import json
import threading

import pytest
from support import documents
from support.databases import fresh_database, opened
from support.receivers import Mosquitto, Receiver, wait_for
from support.server_world import World, run_command, target_of

BASE = "/api/v1/notifications/outlets"


@pytest.fixture(scope="module")
def directory(tmp_path_factory, database_kind):
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def broker(directory):
    found = Mosquitto(directory / "broker")
    yield found
    found.close()


@pytest.fixture(scope="module")
def mailbox(directory):
    found = Receiver(directory / "mail", "smtp")
    yield found
    found.close()


@pytest.fixture(scope="module")
def world(directory, database_kind, broker, mailbox):
    env = {
        "FIRMAMENT_SERVER_OUTBOX_NETWORKS": "127.0.0.0/8",
        "FIRMAMENT_SERVER_OUTBOX_CA": "tls/ca.pem",
        "FIRMAMENT_SERVER_SMTP_URL": f"smtp://127.0.0.1:{mailbox.port}",
        "FIRMAMENT_SERVER_MQTT_URL": f"mqtt://127.0.0.1:{broker.port}",
        "FIRMAMENT_SERVER_NOTIFY_BATCH_S": "0",
        "FIRMAMENT_SERVER_METRICS_TOKEN": "scrape",
    }
    world = World(directory / "world", env=env, database=fresh_database(database_kind)).begin()
    world.publish_release("thermo", "1.0", 1, b"one" * 100)
    yield world
    world.close()


@pytest.fixture(scope="module")
def hook(world, directory):
    tls = world.server.directory / "tls"
    found = Receiver(directory / "hook", "https", certificate=(tls / "server.pem", tls / "server.key"))
    yield found
    found.close()


def add(world, name, kind, target, **more):
    answer = world.admin.ask("POST", BASE, {"name": name, "kind": kind, "target": target, **more})
    assert answer.status == 201, answer.body
    return answer.json


def test_a_webhook_gets_each_event_once_in_order_signed_and_again_on_request(world, hook):
    made = add(world, "siem", "webhook", f"https://localhost:{hook.port}/in?x=1", takes="events", kinds=["device."])
    first, second = world.device(), world.device()
    got = wait_for(lambda: len(found := hook.got()) >= 2 and found)
    events = [json.loads(entry["body"]) for entry in got]
    assert [event["subject"] for event in events] == [first.device_id, second.device_id]
    assert [entry["path"] for entry in got] == ["/in?x=1"] * 2
    for entry, event in zip(got, events, strict=True):
        headers = {name.lower(): value for name, value in entry["headers"].items()}
        assert headers["firmament-number"] == str(event["id"])
        moment, _, mac = headers["firmament-signature"].partition(",v1=")
        signed = f"{moment.removeprefix('t=')}.{entry['body']}".encode()
        assert hmac.new(made["secret"].encode(), signed, hashlib.sha256).hexdigest() == mac
    answer = world.admin.ask("POST", f"{BASE}/siem/enable", {"replay_from": events[0]["id"]})
    assert answer.json["cursor"] == events[0]["id"] - 1
    wait_for(lambda: len(hook.got()) == 4)
    assert [json.loads(entry["body"])["id"] for entry in hook.got()[2:]] == [event["id"] for event in events]
    assert "secret" not in world.admin.ask("GET", BASE).json["outlets"][0]


def test_a_receiver_that_fails_is_tried_again_and_nothing_is_lost(world, hook):
    before = len(hook.got())
    hook.answer(503)
    device = world.device()
    wait_for(lambda: len(hook.got()) > before)

    def newest():  # written after the receiver answered
        return world.admin.ask("GET", f"{BASE}/siem/deliveries").json["deliveries"][0]

    assert wait_for(lambda: not (found := newest())["ok"] and found)["answer"] == "HTTP 503"
    hook.answer(302)  # a redirect is a refusal, and is not followed
    world.admin.ask("POST", f"{BASE}/siem/enable", {})
    wait_for(lambda: hook.got()[-1]["status"] == 302)
    assert not [entry for entry in hook.got() if entry["path"] == "/elsewhere"]
    hook.answer(204)
    world.restart()  # what is owed is in the database
    world.admin.ask("POST", f"{BASE}/siem/enable", {})
    last = wait_for(lambda: (entry := hook.got()[-1])["status"] == 204 and entry)
    assert json.loads(last["body"])["subject"] == device.device_id


def test_68_a_webhook_may_not_go_where_only_the_server_can(world):
    """Case 68: an operator asks the server to ask what only the server can reach."""
    add(world, "inside", "webhook", "https://[::1]:1/", takes="notifications")
    answer = world.admin.ask("POST", f"{BASE}/inside/test")
    assert (answer.json["ok"], answer.json["answer"].split(":")[0]) == (False, "request/forbidden")
    world.admin.ask("DELETE", f"{BASE}/inside")
    for target in ("http://example.org/", "https://user@example.org/", "ftp://x", "https://"):
        assert world.admin.ask("POST", BASE, {"name": "bad", "kind": "webhook", "target": target}).status == 400
    assert world.token("viewer").ask("GET", BASE).status == 403


def test_mail_and_topic_get_the_test_message_by_the_command(world, mailbox, broker, directory):
    token = directory / "token"
    token.write_text(world.admin.token + "\n")
    token.chmod(0o600)
    where = ["--server", world.server.url, "--ca", world.server.ca, "--token-file", token, "--json"]

    def run(*arguments):
        done = run_command("notify", *arguments, *where)
        return documents.loads(done.stdout)

    run("add", "ops", "email", "ops@example.org")
    run("add", "screen", "mqtt", "firmament/told")
    assert run("test", "ops")["ok"]
    assert run("test", "screen")["ok"]
    mail = wait_for(mailbox.got)[-1]
    assert mail["to"] == ["<ops@example.org>"]
    assert "Subject: Firmament: test" in mail["data"]
    told = wait_for(lambda: [entry for entry in broker.got() if entry["topic"] == "firmament/told"])
    assert told[0]["value"]["severity"] == "test"
    text = run("preview")["text"]
    assert "HALTED rollout 42" in text
    assert f"{world.server.url}/rollouts/42" in text, "the port that was bound, where the setting leaves it open"
    assert run("mute", "screen", "--for", "1h")["muted_until"] > 0
    assert run("mute", "screen", "--for", "0")["muted_until"] == 0
    assert {outlet["name"] for outlet in run("list")["outlets"]} >= {"ops", "screen"}
    assert run("log", "ops")["deliveries"][0]["ok"]
    assert run("enable", "ops")["name"] == "ops"
    assert run("remove", "screen")["name"] == "screen"


def test_an_assignment_wakes_the_bucket_of_its_device(world, broker):
    device = world.device()
    world.assign(device, "thermo/1.0")
    wake = wait_for(lambda: [entry for entry in broker.got() if entry["topic"].startswith("firmament/v1/1/b/")])
    assert set(wake[-1]["value"]) == {"v", "rev", "spread_s"}


def test_metrics_are_for_who_has_the_token_and_have_few_series(world):
    assert world.admin.ask("GET", "/metrics").status == 401
    world.admin.token, token = "scrape", world.admin.token
    try:
        answer = world.admin.ask("GET", "/metrics")
    finally:
        world.admin.token = token
    text = answer.body.decode()
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples = [line for line in text.splitlines() if not line.startswith("#")]
    assert len(samples) < 100
    values = dict(line.rsplit(" ", 1) for line in samples)
    assert int(values["firmament_devices"]) >= 3
    assert int(values["firmament_audit_events_total"]) > 5
    assert 'firmament_metadata_expires_seconds{role="root"}' in values


def follow(world, *, last=""):
    """Open the stream; return the response and a function that waits for the next event."""
    headers = {"authorization": f"Bearer {world.admin.token}", **({"last-event-id": last} if last else {})}
    response = world.admin.pool.request(
        "GET", world.server.url + "/api/v1/events/stream", headers=headers, preload_content=False
    )
    assert response.status == 200

    def next_event():
        found = {}
        while True:
            line = response.readline().decode().rstrip("\n")
            if line.startswith(("id:", "data:")):
                name, _, value = line.partition(": ")
                found[name] = value
            elif not line and "data" in found:
                return int(found["id"]), json.loads(found["data"])

    return response, next_event


def test_the_stream_tells_what_happens_goes_on_where_it_stopped_and_ends_with_the_server(world):
    response, next_event = follow(world)
    device = world.device()
    number, event = next_event()
    while event["kind"] != "device.enrolled":
        number, event = next_event()
    assert event["subject"] == device.device_id
    response.close()
    response, next_event = follow(world, last=str(number - 1))
    assert next_event()[0] == number
    ended = threading.Event()
    reader = threading.Thread(target=lambda: (response.read(), ended.set()), daemon=True)
    reader.start()
    assert world.restart() == 0
    assert ended.wait(10)
    assert world.token("viewer").ask("GET", "/api/v1/events/stream").status == 403


def test_a_person_reads_and_acknowledges_what_was_told(world, hook, mailbox):
    """The server is told through its own chain: an outlet that is off is news."""
    before = len(mailbox.got())
    hook.answer(500)
    world.server.stop()
    with opened(target_of(world.server.directory)) as connection:
        connection.execute("UPDATE outlet SET failures = 19, next_at = 0 WHERE name = 'siem'")
    world.server.start()
    world.admin.pool.clear()
    world.device()
    wait_for(lambda: len(mailbox.got()) > before)
    assert "outlet siem is off" in mailbox.got()[-1]["data"]
    told = world.admin.ask("GET", "/api/v1/notifications").json["notifications"][0]
    assert (told["subject"], told["severity"]) == ("outlet:siem", "warning")
    answer = world.admin.ask("POST", f"/api/v1/notifications/{told['id']}/acknowledge")
    assert answer.json["acknowledged_by"] == "person:admin"
    assert world.token("viewer").ask("POST", f"/api/v1/notifications/{told['id']}/acknowledge").status == 403
    assert world.admin.ask("POST", "/api/v1/notifications/999999/acknowledge").status == 404
