"""SQLite: point reads in the event loop and the writer thread on one file (ADR-0020)."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, TypeVar

from firmament.errors import ConflictError, CorruptStateError, DiskFullError, OverloadedError, ReadOnlyError
from firmament.server.audit.chain import seal
from firmament.server.database.writer import BUSY_RETRY_S, Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from firmament.server.database.port import Connection

T = TypeVar("T")
Item = TypeVar("Item")

BUSY_TIMEOUT_S: Final = 5.0
MAPPED_BYTES: Final = 1 << 30
"""How much of the file a reader maps; the pages are the kernel's, shared and given back under pressure."""
MAX_SCANS: Final = 2
"""At once; each takes a core while it lasts."""


class SqliteConnection(sqlite3.Connection):
    """See `port.Connection`; to SQLite a statement that is ready costs little, so each row goes by itself."""

    def change_many(self, sql: str, columns: str, rows: Sequence[Sequence[Any]], /) -> int:
        """See the port."""
        return self.executemany(_with_given(sql, columns), rows).rowcount if rows else 0

    def find_many(self, sql: str, columns: str, rows: Sequence[Sequence[Any]], /) -> list[Any]:
        """See the port."""
        statement = _with_given(sql, columns)
        return [found for row in rows for found in self.execute(statement, row).fetchall()]


@lru_cache(maxsize=256)
def _with_given(sql: str, columns: str) -> str:
    # Not as WITH before the statement: the driver counts rows only of what begins with its verb.
    names = [column.split()[0] for column in columns.split(",")]
    plain = f"SELECT {', '.join(names)} FROM given"  # noqa: S608 - names of our own columns
    if plain in sql and sql.startswith("INSERT"):  # a row that goes in as it is, without the cost of a table of one row
        return sql.replace(plain + " WHERE 1 = 1", plain).replace(plain, f"VALUES ({', '.join('?' * len(names))})", 1)
    before, after = sql.split("FROM given", 1)
    return f"{before}FROM (SELECT {', '.join(f'? AS {name}' for name in names)}) AS given{after}"


def connect(path: Path, *, read_only: bool = False) -> SqliteConnection:
    """Open the file with this house's pragmas; raises CorruptStateError if it is not a database."""
    try:
        connection = sqlite3.connect(
            f"file:{_quoted(path)}?mode={'ro' if read_only else 'rw'}",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            timeout=BUSY_TIMEOUT_S,
            cached_statements=256,
            factory=SqliteConnection,
        )
        assert isinstance(connection, SqliteConnection)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA foreign_keys = ON")
        if read_only:
            # The event loop's reader: a system call for each page is a third of what a look-up costs.
            connection.execute(f"PRAGMA mmap_size = {MAPPED_BYTES}")
        else:
            connection.execute("PRAGMA journal_mode = WAL")
            # FULL, not NORMAL: in WAL mode NORMAL may lose the last commits with the power, and
            # a report that was answered must not be lost.
            connection.execute("PRAGMA synchronous = FULL")
    except sqlite3.Error as error:
        raise CorruptStateError("The database cannot be opened", path=path, reason=error) from error
    return connection


def _quoted(path: Path) -> str:
    return str(path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")


@contextlib.contextmanager
def mapped_database_errors() -> Iterator[None]:
    """Turn sqlite3's errors into this house's."""
    try:
        yield
    except sqlite3.OperationalError as error:
        text = str(error)
        if "full" in text:
            raise DiskFullError("The database cannot grow", reason=text) from error
        if "readonly" in text:
            raise ReadOnlyError("The database is read-only", reason=text) from error
        if "locked" in text or "busy" in text:
            raise OverloadedError("The database is busy", reason=text, retry_after_s=BUSY_RETRY_S) from error
        raise CorruptStateError("The database cannot be used", reason=text) from error
    except sqlite3.IntegrityError as error:
        raise ConflictError("The change contradicts what is stored", reason=error) from error
    except sqlite3.DatabaseError as error:
        raise CorruptStateError("The database cannot be used", reason=error) from error


def transact(connection: SqliteConnection, job: Callable[[Connection], T]) -> T:
    """Run one job in a transaction of its own (commands; the server uses `Writer`)."""
    with mapped_database_errors():
        connection.execute("BEGIN IMMEDIATE")
        try:
            result = job(connection)
            seal(connection)
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")
        return result


class SqliteEngine:
    """See `writer.Engine`."""

    def __init__(self, path: Path) -> None:
        self.connection = connect(path)
        self._is_marked = False

    def begin(self) -> Connection:
        """See the port."""
        self.connection.execute("BEGIN IMMEDIATE")
        self._is_marked = False
        return self.connection

    def commit(self) -> None:
        """See the port."""
        self.connection.execute("COMMIT")

    def roll_back(self) -> None:
        """See the port."""
        with contextlib.suppress(sqlite3.Error):
            self.connection.execute("ROLLBACK")

    def mark(self) -> None:
        """See the port."""
        if self._is_marked:
            self.connection.execute("RELEASE job")
        self.connection.execute("SAVEPOINT job")
        self._is_marked = True

    def fall_back(self) -> None:
        """See the port."""
        self.connection.execute("ROLLBACK TO job")

    def mapped_errors(self) -> AbstractContextManager[None]:
        """See the port."""
        return mapped_database_errors()

    def close(self) -> None:
        """See the port."""
        self.connection.close()


class SqliteDatabase:
    """The embedded default: a reader in the event loop and the one writer thread."""

    is_shared = False

    def __init__(self, path: Path) -> None:
        self._path = path
        self._scans = asyncio.Semaphore(MAX_SCANS)
        # The writer first: it switches the file to WAL mode.
        self._writer = Writer(SqliteEngine(path))
        try:
            self._reader = connect(path, read_only=True)
        except BaseException:
            self._writer.close()
            raise

    async def read(self, job: Callable[[Connection], T]) -> T:
        """See the port: in the event loop, without a thread's hop; short pages only."""
        with mapped_database_errors():
            return job(self._reader)

    async def scan(self, job: Callable[[Connection], T]) -> T:
        """See the port: in a thread, on a connection of its own, a few at a time."""
        async with self._scans:
            return await asyncio.to_thread(self._scan, job)

    def _scan(self, job: Callable[[Connection], T]) -> T:
        with contextlib.closing(connect(self._path, read_only=True)) as connection, mapped_database_errors():
            return job(connection)

    async def look_up(self, query: str, key: str) -> Any:
        """See the port."""
        try:
            return self._reader.execute(query, (key,)).fetchone()
        except sqlite3.Error as error:
            with mapped_database_errors():
                raise error from None

    async def submit(self, job: Callable[[Connection], T]) -> T:
        """See the port."""
        return await self._writer.submit(job)

    async def submit_among(self, job: Callable[[Connection, Sequence[Item]], Sequence[T | Exception]], item: Item) -> T:
        """See the port."""
        return await self._writer.submit_among(job, item)

    async def end(self) -> None:
        """See the port."""

    def close(self) -> None:
        """See the port."""
        self._writer.close()
        self._reader.close()
