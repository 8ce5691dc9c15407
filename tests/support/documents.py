"""Every JSON document that a test gets from a command is held against its published schema (docs/reference/json).

    value = documents.loads(done.stdout)

A new document, or a field more, is written down by running its test with WRITE_DOCUMENTS=1: the schema
is widened by what was seen. Look at the difference before it is committed: a field that is required
there is a promise.
"""

import json
import os
from functools import cache
from pathlib import Path

from jsonschema import Draft202012Validator

from firmament.cli.schemas import SCHEMAS

PLACE = Path(__file__).parents[2] / "docs/reference/json"
WRITE = "WRITE_DOCUMENTS"
MAPS = {"facts", "counts", "tables", "files", "pages", "attributes", "roles", "versions", "as_assumed", "bad_build",
        "repository", "identity", "sums", "modes", "labels", "consent_counts", "by_status", "languages"}  # fmt: skip
"""Objects whose keys are data, not fields."""


def loads(text):
    """Read what a command printed, and check it."""
    return check(json.loads(text))


def check(value):
    """Return a document, after it was held against its schema."""
    name, _, version = value["schema"].removeprefix("firmament.").partition("/")
    assert name in SCHEMAS, name
    assert version == "1", value["schema"]
    if os.environ.get(WRITE):
        widen(name, value)
    problems = [f"{error.json_path}: {error.message}" for error in validator(name).iter_errors(value)]
    assert problems == [], name
    return value


def check_lines(text):
    """Check a document a line."""
    return [check(json.loads(line)) for line in text.splitlines() if line.startswith("{")]


def path_of(name):
    return PLACE / f"{name}-1.json"


@cache
def validator(name):
    return Draft202012Validator(json.loads(path_of(name).read_text()))


# --- writing them down -----------------------------------------------------------------------


def widen(name, value):
    """Widen a schema by a document, and write it."""
    path = path_of(name)
    before = json.loads(path.read_text()) if path.exists() else None
    found = union(before, infer(value))
    found = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"firmament.{name}/1",
        **{key: found[key] for key in found if key not in {"$schema", "title"}},
    }
    found["properties"]["schema"] = {"const": f"firmament.{name}/1"}
    text = json.dumps(found, indent=1, sort_keys=False, ensure_ascii=False) + "\n"
    if before is None or path.read_text() != text:
        PLACE.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        validator.cache_clear()


def infer(value, key=""):
    match value:
        case None:
            return {}
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
            return {"type": "array", "items": items or {}}
        case dict() if key in MAPS:
            values = None
            for item in value.values():
                values = union(values, infer(item))
            return {"type": "object", "additionalProperties": values or {}}
    fields = {name: infer(item, name) for name, item in value.items()}
    return {"type": "object", "required": sorted(value), "properties": dict(sorted(fields.items()))}


def union(one, other):
    """Return the schema of what either of two describes."""
    if one is None or one == other:
        return other
    if not one or not other:
        return one or other if "null" in types(one or other) else nullable(one or other)
    kinds = sorted({*types(one), *types(other)} - ({"integer"} if "number" in types(one) + types(other) else set()))
    found = {"type": kinds[0] if len(kinds) == 1 else kinds}
    for side in (one, other):
        for word in ("items", "additionalProperties"):
            if word in side:
                found[word] = union(found.get(word), side[word]) if word in found else side[word]
    both = [side for side in (one, other) if "properties" in side]
    if both:
        names = sorted({name for side in both for name in side["properties"]})
        found["required"] = sorted(set.intersection(*(set(side["required"]) for side in both)))
        found["properties"] = {}
        for name in names:
            parts = [side["properties"][name] for side in both if name in side["properties"]]
            found["properties"][name] = union(*parts) if len(parts) == 2 else parts[0]
    return found


def types(schema):
    found = schema.get("type", [])
    return [found] if isinstance(found, str) else found


def nullable(schema):
    return {**schema, "type": sorted({*types(schema), "null"})} if "type" in schema else schema
