"""Fields: each wrong field is named with its path, what was expected and what was found."""

import re
from datetime import UTC, datetime, timedelta, timezone

import pytest

from firmament.core.fields import Fields, format_time, parse_time
from firmament.errors import MalformedError
from firmament.protocol.status import AttemptStatus

FIELDS = Fields(
    {
        "text": "abc",
        "number": 7,
        "yes": True,
        "null": None,
        "hex": "00ff",
        "base64": "AAEC",
        "time": "2026-11-20T12:00:00Z",
        "word": "trial",
        "object": {"inner": 1},
        "list": ["a", "b"],
        "objects": [{"n": 1}, {"n": "x"}],
        "map": {"en": "hello"},
    },
    what="thing",
)


def test_values_come_back_with_their_types():
    assert FIELDS.text("text", pattern=re.compile("[a-c]+")) == "abc"
    assert FIELDS.integer("number", minimum=7, maximum=7) == 7
    assert FIELDS.boolean("yes") is True
    assert FIELDS.hex_bytes("hex", length=2) == b"\x00\xff"
    assert FIELDS.base64_bytes("base64", max_length=3) == b"\x00\x01\x02"
    assert FIELDS.time("time") == datetime(2026, 11, 20, 12, tzinfo=UTC)
    assert FIELDS.one_of("word", AttemptStatus) is AttemptStatus.TRIAL
    assert FIELDS.object("object").integer("inner") == 1
    assert FIELDS.list("list", max_items=2, min_items=2) == ["a", "b"]
    assert FIELDS.texts("list", max_items=2) == ("a", "b")
    assert next(FIELDS.objects("objects", max_items=2)).integer("n") == 1
    assert FIELDS.text_map("map", max_items=1, max_length=5) == {"en": "hello"}
    assert FIELDS.maybe("text", FIELDS.text) == "abc"


def test_absent_and_null_give_the_default():
    for name in ("absent", "null"):
        assert name not in FIELDS
        assert FIELDS.text(name, default="d") == "d"
        assert FIELDS.integer(name, default=0) == 0
        assert FIELDS.boolean(name, default=False) is False
        assert FIELDS.one_of(name, AttemptStatus, default=AttemptStatus.TRIAL) is AttemptStatus.TRIAL
        assert FIELDS.object(name, optional=True).value == {}
        assert FIELDS.list(name, max_items=1, optional=True) == []
        assert FIELDS.maybe(name, FIELDS.text) is None


@pytest.mark.parametrize(
    ("read", "sentence"),
    [
        (lambda f: f.text("absent"), "thing.absent is missing (expected=text)"),
        (lambda f: f.text("null"), "thing.null has the wrong type (expected=text, found=NoneType)"),
        (lambda f: f.text("number", default="d"), "thing.number has the wrong type (expected=text, found=int)"),
        (lambda f: f.text("text", max_length=2), "thing.text is too long (length=3, limit=2)"),
        (
            lambda f: f.text("text", pattern=re.compile("ab")),
            "thing.text has characters that are not allowed (pattern=ab)",
        ),
        (lambda f: f.integer("yes"), "thing.yes has the wrong type (expected=an integer, found=bool)"),
        (
            lambda f: f.integer("number", minimum=8),
            "thing.number is out of range (found=7, minimum=8, maximum=9223372036854775807)",
        ),
        (lambda f: f.integer("number", maximum=6), "thing.number is out of range (found=7, minimum=0, maximum=6)"),
        (lambda f: f.boolean("number"), "thing.number has the wrong type (expected=true or false, found=int)"),
        (lambda f: f.hex_bytes("hex", length=1), "thing.hex is too long (length=4, limit=2)"),
        (
            lambda f: f.hex_bytes("text", length=2),
            "thing.text has characters that are not allowed (pattern=[0-9a-f]{4})",
        ),
        (lambda f: f.base64_bytes("text", max_length=9), "thing.text is not base64 (reason=Incorrect padding)"),
        (lambda f: f.base64_bytes("base64", max_length=2), "thing.base64 is too long (length=3, limit=2)"),
        (lambda f: f.time("text"), "thing.text is not a UTC time (expected=2026-11-20T12:00:00Z, found=abc)"),
        (lambda f: f.object("list"), "thing.list has the wrong type (expected=an object, found=list)"),
        (lambda f: f.list("object", max_items=1), "thing.object has the wrong type (expected=a list, found=dict)"),
        (lambda f: f.list("list", max_items=1), "thing.list has too many items (items=2, limit=1)"),
        (lambda f: f.texts("list", min_items=3, max_items=9), "thing.list has too few items (items=2, minimum=3)"),
        (
            lambda f: [o.integer("n") for o in f.objects("objects", max_items=2)],
            "thing.objects[1].n has the wrong type (expected=an integer, found=str)",
        ),
        (
            lambda f: f.text_map("object", max_items=9, max_length=9),
            "thing.object.inner has the wrong type (expected=text, found=int)",
        ),
        (lambda f: f.text_map("map", max_items=0, max_length=9), "thing.map has too many entries (items=1, limit=0)"),
        (lambda f: f.text_map("map", max_items=1, max_length=1), "thing.map has a name that is too long (limit=1)"),
        (lambda f: f.text_map("map", max_items=1, max_length=2), "thing.map.en is too long (length=5, limit=2)"),
    ],
)
def test_each_wrong_field_is_named(read, sentence):
    with pytest.raises(MalformedError) as caught:
        read(FIELDS)
    assert str(caught.value).startswith(sentence + ". ")


def test_an_unknown_word_names_the_known_ones():
    with pytest.raises(MalformedError) as caught:
        FIELDS.one_of("text", AttemptStatus)
    assert caught.value.facts["found"] == "abc"
    assert "staged" in caught.value.facts["known"].split()


def test_only_an_object_has_fields():
    with pytest.raises(MalformedError, match=r"thing must be an object \(found=list\)"):
        Fields([], what="thing")


@pytest.mark.parametrize(
    "text",
    [
        "2026-1-2T3:4:5Z",
        "2026-11-20t12:00:00z",
        "2026-11-20T12:00:00",
        "2026-11-20T12:00:00+00:00",
        "2026-11-20 12:00:00Z",
        "2026-11-20T12:00:00.5Z",
        "2026-11-20T12:00:60Z",
        "2026-02-30T12:00:00Z",
        "2026-11-20T24:00:00Z",
        "２026-11-20T12:00:00Z",  # noqa: RUF001 - digits of another script
        "2026-11-20T12:00:00Z\n",
        "",
    ],
)
def test_a_time_has_one_spelling(text):
    with pytest.raises(MalformedError):
        parse_time(text, what="at")


def test_times_are_written_as_utc_to_the_second():
    moment = datetime(2026, 1, 2, 3, 4, 5, 999_999, tzinfo=timezone(timedelta(hours=2)))
    assert format_time(moment) == "2026-01-02T01:04:05Z"
    assert format_time(datetime(33, 1, 1, tzinfo=UTC)) == "0033-01-01T00:00:00Z"
