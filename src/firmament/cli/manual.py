r"""Manual pages in man(7), made from click's own commands: nothing to keep in step.

Text is escaped once, here: a backslash becomes ``\e``, a leading dot or quote cannot become a
request, and hyphens stay what one can paste.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from firmament import __version__
from firmament.errors import FirmamentError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def pages(program: click.Command, name: str) -> Iterator[tuple[str, str]]:
    """Yield title and text of every command's page; commands of extras that are missing are left out."""
    for path, context in _walk(program, name, None):
        yield "-".join(path), _render(context, path)


def page(program: click.Command, name: str, below: Sequence[str]) -> str:
    """Return the page of one command, named by the words below the program; raises click's UsageError."""
    context = _context(program, name, None)
    path = [name]
    for word in below:
        command = context.command
        sub = command.get_command(context, word) if isinstance(command, click.Group) else None
        if sub is None:
            raise click.UsageError(f"No such command: {' '.join((*path, word))}")
        context = _context(sub, word, context)
        path.append(word)
    return _render(context, path)


def _context(command: click.Command, name: str, parent: click.Context | None) -> click.Context:
    context = click.Context(command, info_name=name, parent=parent, terminal_width=80, max_content_width=80)
    context.help_option_names = ["-h", "--help"]
    command._help_option = None  # noqa: SLF001 - click keeps it from whoever asked first, with other names
    return context


def _walk(
    command: click.Command, name: str, parent: click.Context | None, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Context]]:
    context = _context(command, name, parent)
    here = (*path, name)
    yield here, context
    if isinstance(command, click.Group):
        for sub_name in command.list_commands(context):
            try:
                sub = command.get_command(context, sub_name)
            except FirmamentError:
                continue  # an extra that is not installed here
            if sub is not None and not sub.hidden:
                yield from _walk(sub, sub_name, context, here)


def _render(context: click.Context, path: Sequence[str]) -> str:
    command = context.command
    title = "-".join(path)
    text = (command.help or "").replace("\b", "")
    first, _, rest = text.partition("\n\n")
    lines = [
        f'.TH "{title.upper()}" "1" "" "Firmament {__version__}" "Firmament"',
        ".SH NAME",
        f"{_escaped(title)} \\- {_escaped(_flow(first).rstrip('.'))}",
        ".SH SYNOPSIS",
        f".B {_escaped(context.command_path)}",
        _escaped(" ".join(command.collect_usage_pieces(context))),
        ".SH DESCRIPTION",
        _escaped(_flow(first)),
    ]
    for paragraph in filter(None, rest.split("\n\n")):
        lines += [".PP", _escaped(_flow(paragraph))]
    records = [each.get_help_record(context) for each in command.get_params(context)]
    options = [record for record in records if record is not None and record[1]]
    if options:
        lines.append(".SH OPTIONS")
        for spelled, described in options:
            lines += [".TP", f".B {_escaped(spelled)}", _escaped(_flow(described))]
    if isinstance(command, click.Group):
        lines.append(".SH COMMANDS")
        for name, summary in _summaries(context, command):
            lines += [".TP", f".BR {_escaped(f'{title}-{name}')} (1)", _escaped(summary)]
    epilog = context.find_root().command.epilog
    if epilog:
        lines += [".SH EXIT STATUS", _escaped(_flow(epilog.partition(": ")[2]))]
    if len(path) > 1:
        lines += [".SH SEE ALSO", f".BR {_escaped('-'.join(path[:-1]))} (1)"]
    return "\n".join(line for line in lines if line) + "\n"


def _summaries(context: click.Context, command: click.Group) -> Iterator[tuple[str, str]]:
    for name in command.list_commands(context):
        try:
            sub = command.get_command(context, name)
        except FirmamentError:
            continue
        if sub is not None and not sub.hidden:
            yield name, sub.get_short_help_str(200)


def _flow(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def _escaped(text: str) -> str:
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + text if text.startswith((".", "'")) else text
