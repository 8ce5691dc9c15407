"""What the author's commands share: finding the workspace, secrets, the server, the clock."""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from firmament.cli import config
from firmament.cli.common import may_ask, passphrase_option, read_passphrase, read_secret_file, read_token
from firmament.cli.operator_client import idempotency_key, idempotency_option
from firmament.core.clock import Clock, SystemClock
from firmament.core.fields import format_time
from firmament.durable import RealDisk
from firmament.errors import ClockError, LockedError, PassphraseError, SettingError

if TYPE_CHECKING:
    from collections.abc import Callable

    from firmament.release.remote import OperatorApi
    from firmament.release.workspace import Workspace

F = TypeVar("F", bound="Callable[..., Any]")

PIN_FILE_VARIABLE: Final = "FIRMAMENT_PIN_FILE"
MAX_ATTEMPTS: Final = 3
CLOCK: Clock = SystemClock()
EARLIEST: Final = datetime(2026, 1, 1, tzinfo=UTC)
# Before this software was written; as the agent's own bound (agent/tls.py).


def now() -> datetime:
    """Return the time that goes into what is signed, to the second.

    Raises ClockError before EARLIEST: what is signed in 1970 has expired before it is published.
    """
    found = CLOCK.now().replace(microsecond=0)
    if found < EARLIEST:
        raise ClockError("This machine's clock cannot be right", now=format_time(found))
    return found


def workspace_option(function: F) -> F:
    """Add ``-C/--workspace``, the directory that `firmament init` made."""
    return click.option(
        "-C",
        "--workspace",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path(),
        envvar="FIRMAMENT_WORKSPACE",
        show_envvar=True,
        help="The author's workspace; default: the current directory.",
    )(function)


def secret_options(function: F) -> F:
    """Add ``--passphrase-file`` and ``--pin-file``."""
    pin_option = click.option(
        "--pin-file",
        type=click.Path(path_type=Path),
        envvar=PIN_FILE_VARIABLE,
        show_envvar=True,
        help="File (mode 0600) with the PIN of a hardware token.",
    )
    return passphrase_option(pin_option(function))


def server_options(function: F) -> F:
    """Add ``--server``, ``--ca``, ``--token-file`` and ``--idempotency-key``."""
    function = idempotency_option(function)
    options = (
        click.option("--server", envvar="FIRMAMENT_SERVER", show_envvar=True, help="https://host:port of the server."),
        click.option(
            "--ca",
            type=click.Path(path_type=Path, dir_okay=False),
            envvar="FIRMAMENT_CA",
            show_envvar=True,
            help="CA certificate of the server.",
        ),
        click.option(
            "--token-file",
            type=click.Path(path_type=Path),
            help="File (mode 0600) with the operator token. [env: FIRMAMENT_TOKEN_FILE, FIRMAMENT_TOKEN]",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def open_workspace(directory: Path, *, is_changing: bool = True) -> Workspace:
    """Open a workspace on this machine's disk, for one command at a time unless it only looks.

    Raises LockedError while another command is changing it: both would write the same versions.
    """
    from firmament.release.workspace import SETTINGS_FILE, Workspace

    opened = Workspace(RealDisk(), directory)
    if is_changing:
        descriptor = os.open(directory / SETTINGS_FILE, os.O_RDONLY | os.O_CLOEXEC)
        click.get_current_context().call_on_close(lambda: os.close(descriptor))
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LockedError("Another command is changing this workspace", path=directory) from error
    return opened


def connect(
    workspace: Workspace | None, *, server: str | None, ca: Path | None, token_file: Path | None
) -> OperatorApi:
    """Connect to the server named by an option, the environment, the workspace or settings files."""
    from firmament.release.remote import OperatorApi

    project = workspace.directory if workspace is not None else None
    url = config.lookup("server", given=server, project=project).value
    if not url:
        raise SettingError("No server is named; use --server, or [server] url in firmament.toml")
    authority = config.lookup("ca", given=ca, project=project).value
    return OperatorApi(
        url,
        token=read_token(token_file),
        ca=Path(authority) if authority else None,
        idempotency_key=idempotency_key(),
    )


@dataclass
class TerminalSecrets:
    """Passphrases and PINs from files, or asked for once and tried on every key."""

    passphrase_file: Path | None = None
    pin_file: Path | None = None
    _known: bytes | None = field(default=None, repr=False)
    _attempts: dict[str, int] = field(default_factory=dict, repr=False)

    def passphrase(self, name: str) -> bytes:
        """Return the passphrase that opened the last key, or ask."""
        if self._known is None:
            self._known = read_passphrase(self.passphrase_file, prompt=f"Passphrase of {name}")
        return self._known

    def another_passphrase(self, name: str) -> bytes | None:
        """Ask again, for keys with passphrases of their own; three times at most."""
        attempts = self._attempts[name] = self._attempts.get(name, 0) + 1
        if self.passphrase_file is not None or attempts >= MAX_ATTEMPTS or not may_ask():
            return None
        click.echo(f"That does not open {name}.", err=True)
        self._known = read_passphrase(None, prompt=f"Passphrase of {name}")
        return self._known

    def pin(self, name: str) -> str:
        """Return the PIN of the token that holds a key."""
        if self.pin_file is not None:
            return read_secret_file(self.pin_file, what="The PIN file")
        if not may_ask():
            raise PassphraseError("A PIN is needed and there is no terminal to ask at", key=name)
        return str(click.prompt(f"PIN of the token with {name}", hide_input=True, err=True))

    def new_passphrase(self) -> bytes:
        """Return the passphrase for new keys, asked for twice."""
        if self._known is None:
            self._known = read_passphrase(self.passphrase_file, prompt="Passphrase for new keys", confirm=True)
        return self._known


def days(text: str) -> timedelta:
    """Read ``30d`` or ``30``; raises click's BadParameter."""
    digits = text.removesuffix("d")
    if not digits.isdigit() or len(digits) > 5:  # noqa: PLR2004 - 270 years are enough
        raise click.BadParameter(f"{text!r} is not a number of days, e.g. 30d")
    return timedelta(days=int(digits))


def size(length_bytes: int) -> str:
    """Write a length for people, ``142.1 MB``."""
    value = float(length_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":  # noqa: PLR2004 - decimal units
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError


def confirm(question: str, *, is_sure: bool) -> None:
    """Ask before something that cannot be undone; without a terminal ``--yes`` is needed."""
    if is_sure:
        return
    if not may_ask():
        raise click.UsageError("This needs your consent; read what is printed above, then give --yes")
    click.confirm(question, abort=True, err=True)
