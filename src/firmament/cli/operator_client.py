"""The operator API from the command line: one small client, problems become this house's errors."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar
from urllib.parse import quote

import click
import urllib3

from firmament.cli.common import read_token
from firmament.core import toml
from firmament.core.canonical import decode_object
from firmament.durable import RealDisk, read_file
from firmament.errors import (
    FileError,
    FirmamentError,
    HttpStatusError,
    LengthExceededError,
    SettingError,
    TlsError,
    UnreachableError,
    error_for_code,
)

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., Any]")

MAX_SETTINGS_LENGTH_BYTES: Final = 64 * 1024
MAX_ANSWER_LENGTH_BYTES: Final = 16 * 1024 * 1024
TIMEOUT_S: Final = 60.0


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


class OperatorClient:
    """Speaks for one operator token."""

    def __init__(self, address: ServerAddress, token: str | None) -> None:
        self._address = address
        self._headers = {"accept": "application/json"}
        if token is not None:
            self._headers["authorization"] = f"Bearer {token}"
        self._pool = urllib3.PoolManager(
            num_pools=1,
            ca_certs=str(address.ca) if address.ca else None,
            cert_reqs="CERT_REQUIRED",
            retries=False,
            timeout=urllib3.Timeout(total=TIMEOUT_S),
        )

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Ask once; return the JSON object (empty for 204).

        Raises the error class that the server's problem names, or a TransferError.
        """
        headers = dict(self._headers)
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            headers["content-type"] = "application/json"
        try:
            response = self._pool.request(
                method, self._address.url + path, body=data, headers=headers, redirect=False, preload_content=False
            )
            try:
                answer = response.read(MAX_ANSWER_LENGTH_BYTES + 1)
            finally:
                response.close()
        except urllib3.exceptions.SSLError as error:
            raise TlsError(
                "The server's certificate is not accepted", server=self._address.url, reason=error
            ) from error
        except urllib3.exceptions.HTTPError as error:
            raise UnreachableError("The server does not answer", server=self._address.url, reason=error) from error
        if len(answer) > MAX_ANSWER_LENGTH_BYTES:
            raise LengthExceededError("The server's answer is too long", limit_bytes=MAX_ANSWER_LENGTH_BYTES)
        value = decode_object(answer, limit_bytes=MAX_ANSWER_LENGTH_BYTES, what="The answer") if answer else {}
        if response.status >= 300:  # noqa: PLR2004 - HTTP's own number
            raise _problem(response.status, value)
        return value

    def close(self) -> None:
        """Give the connection back."""
        self._pool.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def connect(server_url: str | None, ca: Path | None, workspace: Path | None, token_file: Path | None) -> OperatorClient:
    """Make a client from the options of `server_options`; raises SettingError, UnauthenticatedError."""
    return OperatorClient(server_address(server_url, ca, workspace), read_token(token_file))


def element(text: str) -> str:
    """Quote one path element."""
    return quote(text, safe="")


def _problem(status: int, value: dict[str, Any]) -> FirmamentError:
    code = value.get("type")
    if not isinstance(code, str):
        return HttpStatusError("The server refused", status=status)
    facts = value.get("facts")
    return error_for_code(code)(
        str(value.get("title", "The server refused")), **(facts if isinstance(facts, dict) else {})
    )
