"""PostgreSQL under the same port: several servers on one database (ADR-0020).

A writer thread commits in groups, readers in a small pool of threads, and the devices' look-ups
go several at a time through `look_ups`. The writers of all servers take turns: each transaction
begins with one advisory lock, so a job sees what SQLite would show it, and "look, then change"
is right on both. That costs no more than the commits themselves, which the disk orders anyway.

When PostgreSQL goes away, what was not committed is refused (`request/overloaded`), never
acknowledged; connections are made anew with a growing pause.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from queue import LifoQueue
from typing import TYPE_CHECKING, Any, Final, TypeVar

import psycopg
from psycopg.adapt import Dumper
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row

from firmament.errors import OverloadedError, SettingError
from firmament.log import logger
from firmament.server.audit.chain import seal
from firmament.server.database.look_ups import LookUps
from firmament.server.database.postgres_sql import AWAY_RETRY_S, arrays, mapped_postgres_errors, translate, with_given
from firmament.server.database.writer import BUSY_RETRY_S, Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from contextlib import AbstractContextManager

    from firmament.core.clock import Clock
    from firmament.server.database.port import Connection, Cursor
    from firmament.server.database.target import PostgresTarget

T = TypeVar("T")
Item = TypeVar("Item")
log = logger("server.database")

CONNECT_TIMEOUT_S: Final = 5
LOCK_TIMEOUT_S: Final = 10
STATEMENT_TIMEOUT_S: Final = 30
IDLE_IN_TRANSACTION_TIMEOUT_S: Final = 15
"""A server that stopped in the middle of a change holds the others up for this long at most."""
KEEPALIVE: Final = {"keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3}
"""Seconds, for both ends: a machine that vanished is noticed after about eleven."""
FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 2.0
MAX_WAITING_READS: Final = 1024
WRITER_LOCK: Final = 0x4649524D57  # "FIRMW": the key of the lock that writers take in turn
_BYTES_OF_TRUTH: Final = {False: b"0", True: b"1"}


class _BooleanAsInteger(Dumper):
    """Columns that say yes or no are integers on both engines."""

    oid = psycopg.postgres.types["int2"].oid

    def dump(self, obj: bool) -> bytes:  # noqa: FBT001 - the base's signature
        return _BYTES_OF_TRUTH[obj]


class PostgresConnection:
    """See `port.Connection`."""

    def __init__(self, connection: psycopg.Connection[dict[str, Any]]) -> None:
        self.raw = connection

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> Cursor:
        """See the port."""
        return self.raw.execute(translate(sql).encode(), parameters)

    def executemany(self, sql: str, parameters: Iterable[Sequence[Any]], /) -> Cursor:
        """See the port; the rows travel without waiting for each other's answers."""
        cursor = self.raw.cursor()
        cursor.executemany(translate(sql).encode(), parameters)
        return cursor

    def change_many(self, sql: str, columns: str, rows: Sequence[Sequence[Any]], /) -> int:
        """See the port."""
        return self._with_given(sql, columns, rows).rowcount if rows else 0

    def find_many(self, sql: str, columns: str, rows: Sequence[Sequence[Any]], /) -> list[Any]:
        """See the port."""
        return self._with_given(sql, columns, rows).fetchall() if rows else []

    def _with_given(self, sql: str, columns: str, rows: Sequence[Sequence[Any]]) -> psycopg.Cursor[dict[str, Any]]:
        # One array for each column: one statement to parse, plan and answer, however many the rows.
        return self.raw.execute(with_given(sql, columns), arrays(columns, rows))

    @property
    def in_transaction(self) -> bool:
        """Whether somebody said BEGIN, as sqlite3 has it."""
        return self.raw.info.transaction_status != TransactionStatus.IDLE

    def close(self) -> None:
        """Let go."""
        self.raw.close()


def connect(target: PostgresTarget, *, read_only: bool = False, is_bounded: bool = True) -> PostgresConnection:
    """Open a connection; raises OverloadedError when nobody answers, SettingError for a bad address.

    Each statement is its own transaction until somebody says BEGIN. `is_bounded` sets the time
    limits of a running server; migrations and copies take as long as they take.
    """
    settings = {"application_name": "firmament", "timezone": "UTC"}
    if is_bounded:
        settings |= {
            "lock_timeout": f"{LOCK_TIMEOUT_S}s",
            "statement_timeout": f"{STATEMENT_TIMEOUT_S}s",
            "idle_in_transaction_session_timeout": f"{IDLE_IN_TRANSACTION_TIMEOUT_S}s",
            **{f"tcp_{name}": str(value) for name, value in KEEPALIVE.items()},
        }
    if read_only:
        settings["default_transaction_read_only"] = "on"
    try:
        raw = psycopg.connect(
            target.url,
            password=target.password,
            autocommit=True,
            row_factory=dict_row,
            connect_timeout=CONNECT_TIMEOUT_S,
            keepalives_idle=KEEPALIVE["keepalives_idle"],
            keepalives_interval=KEEPALIVE["keepalives_interval"],
            keepalives_count=KEEPALIVE["keepalives_count"],
            options=" ".join(f"-c {name}={value}" for name, value in settings.items()),
        )
    except psycopg.OperationalError as error:
        raise OverloadedError(
            "The database cannot be reached", database=target, reason=_first_line(error), retry_after_s=AWAY_RETRY_S
        ) from error
    except psycopg.Error as error:
        raise SettingError("The address of the database is wrong", database=target, reason=error) from error
    raw.adapters.register_dumper(bool, _BooleanAsInteger)
    return PostgresConnection(raw)


def _first_line(error: psycopg.Error) -> str:
    return str(error).strip().partition("\n")[0]


def transact(connection: PostgresConnection, job: Callable[[Connection], T]) -> T:
    """Run one job in a transaction of its own, in turn with the running servers (commands)."""
    with mapped_postgres_errors():
        connection.execute("BEGIN")
        try:
            connection.execute("SELECT pg_advisory_xact_lock(?)", (WRITER_LOCK,))
            result = job(connection)
            seal(connection)
        except BaseException:
            with contextlib.suppress(psycopg.Error):
                connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")
        return result


class Link:
    """One connection that is made anew when it broke, after a pause that grows."""

    def __init__(self, target: PostgresTarget, clock: Clock, *, read_only: bool) -> None:
        self._target = target
        self._clock = clock
        self._read_only = read_only
        self._connection: PostgresConnection | None = None
        self._pause_s = FIRST_PAUSE_S
        self._not_before_s = clock.monotonic_s()

    def connection(self) -> PostgresConnection:
        """Return a connection that was fine when last used; raises OverloadedError."""
        if self._connection is not None and not self._connection.raw.closed:
            return self._connection
        now_s = self._clock.monotonic_s()
        if now_s < self._not_before_s:
            raise OverloadedError("The database cannot be reached", retry_after_s=AWAY_RETRY_S)
        try:
            self._connection = connect(self._target, read_only=self._read_only)
        except OverloadedError:
            self._not_before_s = now_s + self._pause_s
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
            raise
        self._pause_s = FIRST_PAUSE_S
        return self._connection

    @property
    def is_broken(self) -> bool:
        """Whether the connection broke since it was made."""
        return self._connection is not None and self._connection.raw.closed

    def drop(self) -> None:
        """Close the connection, if any."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class PostgresEngine:
    """See `writer.Engine`."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._connection: PostgresConnection | None = None
        self._is_marked = False

    def begin(self) -> Connection:
        """See the port; waits for its turn among the servers."""
        for is_last in (False, True):
            connection = self._link.connection()
            try:
                # One round trip: without parameters several statements may travel together.
                connection.raw.execute(f"BEGIN; SELECT pg_advisory_xact_lock({WRITER_LOCK})".encode())
            except psycopg.OperationalError:
                # A restart since the last job shows here first: nothing was done yet, so try once more.
                if is_last or not self._link.is_broken:
                    raise
                continue
            self._connection, self._is_marked = connection, False
            return connection
        raise AssertionError

    def commit(self) -> None:
        """See the port; a connection that breaks here leaves the outcome open, so nobody is told "stored"."""
        assert self._connection is not None
        self._connection.raw.execute(b"COMMIT")

    def roll_back(self) -> None:
        """See the port."""
        if self._connection is not None:
            try:
                self._connection.raw.execute(b"ROLLBACK")
            except psycopg.Error:
                self._link.drop()
            self._connection = None

    def mark(self) -> None:
        """See the port; one round trip."""
        assert self._connection is not None
        self._connection.raw.execute(b"RELEASE job; SAVEPOINT job" if self._is_marked else b"SAVEPOINT job")
        self._is_marked = True

    def fall_back(self) -> None:
        """See the port."""
        assert self._connection is not None
        self._connection.raw.execute(b"ROLLBACK TO job")

    def mapped_errors(self) -> AbstractContextManager[None]:
        """See the port."""
        return mapped_postgres_errors()

    def close(self) -> None:
        """See the port."""
        self._link.drop()


class Readers:
    """A few threads, each with a connection that cannot change anything."""

    def __init__(self, target: PostgresTarget, clock: Clock) -> None:
        self._pool = ThreadPoolExecutor(target.readers, thread_name_prefix="firmament-reader")
        self._links: LifoQueue[Link] = LifoQueue()
        for _ in range(target.readers):
            self._links.put(Link(target, clock, read_only=True))
        self._waiting = 0
        self._lock = threading.Lock()

    async def read(self, job: Callable[[Connection], T]) -> T:
        """Run a job in a thread; raises OverloadedError when too many wait."""
        if self._waiting >= MAX_WAITING_READS:
            raise OverloadedError(
                "Too many questions are waiting for the database",
                waiting=MAX_WAITING_READS,
                retry_after_s=BUSY_RETRY_S,
            )
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, self._run, job)
        finally:
            self._waiting -= 1

    def _run(self, job: Callable[[Connection], T]) -> T:
        link = self._links.get()
        try:
            with mapped_postgres_errors():
                try:
                    return job(link.connection())
                except psycopg.OperationalError:
                    if not link.is_broken:
                        raise
                return job(link.connection())  # it had broken since the last question: reading again harms nothing
        finally:
            self._links.put(link)

    def close(self) -> None:
        """Let go."""
        self._pool.shutdown()
        while not self._links.empty():
            self._links.get().drop()


class PostgresDatabase:
    """Several servers may share it."""

    is_shared = True

    def __init__(self, target: PostgresTarget, clock: Clock) -> None:
        link = Link(target, clock, read_only=False)
        link.connection()  # a server that cannot reach its database at start says so and ends
        self._writer = Writer(PostgresEngine(link))
        self._readers = Readers(target, clock)
        self._look_ups = LookUps(target, clock)

    async def read(self, job: Callable[[Connection], T]) -> T:
        """See the port."""
        return await self._readers.read(job)

    async def scan(self, job: Callable[[Connection], T]) -> T:
        """See the port: readers have threads of their own."""
        return await self._readers.read(job)

    async def look_up(self, query: str, key: str) -> Any:
        """See the port: with those of other devices that ask at the same moment."""
        return await self._look_ups.find(query, key)

    async def submit(self, job: Callable[[Connection], T]) -> T:
        """See the port."""
        return await self._writer.submit(job)

    async def submit_among(self, job: Callable[[Connection, Sequence[Item]], Sequence[T | Exception]], item: Item) -> T:
        """See the port."""
        return await self._writer.submit_among(job, item)

    async def end(self) -> None:
        """See the port."""
        await self._look_ups.end()

    def close(self) -> None:
        """See the port."""
        self._writer.close()
        self._readers.close()
