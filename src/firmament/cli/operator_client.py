"""Which server a command means, and the client for it (release/remote.py)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import quote

import click

from firmament.cli import config
from firmament.cli.common import read_token
from firmament.errors import FileError, SettingError

if TYPE_CHECKING:
    from collections.abc import Callable

    from firmament.release.remote import OperatorApi

F = TypeVar("F", bound="Callable[..., Any]")
_KEY: Final = "firmament.idempotency-key"
_FITTING: Final = re.compile(r"[\x21-\x7e]{1,120}")
"""What the server takes, with room for the number that a command's second change gets."""


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Where the server is and which CA vouches for it; no CA means the system's."""

    url: str
    ca: Path | None


def server_options(function: F) -> F:
    """Add ``--server``, ``--ca``, ``--workspace``, ``--token-file`` and ``--idempotency-key``."""
    function = idempotency_option(function)
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


def idempotency_option(function: F) -> F:
    """Add ``--idempotency-key``; `connect` takes it from the context."""

    def keep(context: click.Context, _option: click.Parameter, value: str | None) -> None:
        if value is None:
            return
        if not _FITTING.fullmatch(value):
            raise click.BadParameter("1 to 120 visible ASCII characters are needed")
        context.find_root().meta[_KEY] = value

    return click.option(
        "--idempotency-key",
        metavar="TEXT",
        expose_value=False,
        callback=keep,
        help="Name of this change: run again with it within a day, it is done once and answered alike.",
    )(function)


def idempotency_key() -> str | None:
    """Return what ``--idempotency-key`` named."""
    found: str | None = click.get_current_context().find_root().meta.get(_KEY)
    return found


def server_address(server_url: str | None, ca: Path | None, workspace: Path | None) -> ServerAddress:
    """Find the server: options, environment, workspace, settings files (config.py); raises SettingError."""
    directory = workspace or Path()
    if workspace is not None and not (workspace / config.PROJECT_FILE).exists():
        raise SettingError("This is not a workspace", path=workspace)
    url = config.lookup("server", given=server_url, project=directory).value
    if not url:
        raise SettingError("Which server? Give --server, a workspace that names one, or set it: firmament config set")
    if not url.startswith("https://"):
        raise SettingError("The server's address must begin with https://", url=url)
    authority = config.lookup("ca", given=ca, project=directory).value
    if authority and not Path(authority).exists():
        raise FileError("The CA file does not exist", path=authority)
    return ServerAddress(url.rstrip("/"), Path(authority) if authority else None)


def connect(server_url: str | None, ca: Path | None, workspace: Path | None, token_file: Path | None) -> OperatorApi:
    """Make a client from the options of `server_options`; raises SettingError, UnauthenticatedError."""
    from firmament.release.remote import OperatorApi

    address = server_address(server_url, ca, workspace)
    return OperatorApi(address.url, token=read_token(token_file), ca=address.ca, idempotency_key=idempotency_key())


def element(text: str) -> str:
    """Quote one path element."""
    return quote(text, safe="")
