"""Bring a database file to the newest schema with Alembic; safe to run again.

A file that is at `HEAD` already is left alone without importing SQLAlchemy and Alembic: a usual
start does not pay for them.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Final

from firmament.errors import CorruptStateError
from firmament.server.database.connection import connect

MIGRATIONS: Final = Path(__file__).parent / "migrations"
HEAD: Final = "0008"
"""The newest revision below `MIGRATIONS`; a test compares the two."""


def migrate(path: Path) -> None:
    """Create or upgrade the SQLite file at `path`; raises CorruptStateError if that is impossible."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists():
        path.touch(mode=0o600)
    if revision(path) != HEAD:
        _upgrade(path)


def revision(path: Path) -> str | None:
    """Return the revision a file is at, None for a new one; raises CorruptStateError."""
    with contextlib.closing(connect(path)) as connection:
        try:
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        except sqlite3.OperationalError:
            return None
        except sqlite3.DatabaseError as error:
            raise CorruptStateError("The database cannot be read", path=path, reason=error) from error
    return None if row is None else str(row["version_num"])


def _upgrade(path: Path) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError
    from sqlalchemy import create_engine
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.pool import NullPool

    engine = create_engine(f"sqlite:///{path}", poolclass=NullPool)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    try:
        with engine.connect() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            connection.commit()
    except (SQLAlchemyError, CommandError) as error:
        # A revision that this release does not know was made by a newer one: do not touch it.
        raise CorruptStateError("The database cannot be brought to this schema", path=path, reason=error) from error
    finally:
        engine.dispose()
