"""``Range`` and the conditional headers of RFC 9110, for single ranges.

Anything that is not one well-formed byte range is ignored, as the RFC allows (14.2): the whole
body is always a right answer, and a resuming agent refuses a 200 it did not ask for by itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_RANGE: Final = re.compile(r"bytes=(\d{0,19})-(\d{0,19})")
MAX_HEADER_LENGTH: Final = 128


@dataclass(frozen=True, slots=True)
class ByteRange:
    """First offset, and the length; never empty."""

    offset: int
    length_bytes: int


class Unsatisfiable(Exception):  # noqa: N818 - the RFC's word; answered with 416, not an error of ours
    """The range lies behind the end (RFC 9110 section 14.1.2)."""


def parse_range(text: str | None, total_bytes: int) -> ByteRange | None:
    """Return the part that is asked for, None for the whole; raises Unsatisfiable."""
    match = _RANGE.fullmatch(text) if text is not None and len(text) <= MAX_HEADER_LENGTH else None
    if match is None or (not match[1] and not match[2]):
        return None
    if not match[1]:
        suffix = min(int(match[2]), total_bytes)
        if suffix == 0:
            raise Unsatisfiable
        return ByteRange(total_bytes - suffix, suffix)
    first = int(match[1])
    last = min(int(match[2]), total_bytes - 1) if match[2] else total_bytes - 1
    if match[2] and int(match[2]) < first:
        return None
    if first >= total_bytes:
        raise Unsatisfiable
    return ByteRange(first, last - first + 1)


def names_etag(text: str | None, etag: str) -> bool:
    """Whether an ``If-None-Match`` lists this entity tag (weak comparison) or ``*``."""
    if text is None or len(text) > 16 * MAX_HEADER_LENGTH:
        return False
    return text.strip() == "*" or etag in {part.strip().removeprefix("W/") for part in text.split(",")}


def allows_range(if_range: str | None, etag: str) -> bool:
    """Whether ``If-Range`` still holds (strong comparison); a date never does: tags are stronger."""
    return if_range is None or if_range.strip() == etag
