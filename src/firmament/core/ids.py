"""Identifiers, each a type of its own, with the grammar each must match.

The grammars are what may appear in a path, a URL, a log line and an SQL value alike, so an
identifier that was checked once is safe everywhere (trust.md §9, 16).
"""

from __future__ import annotations

import re
from typing import Final, NewType

from firmament.errors import MalformedError

DeviceId = NewType("DeviceId", str)
"""Given by the server at enrolment; lower-case UUID."""
AttemptId = NewType("AttemptId", str)
"""One device x one release x one try; everything logs it; lower-case UUID."""
ReleaseId = NewType("ReleaseId", str)
"""``<product>/<version>``, unique for ever within a repository."""
ProductName = NewType("ProductName", str)
"""A product line, e.g. ``thermo-gateway``."""

PRODUCT: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
VERSION: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.+_-]{0,62}[A-Za-z0-9])?")
HARDWARE: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
TARGET_PATH: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*(?:/[A-Za-z0-9][A-Za-z0-9._+-]*){0,7}")
"""A TUF target path: no leading dot or slash in any element, so never ``..`` (case 24, pitfall 16)."""


def check(text: str, grammar: re.Pattern[str], *, what: str) -> str:
    """Return `text` unchanged if it fully matches `grammar`, else raise MalformedError."""
    if not grammar.fullmatch(text):
        raise MalformedError(f"{what} is not well formed", found=text[:80], pattern=grammar.pattern)
    return text


def product_name(text: str) -> ProductName:
    """Check a product name: lower-case letters, digits and inner hyphens, at most 63 characters."""
    return ProductName(check(text, PRODUCT, what="The product name"))


def release_id(product: str, version: str) -> ReleaseId:
    """Join product and version into the name of a release."""
    return ReleaseId(f"{product_name(product)}/{check(version, VERSION, what='The version')}")
