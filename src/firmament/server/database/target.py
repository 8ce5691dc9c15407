"""Which database a server uses: a file of its own, or a PostgreSQL that several servers share."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs, urlsplit

from firmament.durable import RealDisk, read_file
from firmament.errors import SettingError

if TYPE_CHECKING:
    from firmament.server.layout import Layout
    from firmament.server.settings import ServerSettings

SCHEMES: Final = ("postgresql", "postgres")
MAX_PASSWORD_LENGTH_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class PostgresTarget:
    """A PostgreSQL database; the password is apart, so that the address may be shown."""

    url: str
    password: str | None = field(default=None, repr=False)
    readers: int = 4

    def __str__(self) -> str:
        """Return the address, which holds no secret."""
        return self.url


Target = Path | PostgresTarget


def database_target(layout: Layout, settings: ServerSettings) -> Target:
    """Return what the settings name; raises SettingError, FileError.

    A password in the address is refused: addresses are shown in logs and by `doctor`.
    """
    url = settings.database
    if not url:
        return layout.database
    try:
        parts = urlsplit(url)
        has_password = parts.password is not None or "password" in parse_qs(parts.query)
    except ValueError as error:
        raise SettingError("The setting `database` is not an address", reason=error) from None
    if parts.scheme not in SCHEMES:
        raise SettingError(
            "The setting `database` must be empty for SQLite, or begin with postgresql://", found=parts.scheme
        )
    if has_password:
        raise SettingError("The setting `database` holds a password; put it into `database_password_file`")
    return PostgresTarget(url, _password(layout, settings), settings.database_readers)


def _password(layout: Layout, settings: ServerSettings) -> str | None:
    if not settings.database_password_file:
        return None
    path = layout.directory / settings.database_password_file
    data = read_file(RealDisk(), path, limit_bytes=MAX_PASSWORD_LENGTH_BYTES)
    try:
        return data.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise SettingError("The file of the database's password is not text", path=path) from None
