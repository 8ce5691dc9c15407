"""Completion from the table says what click says, in every shell's form."""

import pytest
from click.shell_completion import get_completion_class

from firmament.cli import complete
from firmament.cli.agent import program as agent
from firmament.cli.main import program

PROGRAMS = {"firmament": program, "firmament-agent": agent}
TYPED = [
    "firmament ", "firmament re", "firmament release ", "firmament release pub", "firmament release publish --",
    "firmament release publish --dry-run --d", "firmament release build --class ", "firmament release build --class=s",
    "firmament release build ", "firmament release build some --notes x --no", "firmament completion ",
    "firmament completion z", "firmament key ceremony ", "firmament key ceremony start --repo",
    "firmament key generate --kind e", "firmament server run --log-level ", "firmament server backup ",
    "firmament server backup x -", "firmament --profile ", "firmament --profile lab dev", "firmament device list -q 'a b' --",
    "firmament operator tokens ", 'firmament group create "open quo', "firmament man ",
    "firmament-agent ", "firmament-agent consent p", "firmament-agent status --", "firmament-agent --config ",
    "firmament-agent provision ", "firmament-agent consent policy --",
]  # fmt: skip


def environment(shell, typed):
    program_name = typed.split(" ")[0]
    words = complete.split(typed)
    is_begun = not typed.endswith(" ")
    found = {f"_{program_name.replace('-', '_').upper()}_COMPLETE": f"{shell}_complete", "COMP_WORDS": typed}
    if shell == "fish":
        found["COMP_CWORD"] = words[-1] if is_begun else ""
    else:
        found["COMP_CWORD"] = str(len(words) - is_begun)
    return program_name, found


@pytest.mark.parametrize("shell", complete.SHELLS)
@pytest.mark.parametrize("typed", TYPED)
def test_the_table_says_what_click_says(shell, typed, monkeypatch):
    name, variables = environment(shell, typed)
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    made = get_completion_class(shell)(PROGRAMS[name], {}, name, "unused")
    said = complete.answer(name, variables)
    assert said is not None
    size = 3 if shell == "zsh" else 1  # lines an item
    assert items(said, size) == items(made.complete(), size)


def items(text, size):
    """In order of name: click has imported commands last."""
    lines = text.splitlines()
    return sorted(lines[at : at + size] for at in range(0, len(lines), size))


def test_behind_a_word_that_is_no_command_nothing_is_offered():
    asked = {"_FIRMAMENT_COMPLETE": "bash_complete", "COMP_WORDS": "firmament nothing ", "COMP_CWORD": "2"}
    assert complete.answer("firmament", asked) == ""
    asked["COMP_WORDS"] = "firmament device list -- -"
    assert complete.answer("firmament", asked | {"COMP_CWORD": "4"}) == ""


def test_what_no_known_shell_asks_is_left_to_click():
    for asked in ("", "bash_source", "powershell_complete", "complete"):
        assert complete.answer("firmament", {"_FIRMAMENT_COMPLETE": asked}) is None
