"""``--json``: every command has it, every document is in the table, and every row is used."""

import ast
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


UNITS = {"_at": "1970", "_s": "seconds", "_ms": "milliseconds", "_bytes": "bytes", "_ratio": "0 to 1"}
"""What the end of a name says its description says too."""


def parts(schema, path):
    """Every part of a schema with where it is; the constant that names the document left out."""
    for name, part in schema.get("properties", {}).items():
        if part != {"const": part.get("const")}:
            yield f"{path}.{name}", name, part
            yield from parts(part, f"{path}.{name}")
    for word, sign in (("items", "[]"), ("additionalProperties", "{}")):
        if isinstance(schema.get(word), dict):
            yield f"{path}{sign}", None, schema[word]
            yield from parts(schema[word], f"{path}{sign}")


@pytest.mark.parametrize("name", sorted(schemas.SCHEMAS))
def test_every_document_has_a_published_schema_that_says_what_its_fields_are(name):
    """No skeletons: a type everywhere, a description with the unit, and for every object which fields it can have."""
    schema = documents_of_tests.published(name)
    Draft202012Validator.check_schema(schema)
    assert schema["title"] == schema["properties"]["schema"]["const"] == f"firmament.{name}/{schemas.VERSION}"
    assert schema["description"]
    assert schema["$comment"] == documents_of_tests.COMMENT
    assert set(schemas.SCHEMAS[name].split()) <= set(schema["required"]) <= set(schema["properties"])
    for where, field, part in parts(schema, name):
        kinds = documents_of_tests.types(part)
        assert set(kinds) - {"null"}, f"{where} has no type"
        assert "array" not in kinds or "items" in part, f"{where} does not say of what"
        if "object" in kinds:
            assert "properties" in part or "additionalProperties" in part, f"{where} does not say which fields"
            assert set(part.get("required", ())) <= set(part.get("properties", ())), where
        if field is not None:
            assert part["description"].endswith("."), f"{where} is not described"
            if {"integer", "number"} & set(kinds):
                units = [unit for end, unit in UNITS.items() if field.endswith(end)]
                assert all(unit in part["description"] for unit in units), f"{where} does not say its unit"


def test_a_skeleton_and_an_unknown_field_are_found():
    """The rules above, and the closed reading of tests (support/documents.py), fail where they should."""
    assert [where for where, *_ in parts({"properties": {"a": {"type": "array", "items": {}}}}, "x")] == [
        "x.a",
        "x.a[]",
    ]
    schema = documents_of_tests.published("tenant")
    document = {"schema": "firmament.tenant/1", "name": "acme", "more": 1}
    assert Draft202012Validator(schema).is_valid(document)
    assert not Draft202012Validator(documents_of_tests.closed(schema)).is_valid(document)
    with pytest.raises(AssertionError):
        documents_of_tests.check(document)


def test_what_tests_see_is_written_down_when_asked(tmp_path, monkeypatch):
    """The words of a schema stay; what is not always there is not required; what may be null says so."""
    monkeypatch.setattr(documents_of_tests, "PLACE", tmp_path)
    monkeypatch.setenv(documents_of_tests.WRITE, "1")
    documents_of_tests.validator.cache_clear()
    head = {"schema": "firmament.tenant/1", "name": "acme"}
    documents_of_tests.check({**head, "rows": [{"at": 1, "ratio": 1}]})
    file = documents_of_tests.path_of("tenant")
    file.write_text(file.read_text().replace('"name": {', '"name": {"description": "Its name.", '))
    documents_of_tests.check({**head, "rows": [{"at": None, "ratio": 0.5, "more": True}], "until": 5})
    schema = documents_of_tests.published("tenant")
    documents_of_tests.validator.cache_clear()
    assert schema["required"] == ["name", "rows", "schema"]
    assert schema["properties"]["name"] == {"description": "Its name.", "type": "string"}
    row = schema["properties"]["rows"]["items"]
    assert (row["required"], row["properties"]["at"]) == (["at", "ratio"], {"type": ["integer", "null"]})
    assert row["properties"]["ratio"] == {"type": "number"}


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
    with pytest.raises(RuntimeError, match="hide its own schema"):
        out.document("tenant", {"name": "acme", "schema": "x"})
    assert capsys.readouterr().out == ""
