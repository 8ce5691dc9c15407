"""The one place that knows both engines: opens what a `Target` names."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from firmament.errors import DependencyMissingError
from firmament.server.database import connection as sqlite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from firmament.core.clock import Clock
    from firmament.server.database.port import Connection, Database
    from firmament.server.database.target import Target

T = TypeVar("T")


class CommandDatabase(Protocol):
    """What a command that is not the server asks of a database; the server may be running."""

    def read(self, job: Callable[[Connection], T]) -> T:
        """Run a job that changes nothing."""

    def transact(self, job: Callable[[Connection], T]) -> T:
        """Run a job in a transaction of its own."""


class _SqliteCommands:
    def __init__(self, path: Path, *, read_only: bool) -> None:
        self.connection = sqlite.connect(path, read_only=read_only)

    def read(self, job: Callable[[Connection], T]) -> T:
        with sqlite.mapped_database_errors():
            return job(self.connection)

    def transact(self, job: Callable[[Connection], T]) -> T:
        return sqlite.transact(self.connection, job)


class _PostgresCommands:
    def __init__(self, target: Target, *, read_only: bool) -> None:
        from firmament.server.database import postgres, postgres_sql
        from firmament.server.database.target import PostgresTarget

        assert isinstance(target, PostgresTarget)
        self._transact = postgres.transact
        self._mapped = postgres_sql.mapped_postgres_errors
        self.connection = postgres.connect(target, read_only=read_only)

    def read(self, job: Callable[[Connection], T]) -> T:
        with self._mapped():
            return job(self.connection)

    def transact(self, job: Callable[[Connection], T]) -> T:
        return self._transact(self.connection, job)


def open_database(target: Target, clock: Clock) -> Database:
    """Open what a running server uses; raises CorruptStateError, OverloadedError, SettingError."""
    if isinstance(target, Path):
        return sqlite.SqliteDatabase(target)
    with _needs_postgres():
        from firmament.server.database.postgres import PostgresDatabase

        return PostgresDatabase(target, clock)


@contextlib.contextmanager
def command_database(target: Target, *, read_only: bool = False) -> Iterator[CommandDatabase]:
    """Open what a command uses, and let go of it; raises as `open_database`."""
    opened: _SqliteCommands | _PostgresCommands
    if isinstance(target, Path):
        opened = _SqliteCommands(target, read_only=read_only)
    else:
        with _needs_postgres():
            opened = _PostgresCommands(target, read_only=read_only)
    with contextlib.closing(opened.connection):
        yield opened


@contextlib.contextmanager
def _needs_postgres() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise DependencyMissingError(
            "PostgreSQL needs an extra package", install="firmament[server,postgres]", reason=error
        ) from error
