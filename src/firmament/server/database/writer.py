"""One writer thread with group commit, whichever the engine.

Jobs queue up while a commit is being made durable and share the next one, so a burst costs few
fsyncs and a lone job waits for none but its own. `submit` resolves after the commit: whoever
awaits it may tell the device "stored" (stack.md §3). Each job runs in a savepoint, so that one
that fails takes nothing of its neighbours with it. Jobs that many submit, each for an item of its
own, run once for all items of a commit (`submit_among`, ADR-0039).
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from firmament.errors import FirmamentError, OverloadedError
from firmament.log import logger
from firmament.server.audit.chain import seal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from firmament.server.database.port import Connection

T = TypeVar("T")
Item = TypeVar("Item")
log = logger("server.database")

MAX_QUEUED_JOBS: Final = 4096
# At 17k single-row commits a second (stack.md §3) the queue is a quarter of a second deep.
MAX_JOBS_PER_COMMIT: Final = 500
BUSY_RETRY_S: Final = 1
_ALONE: Final = object()
Job = tuple["Callable[..., Any]", "asyncio.Future[Any]", "asyncio.AbstractEventLoop", Any]
"""What to run, who waits for it, and the item among others', `_ALONE` for a job of its own."""
Result = tuple[Job, Any, BaseException | None]


class Engine(Protocol):
    """A connection that changes things, as the writer needs it."""

    def begin(self) -> Connection:
        """Begin a transaction; raises OverloadedError while the database cannot be reached."""

    def commit(self) -> None:
        """Make it durable."""

    def roll_back(self) -> None:
        """Forget it; never raises."""

    def mark(self) -> None:
        """Set the savepoint that one job may fall back to; the one before it is forgotten."""

    def fall_back(self) -> None:
        """Undo what was done since the mark."""

    def mapped_errors(self) -> AbstractContextManager[None]:
        """Turn the driver's errors into this house's."""

    def close(self) -> None:
        """Let go."""


class Writer:
    """The one thread of this process that changes the database while the server runs."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._jobs: queue.Queue[Job | None] = queue.Queue(MAX_QUEUED_JOBS)
        self._thread = threading.Thread(target=self._run, name="firmament-writer", daemon=True)
        self._thread.start()

    async def submit(self, job: Callable[[Connection], T]) -> T:
        """Run `job` in a transaction; return its result after the commit is durable.

        Raises OverloadedError when too many jobs wait, and whatever the job raises.
        """
        found: T = await self._queued(job, _ALONE)
        return found

    async def submit_among(self, job: Callable[[Connection, Sequence[Item]], Sequence[T | Exception]], item: Item) -> T:
        """See the port."""
        found: T = await self._queued(job, item)
        return found

    async def _queued(self, job: Callable[..., Any], item: Any) -> Any:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        try:
            self._jobs.put_nowait((job, future, loop, item))
        except queue.Full:
            raise OverloadedError(
                "Too many changes are waiting for the disk", waiting=MAX_QUEUED_JOBS, retry_after_s=BUSY_RETRY_S
            ) from None
        return await future

    def close(self) -> None:
        """Commit what is queued, then stop."""
        self._jobs.put(None)
        self._thread.join()
        self.engine.close()

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
        results: list[Result] = []
        try:
            with self.engine.mapped_errors():
                connection = self.engine.begin()
                for entries in _sets(batch):
                    results.extend(self._set(connection, entries))
                seal(connection)
                self.engine.commit()
        except FirmamentError as error:
            log.warning("database.commit-failed", code=error.code, reason=str(error), jobs=len(batch))
            self.engine.roll_back()
            results = [(entry, None, error) for entry in batch]
        for loop, of_loop in _by_loop(results).items():
            with contextlib.suppress(RuntimeError):  # the loop is gone: nobody waits any more
                loop.call_soon_threadsafe(_resolve, of_loop)

    def _set(self, connection: Connection, entries: Sequence[Job]) -> list[Result]:
        """Run a job of its own, or one for many items; halve these until whoever makes it raise stands alone."""
        job, _, _, item = entries[0]
        self.engine.mark()
        try:
            with self.engine.mapped_errors():
                if item is _ALONE:
                    return [(entries[0], job(connection), None)]
                answers = job(connection, [entry[3] for entry in entries])
        except Exception as error:  # noqa: BLE001 - handed to whoever waits for this job
            self.engine.fall_back()
            if len(entries) == 1:
                return [(entries[0], None, error)]
            half = len(entries) // 2
            return self._set(connection, entries[:half]) + self._set(connection, entries[half:])
        return [
            (entry, None, answer) if isinstance(answer, Exception) else (entry, answer, None)
            for entry, answer in zip(entries, answers, strict=True)
        ]


def _sets(batch: Sequence[Job]) -> list[list[Job]]:
    """Put those together that share a job for many items; whoever awaits one has submitted nothing after it."""
    found: list[list[Job]] = []
    shared: dict[Callable[..., Any], list[Job]] = {}
    for entry in batch:
        if entry[3] is _ALONE:
            found.append([entry])
        elif entry[0] in shared:
            shared[entry[0]].append(entry)
        else:
            shared[entry[0]] = [entry]
            found.append(shared[entry[0]])
    return found


def _by_loop(results: Sequence[Result]) -> dict[asyncio.AbstractEventLoop, list[Result]]:
    found: dict[asyncio.AbstractEventLoop, list[Result]] = {}
    for result in results:
        found.setdefault(result[0][2], []).append(result)
    return found


def _resolve(results: Sequence[Result]) -> None:
    for (_, future, _, _), value, error in results:
        if future.cancelled():
            continue
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)
