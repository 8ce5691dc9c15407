"""Downloads without a network: chunks, slow peers, ceilings, files that change."""

import asyncio
import os

import pytest

from firmament.errors import NotFoundError, OverloadedError
from firmament.server.http import downloads as module
from firmament.server.http.downloads import CutOffError, Downloads
from firmament.server.payloads.store import CHUNK_BYTES, FileSource, read_chunk

DATA = os.urandom(3 * CHUNK_BYTES + 7)


@pytest.fixture
def path(tmp_path):
    (tmp_path / "file").write_bytes(DATA)
    return tmp_path / "file"


def scope(method="GET", **headers):
    return {
        "state": {},
        "method": method,
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
    }


class Peer:
    """Takes messages; `wait_s` before each body part."""

    def __init__(self, wait_s=0.0):
        self.wait_s, self.status, self.body, self.parts = wait_s, 0, b"", 0

    async def send(self, message):
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            await asyncio.sleep(self.wait_s)
            self.body += message.get("body", b"")
            self.parts += 1


def make(**changes):
    return Downloads(**{"max_in_all": 2, "max_per_peer": 1, "min_rate_bytes_per_s": 1000, **changes})


async def send(downloads, peer, path, name="a", request=None):
    source = FileSource(path)
    return await downloads.send_source(
        request or scope(), peer.send, source, peer=name, cache_control="x", request_id="r"
    )


def test_a_file_goes_out_in_chunks_and_is_counted_while_it_does(path):
    downloads, peer = make(), Peer()
    assert asyncio.run(send(downloads, peer, path)) == 200
    assert (peer.body, peer.parts, downloads.active) == (DATA, 4, 0)


def test_too_many_at_once_are_told_when_to_come_back(path):
    async def story():
        downloads = make()
        first = asyncio.create_task(send(downloads, Peer(0.02), path))
        await asyncio.sleep(0.01)
        with pytest.raises(OverloadedError) as refused:
            await send(downloads, Peer(), path)
        assert refused.value.facts["retry_after_s"] == 30
        second = asyncio.create_task(send(downloads, Peer(0.02), path, "b"))
        await asyncio.sleep(0.01)
        with pytest.raises(OverloadedError):
            await send(downloads, Peer(), path, "c")
        await asyncio.gather(first, second)
        assert await send(downloads, Peer(), path) == 200

    asyncio.run(story())


def test_a_reader_below_the_floor_is_cut_and_one_above_is_not(path, monkeypatch):
    monkeypatch.setattr(module, "GRACE_S", 0.05)
    downloads = make(min_rate_bytes_per_s=100 * CHUNK_BYTES)
    with pytest.raises(CutOffError):
        asyncio.run(send(downloads, Peer(0.2), path))
    assert downloads.active == 0
    assert asyncio.run(send(downloads, Peer(0.01), path)) == 200


def test_a_file_that_shrinks_ends_the_connection_instead_of_inventing_bytes(path):
    class Shrinking(Peer):
        async def send(self, message):
            await super().send(message)
            os.truncate(path, CHUNK_BYTES)

    peer = Shrinking()
    with pytest.raises(CutOffError):
        asyncio.run(send(make(), peer, path))
    assert peer.body == DATA[:CHUNK_BYTES]


def test_what_is_no_regular_file_is_not_found(tmp_path, path):
    (tmp_path / "link").symlink_to(path)
    for name in ("link", "nothing", "."):
        with pytest.raises(NotFoundError):
            asyncio.run(send(make(), Peer(), tmp_path / name))


def test_an_empty_file_is_an_answer_too(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    peer = Peer()
    assert asyncio.run(send(make(), peer, tmp_path / "empty")) == 200
    assert peer.body == b""


@pytest.mark.parametrize("result", [BlockingIOError(), OSError(95, "not supported"), 3])
def test_pages_that_are_not_in_memory_are_read_by_a_thread(path, monkeypatch, result):
    def preadv(descriptor, buffers, offset, flags):
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(os, "preadv", preadv)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        assert asyncio.run(read_chunk(descriptor, 5, 100)) == DATA[5:105]
    finally:
        os.close(descriptor)
