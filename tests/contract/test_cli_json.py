"""``--json``: every command has it, every document is in the table, and every row is used."""

import ast
import json
from pathlib import Path

import click
import pytest
from jsonschema import Draft202012Validator
from support import documents as documents_of_tests

from firmament.cli import agent, main, schemas
from firmament.cli.common import Output

CLI = Path(schemas.__file__).parent
PROGRAMS = {"firmament": main.program, "firmament-agent": agent.program}


def documents():
    """Name and file of every document that a command prints, with the fields where they are spelled out."""
    for path in sorted(CLI.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in {"document", "line"}:
                name = node.args[0]
                if isinstance(name, ast.Constant):
                    yield path.name, name.value


def commands(command, context):
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            sub = command.get_command(context, name)
            yield from commands(sub, click.Context(sub, info_name=name, parent=context))
    else:
        yield context.command_path, command


def test_every_document_is_in_the_table():
    assert [f"{file}: {name}" for file, name in documents() if name not in schemas.SCHEMAS] == []


def test_every_row_of_the_table_is_printed_by_something():
    printed = {name for _, name in documents()} | {"error"}
    assert set(schemas.SCHEMAS) - printed == set()


@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_every_command_has_json(name):
    root = click.Context(PROGRAMS[name], info_name=name)
    without = [
        path
        for path, command in commands(PROGRAMS[name], root)
        if "--json" not in {option for each in command.params for option in each.opts}
    ]
    assert without == []


@pytest.mark.parametrize("name", sorted(schemas.SCHEMAS))
def test_every_document_has_a_published_schema(name):
    """docs/reference/json; that documents keep to them is tested wherever a test runs a command (support/documents.py)."""
    schema = json.loads(documents_of_tests.path_of(name).read_text())
    Draft202012Validator.check_schema(schema)
    assert schema["title"] == schema["properties"]["schema"]["const"] == f"firmament.{name}/{schemas.VERSION}"
    assert set(schemas.SCHEMAS[name].split()) <= set(schema["required"]) <= set(schema["properties"])


def test_no_schema_is_of_a_document_that_is_no_more():
    assert {path.name for path in documents_of_tests.PLACE.iterdir()} == {f"{name}-1.json" for name in schemas.SCHEMAS}


@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_every_command_and_option_says_what_it_is(name):
    silent = []
    for path, command in commands(PROGRAMS[name], click.Context(PROGRAMS[name], info_name=name)):
        silent += [path] * (not command.help)
        silent += [
            f"{path} {each.opts[0]}" for each in command.params if isinstance(each, click.Option) and not each.help
        ]
    assert silent == []


def test_a_document_that_lacks_what_it_promises_is_a_mistake(capsys):
    out = Output(as_json=True)
    with pytest.raises(RuntimeError, match="workspace lacks directory, product"):
        out.document("workspace", {"keys": [], "has_director": True, "gives_up": ""})
    with pytest.raises(RuntimeError, match="attempt lacks attempt_id"):
        out.line("attempt", {}, text="")
    assert capsys.readouterr().out == ""
