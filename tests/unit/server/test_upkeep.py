"""The leader collects payloads by itself: once in an interval, and never after another began to lead."""

import asyncio
from datetime import timedelta

import pytest

from firmament.core.clock import FixedClock, SystemClock
from firmament.core.digest import Digest
from firmament.errors import LockedError
from firmament.server.database.opening import open_database
from firmament.server.leader import EPOCH, FencedDatabase, acting
from firmament.server.payloads.collect import Collector
from firmament.server.payloads.store import DirectoryBlobs, ServerDisk
from firmament.server.payloads.upkeep import Upkeep
from firmament.server.releases.model import Published

START = SystemClock().now()
DATA = b"never released"


class Server:
    """A store and a database on which one server collects."""

    def __init__(self, target, directory):
        self.clock = FixedClock(START)
        self.blobs = DirectoryBlobs(
            ServerDisk(), directory / "blobs", directory / "targets", max_length_bytes=100, min_free_bytes=0
        )
        self.database = FencedDatabase(open_database(target, self.clock))
        collector = Collector(self.blobs, lambda _: Published(), grace=timedelta(hours=1))
        self.upkeep = Upkeep(collector, self.database, target, self.clock, interval=timedelta(days=1))

    def store(self):
        upload = self.blobs.receive(Digest.of(DATA), expected_bytes=len(DATA))
        upload.write(DATA)
        upload.finish()

    async def round_after(self, **passed):
        """Do what the loop does at some time after the start; return how many payloads went."""
        self.clock.set(START + timedelta(**passed))
        done = await self.upkeep.collect_due()
        return None if done is None else done.blobs

    async def lead(self, epoch):
        await self.database.submit(
            lambda db: db.execute(
                "INSERT INTO number(name, value) VALUES (?, ?) ON CONFLICT(name) DO UPDATE SET value = excluded.value",
                (EPOCH, epoch),
            )
        )


def play(target, tmp_path, story):
    async def played():
        server = Server(target, tmp_path)
        try:
            await story(server)
        finally:
            await server.database.end()
            server.database.close()

    asyncio.run(played())


def test_it_collects_once_in_an_interval_whoever_leads_and_however_often_it_starts(target, tmp_path):
    async def story(server):
        server.store()
        assert await server.round_after() is None, "nothing at the first start"
        assert await server.round_after(hours=23) is None
        assert await server.round_after(hours=24) == 1
        assert list(server.blobs.blobs()) == []
        server.store()
        assert await server.round_after(hours=47) is None
        assert await server.round_after(hours=-5) is None, "a clock that was put back begins anew"
        assert await server.round_after(hours=19) == 1

    play(target, tmp_path, story)


def test_what_another_leader_has_begun_is_left_to_it(target, tmp_path):
    async def story(server):
        server.store()
        await server.lead(1)
        with acting(1):
            assert await server.round_after() is None
        await server.lead(2)
        with acting(1), pytest.raises(LockedError):
            await server.round_after(hours=30)
        assert len(list(server.blobs.blobs())) == 1
        with acting(2):
            assert await server.round_after(hours=30) == 1

    play(target, tmp_path, story)
