"""The root of both commands: lazily imported sub-commands, errors with exit codes, completion.

Start-up decides how a command feels on a small processor, and tab completion starts it at every
press (console.md §4.1): a `LazyGroup` names, describes and completes its sub-commands from a
table, and imports one only when it is run. Any error becomes one sentence with a code and the exit
code of its class; under ``--json`` one JSON object, both on stderr.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click
from click.shell_completion import CompletionItem

from firmament.cli.common import EXIT_FAILED, EXIT_INTERRUPTED, Output, output
from firmament.errors import DependencyMissingError, FileError, FirmamentError

if TYPE_CHECKING:
    from collections.abc import Mapping


class Program(click.Group):
    """The root of a command: reports errors and exits with the code of the error's class."""

    _last_output: Output | None = None

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
            _report_usage(error, self._last_output)
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
        if entry is None:
            return super().get_command(ctx, cmd_name)
        return entry.load()

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete from the table: nothing is imported for a press of the tab key."""
        found = [
            CompletionItem(name, help=entry.summary)
            for name, entry in sorted(self.lazy.items())
            if name.startswith(incomplete)
        ]
        for name, command in sorted(self.commands.items()):
            if name.startswith(incomplete) and not command.hidden:
                found.append(CompletionItem(name, help=command.get_short_help_str()))
        return found + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help of every command from the table."""
        rows = [(name, entry.summary) for name, entry in sorted(self.lazy.items())]
        for name in super().list_commands(ctx):
            command = super().get_command(ctx, name)
            rows.append((name, command.get_short_help_str() if command else ""))
        if not rows:
            return
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
            "code": error.code,
            "message": error.problem,
            "hint": error.hint,
            "retry": error.retry.value,
            "exit_code": error.exit_code,
            "facts": error.facts,
            "request_id": error.facts.get("request_id"),
        }
        out.problem(document)
    else:
        print(f"error: {error}", file=sys.stderr)
        print(f"code: {error.code}", file=sys.stderr)
    if out.is_verbose:
        cause = error.__cause__ or error.__context__
        while cause is not None:
            print(f"cause: {type(cause).__name__}: {cause}", file=sys.stderr)
            cause = cause.__cause__ or cause.__context__
        if type(error) is FirmamentError:  # not one of ours: a developer needs the place
            import traceback

            traceback.print_exception(error, file=sys.stderr)


def _report_usage(error: click.ClickException, out: Output | None) -> None:
    """Say how the command line was wrong, for a person with the usage line, for a program as JSON."""
    if not (out or output()).as_json:
        error.show()
        return
    context = getattr(error, "ctx", None)
    hint = f"Try `{context.command_path} --help`." if context is not None else "Try --help."
    (out or output()).problem(
        {
            "code": "usage",
            "message": error.format_message(),
            "hint": hint,
            "retry": "never",
            "exit_code": error.exit_code,
            "facts": {},
        }
    )


def _unexpected(error: Exception) -> FirmamentError:
    if isinstance(error, OSError):
        mapped: FirmamentError = FileError(
            "The file cannot be used", path=error.filename or "", reason=error.strerror or error
        )
    else:
        mapped = FirmamentError(f"Something unexpected happened: {type(error).__name__}", reason=error)
    mapped.__cause__ = error
    return mapped


def _discard_stdout() -> None:
    # The reader went away (`| head`); without this the interpreter complains again at exit.
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
