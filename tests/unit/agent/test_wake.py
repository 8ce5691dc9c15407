"""Hints by MQTT: a hostile broker can do nothing but cost a poll now and then, and an absent one costs nothing."""

import contextlib
import itertools
import random
import socket
import threading
from types import SimpleNamespace

import pytest

from firmament.agent import wake, wake_packets
from firmament.agent.wake import Hints, Listener
from firmament.agent.wake_packets import Kind, Reader, connect, published, require_answer, subscribe
from firmament.agent.wake_settings import WakeSettings
from firmament.core.clock import SystemClock
from firmament.core.fields import Fields
from firmament.durable import RealDisk
from firmament.errors import ForbiddenError, MalformedError, SettingError
from firmament.protocol.v1.wake import Wake, bucket_of, decode_wake, wake_topic

DEVICE = "00000000-0000-4000-8000-000000000007"
TOPIC = wake_topic(1, bucket_of(DEVICE))
CONNACK, SUBACK = b"\x20\x02\x00\x00", b"\x90\x03\x00\x01\x00"


def hint(rev, *, topic=TOPIC, spread_s=0, retain=False, payload=None):
    body = b'{"v": 1, "rev": %d, "spread_s": %d}' % (rev, spread_s) if payload is None else payload
    name = topic.encode()
    return wake_packets._packet(Kind.PUBLISH, len(name).to_bytes(2) + name + body, flags=int(retain))


def settings(**changes):
    return WakeSettings.from_fields(Fields({"url": "mqtt://127.0.0.1:1", **changes}, what="wake"))


class Broker:
    """Accepts a device, answers as told, and keeps what the device sent; hostile when a story says so."""

    def __init__(self, *answers):
        self.answers = answers
        self.heard, self.sessions = bytearray(), 0
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        with contextlib.suppress(OSError):
            while True:
                connected, _ = self.listening.accept()
                self.sessions += 1
                with connected, contextlib.suppress(OSError):
                    for answer in (CONNACK, SUBACK + b"".join(self.answers)):
                        self.heard += connected.recv(4096)
                        connected.sendall(answer)
                    while data := connected.recv(4096):
                        self.heard += data

    def close(self):
        with contextlib.suppress(OSError):
            self.listening.shutdown(socket.SHUT_RDWR)
        self.listening.close()
        self.thread.join(5)

    @property
    def url(self):
        return f"mqtt://127.0.0.1:{self.listening.getsockname()[1]}"


@pytest.fixture
def listen(tmp_path, monkeypatch):
    """Let a device listen to a broker until it has been left or nothing more comes; return when it would poll."""
    monkeypatch.setattr(wake, "MIN_WAIT_S", 3600)
    monkeypatch.setattr(wake.identity, "load", lambda *_: SimpleNamespace(device_id=DEVICE))

    def play(*answers, is_left=False, **changes):
        broker, moments, lost = Broker(*answers), [], []
        listener = Listener(
            settings(url=broker.url, **changes), disk=RealDisk(), state_directory=tmp_path, clock=SystemClock(),
            chance=random.Random(1), hint=moments.append,
        )  # fmt: skip
        monkeypatch.setattr(wake.log, "warning", lambda event, **facts: lost.append(facts["code"]))
        listener.start()
        try:
            wait_until(lambda: lost if is_left else moments)
        finally:
            listener.close()
            broker.close()
        assert not listener._thread.is_alive()
        return SimpleNamespace(moments=moments, lost=lost, broker=broker)

    return play


def wait_until(holds, seconds=10):
    event = threading.Event()
    for _ in range(seconds * 100):
        if holds():
            return
        event.wait(0.01)
    raise AssertionError


def test_a_hint_is_heard_and_one_topic_is_asked_for(listen):
    found = listen(hint(7))
    assert len(found.moments) == 1
    assert TOPIC.encode() in found.broker.heard
    assert DEVICE.encode() in found.broker.heard
    assert found.lost == []


def test_a_retained_hint_counts_once(listen):
    assert len(listen(hint(7, retain=True), hint(7), hint(7)).moments) == 1


def test_70_a_flood_of_hints_costs_a_poll_and_one_an_interval_later_and_ends_the_session(listen):
    found = listen(*(hint(number) for number in range(100_000, 102_000)), is_left=True)
    first, second = found.moments
    assert second - first > 59.999
    assert found.lost == ["request/too-large"]
    assert found.broker.sessions == 1


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"\x30\xff\xff\xff\x7f", "request/too-large"),  # 256 MiB are announced
        (b"\x30\xff\xff\xff\xff\x01", "request/malformed"),  # a length without an end
        (b"\x30\x02\xff\xff", "request/malformed"),  # a topic longer than its packet
        (b"\x32" + hint(1)[1:], "request/malformed"),  # QoS 1 was not asked for
        (b"\x00\x00", "request/malformed"),
        (hint(1, payload=b"\xff" * 40), "request/malformed"),
        (hint(1, payload=b'{"v":1,"rev":-1,"spread_s":1}'), "request/malformed"),
        (hint(1, payload=b'{"v":1,"rev":1,"spread_s":1e999}'), "request/malformed"),
        (hint(1, payload=b" " * 300), "request/too-large"),
    ],
)
def test_70_what_is_no_hint_ends_the_session_and_wakes_nobody(listen, sent, code):
    found = listen(sent, is_left=True)
    assert (found.moments, found.lost) == ([], [code])


def test_70_hints_for_others_are_not_heard(listen):
    found = listen(hint(1, topic="firmament/v1/2/b/7"), hint(2, topic="#"), hint(3))
    assert len(found.moments) == 1


def test_hints_make_a_poll_at_most_once_an_interval_and_within_their_spread():
    chance = random.Random(2)
    for _ in range(50):
        hints = Hints(chance, min_interval_s=60)
        moments, now_s = [], 0.0
        for number in range(500):
            now_s += chance.uniform(0, 5)
            at_s = hints.take(Wake(number, chance.randrange(30)), now_s)
            if at_s is not None:
                assert now_s <= at_s <= max(now_s + 30, (moments[-1] if moments else 0) + 60)
                moments.append(at_s)
        assert all(later - earlier > 59.999 for earlier, later in itertools.pairwise(moments))
        assert len(moments) > 5


def test_packets_survive_being_cut_anywhere():
    data = CONNACK + SUBACK + hint(9, retain=True)
    for size in (1, 2, 3, 7, len(data)):
        reader = Reader()
        found = [packet for at in range(0, len(data), size) for packet in reader.feed(data[at : at + size])]
        assert [packet.kind for packet in found] == [Kind.CONNACK, Kind.SUBACK, Kind.PUBLISH]
    assert decode_wake(published(found[-1]).payload) == Wake(9, 0)


def test_a_broker_that_says_no_is_believed():
    (packet,) = Reader().feed(b"\x20\x02\x00\x05")
    with pytest.raises(ForbiddenError):
        require_answer(packet, Kind.CONNACK)
    (packet,) = Reader().feed(b"\x90\x03\x00\x01\x80")
    with pytest.raises(ForbiddenError):
        require_answer(packet, Kind.SUBACK)
    with pytest.raises(MalformedError):
        require_answer(packet, Kind.CONNACK)


def test_names_and_passwords_are_where_the_standard_wants_them():
    assert connect("d", username="u", password="p", keep_alive_s=240) == (
        b"\x10\x13\x00\x04MQTT\x04\xc2\x00\xf0\x00\x01d\x00\x01u\x00\x01p"
    )
    assert subscribe("a/b") == b"\x82\x08\x00\x01\x00\x03a/b\x00"
    assert len(connect("d", username="u" * 200, password="", keep_alive_s=240)) == 3 + 0xD7 - 0


@pytest.mark.parametrize(
    "changes",
    [
        {"url": "http://broker"},
        {"url": "mqtt://"},
        {"url": "mqtt://user:secret@broker"},
        {"url": "mqtt://broker:99999"},
        {"url": "mqtts://broker"},
        {"ca": "/etc/ca.pem"},
        {"password_file": "/etc/password", "username": "d"},
        {"url": "mqtts://broker", "ca": "/etc/ca.pem", "password_file": "/etc/password"},
        {"url": "mqtts://broker", "ca": "ca.pem"},
        {"min_interval_s": 1},
    ],
)
def test_settings_that_cannot_work_are_refused(changes):
    with pytest.raises((SettingError, MalformedError)) as caught:
        settings(**changes)
    assert "secret" not in str(caught.value)


def test_without_an_address_nothing_listens():
    assert WakeSettings.from_fields(Fields({}, what="wake")) is None
