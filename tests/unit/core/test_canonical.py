"""Canonical JSON: what is signed has one spelling, and what is read has no second meaning."""

import pytest

from firmament.core import canonical
from firmament.errors import MalformedError, TooLargeError


def decode(data, limit_bytes=10_000):
    return canonical.decode(data, limit_bytes=limit_bytes, what="The input")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"b": 1, "a": [True, None, "é"]}, '{"a":[true,null,"é"],"b":1}'),
        ({"é": 1, "z": 2, "Z": 3}, '{"Z":3,"z":2,"é":1}'),  # by code point, not by language
        ({"\U00010000": 1, "\uffff": 2}, '{"\uffff":2,"\U00010000":1}'),  # not by UTF-16 unit
        ('a"\\\n\x00\x7f', '"a\\"\\\\\\n\\u0000\x7f"'),
        (2**63 - 1, "9223372036854775807"),
        ([], "[]"),
    ],
)
def test_canonical_form(value, expected):
    assert canonical.encode(value) == expected.encode()


@pytest.mark.parametrize(
    "value",
    [1.0, {"a": [float("nan")]}, {1: 2}, {"a": {True: 1}}, {"a": object()}, {"a": b"bytes"}, {1, 2}, "\ud800"],
)
def test_values_without_one_form_are_refused(value):
    with pytest.raises(MalformedError):
        canonical.encode(value)


def test_a_value_that_contains_itself_is_refused():
    loop = []
    loop.append(loop)
    with pytest.raises(MalformedError):
        canonical.encode(loop)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"nul",
        b'{"a":1,"a":2}',
        b'{"a":{"b":1,"b":1}}',
        b"NaN",
        b"-Infinity",
        b"1e999",
        b"1.5",
        b"1e3",
        b"12345678901234567890",  # 20 digits
        b"1" * 9000,
        b'\xef\xbb\xbf{"a":1}',  # byte order mark
        '{"a":1}'.encode("utf-16"),
        b'"\\ud800"',  # half a character
        b'"\xff"',
        b'{"a":1}{}',
        b"'a'",
        b"[1,]",
        b"]" * 40,
        b'{"a":"' + b"[" * 100,  # a string that never ends
    ],
)
def test_ambiguous_or_broken_json_is_refused(data):
    with pytest.raises(MalformedError):
        decode(data)


def test_depth_is_bounded_before_parsing():
    assert decode(b"[" * 32 + b"]" * 32)
    for deep in (b"[" * 33 + b"]" * 33, b'{"a":' * 33 + b"1" + b"}" * 33, b"[" * 2_000_000):
        with pytest.raises(MalformedError, match="nested deeper"):
            decode(deep, limit_bytes=3_000_000)


def test_brackets_inside_text_are_no_depth():
    assert decode(b'["' + b"[{" * 100 + b'\\"[[[","x"]') == ["[{" * 100 + '"[[[', "x"]


def test_length_is_bounded_before_anything_else():
    assert decode(b'"abc"', limit_bytes=5) == "abc"
    with pytest.raises(TooLargeError) as caught:
        decode(b"[[[[", limit_bytes=3)
    assert caught.value.facts == {"length_bytes": 4, "limit_bytes": 3}


def test_an_object_is_asked_for_and_named():
    assert canonical.decode_object(b'{"a":1}', limit_bytes=10, what="poll") == {"a": 1}
    with pytest.raises(MalformedError, match=r"poll is not a JSON object \(found=list\)"):
        canonical.decode_object(b"[]", limit_bytes=10, what="poll")
