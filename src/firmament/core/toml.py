"""Read settings files: TOML 1.0 by the standard library, with a ceiling and one kind of error.

`tomllib` raises RecursionError for deep nesting and a bare ValueError for a number of 5000 digits;
a person who made a mistake in a file gets a sentence instead.
"""

from __future__ import annotations

import tomllib
from typing import Any

from firmament.errors import MalformedError, TooLargeError


def decode(data: bytes, *, limit_bytes: int, what: str) -> dict[str, Any]:
    """Return the top table; raises TooLargeError above the ceiling, MalformedError for all that is not TOML."""
    if len(data) > limit_bytes:
        raise TooLargeError(f"{what} is longer than allowed", length_bytes=len(data), limit_bytes=limit_bytes)
    try:
        return tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"{what} is not valid TOML", reason=error) from error
