"""The published JSON Schemas and the decoders say the same, in both directions."""

import copy
import json
import re
from importlib import resources

import jsonschema
import pytest
import strategies
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from firmament.core import canonical, manifest
from firmament.errors import FirmamentError
from firmament.protocol.v1 import envelope, messages

SCHEMAS = resources.files("firmament.protocol") / "schemas"


def load(name):
    return json.loads((SCHEMAS / f"{name}.json").read_text())


def ecma_pattern(validator, pattern, instance, schema):
    """JSON Schema's `$` is the very end; Python's also matches before a final newline."""
    if isinstance(instance, str) and not re.search(re.sub(r"\$$", r"\\Z", pattern), instance):
        yield jsonschema.ValidationError(f"{instance!r} does not match {pattern!r}")


validator = jsonschema.validators.extend(Draft202012Validator, {"pattern": ecma_pattern})
MESSAGES = load("messages-1")


def message_form(name):
    return validator({"$schema": MESSAGES["$schema"], "$ref": f"#/$defs/{name}", "$defs": MESSAGES["$defs"]})


def over_the_wire(decode):
    return lambda value: decode(canonical.encode(value))


FORMS = {
    "manifest": (strategies.manifests, validator(load("manifest-1")), manifest.decode),
    "envelope": (
        strategies.envelopes,
        message_form("envelope"),
        lambda value: envelope.open_envelope(value, expected_type=envelope.REPORT_TYPE),
    ),
    **{
        name: (getattr(strategies, plural), message_form(name), over_the_wire(getattr(messages, f"decode_{name}")))
        for name, plural in {
            "enrol_request": "enrol_requests",
            "enrol_reply": "enrol_replies",
            "poll_request": "poll_requests",
            "poll_reply": "poll_replies",
            "report": "reports",
            "report_batch": "report_batches",
            "report_reply": "report_replies",
            "consent_event": "consent_events",
            "consent_batch": "consent_batches",
            "consent_reply": "consent_replies",
        }.items()
    },
}
forms = pytest.mark.parametrize("form", sorted(FORMS))
mutants = strategies.json_values | st.sampled_from(
    ["", "a", "A", "rpi*", "../x", "1.0\n", "0" * 64, "2026-11-20T12:00:00Z", 0, 1, -1, 2**63, {"sha256": "0" * 64}]
)


def mutate(value, data):
    """Change, add or remove one thing, at any depth."""
    value = copy.deepcopy(value)
    place = value
    while True:
        key = data.draw(st.sampled_from(sorted(place)) if isinstance(place, dict) else st.integers(0, len(place) - 1))
        inner = place[key]
        if not isinstance(inner, dict | list) or not inner or data.draw(st.booleans()):
            break
        place = inner
    if isinstance(place, dict) and data.draw(st.booleans()):
        del place[key]
    else:
        place[key] = data.draw(mutants)
    return value


def test_every_message_has_a_schema():
    assert set(MESSAGES["$defs"]) == set(FORMS) - {"manifest"}


@forms
def test_the_schema_is_a_schema(form):
    Draft202012Validator.check_schema(FORMS[form][1].schema)


@forms
@given(data=st.data())
def test_what_we_write_fits_the_schema(form, data):
    values, schema, _ = FORMS[form]
    schema.validate(data.draw(values).to_json())


@forms
@given(data=st.data())
def test_what_fits_the_schema_is_accepted(form, data):
    values, schema, decode = FORMS[form]
    value = mutate(data.draw(values).to_json(), data)
    if schema.is_valid(value):
        decode(value)


@forms
@given(data=st.data())
def test_what_is_accepted_fits_the_schema_once_written_again(form, data):
    values, schema, decode = FORMS[form]
    value = mutate(data.draw(values).to_json(), data)
    try:
        accepted = decode(value)
    except FirmamentError:
        return
    schema.validate(accepted.to_json())


def test_ceilings_are_those_of_the_code():
    limits = {name: schema.get("x-limit-bytes") for name, schema in MESSAGES["$defs"].items()}
    assert limits.pop("poll_reply") == messages.MAX_POLL_REPLY_LENGTH_BYTES
    assert limits.pop("envelope") is None
    assert set(limits.values()) == {messages.MAX_REQUEST_LENGTH_BYTES}
    assert FORMS["manifest"][1].schema["x-limit-bytes"] == manifest.MAX_MANIFEST_LENGTH_BYTES


@forms
def test_the_schema_names_every_field_and_no_other(form):
    _, schema, _ = FORMS[form]
    schema = MESSAGES["$defs"].get(form, schema.schema)
    written = set()

    @given(FORMS[form][0])
    def collect(value):
        written.update(value.to_json())

    collect()
    assert set(schema["properties"]) == written
