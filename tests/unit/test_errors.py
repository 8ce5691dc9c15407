"""The error tree: codes, exit codes, hints and sentences."""

import itertools
import re

import pytest

from firmament import errors
from firmament.errors import FirmamentError, Retry, error_classes, error_for_code

CLASSES = error_classes()
LEAVES = [cls for cls in CLASSES if not cls.__subclasses__()]
BRANCHES = FirmamentError.__subclasses__()
EXIT_CODES_OF_THE_AGENT = {5, 10, 11}
"""Nothing to do, restart needed, waiting for the user: small numbers scripts can remember."""


def tree_from_docstring():
    """(depth, class name, code) per line of the drawing at the head of errors.py."""
    depth = {"*": 0, "x": 1, "+": 2}
    return [
        (depth[mark], name, code)
        for mark, name, code in re.findall(r"^ *([*x+]) (\w+) +(\S+)", errors.__doc__, re.MULTILINE)
    ]


def tree_from_classes(cls=FirmamentError, depth=0):
    yield depth, cls.__name__, cls.code
    for child in cls.__subclasses__():
        yield from tree_from_classes(child, depth + 1)


def test_the_drawing_is_the_tree():
    assert tree_from_docstring() == list(tree_from_classes())


def test_every_class_lives_in_the_one_file():
    assert {cls.__module__ for cls in CLASSES} == {"firmament.errors"}


def test_codes_are_unique_and_nested_like_the_classes():
    assert len({cls.code for cls in CLASSES}) == len(CLASSES)
    for cls in CLASSES[1:]:
        assert re.fullmatch(r"[a-z]+(/[a-z]+(-[a-z]+)*)?", cls.code)
        if cls not in BRANCHES:
            assert cls.code.rpartition("/")[0] == cls.__base__.code


def test_every_class_says_its_own_code_exit_code_and_hint():
    for cls in CLASSES:
        assert {"code", "exit_code", "hint"} <= set(vars(cls)), cls


def test_exit_codes_are_unique_and_a_shell_can_carry_them():
    assert len({cls.exit_code for cls in CLASSES}) == len(CLASSES)
    # 2 is usage, above 125 the shell speaks of signals.
    assert all(1 <= cls.exit_code <= 125 and cls.exit_code != 2 for cls in CLASSES)


def test_a_branch_has_its_own_range_of_exit_codes():
    for branch, following in itertools.pairwise([*BRANCHES, None]):
        upper = following.exit_code if following else 126
        for leaf in branch.__subclasses__():
            assert branch.exit_code < leaf.exit_code < upper or leaf.exit_code in EXIT_CODES_OF_THE_AGENT, leaf


def test_hints_are_different_sentences_that_say_what_to_do():
    assert len({cls.hint for cls in CLASSES}) == len(CLASSES)
    for cls in CLASSES:
        assert re.fullmatch(r"[A-Z][^\n]{15,140}[.`]", cls.hint), cls.hint
        assert cls.hint.endswith("."), cls.hint


def test_statuses_are_those_of_an_answer_that_is_an_error():
    assert all(400 <= cls.http_status <= 599 for cls in CLASSES)


def test_retrying_is_offered_where_it_can_help():
    assert all(isinstance(cls.retry, Retry) for cls in CLASSES)
    assert errors.TransferError.retry is Retry.LATER
    assert errors.RollbackError.retry is Retry.NEVER
    assert errors.ExpiredError.retry is Retry.AFTER_REFRESH


def test_a_sentence_says_what_should_have_been_what_was_and_what_to_do():
    error = errors.RollbackError("Manifest is older than the one installed", installed=42, got=41)
    assert str(error) == (
        "Manifest is older than the one installed (installed=42, got=41). "
        "Publish the release under a higher sequence number; devices never go back."
    )
    assert (error.problem, error.facts) == ("Manifest is older than the one installed", {"installed": 42, "got": 41})
    assert str(errors.LocalError("Nothing works")) == f"Nothing works. {errors.LocalError.hint}"


def test_facts_from_an_attacker_are_harmless_on_a_terminal():
    error = errors.MalformedError("a\x1b[2Jb", found="x\n\r\x9b31m\u202e" + "y" * 10_000)
    text = str(error)
    assert text.isprintable()
    assert len(text) < 600
    assert "\\x1b[2J" in text
    assert "\\n\\r\\x9b31m\\u202e" in text


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("trust/rollback", errors.RollbackError),
        ("trust/something-new", errors.TrustError),
        ("trust/rollback/deeper", errors.RollbackError),
        ("unheard-of/thing", FirmamentError),
        ("", FirmamentError),
        ("////", FirmamentError),
    ],
)
def test_a_code_of_a_later_release_is_its_nearest_known_parent(code, expected):
    assert error_for_code(code) is expected


def test_leaves_exist():
    assert len(LEAVES) > 50
