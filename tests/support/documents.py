"""Every JSON document that a test gets from a command is held against its published schema (docs/reference/json).

    value = documents.loads(done.stdout)

The published schemas are open: a reader ignores fields it does not know (ADR-0034). Here they are closed: a field that no
schema names fails, and so does a document of the table that no test of a whole run has seen.

A new document, or a field more, is written down by running its test with WRITE_DOCUMENTS=1: the schema is widened by
what was seen. Then say by hand what each field is, which are always there, and which words it can hold.
"""

import json
import os
from functools import cache
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from firmament.cli.schemas import SCHEMAS

PLACE = Path(__file__).parents[2] / "docs/reference/json"
WRITE = "WRITE_DOCUMENTS"
COMMENT = "Fields may be added: ignore those that you do not know."
HEAD = ("$schema", "title", "$comment", "description")
KEPT = ("description", "enum", "additionalProperties")
OUT_OF_REACH = {
    "demo-console": "printed when a demo of a minute ends by itself; tests/console/test_demo.py looks at its pages instead"
}
LINE = 118
SEEN: set[str] = set()


def loads(text):
    """Read what a command printed, and check it."""
    return check(json.loads(text))


def check(value):
    """Return a document, after it was held against its schema."""
    name, _, version = value["schema"].removeprefix("firmament.").partition("/")
    assert name in SCHEMAS, name
    assert version == "1", value["schema"]
    SEEN.add(name)
    if os.environ.get(WRITE) and not (path_of(name).exists() and validator(name).is_valid(value)):
        widen(name, value)
    problems = [f"{error.json_path}: {error.message}" for error in validator(name).iter_errors(value)]
    assert not problems, f"{name}: {problems}"
    return value


def check_lines(text):
    """Check a document a line."""
    return [check(json.loads(line)) for line in text.splitlines() if line.startswith("{")]


def path_of(name):
    return PLACE / f"{name}-1.json"


def published(name):
    return json.loads(path_of(name).read_text())


@cache
def validator(name):
    return Draft202012Validator(closed(published(name)))


def closed(schema):
    """Return a schema that takes no field it does not name."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(part) for key, part in schema.items()}
    if "properties" in schema and isinstance(schema.get("type"), str | list):
        found.setdefault("additionalProperties", False)
    return found


# --- what no test has seen: hooks that conftest.py takes over --------------------------------------


def is_whole(config):
    """Whether a run is of the whole suite: nothing was named or left out."""
    return (
        config.args_source is pytest.Config.ArgsSource.TESTPATHS
        and not any(config.getoption(name, None) for name in ("keyword", "markexpr", "deselect", "lf", "collectonly"))
        and not config.getoption("ignore", None)
    )


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    SEEN.update(getattr(node, "workeroutput", {}).get("documents", ()))


def pytest_sessionfinish(session, exitstatus):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["documents"] = sorted(SEEN)
    elif exitstatus == 0 and is_whole(session.config) and unseen():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    if is_whole(config) and unseen():
        terminalreporter.write_line(f"No test has seen these documents: {', '.join(unseen())}", red=True)


def unseen():
    return sorted(set(SCHEMAS) - SEEN - set(OUT_OF_REACH))


# --- writing them down ---------------------------------------------------------------------------


def widen(name, value):
    """Widen a schema by a document, and write it."""
    path = path_of(name)
    before = published(name) if path.exists() else None
    found = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"firmament.{name}/1",
        "$comment": COMMENT,
        "description": (before or {}).get("description", ""),
        **{key: part for key, part in union(before, infer(value)).items() if key not in HEAD},
    }
    found["properties"]["schema"] = {"const": f"firmament.{name}/1"}
    text = written(found) + "\n"
    if before is None or path.read_text() != text:
        PLACE.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        validator.cache_clear()


def written(value, depth=0):
    """Return JSON with what fits on a line on one line."""
    line = json.dumps(value, ensure_ascii=False)
    if len(line) + depth <= LINE or not isinstance(value, dict | list) or not value:
        return line
    inside, is_list = " " * (depth + 1), isinstance(value, list)
    parts = [
        inside + ("" if is_list else f"{json.dumps(key)}: ") + written(value[key], depth + 1)
        for key in (range(len(value)) if is_list else value)
    ]
    return "[{"[not is_list] + "\n" + ",\n".join(parts) + "\n" + " " * depth + "]}"[not is_list]


def infer(value):
    """Return the schema of one value."""
    match value:
        case None:
            return {"type": "null"}
        case bool():
            return {"type": "boolean"}
        case int():
            return {"type": "integer"}
        case float():
            return {"type": "number"}
        case str():
            return {"type": "string"}
        case list():
            items = None
            for item in value:
                items = union(items, infer(item))
            return {"type": "array"} | ({"items": items} if items else {})
    fields = {name: infer(item) for name, item in sorted(value.items())}
    return {"type": "object", "required": sorted(value), "properties": fields}


def union(one, other):
    """Return the schema of what either of two describes; words of the first are kept."""
    if not one or not other or one == other:
        return one or other
    kinds = {*types(one), *types(other)}
    kinds -= {"integer"} if "number" in kinds else set()
    found = {"type": min(kinds) if len(kinds) == 1 else sorted(kinds)} if kinds else {}
    found = {word: one[word] for word in KEPT if word in one} | found
    if "additionalProperties" in one:  # an object whose keys are data, or one that is specified elsewhere
        for part in other.get("properties", {}).values() if one["additionalProperties"] is not True else ():
            found["additionalProperties"] = union(found["additionalProperties"], part)
        return found
    if "items" in one or "items" in other:
        found["items"] = union(one.get("items"), other.get("items"))
    sides = [side for side in (one, other) if "properties" in side]
    if sides:
        found["required"] = sorted(set.intersection(*(set(side.get("required", ())) for side in sides)))
        names = sorted({name for side in sides for name in side["properties"]})
        parts = {name: [side["properties"][name] for side in sides if name in side["properties"]] for name in names}
        found["properties"] = {name: union(part[0], part[-1]) for name, part in parts.items()}
    return found


def types(schema):
    found = schema.get("type", [])
    return [found] if isinstance(found, str) else found
