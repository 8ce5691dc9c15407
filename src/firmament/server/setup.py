"""Making a new server's directory: settings, keys, authorities, database. Nobody can sign in yet."""

from __future__ import annotations

import ipaddress
import shutil
from typing import TYPE_CHECKING

from firmament.durable import PUBLIC_MODE, replace_durably
from firmament.errors import ConflictError, SettingError
from firmament.server.authority import make_authority, store_authority
from firmament.server.database.migrate import migrate
from firmament.server.database.target import database_target
from firmament.server.http.tls import server_certificate
from firmament.server.keys import make_online_keys
from firmament.server.payloads.custody import load_custodian
from firmament.server.people.vault import load_vault
from firmament.server.settings import ServerSettings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from firmament.durable import Disk
    from firmament.server.layout import Layout


def initialise(
    disk: Disk,
    layout: Layout,
    *,
    names: Sequence[str],
    addresses: Sequence[str],
    options: Mapping[str, str | int],
    now: datetime,
) -> ServerSettings:
    """Make everything a server needs; the settings file is written last and marks it complete.

    Running it again after a crash starts over; raises ConflictError when a server is there.
    """
    if disk.exists(layout.settings):
        raise ConflictError("There is a server in this directory already", path=layout.directory)
    for address in addresses:
        try:
            ipaddress.ip_address(address)
        except ValueError as error:
            raise SettingError("This is not an IP address", address=address) from error
    settings = ServerSettings(names=tuple(names), addresses=tuple(addresses), **dict(options))  # type: ignore[arg-type]  # checked by the class
    disk.make_directory(layout.directory, mode=0o755)
    store_authority(disk, layout.tls, make_authority("Firmament server CA", now=now))
    store_authority(disk, layout.device_ca, make_authority("Firmament device CA", now=now))
    server_certificate(disk, layout, settings, now)
    load_vault(disk, layout.people_key)  # here, so that copies of this directory share it
    make_online_keys(disk, director=layout.director, signer=layout.signer, public=layout.online_public)
    load_custodian(disk, layout.content)
    if settings.signer_user:
        _give(layout.signer, settings.signer_user)
    for directory in (layout.blobs, layout.repository / "generations", layout.targets):
        disk.make_directory(directory, mode=0o755)
    migrate(database_target(layout, settings))
    replace_durably(disk, layout.settings, settings_text(settings, options).encode(), mode=PUBLIC_MODE)
    return settings


def settings_text(settings: ServerSettings, options: Mapping[str, str | int]) -> str:
    """Write the settings file of a new server: what was chosen, and where the rest is described."""
    lines = ["# All settings: docs/reference/settings.md. Each has a twin FIRMAMENT_SERVER_<NAME>.", "[server]"]
    chosen = {"names": list(settings.names), "addresses": list(settings.addresses), **options}
    lines += [f"{name} = {_toml(value)}" for name, value in chosen.items()]
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, int):
        return str(value)
    text = str(value)
    if not text.isprintable() or '"' in text or "\\" in text:
        raise SettingError("A value cannot be written to the settings file", value=text[:80])
    return f'"{text}"'


def _give(directory: Path, user: str) -> None:
    """Hand the signer's directory to its user: then only root and that user can read the keys."""
    try:
        for path in (*directory.iterdir(), directory):
            shutil.chown(path, user)
    except (LookupError, PermissionError) as error:
        raise SettingError(
            "The signer's directory cannot be given to its user; start as root", user=user, reason=error
        ) from error
