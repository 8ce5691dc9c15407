"""The loop that delivers: one event at a time to each outlet, outlets beside each other."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from firmament.log import logger
from firmament.server.outbox import store
from firmament.server.outbox.model import Answer, Parcel, wait_s

if TYPE_CHECKING:
    from collections.abc import Mapping
    from random import Random  # noqa: TID251 - the generator is an argument

    from firmament.core.clock import Clock
    from firmament.server.database.port import Database
    from firmament.server.outbox.model import Outlet, OutletKind, Sender

log = logger("server.outbox")

PAGE: Final = 100
MAX_AT_ONCE: Final = 16
"""Outlets served beside each other: each may hold a thread for its deadline."""


class Courier:
    """Carries events to outlets, and messages when the notifier asks."""

    def __init__(self, database: Database, clock: Clock, senders: Mapping[OutletKind, Sender], rng: Random) -> None:
        self._database = database
        self._clock = clock
        self._senders = senders
        self._rng = rng
        self._at_once = asyncio.Semaphore(MAX_AT_ONCE)
        self.delivered = 0
        self.failed = 0

    async def deliver_due(self) -> None:
        """Give every outlet that may be tried what waits for it, until one says no."""
        now = int(self._clock.now().timestamp())
        outlets = await self._database.read(lambda connection: store.due_outlets(connection, now))
        await asyncio.gather(*(self._serve(outlet) for outlet in outlets))

    async def _serve(self, outlet: Outlet) -> None:
        async with self._at_once:
            parcels, until = await self._database.read(lambda connection: store.next_parcels(connection, outlet, PAGE))
            for parcel in parcels:
                answer = await self.carry(outlet, parcel, event_number=parcel.number)
                if not answer.ok:
                    return
                outlet = replace(outlet, cursor=parcel.number, failures=0)
            if until != outlet.cursor:
                last = outlet
                await self._database.submit(lambda connection: store.move_cursor(connection, last, until))

    async def carry(
        self, outlet: Outlet, parcel: Parcel, *, event_number: int | None = None, message_id: int | None = None
    ) -> Answer:
        """Deliver one parcel and write down what came of it."""
        answer = await self._senders[outlet.kind].send(outlet, parcel)
        pause = wait_s(outlet.failures + 1, self._rng)
        now = self._clock.now()
        await self._database.submit(
            lambda connection: store.note_delivery(
                connection, outlet, answer, now, wait_s=pause, event_number=event_number, message_id=message_id
            )
        )
        self.delivered += answer.ok
        self.failed += not answer.ok
        if not answer.ok:
            log.warning("outbox.failed", outlet=outlet.name, answer=answer.text, failures=outlet.failures + 1)
        return answer
