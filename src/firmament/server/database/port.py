"""What the server asks of a database: portable SQL on one connection, reads, and grouped commits.

    row = await parts.database.read(lambda connection: get_device(connection, scope, name))
    await parts.database.submit(lambda connection: set_disabled(connection, scope, name, ...))

SQL is written once, for SQLite and PostgreSQL alike: ``?`` for parameters, ``RETURNING`` instead
of a last row id, ``ON CONFLICT``, no function that only one of the two has. Services get a
`Connection` and know neither engine nor thread.

What concerns many rows says so, and reads them ``FROM given``, once (ADR-0039):

    connection.change_many(
        "UPDATE attempt SET state = given.state FROM given WHERE attempt.id = given.id",
        "id bigint, state text",
        [(7, "fetching"), (8, "staged")],
    )
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

T = TypeVar("T")
Item = TypeVar("Item")


class Row(Protocol):
    """One row; columns by name."""

    def __getitem__(self, name: str, /) -> Any:
        """Return a column's value."""


class Cursor(Protocol):
    """The answer to one statement."""

    @property
    def rowcount(self) -> int:
        """How many rows a change touched."""

    def fetchone(self) -> Any:
        """Return the next `Row`, None after the last."""

    def fetchall(self) -> list[Any]:
        """Return the `Row`s that are left."""

    def __iter__(self) -> Iterator[Any]:
        """Yield the `Row`s that are left."""


class Connection(Protocol):
    """One connection, used by one thread at a time."""

    def execute(self, sql: str, parameters: Sequence[Any] = ..., /) -> Cursor:
        """Run one statement."""

    def executemany(self, sql: str, parameters: Iterable[Sequence[Any]], /) -> Cursor:
        """Run one statement for each of many rows."""

    def change_many(self, sql: str, columns: str, rows: Sequence[Sequence[Any]], /) -> int:
        """Run one statement over the table ``given`` of these rows; return how many rows it touched.

        `columns` names the table's columns with their types: bigint, text or bytea. An engine may
        show the statement all the rows at once or each by itself: it must come to the same. So no
        two rows concern one row of the database, and nothing is counted over ``given``. An INSERT
        that says ON CONFLICT needs a WHERE before it.
        """

    def find_many(self, sql: str, columns: str, rows: Sequence[Sequence[Any]], /) -> list[Any]:
        """Run one statement as `change_many`; return the `Row`s it answers with, in no order."""


class Database(Protocol):
    """A running server's way to its rows."""

    async def read(self, job: Callable[[Connection], T]) -> T:
        """Run a job that changes nothing; raises what the job raises."""

    async def scan(self, job: Callable[[Connection], T]) -> T:
        """Run a job that changes nothing and may look at every device: nobody else waits for it."""

    @property
    def is_shared(self) -> bool:
        """Whether several servers may use it at once."""

    async def look_up(self, query: str, key: str) -> Any:
        """Return the one `Row` of a query by a text key, None if there is none.

        For what devices ask all the time: an engine may put several into one query. So the query
        ends in ``WHERE some_column = ?``, selects that column under the name ``look_up_key``, and
        finds at most one row.
        """

    async def submit(self, job: Callable[[Connection], T]) -> T:
        """Run a job in a transaction; return its result after the commit is durable.

        The last act before each commit is `audit.chain.seal`. Raises OverloadedError when too
        many jobs wait, and whatever the job raises.
        """

    async def submit_among(self, job: Callable[[Connection, Sequence[Item]], Sequence[T | Exception]], item: Item) -> T:
        """Run a job for one item together with the items that others submit for the same job.

        The job gets them in the order they came, and returns for each its result or what to
        raise to whoever submitted it. One that it cannot take as it is, so that the job itself
        raises, costs the others nothing: they are taken without it. Otherwise as `submit`.
        """

    async def end(self) -> None:
        """Let go of what belongs to the running event loop; before `close`."""

    def close(self) -> None:
        """Commit what is queued, then let go."""
