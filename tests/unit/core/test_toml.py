"""Settings files: whatever is in them, a table or one kind of error."""

import pytest

from firmament.core import toml
from firmament.errors import MalformedError, TooLargeError


def decode(data, limit_bytes=100_000):
    return toml.decode(data, limit_bytes=limit_bytes, what="The settings file")


def test_a_table_comes_back():
    assert decode('[a]\nb = 1\nc = ["é"]\n'.encode()) == {"a": {"b": 1, "c": ["é"]}}
    assert decode(b"") == {}


@pytest.mark.parametrize(
    "data",
    [
        b"a",
        b"a = ",
        b"a = 1\na = 2",
        b"\xff",
        "a = 1".encode("utf-16"),
        b"a = " + b"1" * 5000,  # a bare ValueError of int()
        b"a = " + b"[" * 5000,  # a RecursionError
        b"a = {" * 5000,
        b'"\\ud800" = 1',
    ],
)
def test_everything_else_is_one_error(data):
    with pytest.raises(MalformedError, match="The settings file is not valid TOML"):
        decode(data)


def test_the_length_is_bounded_first():
    with pytest.raises(TooLargeError):
        decode(b"a = [[[[", limit_bytes=3)
