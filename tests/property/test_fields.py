"""Whatever JSON comes, each reader answers with a value in its bounds or with MalformedError."""

import strategies
from hypothesis import given
from hypothesis import strategies as st

from firmament.core.fields import Fields, format_time, parse_time
from firmament.errors import MalformedError
from firmament.protocol.status import AttemptStatus

READERS = {
    "text": (lambda f: f.text("x", max_length=5), lambda v: isinstance(v, str) and len(v) <= 5),
    "integer": (lambda f: f.integer("x", minimum=-3, maximum=9), lambda v: type(v) is int and -3 <= v <= 9),
    "boolean": (lambda f: f.boolean("x"), lambda v: v is True or v is False),
    "hex": (lambda f: f.hex_bytes("x", length=2), lambda v: len(v) == 2),
    "base64": (lambda f: f.base64_bytes("x", max_length=5), lambda v: len(v) <= 5),
    "time": (lambda f: f.time("x"), lambda v: v.tzinfo is not None),
    "word": (lambda f: f.one_of("x", AttemptStatus), lambda v: v in AttemptStatus),
    "object": (lambda f: f.object("x").value, lambda v: isinstance(v, dict)),
    "list": (lambda f: f.list("x", min_items=1, max_items=2), lambda v: 1 <= len(v) <= 2),
    "texts": (lambda f: f.texts("x", max_items=2, max_length=3), lambda v: all(len(t) <= 3 for t in v)),
    "map": (
        lambda f: f.text_map("x", max_items=2, max_length=3),
        lambda v: all(len(k) <= 3 and len(t) <= 3 for k, t in v.items()),
    ),
}
values = strategies.json_values | st.floats() | st.text("0123456789abcdef=AZ-:T+/", max_size=24)


@given(st.sampled_from(sorted(READERS)), values)
def test_readers_return_what_they_promise_or_refuse(name, value):
    read, is_promised = READERS[name]
    try:
        found = read(Fields({"x": value}, what="thing"))
    except MalformedError as error:
        refusal = str(error)
    else:
        assert is_promised(found)
        return
    assert refusal.startswith("thing.x")


@given(strategies.times)
def test_a_time_survives_the_wire(moment):
    assert parse_time(format_time(moment), what="at") == moment
