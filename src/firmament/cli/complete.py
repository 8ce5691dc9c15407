"""Completion from a table: what the tab key asks for, without importing click or a command.

Tab completion starts the program at every press, on small processors too (console.md §4.1). The
table (completions.txt, written by `make docs`) has a line for each sub-command, option and
argument; a test compares the answers with click's own. What is not asked in the way of a known
shell is left to click.

    release<TAB>C<TAB>publish<TAB>Publish signed drafts ...
    release publish<TAB>O<TAB>--dry-run<TAB>flag<TAB><TAB>Say what would be published ...
    release publish<TAB>A<TAB>file<TAB>1
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # importing typing costs more than all of this
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SHELLS = ("bash", "zsh", "fish")
TABLE = os.path.join(os.path.dirname(__file__), "completions.txt")  # noqa: PTH118, PTH120 - pathlib costs 10 ms
MANY = "many"


def answer(program: str, environment: Mapping[str, str]) -> str | None:
    """Return what the shell is told; None when this is no question of a shell that is known here."""
    asked = environment.get(f"_{program.replace('-', '_').upper()}_COMPLETE", "")
    shell, _, verb = asked.partition("_")
    if shell not in SHELLS or verb != "complete":
        return None
    words = split(environment.get("COMP_WORDS", ""))
    place = environment.get("COMP_CWORD", "")
    if shell == "fish":
        typed, before = place, words[1:]
        if typed and before and before[-1] == typed:
            before.pop()
    else:
        number = int(place) if place.isdigit() else len(words)
        before, typed = words[1:number], words[number] if number < len(words) else ""
    lines = [_line(shell, *item) for item in complete(program, before, typed)]
    return "".join(line + "\n" for line in lines)


def complete(program: str, before: list[str], typed: str) -> Iterator[tuple[str, str, str]]:
    """Yield (type, value, help) of what may stand for the word being typed; type as click has it."""
    rows = _rows(program)
    path, waiting, used, given, is_over = program, None, set(), 0, False
    for word in before:
        options = {name: row for row in rows.get(path, ()) if row[0] == "O" for name in row[1].split(",")}
        names = {row[1] for row in rows.get(path, ()) if row[0] == "C"}
        if waiting is not None:
            waiting = None
        elif word == "--":
            is_over = True
        elif word.startswith("-") and len(word) > 1 and not is_over:
            name, sign, _ = word.partition("=")
            found = options.get(name)
            if found is not None:
                if found[3] != MANY:
                    used.add(found[1])
                if found[2] != "flag" and not sign:
                    waiting = found
        elif word in names:
            path, used, given = f"{path} {word}", set(), 0
        elif names:
            return
        else:
            given += 1
    here = rows.get(path, ())
    if typed.startswith("-") and "=" in typed and waiting is None and not is_over:
        name, _, typed = typed.partition("=")
        waiting = next((row for row in here if row[0] == "O" and name in row[1].split(",") and row[2] != "flag"), None)
    elif waiting is None and typed.startswith("-") and not is_over:
        for row in here:
            if row[0] == "O" and row[1] not in used:
                for name in row[1].split(","):
                    if name.startswith(typed):
                        yield "plain", name, row[4]
        return
    if waiting is not None:
        yield from _values(waiting[2], typed)
        return
    arguments = [row for row in here if row[0] == "A"]
    for row in arguments:
        if row[2] == MANY or given == 0:
            yield from _values(row[1], typed)
            return
        given -= int(row[2])
    for row in here:
        if row[0] == "C" and row[1].startswith(typed):
            yield "plain", row[1], row[2]


def split(text: str) -> list[str]:
    """Split a line into words as a shell does; an open quote ends with the line."""
    words: list[str] = []
    word, quote, is_word, escaped = "", "", False, False
    for char in text:
        if escaped:
            word, escaped = word + char, False
        elif char == "\\" and quote != "'":
            escaped = is_word = True
        elif quote:
            word, quote = (word, "") if char == quote else (word + char, quote)
        elif char in "'\"":
            quote, is_word = char, True
        elif char.isspace():
            if is_word:
                words.append(word)
            word, is_word = "", False
        else:
            word, is_word = word + char, True
    return [*words, word] if is_word else words


def main(program: str) -> bool:
    """Answer a shell, if one asks; whether one did."""
    said = answer(program, os.environ)
    if said is not None:
        sys.stdout.write(said)
    return said is not None


def _rows(program: str) -> dict[str, list[list[str]]]:
    found: dict[str, list[list[str]]] = {}
    with open(TABLE, encoding="utf-8") as file:  # noqa: PTH123 - see TABLE
        for line in file:
            if line.startswith(program):
                path, *row = line.rstrip("\n").split("\t")
                found.setdefault(path, []).append(row)
    return found


def _values(kind: str, typed: str) -> Iterator[tuple[str, str, str]]:
    if kind in {"file", "dir"}:
        yield kind, typed, ""
    elif kind.startswith("="):
        for value in kind[1:].split("|"):
            if value.startswith(typed):
                yield "plain", value, ""


def _line(shell: str, kind: str, value: str, text: str) -> str:
    if shell == "bash":
        return f"{kind},{value}"
    if shell == "zsh":
        return f"{kind}\n{value}\n{text or '_'}"
    return f"{kind},{value}\t{text}" if text else f"{kind},{value}"
