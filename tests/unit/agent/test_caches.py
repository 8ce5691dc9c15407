"""Payload bytes through HTTP caches that know little and break often, on real sockets: nothing they do is believed."""

import re

import pytest
from support.sockets import RawServer
from support.world import World

from firmament.agent.fetch import HttpTransport, TransferSettings
from firmament.agent.link import Cache
from firmament.core.clock import SystemClock
from firmament.core.digest import Digest

IMAGE = Digest.of(b"seed").value * 8192
"""A quarter of a mebibyte."""
QUICK = TransferSettings(connect_timeout_s=2, idle_timeout_s=1, request_deadline_s=5, retry_wait_ms=1)


class DumbCache:
    """Holds the bytes of the world's repository; `misbehave(connection, data, offset) -> bool` answers instead of it."""

    def __init__(self, world, misbehave, *, knows_ranges=True, headers=()):
        self.world, self.misbehave, self.knows_ranges, self.headers = world, misbehave, knows_ranges, headers
        self.server = RawServer(self.answer)
        self.transport = HttpTransport(SystemClock(), settings=QUICK, tls=None)
        world.link.caches = (Cache(self.server.url + "/", self.transport),)
        world.link.retry_wait_s = 0.001

    def answer(self, connection, head):
        path = head.split()[1].decode().lstrip("/")
        data = self.world.image.blobs[path]
        wanted = re.search(rb"bytes=(\d+)-", head, re.IGNORECASE)
        offset = int(wanted[1]) if wanted else 0
        if self.misbehave(connection, data, offset):
            return False
        is_part = wanted and self.knows_ranges
        body = data[offset:] if is_part else data
        lines = [f"HTTP/1.1 {'206 Partial Content' if is_part else '200 OK'}", f"Content-Length: {len(body)}"]
        if is_part:
            lines.append(f"Content-Range: bytes {offset}-{len(data) - 1}/{len(data)}")
        connection.sendall("\r\n".join([*lines, *self.headers, "", ""]).encode() + self.cut(body))
        return False

    def cut(self, body):
        return body

    def close(self):
        self.transport.close()
        self.server.close()


class CuttingCache(DumbCache):
    """Drops every connection after some bytes of its answer."""

    def cut(self, body):
        return body[:40_000] if self.knows_ranges else body[: 40_000 * len(self.server.requests)]


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path / "device")
    made.floors.create()
    made.release("1.1", 2, IMAGE)
    return made


def fetched(world, cache, *, offset=0):
    """Fetch the payload; return (its bytes, how often the cache and the server were asked)."""
    payload = world.image.releases["1.1"].payloads[0]
    world.requests.clear()
    try:
        data = b"".join(world.link.open_payload(payload, offset=offset))
    finally:
        cache.close()
    return data, len(cache.server.requests), len(world.requests)


def honest(_connection, _data, _offset):
    return False


@pytest.mark.parametrize("offset", [0, 1, 100_000, len(IMAGE) - 1])
@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_cache_that_knows_ranges_and_one_that_does_not(world, offset, knows_ranges):
    data, at_cache, at_server = fetched(world, DumbCache(world, honest, knows_ranges=knows_ranges), offset=offset)
    assert data == IMAGE[offset:]
    assert (at_cache, at_server) == (1, 0)


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_cache_that_cuts_every_connection(world, knows_ranges):
    """It goes on where it was cut; a cache without ranges sends everything again, and what is known is skipped."""
    data, at_cache, at_server = fetched(world, CuttingCache(world, honest, knows_ranges=knows_ranges))
    assert data == IMAGE
    assert at_cache == -(-len(IMAGE) // 40_000)
    assert at_server == 0


def says(*lines, body=b""):
    head = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode()

    def misbehave(connection, _data, _offset):
        connection.sendall(head + body)
        return True

    return misbehave


def wrong_range(connection, data, offset):
    body = data[offset:]
    head = f"HTTP/1.1 206 Partial Content\r\nContent-Length: {len(body)}\r\n"
    connection.sendall(f"{head}Content-Range: bytes {offset + 1}-{len(data)}/{len(data) + 1}\r\n\r\n".encode() + body)
    return True


def hangs_up(_connection, _data, _offset):
    return True


USELESS = {
    "another range": wrong_range,
    "a range to a whole question": says("HTTP/1.1 206 Partial Content", "Content-Range: bytes 5-9/10", body=b"56789"),
    "nothing": hangs_up,
    "not found": says("HTTP/1.1 404 Not Found"),
    "broken": says("HTTP/1.1 502 Bad Gateway"),
    "elsewhere": says("HTTP/1.1 302 Found", "Location: http://localhost:1/"),
    "compressed": says("HTTP/1.1 200 OK", "Content-Encoding: gzip", body=b"x"),
    "shorter": says("HTTP/1.1 200 OK", body=b"x" * 1000),
    "longer": says("HTTP/1.1 200 OK", body=b"x" * (len(IMAGE) + 1)),
    "no http": lambda connection, _data, _offset: connection.sendall(b"\x16\x03\x01" * 100) or True,
}


@pytest.mark.parametrize("how", USELESS)
@pytest.mark.parametrize("offset", [0, 70_000])
def test_what_a_cache_does_not_bring_comes_from_the_server(world, how, offset):
    data, at_cache, at_server = fetched(world, DumbCache(world, USELESS[how]), offset=offset)
    assert data == IMAGE[offset:]
    assert at_cache >= 1
    assert at_server == 1


def test_a_cache_that_breaks_in_the_middle_is_continued_by_the_server(world):
    asked = []

    def once(connection, data, offset):
        asked.append(offset)
        if len(asked) > 1:
            connection.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
            return True
        return False

    data, _, at_server = fetched(world, CuttingCache(world, once))
    assert data == IMAGE
    assert at_server == 1
    assert set(asked) == {0, 40_000}


def test_other_bytes_are_found_by_the_digest_and_the_cache_is_not_asked_again(world):
    cache = DumbCache(world, says("HTTP/1.1 200 OK", body=bytes(len(IMAGE))))
    data, _, _ = fetched(world, cache)
    assert Digest.of(data) != world.image.releases["1.1"].payloads[0].digest
    assert world.link.distrust_caches() is True
    assert b"".join(world.link.open_payload(world.image.releases["1.1"].payloads[0], offset=0)) == IMAGE
    assert world.link.distrust_caches() is False, "the bytes came from the server"
