"""From this house's SQL to psycopg's, and from PostgreSQL's errors to this house's."""

from __future__ import annotations

import contextlib
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import psycopg
from psycopg import errors

from firmament.errors import (
    ConflictError,
    CorruptStateError,
    DiskFullError,
    MalformedError,
    OverloadedError,
    ReadOnlyError,
)
from firmament.server.database.writer import BUSY_RETRY_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from firmament.errors import FirmamentError

AWAY_RETRY_S: Final = 5
"""After a kill PostgreSQL reads its log before it takes connections; a few seconds as a rule."""
_PIECE: Final = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|--[^\n]*|%|\?")
# A literal, a quoted name, a comment, or one of the two characters that mean something else to psycopg.

_BUSY: Final = (
    errors.SerializationFailure,
    errors.DeadlockDetected,
    errors.LockNotAvailable,
    errors.QueryCanceled,
    errors.TooManyConnections,
    errors.OutOfMemory,
    errors.ConfigurationLimitExceeded,
)


@lru_cache(maxsize=2048)
def translate(sql: str) -> str:
    """Write ``?`` as ``%s`` and ``%`` as ``%%``, but leave question marks in literals, names and comments."""
    return _PIECE.sub(_translated, sql)


@lru_cache(maxsize=256)
def with_given(sql: str, columns: str) -> bytes:
    """Put the table ``given`` into a statement: one array as a parameter for each column."""
    before, after = sql.split("FROM given", 1)
    names, types = zip(*(column.split() for column in columns.split(",")), strict=True)
    arrays = ", ".join(f"%s::{type_}[]" for type_ in types)
    return f"{translate(before)}FROM unnest({arrays}) AS given({', '.join(names)}){translate(after)}".encode()


def arrays(columns: str, rows: Sequence[Sequence[Any]]) -> list[str]:
    """Write each column's values as PostgreSQL writes an array; the driver takes three times as long for it."""
    types = [column.split()[1] for column in columns.split(",")]
    return [
        "{" + ",".join(["NULL" if value is None else _ELEMENT[type_](value) for value in values]) + "}"
        for type_, values in zip(types, zip(*rows, strict=True), strict=True)
    ]


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _hexadecimal(data: bytes) -> str:
    return '"\\\\x' + data.hex() + '"'


_ELEMENT: Final[dict[str, Callable[[Any], str]]] = {"bigint": str, "text": _quoted, "bytea": _hexadecimal}


def _translated(match: re.Match[str]) -> str:
    text = match[0]
    return "%s" if text == "?" else text.replace("%", "%%")


@contextlib.contextmanager
def mapped_postgres_errors() -> Iterator[None]:
    """Turn psycopg's errors into this house's."""
    try:
        yield
    except psycopg.Error as error:
        raise mapped(error) from error


def mapped(error: psycopg.Error) -> FirmamentError:
    """Return what an error of psycopg means here; its text names no parameter's value."""
    reason = (error.diag.message_primary or str(error)).strip()
    if isinstance(error, errors.DiskFull):
        return DiskFullError("The database cannot grow", reason=reason)
    if isinstance(error, errors.ReadOnlySqlTransaction):
        return ReadOnlyError("The database is read-only", reason=reason)
    if isinstance(error, _BUSY):
        return OverloadedError("The database is busy", reason=reason, retry_after_s=BUSY_RETRY_S)
    if isinstance(error, psycopg.IntegrityError):
        return ConflictError("The change contradicts what is stored", reason=reason)
    if isinstance(error, psycopg.DataError):
        return MalformedError("A value cannot be stored", reason=reason)
    if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        return OverloadedError("The database cannot be reached", reason=reason, retry_after_s=AWAY_RETRY_S)
    return CorruptStateError("The database cannot be used", reason=reason)
