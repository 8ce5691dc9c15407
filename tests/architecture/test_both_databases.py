"""Every test of the server runs on SQLite and on PostgreSQL, or says why it does not."""

import ast
from pathlib import Path

import pytest
from support.databases import KINDS

TESTS = Path(__file__).parents[1]
MAKES = {"World", "RolloutWorld", "rollout_world", "make_server", "fresh_database", "fresh_target"}
"""What makes a server or its database, of a kind that `database_kind` says."""
OPENS = {"open_database", "command_database", "migrate"}
ASKS = {"database_kind", "target", "connection"}
"""Fixtures that run a test on both."""


def marks(node):
    """The `one_database` of a function's decorators, or of a module's `pytestmark`."""
    for call in ast.walk(node):
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.one_database":
            yield call


def has_reason(mark):
    given = {keyword.arg: keyword.value for keyword in mark.keywords}
    because = given.get("because")
    return isinstance(because, ast.Constant) and len(str(because.value).split()) > 2


def is_marked(function):
    return any(True for one in function.decorator_list for _ in marks(one))


def names(node):
    return {one.id for one in ast.walk(node) if isinstance(one, ast.Name)} | {
        one.arg for one in ast.walk(node) if isinstance(one, ast.arg)
    }


def starts_by_command(call):
    """`server init`, which makes a server on SQLite."""
    words = [one.value for one in call.args if isinstance(one, ast.Constant)]
    return words[:2] == ["server", "init"]


def problems(text):
    """What stands against this text of a test file, with line numbers."""
    tree = ast.parse(text)
    yield from (f"{mark.lineno}: one_database without a reason" for mark in marks(tree) if not has_reason(mark))
    if any(
        isinstance(one, ast.Assign) and ast.unparse(one.targets[0]) == "pytestmark" and any(marks(one))
        for one in tree.body
    ):
        return
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef) or is_marked(function):
            continue
        used = {one.id for one in ast.walk(function) if isinstance(one, ast.Name)}
        for call in (one for one in ast.walk(function) if isinstance(one, ast.Call)):
            name = ast.unparse(call.func)
            given = [*call.args, *(keyword.value for keyword in call.keywords)]
            if (
                name in MAKES
                and "database_kind" not in used
                and any(isinstance(one, ast.Constant) and one.value in KINDS for one in given)
            ):
                yield f"{call.lineno}: {name} on one database"
            if starts_by_command(call):
                yield f"{call.lineno}: `server init` on one database"
    if (found := names(tree)) & OPENS and not found & ASKS:
        yield f"1: {', '.join(sorted(found & OPENS))} on one database"


def every_file():
    return sorted(path for path in TESTS.rglob("*.py") if path.parts[len(TESTS.parts)] not in {"support", "chaos"})


def test_every_test_of_the_server_runs_on_both_databases_or_says_why_not():
    found = [f"{path.relative_to(TESTS)}:{what}" for path in every_file() for what in problems(path.read_text())]
    assert found == []


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("@pytest.mark.one_database('sqlite')\ndef test(): ...", "1: one_database without a reason"),
        ("@pytest.mark.one_database('sqlite', because='')\ndef test(): ...", "1: one_database without a reason"),
        ("pytestmark = pytest.mark.one_database('sqlite')", "1: one_database without a reason"),
        ("def test(path):\n    fresh_target('sqlite', path)", "2: fresh_target on one database"),
        ("def test(path):\n    World(path, database=fresh_database('sqlite'))", "2: fresh_database on one database"),
        ("def test(path):\n    run_command('server', 'init', path)", "2: `server init` on one database"),
        ("def test(path):\n    with command_database(path): ...", "1: command_database on one database"),
    ],
)
def test_who_opts_out_in_silence_is_found(text, what):
    assert list(problems(text)) == [what]


def test_a_reason_is_enough_and_both_need_none():
    mark = "pytest.mark.one_database('postgresql', because='SQLite is for one server')"
    body = "def test(path):\n    World(path, database=fresh_database('postgresql'))"
    assert list(problems(f"@{mark}\n{body}")) == []
    assert list(problems(f"pytestmark = {mark}\n{body}")) == []
    assert (
        list(problems("def test(path, database_kind):\n    World(path, database=fresh_database(database_kind))")) == []
    )
