"""What every command shares: output for people or programs, errors with exit codes, secrets.

stdout is data, stderr is everything else (console.md §4.2). `Program` is the root group of both
commands: it turns any error into one sentence with a code and the exit code of its class.
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

import contextlib
import importlib
import json
import os
import stat
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

import click

from firmament.errors import (
    DependencyMissingError,
    FileError,
    FirmamentError,
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

    def document(self, schema: str, value: Mapping[str, Any], *, lines: Iterable[str] = ()) -> None:
        """Print the result: ``{"schema": "firmament.<schema>/1", ...}`` for programs, `lines` for people."""
        if self.as_json:
            print(
                json.dumps(
                    {"schema": f"firmament.{schema}/1", **value}, indent=2, ensure_ascii=False, default=_json_value
                )
            )
        else:
            for line in lines:
                print(line)

    def note(self, text: str) -> None:
        """Tell a person something that is not the result (stderr)."""
        print(text, file=sys.stderr)

    def next_command(self, text: str) -> None:
        """Print the command that usually follows, the last line for a person."""
        if not self.as_json:
            print(f"Next: {text}", file=sys.stderr)

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
    found = context.find_root().meta.setdefault(_OUTPUT, Output(as_json=bool(os.environ.get("FIRMAMENT_JSON"))))
    assert isinstance(found, Output)
    return found


def output_options(function: F) -> F:
    """Add ``--json`` and ``-v`` to a command; they work before and after the sub-command alike."""

    def set_json(context: click.Context, _option: click.Parameter, value: bool) -> None:  # noqa: FBT001 - click's shape
        del context
        output().as_json |= value

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
    verbose_option = click.option(
        "-v",
        "--verbose",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=set_verbose,
        help="Show the chain of causes of an error.",
    )
    return json_option(verbose_option(function))


class Program(click.Group):
    """The root of a command: reports errors and exits with the code of the error's class."""

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Run, then exit; replaces click's own error output."""
        kwargs["standalone_mode"] = False
        self._last_output = None
        try:
            result = super().main(*args, **kwargs)
        except click.exceptions.Exit as error:
            sys.exit(error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            print("Stopped.", file=sys.stderr)
            sys.exit(EXIT_INTERRUPTED)
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except BrokenPipeError:
            _discard_stdout()
            sys.exit(EXIT_FAILED)
        except FirmamentError as error:
            report(error, self._last_output)
            sys.exit(error.exit_code)
        except Exception as error:  # noqa: BLE001 - the last line of defence: a sentence instead of a traceback
            mapped = _unexpected(error)
            report(mapped, self._last_output)
            sys.exit(mapped.exit_code)
        sys.exit(result if isinstance(result, int) else 0)

    _last_output: Output | None = None

    def invoke(self, ctx: click.Context) -> Any:
        """Remember the output settings: the context is gone when an error is reported."""
        self._last_output = output()
        return super().invoke(ctx)


class LazyGroup(Program):
    """A program whose sub-commands are imported only when they are used (console.md §4.1)."""

    def __init__(self, *args: Any, lazy: Mapping[str, LazyCommand] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lazy: Final = dict(lazy or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name every command, without importing any."""
        return sorted({*super().list_commands(ctx), *self.lazy})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command; raises DependencyMissingError if its extra is not installed."""
        entry = self.lazy.get(cmd_name)
        return entry.load() if entry is not None else super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help of every command from the table."""
        rows = [(name, entry.summary) for name, entry in sorted(self.lazy.items())]
        for name in super().list_commands(ctx):
            command = super().get_command(ctx, name)
            rows.append((name, command.get_short_help_str() if command else ""))
        with formatter.section("Commands"):
            formatter.write_dl(sorted(rows))


@dataclass(frozen=True, slots=True)
class LazyCommand:
    """``module:attribute``, the help line, and the extra that the module needs."""

    path: str
    summary: str
    extra: str = ""

    def load(self) -> click.Command:
        """Import the command; raises DependencyMissingError."""
        module, _, attribute = self.path.partition(":")
        try:
            command = getattr(importlib.import_module(module), attribute)
        except ImportError as error:
            wanted = f"firmament[{self.extra}]" if self.extra else "firmament"
            raise DependencyMissingError(
                "A package that this command needs is not installed", missing=error.name or error, install=wanted
            ) from error
        assert isinstance(command, click.Command)
        return command


def report(error: FirmamentError, out: Output | None = None) -> None:
    """Write an error to stderr: a sentence and its code, or one JSON object."""
    out = out or output()
    if out.as_json:
        document = {
            "schema": "firmament.error/1",
            "code": error.code,
            "message": error.problem,
            "hint": error.hint,
            "retry": error.retry.value,
            "facts": error.facts,
        }
        print(json.dumps(document, ensure_ascii=False, default=_json_value), file=sys.stderr)
    else:
        print(f"error: {error}", file=sys.stderr)
        print(f"code: {error.code}", file=sys.stderr)
    if out.is_verbose:
        cause = error.__cause__ or error.__context__
        while cause is not None:
            print(f"cause: {type(cause).__name__}: {cause}", file=sys.stderr)
            cause = cause.__cause__ or cause.__context__
        if type(error) is FirmamentError:  # not one of ours: a developer needs the place
            traceback.print_exception(error, file=sys.stderr)


def _unexpected(error: Exception) -> FirmamentError:
    if isinstance(error, OSError):
        mapped: FirmamentError = FileError(
            "The file cannot be used", path=error.filename or "", reason=error.strerror or error
        )
    else:
        mapped = FirmamentError(f"Something unexpected happened: {type(error).__name__}", reason=error)
    mapped.__cause__ = error
    return mapped


def _json_value(value: object) -> object:
    return str(value)


def _discard_stdout() -> None:
    # The reader went away (`| head`); without this the interpreter complains again at exit.
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
    if not sys.stdin.isatty():
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
    """Return the operator's bearer token from `file`, the environment or the last sign-in.

    Raises UnauthenticatedError when there is none.
    """
    if file is None and (named := os.environ.get(TOKEN_FILE_VARIABLE)):
        file = Path(named)
    if file is not None:
        return read_secret_file(file, what="The token file")
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    if not token and session_file().exists():
        return read_secret_file(session_file(), what="The token file")
    if not token:
        raise UnauthenticatedError(
            "This needs an operator token", variables=f"{TOKEN_VARIABLE} or {TOKEN_FILE_VARIABLE}"
        )
    return token


def session_file() -> Path:
    """Return where `firmament operator login` keeps its token."""
    return Path(click.get_app_dir("firmament")) / "token"
