"""Who of several servers does what happens by itself: rollouts, deliveries, renewals (ADR-0024).

On a database of its own a server always leads. On a shared one it leads while it holds
PostgreSQL's lock. Work of a leader runs `acting`: each of its changes looks at the epoch in its
own transaction, so one that was replaced meanwhile changes nothing more, however late it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from firmament.errors import FirmamentError, LockedError
from firmament.log import logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from firmament.core.clock import Clock
    from firmament.server.database.leader_lock import Standing
    from firmament.server.database.port import Connection, Database

T = TypeVar("T")
Item = TypeVar("Item")
log = logger("server.leader")

BEAT_S: Final = 1.0
LEASE_S: Final = 5.0
"""A leader that has not heard of the database for so long stops by itself."""
FAIL_OVER_S: Final = 5
"""After kill -9 of the leader another one works at the latest so long after."""
PEER_SEEN_S: Final = 15
EPOCH: Final = "leader-epoch"
MAX_PEERS: Final = 100
_ACTING: Final[ContextVar[int | None]] = ContextVar("acting", default=None)


class Lock(Protocol):
    """See `database.leader_lock.LeaderLock`."""

    def beat(self, port: int) -> Standing:
        """Say that we are there; take the lock if it is free."""

    def leave(self) -> None:
        """Give it back."""


class Leadership:
    """Whether this server leads, asked anew every second."""

    def __init__(self, lock: Lock | None, clock: Clock, replica_id: str = "") -> None:
        self.replica_id = replica_id or str(uuid.uuid4())
        self.port = 0
        self._lock = lock
        self._clock = clock
        self._epoch: int | None = None if lock is not None else 0
        self._heard_s = clock.monotonic_s()
        self._since_s = self._heard_s
        # A thread of its own: leading must not wait behind other work.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="firmament-leader")

    @property
    def epoch(self) -> int | None:
        """The epoch in which this server leads, None when it does not."""
        if self._lock is not None and self._clock.monotonic_s() - self._heard_s > LEASE_S:
            return None
        return self._epoch

    @property
    def role(self) -> str:
        """``leader`` or ``follower``."""
        return "follower" if self.epoch is None else "leader"

    @property
    def led_s(self) -> float:
        """For how long this server has led; 0 when it does not."""
        return 0.0 if self.epoch is None else self._clock.monotonic_s() - self._since_s

    async def beat(self) -> None:
        """Look once; a database that is away ends the leadership."""
        if self._lock is None:
            return
        try:
            standing = await asyncio.get_running_loop().run_in_executor(self._thread, self._lock.beat, self.port)
        except FirmamentError as error:
            if self._epoch is not None:
                log.warning("leader.lost", epoch=self._epoch, reason=str(error))
            self._epoch = None
            return
        self._heard_s = self._clock.monotonic_s()
        if standing.epoch != self._epoch:
            self._since_s = self._heard_s
            log.info("leader.changed", role="follower" if standing.epoch is None else "leader", epoch=standing.epoch)
        self._epoch = standing.epoch

    async def do(self, interval_s: float, work: Callable[[], Awaitable[None]]) -> None:
        """Do this work for ever, every `interval_s` while this server leads, and at once when it begins to."""
        done_in = 0
        due_s = self._clock.monotonic_s() + interval_s
        while True:
            epoch = self.epoch
            if epoch is not None and (epoch != done_in or self._clock.monotonic_s() >= due_s):
                with acting(epoch if self._lock is not None else None):
                    await work()
                done_in, due_s = epoch, self._clock.monotonic_s() + interval_s
            await asyncio.sleep(min(interval_s, BEAT_S))

    async def leave(self) -> None:
        """Let another server lead."""
        if self._lock is not None:
            self._epoch = None
            with contextlib.suppress(FirmamentError):
                await asyncio.get_running_loop().run_in_executor(self._thread, self._lock.leave)
        self._thread.shutdown(wait=False)


@contextlib.contextmanager
def acting(epoch: int | None) -> Iterator[None]:
    """Do what follows as the leader of this epoch."""
    token = _ACTING.set(epoch)
    try:
        yield
    finally:
        _ACTING.reset(token)


class FencedDatabase:
    """See `port.Database`: a shared one, in which only the leader of the present epoch acts as the leader."""

    is_shared = True

    def __init__(self, database: Database) -> None:
        self._database = database

    async def read(self, job: Callable[[Connection], T]) -> T:
        """See the port."""
        return await self._database.read(job)

    async def scan(self, job: Callable[[Connection], T]) -> T:
        """See the port."""
        return await self._database.scan(job)

    async def look_up(self, query: str, key: str) -> Any:
        """See the port."""
        return await self._database.look_up(query, key)

    async def submit(self, job: Callable[[Connection], T]) -> T:
        """See the port; raises LockedError when another server has begun to lead meanwhile."""
        epoch = _ACTING.get()
        if epoch is None:
            return await self._database.submit(job)

        def fenced(connection: Connection) -> T:
            require_epoch(connection, epoch)
            return job(connection)

        return await self._database.submit(fenced)

    async def submit_among(self, job: Callable[[Connection, Sequence[Item]], Sequence[T | Exception]], item: Item) -> T:
        """See the port; whoever acts as the leader does so alone, as in `submit`."""
        if _ACTING.get() is None:
            return await self._database.submit_among(job, item)

        def alone(connection: Connection) -> T:
            (answer,) = job(connection, [item])
            if isinstance(answer, Exception):
                raise answer
            return answer

        return await self.submit(alone)

    async def end(self) -> None:
        """See the port."""
        await self._database.end()

    def close(self) -> None:
        """See the port."""
        self._database.close()


def require_epoch(connection: Connection, epoch: int) -> None:
    """Raise LockedError unless this is the epoch of the newest leader; in the transaction that changes something."""
    row = connection.execute("SELECT value FROM number WHERE name = ?", (EPOCH,)).fetchone()
    found = 0 if row is None else int(row["value"])
    if found != epoch:
        raise LockedError("Another server leads now", epoch=epoch, newest=found)


def peers(connection: Connection) -> list[dict[str, Any]]:
    """Return the servers that are there, the leader first; none on a database of one's own."""
    rows = connection.execute(
        "SELECT id, host, port, pid, version, started_at, seen_at, leads_since FROM replica "
        "WHERE seen_at >= (SELECT MAX(seen_at) FROM replica) - ? "
        "ORDER BY CASE WHEN leads_since IS NULL THEN 1 ELSE 0 END, id LIMIT ?",
        (PEER_SEEN_S, MAX_PEERS),
    )
    return [
        {
            "id": row["id"],
            "host": row["host"],
            "port": row["port"],
            "pid": row["pid"],
            "version": row["version"],
            "started_at": row["started_at"],
            "seen_at": row["seen_at"],
            "leads_since": row["leads_since"],
        }
        for row in rows
    ]
