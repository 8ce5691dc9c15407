"""Polls that only ask whether anything changed, over real TLS, on both databases (ADR-0037)."""

import json
import signal
import socket
import ssl

import pytest
from support.agent_device import Device, until
from support.databases import fresh_database
from support.server_world import World

POLL = "/v1/poll"


@pytest.fixture(scope="module")
def world(tmp_path_factory, database_kind):
    made = World(tmp_path_factory.mktemp("world"), database=fresh_database(database_kind)).begin()
    made.publish_release("thermo", "1.1", 2, b"an image")
    yield made
    made.close()


def ask(device, tag):
    return device.client.ask("GET", POLL, headers={"if-none-match": f'"{tag}"'} if tag is not None else None)


def told(device, **changes):
    """Poll in full; return the tag of the answer, None if it has none."""
    return device.poll(**changes).json.get("tag")


def test_nothing_changed_until_something_does_and_again_after_it(world):
    device = world.device()
    tag = told(device)
    answer = ask(device, tag)
    assert (answer.status, answer.body, answer.headers["cache-control"]) == (304, b"", "no-store")
    assert "content-length" not in answer.headers  # of what is not said again
    attempt_id = world.assign(device, "thermo/1.1")
    assert (ask(device, tag).status, ask(device, tag).json) == (200, {"v": 1})
    assert told(device) is None
    for status in ("fetching", "verified", "staged"):
        device.tell(attempt_id, status)
        assert ask(device, tag).status == 200
    for status in ("trial", "confirmed"):
        device.tell(attempt_id, status, boot_id="boot-b", version="1.1", sequence_number=2)
    assert told(device, version="1.1", sequence_number=2, boot_id="boot-b") == tag
    assert ask(device, tag).status == 304


@pytest.mark.parametrize("tag", [None, "", "another", "*"])
def test_who_has_no_answer_of_these_keys_and_wishes_polls(world, tag):
    device = world.device()
    told(device)
    assert ask(device, tag).status == 200


def test_who_may_not_poll_hears_nothing(world):
    device, other = world.device(), world.device()
    tag = told(device)
    assert world.admin.ask("POST", f"/api/v1/devices/{device.device_id}/disable").status == 204
    refused = ask(device, tag)
    assert (refused.status, refused.code) == (403, "request/forbidden")
    assert refused.headers["content-type"] == "application/problem+json"
    stranger = world.admin.ask("GET", POLL, headers={"if-none-match": f'"{tag}"'})
    assert (stranger.status, stranger.code) == (401, "request/unauthenticated")
    assert ask(other, tag).status == 304


def test_a_device_that_only_asks_is_seen(world):
    device = world.device()
    tag = told(device)
    world.restart()
    device.connect(world.server)
    before = world.admin.ask("GET", f"/api/v1/devices/{device.device_id}").json["last_seen"]
    assert ask(device, tag).status == 304
    world.restart()  # written behind, and at the stop
    assert world.admin.ask("GET", f"/api/v1/devices/{device.device_id}").json["last_seen"] >= before
    device.connect(world.server)
    assert ask(device, tag).status == 304  # a restart changes neither keys nor wishes


def request(method=b"GET", tag="", *lines, body=b""):
    head = b"%b /v1/poll HTTP/1.1\r\nhost: x\r\n" % method
    return (
        head + b"".join([line + b"\r\n" for line in (b'if-none-match: "%b"' % tag.encode(), *lines)]) + b"\r\n" + body
    )


def exchange(world, device, data, *, answers):
    """Send bytes over one connection; return the status of each answer, in order."""
    context = ssl.create_default_context(cafile=str(world.server.ca))
    context.load_cert_chain(str(device.directory / "chain.pem"), str(device.directory / "key.pem"))
    host, port = world.server.url.removeprefix("https://").split(":")
    found = b""
    with (
        socket.create_connection((host, int(port)), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname=host) as sock,
    ):
        sock.sendall(data)
        while found.count(b"HTTP/1.1 ") < answers and (piece := sock.recv(65536)):
            found += piece
    return [int(part[:3]) for part in found.split(b"HTTP/1.1 ")[1:]]


def test_requests_behind_each_other_on_one_connection_are_answered_in_order(world):
    device = world.device()
    tag = told(device)
    full = request(b"POST", "", b"content-length: 2", body=b"{}")  # refused: it says nothing
    short, changed = request(b"GET", tag), request(b"GET", "another")
    assert exchange(world, device, short + changed + full + short + changed, answers=5) == [304, 200, 400, 304, 200]
    assert exchange(world, device, full + short + short + full, answers=4) == [400, 304, 304, 400]


def test_a_device_that_asks_too_often_is_refused(world):
    device = world.device()
    tag = told(device)
    found = exchange(world, device, request(b"GET", tag) * 300, answers=300)  # 200 at once, 20 a second
    assert (len(found), set(found), found[:150]) == (300, {304, 429}, [304] * 150)


@pytest.mark.parametrize(
    ("lines", "body"),
    [
        ((b"content-length: 3",), b"abc"),
        ((b"transfer-encoding: chunked",), b"3\r\nabc\r\n0\r\n\r\n"),
        ((b"expect: 100-continue", b"content-length: 0"), b""),
        ((b"connection: upgrade", b"upgrade: h2c"), b""),
    ],
)
def test_an_unusual_one_is_answered_alike(world, lines, body):
    device = world.device()
    found = exchange(world, device, request(b"GET", told(device), *lines, body=body), answers=1)
    assert found[-1] == 304


def test_whoever_wants_the_connection_closed_gets_it_closed(world):
    device = world.device()
    tag = told(device)
    data = request(b"GET", tag, b"connection: close") + request(b"GET", tag)
    assert exchange(world, device, data, answers=2) == [304]


def asked(world, device_id):
    """How a device asked so far, from the server's log."""
    lines = (json.loads(line) for line in world.server.log.read_text().splitlines() if line.startswith("{"))
    return [line["method"] for line in lines if line.get("path") == POLL and line.get("device_id") == device_id]


def test_a_real_agent_asks_briefly_until_there_is_something_for_it(world, tmp_path):
    device = Device(tmp_path / "device", world, policy="poll_interval_s = 3600").provision()
    with device.daemon() as process:
        until(lambda: asked(world, device.device_id) == ["POST"])
        for number in (1, 2):
            process.send_signal(signal.SIGHUP)
            until(lambda number=number: asked(world, device.device_id) == ["POST", *["GET"] * number])
        world.assign(device, "thermo/1.1")
        process.send_signal(signal.SIGHUP)
        assert process.wait(30) == 10  # it fetched, and restarts into the new image
    assert asked(world, device.device_id)[:5] == ["POST", "GET", "GET", "GET", "POST"]
    assert device.log.count("poll.unchanged") == 2
