"""Bring a database to the newest schema with Alembic; safe to run again, and by several servers at once.

A database that is at `HEAD` already is left alone without importing SQLAlchemy and Alembic: a
usual start does not pay for them.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from firmament.errors import CorruptStateError, SettingError
from firmament.server.database.connection import connect
from firmament.server.database.opening import command_database

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

    from firmament.server.database.target import PostgresTarget, Target

MIGRATIONS: Final = Path(__file__).parent / "migrations"
HEAD: Final = "0014"
"""The newest revision below `MIGRATIONS`; a test compares the two."""
MIGRATION_LOCK: Final = 0x4649524D4D  # "FIRMM": servers that start together migrate one after the other


def migrate(target: Target) -> None:
    """Create or upgrade the database; raises CorruptStateError if that is impossible, SettingError."""
    if isinstance(target, Path):
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not target.exists():
            target.touch(mode=0o600)
        if revision(target) != HEAD:
            _upgrade(_sqlite_engine(target), target)
        return
    if revision(target) != HEAD:
        with _alone(target):
            if revision(target) != HEAD:
                _upgrade(_postgres_engine(target), target)


def revision(target: Target) -> str | None:
    """Return the revision a database is at, None for a new one; raises CorruptStateError."""
    query = "SELECT version_num FROM alembic_version"
    if not isinstance(target, Path):
        with command_database(target) as database:
            exists = database.read(lambda link: link.execute("SELECT to_regclass('alembic_version') AS t").fetchone())
            row = database.read(lambda link: link.execute(query).fetchone()) if exists["t"] is not None else None
        return None if row is None else str(row["version_num"])
    with contextlib.closing(connect(target)) as connection:
        try:
            row = connection.execute(query).fetchone()
        except sqlite3.OperationalError:
            return None
        except sqlite3.DatabaseError as error:
            raise CorruptStateError("The database cannot be read", path=target, reason=error) from error
    return None if row is None else str(row["version_num"])


@contextlib.contextmanager
def _alone(target: PostgresTarget) -> Iterator[None]:
    from firmament.server.database import postgres

    with contextlib.closing(postgres.connect(target, is_bounded=False)) as connection:
        found = connection.execute("SHOW server_encoding").fetchone()["server_encoding"]
        if found != "UTF8":
            raise SettingError("The database must be made with the encoding UTF8", database=target, found=found)
        connection.execute("SELECT pg_advisory_lock(?)", (MIGRATION_LOCK,))
        yield


def _sqlite_engine(path: Path) -> Engine:
    from sqlalchemy import create_engine, event
    from sqlalchemy.pool import NullPool

    engine = create_engine(f"sqlite:///{path}", poolclass=NullPool)
    # Left to itself the driver commits each statement that makes a table: a kill between two would leave
    # half a revision behind, and a new database would wait for the disk more than a hundred times.
    event.listen(engine, "connect", lambda link, _record: setattr(link, "isolation_level", None))
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return engine


def _postgres_engine(target: PostgresTarget) -> Engine:
    import psycopg
    from sqlalchemy import create_engine
    from sqlalchemy.pool import NullPool

    def creator() -> Any:
        return psycopg.connect(target.url, password=target.password)

    return create_engine("postgresql+psycopg://", creator=creator, poolclass=NullPool)


def _upgrade(engine: Engine, target: Target) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError
    from sqlalchemy.exc import SQLAlchemyError

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    try:
        with engine.connect() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            connection.commit()
    except (SQLAlchemyError, CommandError) as error:
        # A revision that this release does not know was made by a newer one: do not touch it.
        raise CorruptStateError("The database cannot be brought to this schema", path=target, reason=error) from error
    finally:
        engine.dispose()
