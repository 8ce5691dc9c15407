"""Names on the wire, in journals and in scripts are for ever: additions pass, changes fail (house rule 12).

`wire_names.json` holds what was published. `make docs` pins additions (it runs this file as a script,
which refuses to drop or change anything).
"""

import dataclasses
import importlib
import importlib.util
import json
import sys
from enum import StrEnum
from pathlib import Path

from firmament.cli import schemas
from firmament.core import manifest
from firmament.errors import error_classes
from firmament.protocol import parcel, status
from firmament.protocol.v1 import envelope, messages, paths

SNAPSHOT = Path(__file__).with_name("wire_names.json")


def words(kind: type[StrEnum]) -> dict[str, str]:
    return {member.value: member.name for member in kind}


def fields(cls: type) -> dict[str, str]:
    return {field.name: str(field.type) for field in dataclasses.fields(cls)}


def parts(schema: dict, path: str = "") -> dict[str, str]:
    """Every field of a JSON document, at any depth, with its type and whether it is always there; and its words."""
    found = {}
    for name, part in schema.get("properties", {}).items():
        always = "always" if name in schema.get("required", ()) else "sometimes"
        found[f"{path}{name}"] = f"{_type(part)}, {always}"
        found |= {f"{path}{name}={word}": "word" for word in part.get("enum", part.get("items", {}).get("enum", ()))}
        found |= parts(part, f"{path}{name}.")
        for word, sign in (("items", "[]"), ("additionalProperties", "{}")):
            if isinstance(part.get(word), dict):
                found |= parts(part[word], f"{path}{name}{sign}.")
    return found


def _type(part: dict) -> str:
    kinds = part.get("type", "const")
    inner = next((part[word] for word in ("items", "additionalProperties") if isinstance(part.get(word), dict)), None)
    return (kinds if isinstance(kinds, str) else "|".join(kinds)) + (f" of {_type(inner)}" if inner else "")


def documents() -> dict[str, dict[str, str]]:
    """The published schemas of what ``--json`` prints."""
    places = sorted((Path(__file__).parents[2] / "docs/reference/json").glob("*.json"))
    return {f"json schema {place.stem}": parts(json.loads(place.read_text())) for place in places}


def reference():
    """The script that walks commands and operations for the reference pages."""
    path = Path(__file__).parents[2] / "scripts/docs.py"
    spec = importlib.util.spec_from_file_location("docs_script", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def current() -> dict[str, dict[str, object]]:
    """Every published name that exists now."""
    script = reference()
    return {
        "attempt statuses": words(status.AttemptStatus),
        "outcomes": words(status.Outcome),
        "consent answers": words(status.ConsentAnswer),
        "update classes": words(manifest.UpdateClass),
        "paths": {name: value for name, value in vars(paths).items() if name.isupper()},
        "payload types": {
            "report": envelope.REPORT_TYPE,
            "consent": envelope.CONSENT_TYPE,
            "receipt": parcel.RECEIPT_TYPE,
        },
        "parcel kinds": words(parcel.ParcelKind),
        "manifest": fields(manifest.Manifest),
        "manifest.payloads[]": fields(manifest.Payload),
        "manifest.requires": fields(manifest.Requires),
        "manifest.preconditions": fields(manifest.Preconditions),
        **{
            f"message {cls.__name__}": fields(cls)
            for cls in (
                messages.EnrolRequest,
                messages.EnrolReply,
                messages.PollRequest,
                messages.PollReply,
                messages.Report,
                messages.ReportBatch,
                messages.ReportReply,
                messages.ConsentEvent,
                messages.ConsentBatch,
                messages.ConsentReply,
                parcel.Parcel,
                parcel.Member,
                parcel.Receipt,
                parcel.ReceiptFile,
                envelope.Envelope,
            )
        },
        "error codes": {
            cls.code: f"{cls.__name__} exit {cls.exit_code} status {cls.http_status}" for cls in error_classes()
        },
        "versions": {
            "protocol": messages.PROTOCOL_VERSION,
            "manifest": manifest.MANIFEST_VERSION,
        },
        **{
            f"python {name}": dict.fromkeys(importlib.import_module(name).__all__, "name")
            for name in ("firmament.agent", "firmament.protocol", "firmament.release", "firmament.trust")
        },
        **{
            f"command {name}": options
            for name, options in script.cli_tree().items()
            if not name.startswith(("firmament sim", "firmament demo"))  # for trying out: no promises
        },
        **documents(),
        **{f"json firmament.{name}/1": dict.fromkeys(row.split(), "always") for name, row in schemas.SCHEMAS.items()},
        **{f"operation {name}": fields for name, fields in script.operator_api().items()},
    }


def changes(published: dict, now: dict) -> list[str]:
    found = []
    for group, names in published.items():
        for name, value in names.items():
            if name not in now.get(group, {}):
                found.append(f"{group}: {name} is gone")
            elif now[group][name] != value:
                found.append(f"{group}: {name} was {value}, is {now[group][name]}")
    return found


def test_a_field_of_a_document_that_changes_is_found():
    """Without a new version: dropped, another type, no longer always there, a word less; more of them is no change."""
    field = {"type": "integer", "description": "x"}
    schema = {"required": ["a"], "properties": {"a": field, "b": {"type": "string", "enum": ["on", "off"]}}}
    pinned = {"g": parts(schema)}
    assert changes(pinned, {"g": parts(schema | {"properties": schema["properties"] | {"c": field}})}) == []
    for changed in (
        {"required": [], "properties": schema["properties"]},
        {"required": ["a"], "properties": {"a": field}},
        {"required": ["a"], "properties": schema["properties"] | {"a": {"type": "string"}}},
        {"required": ["a"], "properties": schema["properties"] | {"b": {"type": "string", "enum": ["on"]}}},
    ):
        assert changes(pinned, {"g": parts(changed)}) != []


def test_nothing_published_was_changed():
    assert changes(json.loads(SNAPSHOT.read_text()), current()) == []


def test_the_rule_finds_what_it_should():
    published = {"g": {"a": 1, "b": 2, "c": 3}}
    assert changes(published, {"g": {"a": 1, "b": 9, "d": 4}}) == ["g: b was 2, is 9", "g: c is gone"]
    assert changes(published, {}) == ["g: a is gone", "g: b is gone", "g: c is gone"]
    assert changes(published, {"g": {"a": 1, "b": 2, "c": 3, "new": 4}, "h": {}}) == []


def main() -> int:
    published = json.loads(SNAPSHOT.read_text()) if SNAPSHOT.exists() else {}
    if found := changes(published, current()):
        sys.stderr.write("\n".join(found) + "\nA published name is never changed; nothing was written.\n")
        return 1
    SNAPSHOT.write_text(json.dumps(current(), indent=1, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
