"""Point reads in the event loop and one writer thread with group commit.

SQLite allows one writer. Jobs queue up while a commit is being made durable and share the next
one, so a burst costs few fsyncs and a lone job waits for none but its own. `submit` resolves
after the commit: whoever awaits it may tell the device "stored" (stack.md §3). Each job runs in
a savepoint, so that one that fails takes nothing of its neighbours with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sqlite3
import threading
from typing import TYPE_CHECKING, Any, Final, TypeVar

from firmament.errors import (
    ConflictError,
    CorruptStateError,
    DiskFullError,
    FirmamentError,
    OverloadedError,
    ReadOnlyError,
)
from firmament.log import logger
from firmament.server.audit.chain import seal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from firmament.server.database.port import Connection

T = TypeVar("T")
log = logger("server.database")

MAX_QUEUED_JOBS: Final = 4096
# At 17k single-row commits a second (stack.md §3) the queue is a quarter of a second deep.
MAX_JOBS_PER_COMMIT: Final = 500
BUSY_TIMEOUT_S: Final = 5.0
Job = tuple["Callable[[Connection], Any]", "asyncio.Future[Any] | None", "asyncio.AbstractEventLoop | None"]


def connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """Open the file with this house's pragmas; raises CorruptStateError if it is not a database."""
    try:
        connection = sqlite3.connect(
            f"file:{_quoted(path)}?mode={'ro' if read_only else 'rw'}",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            timeout=BUSY_TIMEOUT_S,
            cached_statements=256,
        )
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA foreign_keys = ON")
        if not read_only:
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
            raise OverloadedError("The database is busy", reason=text) from error
        raise CorruptStateError("The database cannot be used", reason=text) from error
    except sqlite3.IntegrityError as error:
        raise ConflictError("The change contradicts what is stored", reason=error) from error
    except sqlite3.DatabaseError as error:
        raise CorruptStateError("The database cannot be used", reason=error) from error


def transact(connection: sqlite3.Connection, job: Callable[[Connection], T]) -> T:
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


class Writer:
    """The one thread that changes the database while the server runs."""

    def __init__(self, path: Path) -> None:
        self._connection = connect(path)
        self._jobs: queue.Queue[Job | None] = queue.Queue(MAX_QUEUED_JOBS)
        self._thread = threading.Thread(target=self._run, name="firmament-writer", daemon=True)
        self._thread.start()

    async def submit(self, job: Callable[[Connection], T]) -> T:
        """Run `job` in a transaction; return its result after the commit is durable.

        Raises OverloadedError when too many jobs wait, and whatever the job raises.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._put((job, future, loop))
        return await future

    def _put(self, entry: Job) -> None:
        try:
            self._jobs.put_nowait(entry)
        except queue.Full:
            raise OverloadedError("Too many changes are waiting for the disk", waiting=MAX_QUEUED_JOBS) from None

    def close(self) -> None:
        """Commit what is queued, then stop."""
        self._jobs.put(None)
        self._thread.join()
        self._connection.close()

    def _run(self) -> None:
        while True:
            first = self._jobs.get()
            if first is None:
                return
            batch = [first]
            is_last = False
            while len(batch) < MAX_JOBS_PER_COMMIT:
                try:
                    entry = self._jobs.get_nowait()
                except queue.Empty:
                    break
                if entry is None:
                    is_last = True
                    break
                batch.append(entry)
            self._commit(batch)
            if is_last:
                return

    def _commit(self, batch: list[Job]) -> None:
        results: list[tuple[Job, Any, BaseException | None]] = []
        try:
            with mapped_database_errors():
                self._connection.execute("BEGIN IMMEDIATE")
                results.extend((entry, *self._one(entry[0])) for entry in batch)
                seal(self._connection)
                self._connection.execute("COMMIT")
        except FirmamentError as error:
            log.warning("database.commit-failed", code=error.code, reason=str(error), jobs=len(batch))
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            results = [(entry, None, error) for entry in batch]
        for (_, future, loop), value, problem in results:
            if future is not None and loop is not None:
                with contextlib.suppress(RuntimeError):  # the loop is gone: nobody waits any more
                    loop.call_soon_threadsafe(_resolve, future, value, problem)

    def _one(self, job: Callable[[Connection], Any]) -> tuple[Any, BaseException | None]:
        self._connection.execute("SAVEPOINT job")
        try:
            with mapped_database_errors():
                value = job(self._connection)
        except Exception as error:  # noqa: BLE001 - handed to whoever waits for this job
            self._connection.execute("ROLLBACK TO job")
            self._connection.execute("RELEASE job")
            return None, error
        self._connection.execute("RELEASE job")
        return value, None


class SqliteDatabase:
    """The embedded default: a reader in the event loop and the one writer thread."""

    def __init__(self, path: Path) -> None:
        # The writer first: it switches the file to WAL mode.
        self._writer = Writer(path)
        try:
            self._reader = connect(path, read_only=True)
        except BaseException:
            self._writer.close()
            raise

    async def read(self, job: Callable[[Connection], T]) -> T:
        """See the port: in the event loop, without a thread's hop; short pages only."""
        with mapped_database_errors():
            return job(self._reader)

    async def submit(self, job: Callable[[Connection], T]) -> T:
        """See the port."""
        return await self._writer.submit(job)

    def close(self) -> None:
        """See the port."""
        self._writer.close()
        self._reader.close()


def _resolve(future: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
    if future.cancelled():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(value)
