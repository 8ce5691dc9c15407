"""The loop that turns events and the clock into messages, and has them delivered."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from firmament.errors import NotFoundError
from firmament.log import logger
from firmament.server import events
from firmament.server.audit import chain
from firmament.server.events import Event
from firmament.server.notify import store
from firmament.server.notify.decide import Rules, decide
from firmament.server.notify.news import news_of
from firmament.server.outbox.model import wait_s
from firmament.server.rollouts.store import get_rollout
from firmament.server.rollouts.view import show_rollout
from firmament.server.scope import Scope

if TYPE_CHECKING:
    from random import Random  # noqa: TID251 - the generator is an argument

    from firmament.core.clock import Clock
    from firmament.server.database.port import Connection, Database
    from firmament.server.notify.decide import News
    from firmament.server.outbox.model import Outlet, Parcel
    from firmament.server.outbox.worker import Courier

log = logger("server.notify")

PAGE: Final = events.MAX_PAGE


class Notifier:
    """Looks at new events of each tenant, decides, and hands messages to the courier."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        courier: Courier,
        rng: Random,
        *,
        rules: Rules,
        base_url: str,
    ) -> None:
        self._database = database
        self._clock = clock
        self._courier = courier
        self._rng = rng
        self._rules = rules
        self._base_url = base_url

    async def run_once(self) -> None:
        """Take news, decide, deliver."""
        for tenant_id in await self._database.read(_tenants):
            await self._take(tenant_id)
            now = int(self._clock.now().timestamp())
            found = await self._database.read(lambda connection, tenant=tenant_id: store.open_ones(connection, tenant))  # type: ignore[misc]  # bound now
            sends = decide(found, now, self._rules)
            if sends:
                await self._database.submit(
                    lambda connection, tenant=tenant_id, sends=sends, now=now: store.carry_out(  # type: ignore[misc]  # bound now
                        connection, tenant, sends, now
                    )
                )
        await self._deliver()

    async def tell(self, tenant_id: int, news: list[News]) -> None:
        """Take news that no event brought, e.g. that a key is about to expire."""
        await self._database.submit(lambda connection: store.take_news(connection, tenant_id, news, upto=None))

    async def _take(self, tenant_id: int) -> None:
        cursor = await self._database.read(lambda connection: store.cursor(connection, tenant_id))
        if cursor is None:  # what happened before anybody could be told is not news
            cursor, _ = await self._database.read(lambda connection: chain.head(connection, tenant_id))
            first = cursor
            await self._database.submit(lambda connection: store.take_news(connection, tenant_id, [], upto=first))
            return
        scope = Scope(tenant_id, "server")
        while True:
            after = cursor
            found = await self._database.read(
                lambda connection, after=after: events.find_events(  # type: ignore[misc]  # bound now
                    connection, scope, events.Wanted(), after=after, limit=PAGE
                )
            )
            if not found:
                return
            cursor = found[-1]["id"]
            await self._database.submit(
                lambda connection, found=found, upto=cursor: self._write(connection, scope, found, upto)  # type: ignore[misc]  # bound now
            )
            if len(found) < PAGE:
                return

    def _write(self, connection: Connection, scope: Scope, found: list[dict[str, Any]], upto: int) -> None:
        news = []
        for event in found:
            if event["kind"] == Event.ROLLOUT_ACKNOWLEDGED.value:
                subject = f"rollout:{event['subject']}"
                store.acknowledge_subject(connection, scope.tenant_id, subject, event["actor"], event["at"])
            rollout = (
                read_rollout(connection, scope, event["subject"])
                if event["kind"] == Event.ROLLOUT_HALTED.value
                else None
            )
            each = news_of(event, rollout, base_url=self._base_url)
            if each is not None:
                news.append(each)
        store.take_news(connection, scope.tenant_id, news, upto=upto)

    async def _deliver(self) -> None:
        now = int(self._clock.now().timestamp())
        found = await self._database.read(lambda connection: store.due_messages(connection, now))
        await asyncio.gather(*(self._carry(*each) for each in found))

    async def _carry(self, outlet: Outlet, parcel: Parcel, attempts: int) -> None:
        answer = await self._courier.carry(outlet, parcel, message_id=parcel.number)
        pause = wait_s(attempts + 1, self._rng)
        now = int(self._clock.now().timestamp())
        await self._database.submit(
            lambda connection: store.note_message(
                connection, parcel.number, ok=answer.ok, attempts=attempts, now=now, wait_s=pause
            )
        )


def _tenants(connection: Connection) -> list[int]:
    return [row["tenant_id"] for row in connection.execute("SELECT tenant_id FROM chain_head ORDER BY tenant_id")]


def read_rollout(connection: Connection, scope: Scope, rollout_id: str) -> dict[str, Any] | None:
    """Return a rollout as its page shows it, None when it is gone: then the event's own facts are told."""
    try:
        return show_rollout(connection, scope, get_rollout(connection, scope, rollout_id))
    except NotFoundError:
        return None
