"""Payloads that the kernel sends, from a real server without TLS of its own: every way in which a download ends."""

import os
import re
import signal
import socket
import struct
import time

import pytest
from support.databases import fresh_database
from support.server_world import World, sha256

pytestmark = pytest.mark.one_database("sqlite", because="bytes of files: no database has a part in them")

SECRET = "the-secret-of-server-and-front-0123456789"
PLAIN = {
    "FIRMAMENT_SERVER_FRONT_SCHEME": "http",
    "FIRMAMENT_SERVER_FRONT_SECRET_FILE": "front-secret",
    "FIRMAMENT_SERVER_HOST": "127.0.0.1",
    "FIRMAMENT_SERVER_REPOSITORY_ACCESS": "public",
    "FIRMAMENT_SERVER_MAX_DOWNLOADS_PER_DEVICE": "1",
}
DATA = os.urandom(5_000_001)
PATH = f"/v1/image/targets/thermo/1.1/{sha256(DATA)}.firmware.img"
HEAD = re.compile(rb"HTTP/1\.1 (\d+) .*?\r\n\r\n", re.DOTALL)


@pytest.fixture(scope="module")
def world(tmp_path_factory, database_kind):
    directory = tmp_path_factory.mktemp("files")
    (directory / "server").mkdir()
    (directory / "server" / "front-secret").write_text(SECRET)
    made = World(directory, database=fresh_database(database_kind), env=PLAIN).begin()
    made.publish_release("thermo", "1.1", 2, DATA)
    yield made
    made.close()


class Link:
    """One connection, read byte by byte as a client would; `client` is who the front server says it is."""

    def __init__(self, world, client="192.0.2.1", *, buffer_bytes=None):
        self.socket = socket.socket()
        if buffer_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        self.socket.settimeout(20)
        self.socket.connect(("127.0.0.1", world.server.port))
        self.client, self.rest = client, b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def say(self, method="GET", path=PATH, **headers):
        said = {
            "host": "localhost",
            "x-firmament-front": SECRET,
            "x-firmament-address": self.client,
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in said.items())]
        self.socket.sendall("\r\n".join((*lines, "", "")).encode())

    def more(self):
        part = self.socket.recv(1 << 20)
        self.rest += part
        return part

    def head(self):
        while not (match := HEAD.match(self.rest)):
            assert self.more(), "the connection was closed"
        self.rest = self.rest[match.end() :]
        headers = dict(line.split(b": ", 1) for line in match[0].strip().split(b"\r\n")[1:])
        return int(match[1]), {name.decode(): value.decode() for name, value in headers.items()}

    def answer(self):
        status, headers = self.head()
        length = int(headers["content-length"])
        while len(self.rest) < length:
            assert self.more(), "the connection was closed"
        body, self.rest = self.rest[:length], self.rest[length:]
        return status, headers, body

    def ask(self, **headers):
        self.say(**headers)
        return self.answer()


def is_free(world, client):
    """Wait until the one download that this peer may have is another's to take; return whether it came to that."""
    for _ in range(100):
        with Link(world, client) as link:
            if link.ask(range="bytes=0-99999")[0] == 206:
                return True
        time.sleep(0.05)
    return False


def test_one_connection_serves_whole_files_ranges_heads_and_small_answers_in_turn(world):
    with Link(world) as link:
        for _ in range(2):
            status, headers, body = link.ask()
            assert (status, body == DATA) == (200, True)
        for text, begin, end in (
            ("bytes=1000000-3999999", 1_000_000, 4_000_000),
            ("bytes=-100000", len(DATA) - 100_000, len(DATA)),
            ("bytes=5-9", 5, 10),
            (f"bytes={len(DATA) - 70_000}-", len(DATA) - 70_000, len(DATA)),
        ):
            status, found, body = link.ask(range=text, if_range=headers["etag"])
            assert (status, body == DATA[begin:end]) == (206, True)
            assert found["content-range"] == f"bytes {begin}-{end - 1}/{len(DATA)}"
        assert link.ask(range=f"bytes={len(DATA)}-")[0] == 416
        link.say("HEAD")
        assert (link.head()[1]["content-length"], link.rest) == (str(len(DATA)), b"")
        link.say(if_none_match=headers["etag"])
        assert link.head()[0] == 304
        link.say(path="/v1/nothing")
        assert link.answer()[0] == 404
        assert link.ask()[2] == DATA


def test_requests_that_are_sent_ahead_are_answered_in_order(world):
    with Link(world) as link:
        for text in ("bytes=0-2999999", "bytes=7-11", "bytes=3000000-"):
            link.say(range=text)
        assert link.answer()[2] == DATA[:3_000_000]
        assert link.answer()[2] == DATA[7:12]
        assert link.answer()[2] == DATA[3_000_000:]


def test_a_connection_that_is_to_close_closes_after_the_last_byte(world):
    with Link(world) as link:
        assert link.ask(connection="close")[2] == DATA
        assert link.socket.recv(10) == b""


@pytest.mark.parametrize("way", ["reset", "goodbye"])
def test_a_peer_that_leaves_in_the_middle_frees_its_place(world, way):
    peer = f"192.0.2.{10 + len(way)}"
    with Link(world, peer, buffer_bytes=8192) as link:
        link.say()
        assert link.head()[0] == 200
        with Link(world, peer) as second:
            status, headers, _ = second.ask()
            assert (status, headers["retry-after"]) == (503, "30")
        if way == "reset":
            link.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert is_free(world, peer)


def test_a_slow_reader_gets_every_byte_and_delays_nobody(world):
    with Link(world, "192.0.2.30", buffer_bytes=8192) as link:
        link.say()
        for _ in range(20):
            link.socket.recv(4096)
            started_s = time.monotonic()
            with Link(world) as other:
                other.say(path="/v1/nothing")
                assert other.answer()[0] == 404
            assert time.monotonic() - started_s < 5
    with Link(world, "192.0.2.31", buffer_bytes=32768) as link:
        assert link.ask()[2] == DATA


def test_a_file_that_is_not_in_memory_or_goes_while_it_is_sent_arrives_whole(world):
    file = next((world.server.directory / "repository/targets").rglob(f"{sha256(DATA)}*"))
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with Link(world, "192.0.2.40", buffer_bytes=8192) as link:
        link.say()
        assert link.head()[0] == 200
        aside = file.rename(file.with_name("aside"))
        file.write_bytes(b"another")
        while len(link.rest) < len(DATA):
            assert link.more()
        assert link.rest == DATA
        aside.rename(file)


def test_a_stop_does_not_wait_for_a_reader_that_takes_nothing(world):
    with Link(world, "192.0.2.50", buffer_bytes=8192) as link:
        link.say()
        assert link.head()[0] == 200
        started_s = time.monotonic()
        assert world.server.stop(signal.SIGTERM) == 0
        assert time.monotonic() - started_s < 15
    world.server.start()
    log = world.server.log.read_text()
    assert "request.failed" not in log
    with Link(world) as link:
        assert link.ask()[2] == DATA
