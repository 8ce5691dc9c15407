"""Files that the kernel sends, over real sockets: short ones, peers that are gone or too slow, pages on disk."""

import asyncio
import os
import socket
from pathlib import Path

import pytest

from firmament.server.http import file_sending as module
from firmament.server.http.file_sending import FileSending, Patience, ShortFileError, TooSlowError
from firmament.server.http.messages import GoneError
from firmament.server.payloads import page_cache
from firmament.server.payloads.page_cache import WINDOW_BYTES, PageCache, is_cached

DATA = os.urandom(2 * WINDOW_BYTES + 12345)
WHOLE = len(DATA)
PATIENT = Patience(1, 30)


@pytest.fixture
def descriptor(tmp_path):
    (tmp_path / "file").write_bytes(DATA)
    found = os.open(tmp_path / "file", os.O_RDWR)
    yield found
    os.close(found)


@pytest.fixture
def link():
    """Both ends of a TCP connection with small buffers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32 * 1024)
        peer = socket.socket()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * 1024)
        peer.connect(listener.getsockname())
        ours, _ = listener.accept()
    for end in (ours, peer):
        end.setblocking(False)
    with ours, peer:
        yield ours, peer


async def take(peer, length_bytes, *, pause_s=0.0, piece_bytes=1 << 20):
    got = b""
    while len(got) < length_bytes:
        part = await asyncio.get_running_loop().sock_recv(peer, piece_bytes)
        if not part:
            break
        got += part
        await asyncio.sleep(pause_s)
    return got


def sending(link, descriptor, offset=0, end=WHOLE, patience=PATIENT):
    return FileSending(asyncio.get_running_loop(), link[0].fileno(), descriptor, offset, end, patience)


@pytest.fixture(autouse=True)
def nothing_is_known_yet(monkeypatch):
    monkeypatch.setattr(module, "PAGES", PageCache())


@pytest.mark.parametrize("is_there", [True, False])
def test_every_byte_arrives_from_memory_and_from_disk(link, descriptor, monkeypatch, is_there):
    asked = []

    def answer(_descriptor, offset, end):
        asked.append((offset, end))
        return is_there

    monkeypatch.setattr(page_cache, "is_cached", answer)
    filled = []
    monkeypatch.setattr(module, "fill", lambda _descriptor, *window: filled.append(window))

    async def story():
        end = len(DATA) - 5
        taking = asyncio.create_task(take(link[1], end - 7))
        await sending(link, descriptor, 7, end).run()
        return await taking

    assert asyncio.run(story()) == DATA[7:-5]
    windows = [(at, min(at + WINDOW_BYTES, len(DATA))) for at in range(0, len(DATA), WINDOW_BYTES)]
    assert asked == windows
    assert filled == ([] if is_there else [(at, at + WINDOW_BYTES) for at, _ in windows])


def test_what_was_dropped_from_memory_is_noticed_and_read_again(link, descriptor):
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    assert not is_cached(descriptor, 0, len(DATA))

    async def story():
        taking = asyncio.create_task(take(link[1], len(DATA)))
        await sending(link, descriptor).run()
        return await taking

    assert asyncio.run(story()) == DATA
    assert is_cached(descriptor, 0, len(DATA))
    assert is_cached(descriptor, 4097, len(DATA) - 4097)
    assert not is_cached(descriptor, 0, 0)
    assert not is_cached(-1, 0, 10)


def test_what_was_found_in_memory_is_asked_again_after_a_while(descriptor, monkeypatch):
    asked = []
    monkeypatch.setattr(page_cache, "is_cached", lambda *_: asked.append(1) or True)
    pages = PageCache()
    for now_s, file in ((5.0, (1, 1)), (5.9, (1, 1)), (6.1, (1, 1)), (6.1, (1, 2))):
        assert pages.window(descriptor, file, 17, now_s)[0] == WINDOW_BYTES
    assert len(asked) == 3
    monkeypatch.setattr(page_cache, "MAX_BELIEFS", 1)
    pages.believe((1, 3), 0, 6.1)
    pages.window(descriptor, (1, 1), 17, 6.1)
    assert len(asked) == 4


def test_a_file_that_shrinks_is_told(link, descriptor):
    async def story():
        taking = asyncio.create_task(take(link[1], 1 << 20))
        found = sending(link, descriptor)
        running = asyncio.create_task(found.run())
        await taking
        os.ftruncate(descriptor, 1 << 20)
        rest = asyncio.create_task(take(link[1], len(DATA)))
        with pytest.raises(ShortFileError):
            await running
        rest.cancel()

    asyncio.run(story())


def test_a_peer_that_takes_nothing_is_given_up_and_one_that_takes_a_little_is_not(link, descriptor):
    async def story():
        # 60 KiB in every second is asked for; this one takes 200 KiB or so, in pieces smaller than a buffer.
        patience = Patience(6 * 1024, 0.1)
        end = 128 * 1024
        taking = asyncio.create_task(take(link[1], end, pause_s=0.02, piece_bytes=4096))
        await sending(link, descriptor, 0, end, patience).run()
        assert await taking == DATA[:end]
        with pytest.raises(TooSlowError):
            await sending(link, descriptor, patience=patience).run()

    asyncio.run(story())


def test_a_peer_that_goes_away_ends_it(link, descriptor):
    async def story(go):
        found = sending(link, descriptor)
        running = asyncio.create_task(found.run())
        await take(link[1], 1000, piece_bytes=1000)
        go(found)
        with pytest.raises(GoneError):
            await running

    asyncio.run(story(lambda found: found.stop()))
    asyncio.run(story(lambda _: link[1].close()))


def open_descriptors():
    return {link.name for link in Path("/proc/self/fd").iterdir()}


def test_nothing_is_left_open(link, descriptor):
    async def story():
        before = open_descriptors()
        running = asyncio.create_task(sending(link, descriptor).run())
        await asyncio.sleep(0.05)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert open_descriptors() == before

    asyncio.run(story())
