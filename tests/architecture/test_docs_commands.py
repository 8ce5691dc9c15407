"""Every command that a document shows exists, with the options it is shown with."""

import re
import shlex
from pathlib import Path

import click
import pytest

from firmament.errors import FirmamentError

ROOT = Path(__file__).parents[2]
GENERATED = {"cli.md"}
PAGES = sorted({*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")})
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:firmament|firmament-agent|make) [^`\n]+)`")


def program(name):
    if name == "firmament":
        from firmament.cli.main import program as found
    else:
        from firmament.cli.agent import program as found
    return found


def shown(text):
    """Command lines in shell blocks, and in `back quotes` in prose and tables."""
    for language, body in FENCE.findall(text):
        if language in {"sh", "console", "bash"}:
            joined = re.sub(r"\s*\\\n\s*", " ", body)
            for spelled in joined.splitlines():
                line = re.sub(r"^(\$|#) ", "", spelled.strip())
                line = re.sub(r"^(sudo|env)( -u \w+)? |^(\w+=\S+ )+", "", line)
                if re.match(r"(firmament|firmament-agent|make)( |$)", line):
                    yield line.partition(" #")[0].strip()
    yield from INLINE.findall(FENCE.sub("", text))


def problem_with(line):
    """What is wrong with a command line, None if nothing is."""
    line = re.sub(r"[;|>&].*$|…|\.\.\.", "", line).strip()
    words = shlex.split(line.replace("\\|", "|"))
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return next((f"no target {word}" for word in words[1:] if "=" not in word and word not in targets), None)
    command = program(words[0])
    context = click.Context(command, info_name=words[0])
    rest = words[1:]
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        for name in rest[0].split("|"):
            try:
                sub = command.get_command(context, name)
            except FirmamentError as error:
                return str(error)
            if sub is None:
                return f"no command {name} in {context.command_path}"
        command, rest = sub, rest[1:]
        context = click.Context(command, info_name=name, parent=context)
    known = {option for each in command.params for option in (*each.opts, *each.secondary_opts)} | {"-h", "--help"}
    for word in rest:
        option = word.partition("=")[0].strip("[]")
        if re.fullmatch(r"-[A-Za-z]|--[a-z][a-z-]*", option) and option not in known:
            return f"{context.command_path} has no option {option}"
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_in_this_page_exists(page):
    if page.name in GENERATED:
        pytest.skip("made from the commands themselves")
    found = [f"`{line}`: {what}" for line in shown(page.read_text()) if (what := problem_with(line))]
    assert found == []


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("firmament server run --port 4443", None),
        ("firmament server run --sport 4443", "firmament server run has no option --sport"),
        ("firmament server fly", "no command fly in firmament server"),
        ("make test", None),
        ("make coffee", "no target coffee"),
        ("make fuzz FUZZ_S=600", None),
    ],
)
def test_the_rule_finds_what_it_should(line, what):
    assert problem_with(line) == what


def test_lines_are_found_in_blocks_and_in_prose():
    text = "Run `firmament server doctor`.\n```sh\nfirmament init acme \\\n  --product x  # why\nls\n$ sudo firmament-agent status\n```\n"
    assert list(shown(text)) == ["firmament init acme --product x", "firmament-agent status", "firmament server doctor"]
