"""``firmament release notes lint``: whether owners will understand what a release says about itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from firmament.cli.common import EXIT_FAILED, output, output_options
from firmament.core.manifest import MAX_NOTES_LENGTH
from firmament.core.offer import FALLBACK, PHRASES, printable

if TYPE_CHECKING:
    from collections.abc import Iterator

LANGUAGE: Final = re.compile(r"[a-z]{2,3}(?:-[A-Za-z0-9]{2,8})?")
MAX_LINE: Final = 160
MAX_LINES: Final = 12
MARKUP: Final = re.compile(r"^#{1,6} |\*\*|\]\(|</?[a-z]+>", re.MULTILINE)
MAX_FILE_BYTES: Final = 16 * 1024


@click.group("notes")
def group() -> None:
    """Check release notes for owners."""


@group.command()
@click.argument("notes", nargs=-1, required=True, metavar="LANG=FILE...")
@output_options
def lint(notes: tuple[str, ...]) -> int:
    """Say what is wrong with notes before they are signed; exit code 1 if something is.

    They are shown as plain text on small displays: no markup, short lines, English among them.
    """
    found: dict[str, str] = {}
    problems: list[str] = []
    for item in notes:
        language, equals, name = item.partition("=")
        if not equals:
            raise click.BadParameter(f"{item!r} is not LANG=FILE, e.g. en=notes.md", param_hint="LANG=FILE")
        found[language], more = _read(Path(name), language)
        problems += more
    for language, text in found.items():
        problems += [f"{language}: {problem}" for problem in problems_of(language, text)]
    if FALLBACK not in {language.partition("-")[0] for language in found}:
        problems.append("there are no notes in English, which is shown where nothing else fits")
    lines = problems or [f"{len(found)} languages, nothing to mend."]
    output().document("notes-lint", {"ok": not problems, "problems": problems, "languages": sorted(found)}, lines=lines)
    return EXIT_FAILED if problems else 0


def problems_of(language: str, text: str) -> Iterator[str]:
    """Yield what an owner would stumble over."""
    if not LANGUAGE.fullmatch(language):
        yield "this is no language tag, e.g. en or pt-BR"
    elif language.partition("-")[0] not in PHRASES:
        yield f"the sentences around the notes are not there in this language, only {', '.join(sorted(PHRASES))}"
    if not text:
        yield "there is no text"
    if len(text) > MAX_NOTES_LENGTH:
        yield f"{len(text)} characters, {MAX_NOTES_LENGTH} are allowed"
    lines = text.splitlines()
    if len(lines) > MAX_LINES:
        yield f"{len(lines)} lines; nobody reads more than {MAX_LINES} on a small display"
    if any(len(line) > MAX_LINE for line in lines):
        yield f"a line is longer than {MAX_LINE} characters"
    if MARKUP.search(text):
        yield "there is markup, which is shown as it is written"
    if printable(text) != text:
        yield "there are control characters"


def _read(path: Path, language: str) -> tuple[str, list[str]]:
    from firmament.durable import RealDisk, read_file

    data = read_file(RealDisk(), path, limit_bytes=MAX_FILE_BYTES)
    try:
        return data.decode().strip(), []
    except UnicodeDecodeError:
        return "", [f"{language}: {path} is not UTF-8 text"]
