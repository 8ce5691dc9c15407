"""Reading other people's JSON: like `core.canonical`, but fractions are allowed (scores), kept as text."""

from __future__ import annotations

import json
from typing import Any, Final, NoReturn

from firmament.core.fields import Fields
from firmament.errors import MalformedError, TooLargeError

MAX_TEXT: Final = 1024


def read_object(data: bytes, *, limit_bytes: int, what: str) -> Fields:
    """Parse an object of at most `limit_bytes`; raises TooLargeError, MalformedError."""
    if len(data) > limit_bytes:
        raise TooLargeError(f"{what} is longer than allowed", length_bytes=len(data), limit_bytes=limit_bytes)
    try:
        value = json.loads(data.decode("utf-8-sig"), parse_float=str, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"{what} is not valid JSON", reason=error) from error
    return Fields(value, what=what)


def _refuse(text: str) -> NoReturn:
    msg = f"{text} is not a JSON number"
    raise ValueError(msg)


def word(fields: Fields, name: str, *, limit: int = MAX_TEXT) -> str:
    """Return a text of at most `limit` characters, cut; empty when it is absent or something else."""
    found: Any = fields.value.get(name)
    return "".join(char for char in found[:limit] if char.isprintable()) if isinstance(found, str) else ""


def objects(fields: Fields, name: str, *, limit: int) -> list[Fields]:
    """Return the objects of an optional list; raises TooLargeError above `limit`."""
    found = fields.value.get(name)
    if not isinstance(found, list):
        return []
    if len(found) > limit:
        raise TooLargeError(f"{fields.what}.{name} has too many entries", items=len(found), limit=limit)
    return [
        Fields(item, what=f"{fields.what}.{name}[{index}]")
        for index, item in enumerate(found)
        if isinstance(item, dict)
    ]
