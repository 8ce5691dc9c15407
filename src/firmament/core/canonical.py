"""One byte string for one JSON value, and a reader that trusts nothing.

`encode` is the canonical form that is signed and digested: keys sorted by code point, no
white space, UTF-8, integers only (a float has several spellings). `decode` is the only JSON
reader for bytes from outside: it has a ceiling on length, depth and digits and refuses
duplicate keys, fractions, NaN, byte order marks and lone surrogates. So everything that `decode`
accepts has a canonical form, and `decode(encode(value)) == value`.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final, NoReturn

from firmament.errors import MalformedError, TooLargeError

Json = None | bool | int | str | list[Any] | dict[str, Any]

MAX_DEPTH: Final = 32
# A manifest nests 5 deep, TUF metadata 7. CPython's own limit (about 1000) costs a stack overflow
# to find; 32 leaves room for growth.
MAX_DIGITS: Final = 19
# 2^63-1 has 19 digits; TUF versions, lengths and times all fit into 64 bits.
MAX_ITEMS: Final = 4_000_000
# 100 000 targets in one metadata file have about 1.5 million values (trust.md §1.4).

_STRING: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_BRACKET: Final = re.compile(rb"[\[\]{}]")
_TEXT: Final = frozenset({str})
_PLAIN: Final = frozenset({str, int, bool, type(None)})
"""Types of values that have one form by themselves; what is of another is looked at."""
_ENCODER: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
# Made once: every poll encodes and decodes, and making the object costs as much as a short text.


def encode(value: Json) -> bytes:
    """Return the canonical bytes of `value`; raises MalformedError for floats and non-JSON types."""
    _refuse_ambiguity(value)
    try:
        return _ENCODER.encode(value).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise MalformedError("This value has no canonical JSON form", reason=error) from error


def decode(data: bytes, *, limit_bytes: int, what: str) -> Json:
    """Parse `data`, at most `limit_bytes` long; `what` names it in the error.

    Raises TooLargeError above the ceiling and MalformedError for everything that is not
    plain, unambiguous JSON.
    """
    if len(data) > limit_bytes:
        raise TooLargeError(f"{what} is longer than allowed", length_bytes=len(data), limit_bytes=limit_bytes)
    if data.count(b"{") + data.count(b"[") > MAX_DEPTH:  # fewer brackets cannot nest deeper
        _refuse_depth(data, what)
    try:
        value: Json = _DECODER.decode(data.decode("utf-8"))
        if b"\\u" in data:  # UTF-8 has no lone surrogates; an escape can write one
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"{what} is not valid JSON", reason=error) from error
    return value


def decode_object(data: bytes, *, limit_bytes: int, what: str) -> dict[str, Any]:
    """As `decode`, and the value must be an object."""
    value = decode(data, limit_bytes=limit_bytes, what=what)
    if not isinstance(value, dict):
        raise MalformedError(f"{what} is not a JSON object", found=type(value).__name__)
    return value


def _refuse_ambiguity(value: object) -> None:
    # json.dumps would write the key 1 as "1" and True as "true": two values, one form.
    stack = [value]
    seen = 0
    while stack:
        item = stack.pop()
        seen += 1
        if seen > MAX_ITEMS:
            raise MalformedError("This value is too large for canonical JSON, or contains itself", limit=MAX_ITEMS)
        if isinstance(item, float):
            raise MalformedError("A number with a fraction has no canonical JSON form", value=item)
        if isinstance(item, dict):
            if not _TEXT.issuperset(map(type, item)) and not all(isinstance(key, str) for key in item):
                raise MalformedError("An object whose keys are not all text has no canonical JSON form")
            stack.extend([inner for inner in item.values() if type(inner) not in _PLAIN])
            seen += len(item)
        elif isinstance(item, list | tuple):
            stack.extend([inner for inner in item if type(inner) not in _PLAIN])
            seen += len(item)


def _refuse_depth(data: bytes, what: str) -> None:
    # Brackets inside strings do not count: notes may hold them. A string that never ends stays in,
    # and is refused by the parser whatever the depth.
    depth = 0
    for bracket in _BRACKET.findall(_STRING.sub(b"", data)):
        if bracket in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise MalformedError(f"{what} is nested deeper than allowed", limit=MAX_DEPTH)
        else:
            depth -= 1


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys: set[str] = set()
        for key, _ in pairs:
            if key in keys:
                msg = f"the key {key!r} appears twice"
                raise ValueError(msg)
            keys.add(key)
    return found


def _refuse_constant(name: str) -> NoReturn:
    msg = f"{name} is not a JSON number"
    raise ValueError(msg)


def _refuse_fraction(text: str) -> NoReturn:
    msg = f"{text[:32]} is not an integer"
    raise ValueError(msg)


def _bounded_int(text: str) -> int:
    if len(text) > MAX_DIGITS and len(text.lstrip("-")) > MAX_DIGITS:
        msg = f"a number has more than {MAX_DIGITS} digits"
        raise ValueError(msg)
    return int(text)


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_refuse_duplicates,
    parse_constant=_refuse_constant,
    parse_int=_bounded_int,
    parse_float=_refuse_fraction,
)
