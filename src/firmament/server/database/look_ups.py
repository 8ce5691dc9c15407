"""Many devices' look-ups in one query: what asks while an answer is awaited goes into the next.

A query of its own for each poll costs PostgreSQL and this process several times as much as its
share of a common one (stack.md §1). Nothing waits on purpose: a lone question leaves at once;
with both connections busy, questions gather.
"""

from __future__ import annotations

import asyncio
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import asyncpg  # type: ignore[import-untyped]  # it has no annotations

from firmament.errors import OverloadedError
from firmament.log import logger
from firmament.server.database.writer import BUSY_RETRY_S

if TYPE_CHECKING:
    from firmament.core.clock import Clock
    from firmament.server.database.target import PostgresTarget

log = logger("server.database")

CONNECTIONS: Final = 2
"""Batches in flight: while one is answered the other is put together."""
MAX_KEYS: Final = 256
MAX_WAITING: Final = 10_000
TIMEOUT_S: Final = 10.0
PAUSE_S: Final = 0.5
_FAILURES: Final = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)
Waiting = dict[str, list["asyncio.Future[Any]"]]


@lru_cache(maxsize=64)
def for_many(query: str) -> str:
    """Turn a query for one key into one for many."""
    head, mark, tail = query.rstrip().rpartition("= ?")
    assert mark
    assert not tail
    assert "?" not in head
    return f"{head}= ANY($1::text[])"


class LookUps:
    """Point reads of the running event loop."""

    def __init__(self, target: PostgresTarget, clock: Clock) -> None:
        self._target = target
        self._clock = clock
        self._queries: dict[str, Waiting] = {}
        self._count = 0
        self._idle: list[asyncpg.Connection | None] = [None] * CONNECTIONS
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_scheduled = False
        self._not_before_s = clock.monotonic_s()

    async def find(self, query: str, key: str) -> Any:
        """Return the row whose ``look_up_key`` is `key`; raises OverloadedError."""
        if self._count >= MAX_WAITING:
            raise OverloadedError(
                "Too many devices are waiting for the database", waiting=MAX_WAITING, retry_after_s=BUSY_RETRY_S
            )
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._queries.setdefault(query, {}).setdefault(key, []).append(future)
        self._count += 1
        if self._idle and not self._is_scheduled:
            self._is_scheduled = True
            loop.call_soon(self._send)
        return await future

    def _send(self) -> None:
        self._is_scheduled = False
        while self._idle and self._queries:
            query = next(iter(self._queries))
            waiting = self._queries.pop(query)
            batch = waiting
            if len(waiting) > MAX_KEYS:
                batch = {key: waiting.pop(key) for key in list(waiting)[:MAX_KEYS]}
                self._queries[query] = waiting
            self._count -= sum(map(len, batch.values()))
            task = asyncio.create_task(self._answer(self._idle.pop(), query, batch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, connection: asyncpg.Connection | None, query: str, batch: Waiting) -> None:
        try:
            connection, rows = await self._ask(connection, query, batch)
        except Exception as error:  # noqa: BLE001 - whatever it was, those who wait must hear, and the turn goes on
            log.warning("database.look-up-failed", reason=repr(error), keys=len(batch))
            connection = None
            for futures in batch.values():
                for future in futures:
                    _refuse(future)
        else:
            for row in rows:
                for future in batch.pop(row["look_up_key"]):
                    _resolve(future, row)
            for futures in batch.values():
                for future in futures:
                    _resolve(future, None)
        self._idle.append(connection)
        self._send()

    async def _ask(
        self, connection: asyncpg.Connection | None, query: str, batch: Waiting
    ) -> tuple[asyncpg.Connection, list[Any]]:
        # A connection that served before may have broken since: then ask once more on a new one.
        while True:
            old = connection if connection is not None and not connection.is_closed() else None
            open_now = old or await self._opened()
            try:
                return open_now, await open_now.fetch(for_many(query), list(batch), timeout=TIMEOUT_S)
            except Exception:
                open_now.terminate()
                if old is None:
                    raise
                connection = None

    async def _opened(self) -> asyncpg.Connection:
        if self._clock.monotonic_s() < self._not_before_s:
            raise ConnectionError("not yet")
        try:
            return await asyncpg.connect(
                self._target.url,
                password=self._target.password,
                timeout=TIMEOUT_S,
                server_settings={"application_name": "firmament", "default_transaction_read_only": "on"},
            )
        except _FAILURES:
            self._not_before_s = self._clock.monotonic_s() + PAUSE_S
            raise

    async def end(self) -> None:
        """Close the connections."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in self._idle:
            if connection is not None:
                connection.terminate()
        self._idle = []


def _resolve(future: asyncio.Future[Any], row: Any) -> None:
    if not future.done():
        future.set_result(row)


def _refuse(future: asyncio.Future[Any]) -> None:
    if not future.done():
        future.set_exception(OverloadedError("The database cannot be reached", retry_after_s=BUSY_RETRY_S))
