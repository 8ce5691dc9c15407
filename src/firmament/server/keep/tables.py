"""Every row of a database, read in one consistent view and written to another, on either engine.

A copy is checked row by row: both sides are read again and the digest of every row is counted,
so that the order in which an engine returns rows does not matter.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from firmament.errors import ConflictError, DigestMismatchError, MalformedError
from firmament.server.database import connection as sqlite
from firmament.server.database.migrate import HEAD, migrate, revision

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from firmament.server.database.port import Connection
    from firmament.server.database.target import Target

ROWS_AT_ONCE: Final = 2000
IN_USE: Final = ("event", "person", "product", "device", "number")
"""A database where one of these has a row is somebody's; rows that a migration makes are replaced."""
NOT_KEPT: Final = frozenset({"replica"})
"""Who runs at this moment."""
Row = tuple[Any, ...]
Digests = dict[str, tuple[int, int]]
"""Table to the number of rows and the sum of their digests."""


def table_columns() -> dict[str, tuple[str, ...]]:
    """Return every table that is kept, in an order in which rows may be inserted, with its columns."""
    from firmament.server.database.schema import metadata

    return {
        table.name: tuple(column.name for column in table.columns)
        for table in metadata.sorted_tables
        if table.name not in NOT_KEPT
    }


@contextlib.contextmanager
def snapshot(target: Target) -> Iterator[Connection]:
    """Open a view of the database in which nothing changes while the server goes on; raises the port's errors."""
    if isinstance(target, Path):
        with sqlite.mapped_database_errors(), contextlib.closing(sqlite.connect(target, read_only=True)) as connection:
            connection.execute("BEGIN")
            yield connection
        return
    from firmament.server.database import postgres, postgres_sql

    with (
        postgres_sql.mapped_postgres_errors(),
        contextlib.closing(postgres.connect(target, read_only=True, is_bounded=False)) as other,
    ):
        other.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        yield other


def read_rows(connection: Connection, table: str, columns: tuple[str, ...]) -> Iterator[Row]:
    """Yield the rows of a table, a page at a time."""
    query = f"SELECT {', '.join(columns)} FROM {table}"  # noqa: S608 - names from the schema
    if not hasattr(connection, "raw"):
        for row in connection.execute(query):
            yield tuple(row)
        return
    connection.execute(f"DECLARE copied NO SCROLL CURSOR FOR {query}")
    while rows := connection.execute(f"FETCH {ROWS_AT_ONCE} FROM copied").fetchall():
        for row in rows:
            yield tuple(row[name] for name in columns)
    connection.execute("CLOSE copied")


def require_empty(target: Target) -> None:
    """Migrate a database; raises ConflictError when somebody is in it already."""
    migrate(target)
    with snapshot(target) as connection:
        for table in IN_USE:
            if connection.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone() is not None:  # noqa: S608 - names from above
                raise ConflictError("The new database is not empty", database=target, table=table)


@contextlib.contextmanager
def filling(target: Target) -> Iterator[Connection]:
    """Open a transaction that becomes durable as a whole, without sealing: rows are copied as they are."""
    connection: Any
    if isinstance(target, Path):
        mapped, connection = sqlite.mapped_database_errors(), sqlite.connect(target)
    else:
        from firmament.server.database import postgres, postgres_sql

        mapped, connection = postgres_sql.mapped_postgres_errors(), postgres.connect(target, is_bounded=False)
    with mapped, contextlib.closing(connection):
        connection.execute("BEGIN")
        for table in reversed(table_columns()):
            connection.execute(f"DELETE FROM {table}")  # noqa: S608 - names from the schema
        yield connection
        if not isinstance(target, Path):
            _raise_sequences(connection)
        connection.execute("COMMIT")


def write_rows(connection: Connection, table: str, columns: tuple[str, ...], rows: Iterable[Row]) -> int:
    """Insert rows; returns how many."""
    insert = f"INSERT INTO {table}({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"  # noqa: S608 - names from the schema
    count = 0
    page: list[Row] = []
    for row in rows:
        page.append(row)
        if len(page) == ROWS_AT_ONCE:
            connection.executemany(insert, page)
            count += len(page)
            page = []
    if page:
        connection.executemany(insert, page)
    return count + len(page)


def digests(connection: Connection) -> Digests:
    """Count and digest every row of every table."""
    found: Digests = {}
    for table, columns in table_columns().items():
        count = total = 0
        for row in read_rows(connection, table, columns):
            count += 1
            total += int.from_bytes(hashlib.sha256(encode_row(row)).digest())
        found[table] = (count, total % 2**256)
    return found


def require_same(expected: Digests, found: Digests) -> None:
    """Raise DigestMismatchError unless two databases hold the same rows."""
    for table, wanted in expected.items():
        if found.get(table) != wanted:
            raise DigestMismatchError(
                "The copy is not the same as the original",
                table=table,
                rows=wanted[0],
                copied=found.get(table, (0, 0))[0],
            )


def copy(source: Target, destination: Target) -> dict[str, int]:
    """Copy every row into an empty database and compare; returns the number of rows by table.

    Raises ConflictError when the destination is not empty or the source is at another schema,
    DigestMismatchError when a row differs.
    """
    require_schema(revision(source))
    require_empty(destination)
    with snapshot(source) as reading:
        with filling(destination) as writing:
            for table, columns in table_columns().items():
                write_rows(writing, table, columns, read_rows(reading, table, columns))
        expected = digests(reading)
    with snapshot(destination) as copied:
        require_same(expected, digests(copied))
    return {table: count for table, (count, _) in expected.items()}


def require_schema(found: str | None) -> None:
    """Raise ConflictError unless rows are of this release's schema."""
    if found != HEAD:
        raise ConflictError(
            "The rows are of another schema; use the release that wrote them, then `firmament server migrate`",
            found=found,
            expected=HEAD,
        )


def encode_row(row: Row) -> bytes:
    """Write one row as a line of JSON without its line end; bytes as an object with their hexadecimal digits."""
    values = [{"hex": bytes(value).hex()} if isinstance(value, bytes | memoryview) else value for value in row]
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode()


def decode_row(line: bytes, columns: tuple[str, ...]) -> Row:
    """Read what `encode_row` wrote; raises MalformedError."""
    try:
        values = json.loads(line)
        row = tuple(bytes.fromhex(value["hex"]) if isinstance(value, dict) else value for value in values)
    except (ValueError, KeyError, TypeError) as error:
        raise MalformedError("A row of the backup cannot be read", reason=error) from error
    if len(row) != len(columns):
        raise MalformedError("A row of the backup has another length", expected=len(columns), found=len(row))
    return row


def _raise_sequences(connection: Connection) -> None:
    # Rows came with their ids, so PostgreSQL has not counted them.
    for table, columns in table_columns().items():
        if "id" in columns:
            newest = f"SELECT max(id) AS id FROM {table}"  # noqa: S608 - names from the schema
            found = connection.execute(newest).fetchone()["id"]
            if found is not None:
                connection.execute("SELECT setval(pg_get_serial_sequence(?, 'id'), ?)", (table, found))
