"""What a device offers to others nearby: only what it verified, as it travelled, by digest, within bounds."""

import http.client
import socket
from dataclasses import replace

import pytest
from support.world import World

from firmament.agent.fetch import HttpTransport, TransferSettings
from firmament.agent.link import Cache
from firmament.agent.share import MAX_FILES, Share, ShareSettings
from firmament.agent.share_server import MAX_CONNECTIONS, ShareServer
from firmament.agent.slots.image import ImageSlot
from firmament.agent.slots.port import Label, Slots
from firmament.core.clock import SystemClock
from firmament.core.digest import Digest
from firmament.core.manifest import Payload
from firmament.durable import RealDisk
from firmament.errors import AddressInUseError

DATA = Digest.of(b"seed").value * 8192
"""A quarter of a mebibyte."""
HEX = Digest.of(DATA).hex
PATH = f"/thermo/1.1/{HEX}.image.bin.xz"


def payload(data=DATA, method="xz"):
    return Payload(method, 1, "thermo/1.1/image.bin.xz", len(data), Digest.of(data))


def make_share(place):
    slots = Slots("image", *(ImageSlot(RealDisk(), label, place / f"{label.value}.img") for label in Label))
    return Share(RealDisk(), place / "share", slots, limit_bytes=3 * len(DATA))


@pytest.fixture
def share(tmp_path):
    return make_share(tmp_path)


@pytest.fixture
def stored(tmp_path):
    def make(data=DATA):
        (tmp_path / "payload").write_bytes(data)
        return tmp_path / "payload"

    return make


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One for all tests: it can only be read."""
    place = tmp_path_factory.mktemp("share")
    (place / "payload").write_bytes(DATA)
    share = make_share(place)
    share.keep(place / "payload", payload())
    made = ShareServer(ShareSettings("127.0.0.1", 0, 0, 1 << 20), share, SystemClock())
    made.start()
    yield made
    made.close()


def kept(tmp_path):
    return sorted(path.name for path in (tmp_path / "share").iterdir())


def ask(server, path, method="GET", **headers):
    connection = http.client.HTTPConnection(server.url[7:-1], timeout=10)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def test_a_stored_payload_is_taken_over_and_not_copied(share, stored, tmp_path):
    path = stored()
    share.keep(path, payload())
    assert not path.exists()
    assert kept(tmp_path) == [f"1-{HEX}"]
    reader, length = share.open(HEX)
    assert reader.read_at(0, length) == DATA
    reader.close()
    assert share.open("00" * 32) is None
    share.keep(stored(), payload())
    assert kept(tmp_path) == [f"1-{HEX}"], "once is enough"


def test_older_payloads_give_way_and_one_above_the_limit_is_not_kept(share, stored, tmp_path):
    for number in range(5):
        data = bytes([number]) * len(DATA)
        share.keep(stored(data), payload(data))
    assert [name.partition("-")[0] for name in kept(tmp_path)] == ["3", "4", "5"]
    for number in range(MAX_FILES + 1):
        share.keep(stored(bytes([number])), payload(bytes([number])))
    assert len(kept(tmp_path)) == MAX_FILES
    share.keep(stored(4 * DATA), payload(4 * DATA))
    assert len(kept(tmp_path)) == MAX_FILES
    full = kept(tmp_path)
    share.keep(stored(bytes([MAX_FILES])), payload(bytes([MAX_FILES])))
    assert kept(tmp_path) == full, "what is there already needs no room"


def test_what_went_straight_into_a_slot_is_read_from_there_until_it_is_written_again(share, tmp_path):
    (tmp_path / "b.img").write_bytes(DATA + b"what the slot has beyond")
    share.offer_slot(Label.B, payload(method="whole"))
    reader, length = share.open(HEX)
    assert (reader.read_at(0, length + 10), length) == (DATA, len(DATA))
    reader.close()
    share.withdraw_slot(Label.A)
    assert share.open(HEX) is not None
    share.withdraw_slot(Label.B)
    assert share.open(HEX) is None


def test_a_store_that_cannot_be_used_stops_nothing(share, stored, tmp_path):
    (tmp_path / "share").write_text("not a directory")
    share.keep(stored(), payload())
    share.offer_slot(Label.B, payload())
    share.withdraw_slot(Label.B)
    assert share.open(HEX) is None
    (tmp_path / "share").unlink()
    (tmp_path / "share").mkdir()
    (tmp_path / "share" / "slot.json").write_text("{nonsense")
    assert share.open(HEX) is None


# --- over HTTP -------------------------------------------------------------------------------


def test_a_payload_and_any_part_of_it(server):
    status, headers, body = ask(server, PATH)
    assert (status, body, headers["ETag"]) == (200, DATA, f'"{HEX}"')
    status, headers, body = ask(server, PATH, Range="bytes=1000-")
    assert (status, body) == (206, DATA[1000:])
    assert headers["Content-Range"] == f"bytes 1000-{len(DATA) - 1}/{len(DATA)}"
    assert ask(server, PATH, Range="bytes=5-9")[2] == DATA[5:10]
    assert ask(server, PATH, Range="bytes=5-999999999")[2] == DATA[5:]
    assert ask(server, PATH, Range="bytes=5-9", If_Range='"another"')[::2] == (200, DATA)
    assert ask(server, PATH, "HEAD")[::2] == (200, b"")
    for wrong in (f"bytes={len(DATA)}-", "bytes=9-5", "bytes=-5", "bytes=0-1,5-6", "lines=1-2"):
        assert ask(server, PATH, Range=wrong)[0] == 416, wrong


NOT_THERE = (
    "/",
    f"/{HEX}",
    "/thermo/1.1/" + "0" * 64 + ".image.bin",
    f"/thermo/1.1/1-{HEX}",
    f"/thermo/../../{HEX.upper()}.x",
    "/metadata/timestamp.json",
    "/thermo/1.1/../../../../etc/passwd",
    "/share/slot.json",
    "/" + "a/" * 4000 + f"{HEX}.x",
)


@pytest.mark.parametrize("path", NOT_THERE)
def test_nothing_else_is_there(server, path):
    assert ask(server, path)[::2] == (404, b"")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_it_can_only_be_read(server, method):
    assert ask(server, PATH, method)[0] == 501
    assert ask(server, PATH)[2] == DATA


def test_there_are_only_so_many_at_once(server):
    host, port = server.url[7:-1].split(":")
    held = [socket.create_connection((host, int(port)), timeout=5) for _ in range(MAX_CONNECTIONS)]
    for one in held:
        one.sendall(f"HEAD {PATH} HTTP/1.1\r\n\r\n".encode())
        assert one.recv(12) == b"HTTP/1.1 200"
    with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
        ask(server, PATH)
    for one in held:
        one.close()


def test_the_rate_is_that_of_all_together(server):
    limited = ShareServer(ShareSettings("127.0.0.1", 0, 40_000, 1 << 20), server.share, SlowClock())
    limited.start()
    try:
        assert ask(limited, PATH)[2] == DATA
    finally:
        limited.close()
    # One of four connections has a quarter of the rate, and a second's worth of it for nothing.
    assert limited.clock.slept_s == pytest.approx((len(DATA) - 10_000) / 10_000, rel=0.05)


class SlowClock(SystemClock):
    """Counts how long it was asked to sleep, and does not."""

    slept_s = 0.0

    def monotonic_s(self):
        return self.slept_s

    def sleep(self, duration_s):
        self.slept_s += duration_s


def test_an_address_that_is_taken_is_said(server):
    host, port = server.url[7:-1].split(":")
    with pytest.raises(AddressInUseError):
        ShareServer(ShareSettings(host, int(port), 0, 1), server.share, SystemClock()).start()


# --- the other side --------------------------------------------------------------------------


def test_an_agent_nearby_is_asked_before_the_server(server, tmp_path):
    world = World(tmp_path / "device")
    world.floors.create()
    world.release("1.1", 2, DATA)
    transport = HttpTransport(SystemClock(), settings=TransferSettings(), tls=None)
    away = HttpTransport(SystemClock(), settings=replace(TransferSettings(), connect_timeout_s=1), tls=None)
    world.link.caches = (Cache("http://127.0.0.1:1/", away), Cache(server.url, transport))
    world.requests.clear()
    whole = world.image.releases["1.1"].payloads[0]
    assert b"".join(world.link.open_payload(whole, offset=70_000)) == DATA[70_000:]
    assert world.requests == []
    transport.close()
