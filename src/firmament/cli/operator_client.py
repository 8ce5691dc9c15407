"""Which server a command means, and the client for it (release/remote.py)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import quote

import click

from firmament.cli.common import read_token
from firmament.core import toml
from firmament.durable import RealDisk, read_file
from firmament.errors import FileError, FirmamentError, SettingError
from firmament.release.remote import OperatorApi

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., Any]")

MAX_SETTINGS_LENGTH_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Where the server is and which CA vouches for it; no CA means the system's."""

    url: str
    ca: Path | None


def server_options(function: F) -> F:
    """Add ``--server``, ``--ca``, ``--workspace`` and ``--token-file``."""
    for option in (
        click.option("--server", "server_url", envvar="FIRMAMENT_SERVER", show_envvar=True, help="https://HOST:PORT"),
        click.option(
            "--ca",
            type=click.Path(path_type=Path),
            envvar="FIRMAMENT_CA",
            show_envvar=True,
            help="PEM file of the CA that signed the server's certificate.",
        ),
        click.option(
            "--workspace",
            type=click.Path(path_type=Path, file_okay=False),
            envvar="FIRMAMENT_WORKSPACE",
            show_envvar=True,
            help="Author's workspace whose firmament.toml names server and CA. [default: .]",
        ),
        click.option(
            "--token-file",
            type=click.Path(path_type=Path),
            envvar="FIRMAMENT_TOKEN_FILE",
            show_envvar=True,
            help="File (mode 0600) with an operator token.",
        ),
    ):
        function = option(function)
    return function


def server_address(server_url: str | None, ca: Path | None, workspace: Path | None) -> ServerAddress:
    """Find the server: options, else the workspace's ``[server]`` section; raises SettingError."""
    section: dict[str, Any] = {}
    directory = workspace or Path()
    path = directory / "firmament.toml"
    if path.exists():
        try:
            data = read_file(RealDisk(), path, limit_bytes=MAX_SETTINGS_LENGTH_BYTES)
            section = toml.decode(data, limit_bytes=MAX_SETTINGS_LENGTH_BYTES, what="firmament.toml").get("server", {})
        except FirmamentError as error:
            raise SettingError(error.problem, **{**error.facts, "path": path}) from error
        if not isinstance(section, dict):
            raise SettingError("[server] must be a section", path=path)
    elif workspace is not None:
        raise SettingError("This is not a workspace", path=workspace)
    url = server_url or section.get("url")
    if not url:
        raise SettingError("Which server? Give --server or a workspace that names one")
    if not str(url).startswith("https://"):
        raise SettingError("The server's address must begin with https://", url=url)
    if ca is None and section.get("ca"):
        ca = directory / str(section["ca"])
    if ca is not None and not ca.exists():
        raise FileError("The CA file does not exist", path=ca)
    return ServerAddress(str(url).rstrip("/"), ca)


def connect(server_url: str | None, ca: Path | None, workspace: Path | None, token_file: Path | None) -> OperatorApi:
    """Make a client from the options of `server_options`; raises SettingError, UnauthenticatedError."""
    address = server_address(server_url, ca, workspace)
    return OperatorApi(address.url, token=read_token(token_file), ca=address.ca)


def element(text: str) -> str:
    """Quote one path element."""
    return quote(text, safe="")
