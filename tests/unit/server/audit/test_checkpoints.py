"""What the signer is asked to vouch for: the past it signed, and nothing that was written over it."""

import asyncio
from datetime import UTC, datetime

import pytest

from firmament.core.clock import FixedClock
from firmament.core.fields import Fields
from firmament.durable import RealDisk
from firmament.errors import ChainBrokenError
from firmament.server.audit.checkpoints import Checkpoints, Rhythm, list_checkpoints
from firmament.server.audit.signer import AuditSigner
from firmament.server.database.opening import open_database
from firmament.server.events import Event, Wanted, append, find_events
from firmament.server.scope import FIRST_TENANT, Role, Scope

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
SCOPE = Scope(FIRST_TENANT, "person:alice", Role.ADMIN)
CLOCK = FixedClock(NOW)


class SignerHere:
    """The real signer, answering in this process when the loop gets to it."""

    def __init__(self, directory):
        self.signer = AuditSigner(RealDisk(), directory, CLOCK)

    async def audit(self, op, **question):
        await asyncio.sleep(0)
        try:
            return self.signer.answer(op, Fields(question, what="question"))
        finally:
            await asyncio.sleep(0)


class Asked:
    """A database, a signer, and who asks it."""

    def __init__(self, target, directory):
        self.database = open_database(target, CLOCK)
        self.signer = SignerHere(directory)
        self.checkpoints = self.begun_again()

    def begun_again(self):
        return Checkpoints(self.database, self.signer, CLOCK, Rhythm(every_events=1, interval_s=0))

    async def write(self, count=1):
        for _ in range(count):
            await self.database.submit(lambda db: append(db, SCOPE, Event.PRODUCT_ADDED, NOW, subject="thermo"))

    async def numbers(self):
        return [entry["number"] for entry in await self.database.read(lambda db: list_checkpoints(db, SCOPE))]

    async def refusals(self):
        wanted = Wanted(kind=Event.AUDIT_REFUSED.value)
        return await self.database.read(lambda db: find_events(db, SCOPE, wanted))


@pytest.fixture
def asked(target, tmp_path):
    made = Asked(target, tmp_path)
    yield made
    made.database.close()


def play(asked, story):
    async def played():
        try:
            await story()
        finally:
            await asked.database.end()

    asyncio.run(played())


def test_many_who_ask_at_once_are_no_broken_chain(asked):
    async def story():
        await asked.write(3)
        await asyncio.gather(*(asked.checkpoints.make(FIRST_TENANT) for _ in range(5)))
        assert await asked.numbers() == [3]
        assert await asked.refusals() == []

    play(asked, story)


def test_a_chain_that_was_another_where_it_was_signed_is_never_continued(asked):
    """However many events came since: what was signed over both could be verified by nobody, for ever."""

    async def story():
        asked.signer.signer.checkpoint(FIRST_TENANT, 0, [bytes([number]) * 32 for number in range(3)])
        for count in (2, 1, 4):  # before it, at it, beyond it
            await asked.write(count)
            await asked.begun_again().make(FIRST_TENANT)
        assert await asked.numbers() == []
        assert [event["facts"]["code"] for event in await asked.refusals()] == [ChainBrokenError.code] * 3

    play(asked, story)
