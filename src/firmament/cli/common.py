"""What every command shares: output for people or programs, and secrets.

stdout is data, stderr is everything else (console.md §4.2). The root of both commands is in
program.py, what a command takes from settings files in config.py.
Secrets are asked, or read from a file that the environment or an option names; never arguments,
which every user of the machine can see.

    @group.command()
    @output_options
    def show() -> None:
        out = output()
        out.document("release", {...}, lines=["thermo/1.2"])
        out.next_command("firmament release publish thermo/1.2")
"""

from __future__ import annotations

import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from firmament.cli.schemas import require_fields
from firmament.errors import (
    FileError,
    PassphraseError,
    SettingError,
    UnauthenticatedError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

F = TypeVar("F", bound="Callable[..., Any]")

PASSPHRASE_FILE_VARIABLE: Final = "FIRMAMENT_PASSPHRASE_FILE"  # noqa: S105 - the name of a variable
TOKEN_VARIABLE: Final = "FIRMAMENT_TOKEN"  # noqa: S105 - the name of a variable
TOKEN_FILE_VARIABLE: Final = "FIRMAMENT_TOKEN_FILE"  # noqa: S105 - the name of a variable
MAX_SECRET_LENGTH_BYTES: Final = 4096
# A bearer token is 43 bytes, a diceware passphrase below 100; a longer file is the wrong file.
EXIT_FAILED: Final = 1
EXIT_INTERRUPTED: Final = 130
_OUTPUT: Final = "firmament.output"


@dataclass
class Output:
    """Where results go. With `as_json` stdout holds exactly one JSON document."""

    as_json: bool = False
    is_verbose: bool = False
    may_ask: bool = True
    """False: never prompt, whatever stdin is (``--no-input``)."""

    def document(self, schema: str, value: Mapping[str, Any], *, lines: Iterable[str] = ()) -> None:
        """Print the result: ``{"schema": "firmament.<schema>/1", ...}`` for programs, `lines` for people.

        `schema` is a row of schemas.py; a promised field that is missing is a RuntimeError.
        """
        if self.as_json:
            require_fields(schema, value)
            print(_json({"schema": f"firmament.{schema}/1", **value}, indent=2))
        else:
            for line in lines:
                print(line)

    def line(self, schema: str, value: Mapping[str, Any], *, text: str) -> None:
        """Print one of many results, each on a line of its own: JSON Lines for programs."""
        if self.as_json:
            require_fields(schema, value)
        print(_json({"schema": f"firmament.{schema}/1", **value}) if self.as_json else text, flush=True)

    def problem(self, value: Mapping[str, Any]) -> None:
        """Print an error as one JSON object on stderr."""
        print(_json({"schema": "firmament.error/1", **value}), file=sys.stderr)

    def note(self, text: str) -> None:
        """Tell a person something that is not the result (stderr)."""
        print(text, file=sys.stderr)

    def next_command(self, text: str) -> None:
        """Print the command that usually follows, the last line for a person."""
        if not self.as_json:
            print(f"Next: {text}", file=sys.stderr)

    def paint(self, text: str, color: str) -> str:
        """Return text in a colour where that is wanted; a colour never says more than its word."""
        return click.style(text, fg=color) if color and self.has_color else text

    @property
    def has_color(self) -> bool:
        """Whether stdout is painted: NO_COLOR, CLICOLOR_FORCE, ``color`` in the settings, a terminal that can."""
        from firmament.cli import config

        if os.environ.get("NO_COLOR"):
            return False
        wish = config.lookup("color").value
        if wish != "auto":
            return wish == "always"
        if os.environ.get("CLICOLOR_FORCE", "0") != "0":
            return True
        return sys.stdout.isatty() and os.environ.get("TERM", "") not in {"", "dumb"}

    def table(self, rows: Sequence[Sequence[object]], *, header: Sequence[str]) -> list[str]:
        """Align columns on a terminal; separate them by tabs when stdout is piped."""
        cells = [[str(cell) for cell in row] for row in (header, *rows)]
        if not sys.stdout.isatty():
            return ["\t".join(row) for row in cells]
        widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
        return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def output() -> Output:
    """Return the output of the running command."""
    context = click.get_current_context(silent=True)
    if context is None:
        return Output()
    found = context.find_root().meta.setdefault(_OUTPUT, _of_environment())
    assert isinstance(found, Output)
    return found


def _of_environment() -> Output:
    return Output(as_json=bool(os.environ.get("FIRMAMENT_JSON")), may_ask=not os.environ.get("FIRMAMENT_NO_INPUT"))


def may_ask() -> bool:
    """Whether a person may be asked: there is a terminal, and nobody said ``--no-input``."""
    return sys.stdin.isatty() and output().may_ask


def output_options(function: F) -> F:
    """Add ``--json``, ``--no-input`` and ``-v`` to a command; they work before and after the sub-command alike."""

    def set_json(context: click.Context, _option: click.Parameter, value: bool) -> None:  # noqa: FBT001 - click's shape
        del context
        output().as_json |= value

    def set_no_input(context: click.Context, _option: click.Parameter, value: bool) -> None:  # noqa: FBT001 - same
        del context
        output().may_ask &= not value

    def set_verbose(context: click.Context, _option: click.Parameter, value: bool) -> None:  # noqa: FBT001 - same
        del context
        output().is_verbose |= value

    json_option = click.option(
        "--json",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=set_json,
        help="Print one JSON document. [env: FIRMAMENT_JSON]",
    )
    input_option = click.option(
        "--no-input",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=set_no_input,
        help="Never ask; fail where an answer is needed. [env: FIRMAMENT_NO_INPUT]",
    )
    verbose_option = click.option(
        "-v",
        "--verbose",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=set_verbose,
        help="Show the chain of causes of an error.",
    )
    return json_option(input_option(verbose_option(function)))


def _json(value: object, *, indent: int | None = None) -> str:
    import json

    return json.dumps(value, indent=indent, ensure_ascii=False, default=str)


# --- secrets -------------------------------------------------------------------------------


passphrase_option = click.option(
    "--passphrase-file",
    type=click.Path(path_type=Path),
    envvar=PASSPHRASE_FILE_VARIABLE,
    show_envvar=True,
    help="File (mode 0600) with the passphrase; asked at the terminal without it.",
)


def read_passphrase(file: Path | None, *, prompt: str, confirm: bool = False) -> bytes:
    """Return a passphrase from `file`, or ask for it; raises PassphraseError or FileError.

    `confirm` asks twice, for new keys.
    """
    if file is not None:
        return read_secret_file(file, what="The passphrase file").encode()
    if not may_ask():
        raise PassphraseError("A passphrase is needed and there is no terminal to ask at")
    try:
        text: str = click.prompt(prompt, hide_input=True, confirmation_prompt=confirm, err=True)
    except click.Abort as error:
        raise PassphraseError("No passphrase was given") from error
    return text.encode()


def read_secret_file(path: Path, *, what: str) -> str:
    """Return the first line of a file that only its owner may read; pipes (``/dev/fd/3``) are fine.

    Raises FileError if it cannot be read, SettingError if others may read it or it is no secret.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_ISREG(mode) and mode & 0o077:
                raise SettingError(
                    f"{what} may be read by others; run `chmod 600` on it", path=path, mode=f"{mode & 0o777:04o}"
                )
            data = file.read(MAX_SECRET_LENGTH_BYTES + 1)
    except OSError as error:
        raise FileError(f"{what} cannot be read", path=path, reason=error.strerror or error) from error
    if len(data) > MAX_SECRET_LENGTH_BYTES:
        raise SettingError(f"{what} is too long for a secret", path=path, limit_bytes=MAX_SECRET_LENGTH_BYTES)
    try:
        text = data.decode().split("\n", 1)[0].rstrip("\r")
    except UnicodeDecodeError as error:
        raise SettingError(f"{what} is not text", path=path) from error
    if not text:
        raise SettingError(f"{what} is empty", path=path)
    return text


def read_token(file: Path | None = None) -> str:
    """Return the operator's bearer token: `file`, the environment, the settings, else the last sign-in.

    Raises UnauthenticatedError when there is none.
    """
    from firmament.cli import config

    if file is None and (named := os.environ.get(TOKEN_FILE_VARIABLE)):
        file = Path(named)
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    if file is None and not token and (named := config.lookup("token_file").value):
        file = Path(named)
    if file is None and not token and session_file().exists():
        file = session_file()
    if file is not None:
        return read_secret_file(file, what="The token file")
    if not token:
        raise UnauthenticatedError(
            "This needs an operator token", variables=f"{TOKEN_VARIABLE} or {TOKEN_FILE_VARIABLE}"
        )
    return token


def session_file() -> Path:
    """Return where `firmament login` keeps its token: one for each profile, so that no server sees another's."""
    from firmament.cli import config

    profile = config.profile_name()
    return Path(click.get_app_dir("firmament")) / (f"token-{profile}" if profile else "token")
