"""Payloads that are not the image itself: stored, checked, applied, and given up for another one when they fail."""

import hashlib
from dataclasses import replace
from types import SimpleNamespace

import pytest

from firmament.agent.events import Progress
from firmament.agent.link import Cache
from firmament.agent.machine import State
from firmament.agent.parts import PayloadSettings
from firmament.agent.share import Share
from firmament.agent.slots.port import Label
from firmament.agent.stored import NAME
from firmament.core import bundle
from firmament.core.digest import Digest
from firmament.errors import (
    DigestMismatchError,
    DiskFullError,
    KeyWrapError,
    PrecursorMismatchError,
    TooLargeError,
    TruncatedError,
)
from firmament.payload import wrap
from firmament.sim.bootloader import BootKind
from firmament.sim.geometries import BUNDLES, IMAGES
from firmament.sim.world import STATE, Case, Condition, Geometry, Ideal, SlotKind, Travel

STORED = STATE / "agent" / NAME
OLD = bytes((index * 131 + index // 251) % 256 for index in range(40_000))
NEW = OLD[:11_000] + b"a fix" * 40 + OLD[11_000:39_000]
NOISE = b"".join(hashlib.sha256(index.to_bytes(4, "big")).digest() for index in range(28_000))
LARGE = Geometry("large", "several chunks of a sealed payload", OLD, NEW, 50_000, 3000, 9000)


def device(travel, *, slot=SlotKind.IMAGE_FILE, geometry=None, boot=BootKind.UBOOT):
    geometry = geometry or (BUNDLES[0] if slot is SlotKind.BUNDLE else IMAGES[0])
    world = Ideal(Case(slot, boot, Condition.HEALTHY, geometry, travel=travel)).provisioned()
    world.heard = []
    world.events.listen(world.heard.append)
    return world


def fetched(world) -> list[str]:
    """Names of the payload files that were asked for."""
    server = world.ideal.server
    return [line.rpartition(".")[2] for line in server.requests if "/targets/" in line]


def last_log(world) -> str:
    return " ".join(world.ideal.server.reports[-1].log)


def confirmed(world) -> bool:
    world.settle()
    result = world.result()
    return (result.booted_new, result.status, result.reported) == (True, "confirmed", "confirmed")


@pytest.mark.parametrize("slot", SlotKind)
@pytest.mark.parametrize("travel", Travel)
def test_every_way_to_travel_ends_confirmed(slot, travel):
    world = device(travel, slot=slot, boot=BootKind.SUPERVISOR if slot is SlotKind.BUNDLE else BootKind.UBOOT)
    world.settle()
    assert not world.disk.exists(STORED), "the stored payload goes when the attempt is over"
    assert confirmed(world)
    world.start().start()
    assert not world.disk.exists(STORED), "and if a power cut brought it back, at the next start"


def test_a_delta_is_all_that_is_fetched():
    world = device(Travel.DELTA, geometry=LARGE)
    assert confirmed(world)
    assert fetched(world) == ["refdelta"]
    progress = [event for event in world.heard if isinstance(event, Progress)]
    assert progress[-1].done_bytes == progress[-1].total_bytes < len(NEW) // 4


@pytest.mark.parametrize("travel", [Travel.FALLBACK, Travel.SEALED_FALLBACK])
def test_a_delta_that_makes_another_image_falls_back_within_the_attempt(travel):
    world = device(travel, geometry=LARGE)
    assert confirmed(world)
    assert len({report.attempt_id for report in world.ideal.server.reports}) == 1
    assert not any(report.status.value in {"failed", "refused"} for report in world.ideal.server.reports)
    assert "fell back" in last_log(world)
    assert DigestMismatchError.code in last_log(world)


def test_a_failed_payload_is_told_at_the_next_poll():
    world = device(Travel.FALLBACK, geometry=LARGE)
    asked = []
    server = world.ideal.server
    poll = server._poll

    def listen(body):
        asked.append(body)
        return poll(body)

    server._poll = listen
    agent = world.start()
    agent.download()
    agent.poll_soon()
    agent._contact.poll()
    assert b"failed_payloads" not in asked[0]
    assert b'.refdelta"]' in asked[-1]
    assert agent.status().to_json()["attempt"]["fell_back_from"][0]["code"] == DigestMismatchError.code


def test_a_changed_running_slot_falls_back_to_the_whole_image():
    world = device(Travel.DELTA, geometry=LARGE)
    agent = world.start()
    path = world.agent._parts.slots[Label.A].path
    changed = bytearray(world.disk.get(path))
    changed[77] ^= 1
    world.disk.put(path, bytes(changed))
    world.has_started = lambda _label: None  # the judge would call the changed image unsigned, and is right
    assert agent.download().state is State.VERIFIED
    assert fetched(world)[-1] == "bin"
    assert agent.status().attempt.failed[0].code == PrecursorMismatchError.code


def test_a_delta_from_another_image_is_not_even_fetched():
    world = device(Travel.DELTA, geometry=LARGE)
    agent = world.start()
    ledger = agent._ledger
    agent.check()
    running = replace(ledger.record.running, image=ledger.attempt.manifest.image)
    ledger.record = replace(ledger.record, running=running)
    assert agent.download().state is State.VERIFIED
    assert fetched(world) == ["bin"]
    assert agent.status().attempt.failed[0].code == PrecursorMismatchError.code


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        (PayloadSettings(memory_bytes=1024**2), TooLargeError),
        (PayloadSettings(limit_bytes=10), TooLargeError),
    ],
)
def test_what_this_device_cannot_afford_falls_back(settings, error):
    world = device(Travel.DELTA, geometry=LARGE)
    world.alter = lambda parts: replace(parts, payloads=settings)
    agent = world.start()
    agent.download()
    assert fetched(world) == ["bin"]
    assert agent.status().attempt.failed[0].code == error.code


def test_without_room_for_the_file_the_whole_image_goes_straight_into_the_slot():
    world = device(Travel.DELTA, geometry=LARGE)
    agent = world.start()
    room = world.disk.free_bytes
    world.disk.free_bytes = lambda path: 1000 if path.is_relative_to(STATE) else room(path)
    agent.download()
    assert fetched(world) == ["bin"]
    assert agent.status().attempt.failed[0].code == DiskFullError.code


def test_without_room_for_a_sealed_payload_the_device_waits():
    world = device(Travel.SEALED, geometry=LARGE)
    agent = world.start()
    room = world.disk.free_bytes
    world.disk.free_bytes = lambda path: 1000 if path.is_relative_to(STATE) else room(path)
    with pytest.raises(DiskFullError):
        agent.download()
    del world.disk.free_bytes
    assert agent.download().state is State.VERIFIED


def test_a_dropped_connection_continues_where_the_file_was_durable():
    world = device(Travel.SEALED, geometry=replace(LARGE, new=NOISE[:3000], chunk_bytes=100, checkpoint_bytes=200))
    server = world.ideal.server
    request = server.request
    offsets = []

    def drops(method, url, **options):
        answer = request(method, url, **options)
        if "/targets/" in url:
            offsets.append((options.get("headers") or {}).get("Range", ""))
            if len(offsets) <= 3:
                chunks = answer.chunks

                def two():
                    pieces = chunks()
                    yield next(pieces)
                    yield next(pieces)
                    raise TruncatedError("The connection ended early")

                return SimpleNamespace(status=answer.status, headers=answer.headers, chunks=two, close=answer.close)
        return answer

    server.request = drops
    agent = world.start()
    agent.download()
    assert agent.status().attempt.stored == agent.status().attempt.chosen.length_bytes
    assert offsets[0] == ""
    assert offsets[1:4] == ["bytes=200-", "bytes=400-", "bytes=600-"]


def test_only_the_poisoned_piece_is_fetched_again(monkeypatch):
    world = device(Travel.SEALED, geometry=Geometry("huge", "four pieces", OLD, NOISE, 10**6, 60_000, 200_000))
    agent = world.start()
    agent.check()
    real = world.agent._fetching._stored.write
    monkeypatch.setattr(
        world.agent._fetching._stored,
        "write",
        lambda at, data: real(at, bytes(len(data)) if 300_000 <= at < 350_000 and len(data) < 100_000 else data),
    )
    agent.download()
    ranges = [line for line in world.ideal.server.requests if "/targets/" in line]
    assert len(ranges) == 3, "the payload, its chunk list, one piece"
    assert ranges[1].endswith(".chunks")
    assert agent.status().attempt.failed == ()


def test_a_wrap_for_another_device_opens_nothing():
    world = device(Travel.SEALED, geometry=LARGE)
    world.ideal.hpke_key, _ = wrap.generate()
    agent = world.start()
    with pytest.raises(KeyWrapError):
        agent.run_all()
    assert world.ideal.server.reports[-1].code == KeyWrapError.code
    assert world.ideal.server.reports[-1].status.value == "refused"


def test_status_counts_stored_bytes():
    world = device(Travel.SEALED, geometry=LARGE)
    agent = world.start()
    agent.download()
    facts = agent.status().to_json()["attempt"]
    assert facts["done_bytes"] == facts["total_bytes"] > 0
    assert facts["payload"].endswith(".sealed")


class CacheTransport:
    """A CDN: the server's payload files under another address, as they are or not."""

    def __init__(self, world, *, change=lambda data: data, stops_after=None):
        self.world, self.change, self.stops_after, self.asked = world, change, stops_after, []

    def request(self, method, url, *, body=None, headers=None, deadline_s=None):
        self.asked.append(url)
        path = url.removeprefix("http://cache/")
        answer = self.world.ideal.server.request(
            method, f"https://server.sim/v1/image/targets/{path}", headers=headers, deadline_s=deadline_s
        )
        body = self.change(answer.body)
        if self.stops_after is None:
            return replace(answer, body=body)
        chunks = [body[: self.stops_after]]

        def cut():
            yield from chunks
            raise TruncatedError("The connection ended early")

        return SimpleNamespace(status=answer.status, headers=answer.headers, chunks=cut, close=answer.close)


def with_cache(world, **how):
    cache = CacheTransport(world, **how)

    def alter(parts):
        parts.link.caches = (Cache("http://cache/", cache),)
        return parts

    world.alter = alter
    return cache


@pytest.mark.parametrize("travel", [Travel.WHOLE, Travel.DELTA, Travel.SEALED])
def test_payload_bytes_come_from_a_cache_where_there_is_one(travel):
    world = device(travel, geometry=LARGE)
    cache = with_cache(world)
    assert confirmed(world)
    assert len(cache.asked) == len(fetched(world)) == 1


@pytest.mark.parametrize("travel", [Travel.WHOLE, Travel.DELTA])
def test_a_cache_that_sends_other_bytes_is_not_asked_again(travel):
    world = device(travel, geometry=LARGE)
    cache = with_cache(world, change=lambda data: data[:-1] + bytes([data[-1] ^ 1]))
    assert confirmed(world)
    assert len(cache.asked) == 1
    assert world.ideal.server.reports[-1].log == (), "nothing was given up but the cache"


@pytest.mark.parametrize("travel", [Travel.WHOLE, Travel.DELTA, Travel.SEALED])
def test_what_travelled_is_kept_for_others_and_the_update_goes_on(travel):
    world = device(travel, geometry=LARGE)
    shares = []

    def alter(parts):
        shares.append(Share(world.disk, STATE / "share", parts.slots, limit_bytes=1 << 20))
        return replace(parts, share=shares[-1])

    world.alter = alter
    assert confirmed(world)
    (asked,) = [line for line in world.ideal.server.requests if "/targets/" in line]
    digest = asked.rpartition("/")[2].partition(".")[0]
    reader, length = shares[-1].open(digest)
    assert Digest.of(reader.read_at(0, length)).hex == digest
    reader.close()
    if travel is not Travel.WHOLE:
        assert shares[-1].open(Digest.of(NEW).hex) is None, "the image itself did not travel"


NO_ARCHIVES = {
    "noise": lambda data: b"no archive" * (len(data) // 10) + data[: len(data) % 10],
    "a file far too long": lambda data: promising(data, 1 << 32),
}


@pytest.mark.parametrize("kind", NO_ARCHIVES)
def test_69_a_cache_that_sends_no_archive_costs_no_attempt(kind):
    """A bundle is unpacked as it comes: what cannot be one is seen before the digest is."""
    world = device(Travel.WHOLE, slot=SlotKind.BUNDLE, boot=BootKind.SUPERVISOR)
    cache = with_cache(world, change=NO_ARCHIVES[kind])
    assert confirmed(world)
    assert len(cache.asked) == 1
    assert not any(report.status.value in {"failed", "refused"} for report in world.ideal.server.reports)


def promising(data, length_bytes):
    """The same bytes behind the header of a file that is far longer than what was signed."""
    first = bundle.header(bundle.Entry("a", bundle.EntryKind.FILE, length_bytes=length_bytes))
    return first + data[len(first) :]


def test_the_server_goes_on_where_a_cache_stopped():
    world = device(Travel.WHOLE, geometry=LARGE)
    with_cache(world, stops_after=900)
    assert confirmed(world)
