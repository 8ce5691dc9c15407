"""Read fields of untrusted JSON objects, one way everywhere.

    fields = Fields(decoded, what="manifest")
    version = fields.text("version", max_length=64)
    sequence_number = fields.integer("sequence_number", minimum=1)

A wrong field raises MalformedError naming the path, what was expected and what was found.
Unknown fields are kept by the caller if it re-writes the object, and ignored otherwise
(house rule 12).
"""

from __future__ import annotations

import base64
import binascii
import re
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, TypeVar

from firmament.errors import MalformedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

E = TypeVar("E", bound=StrEnum)
T = TypeVar("T")

MAX_INTEGER: Final = 2**63 - 1
_TIME: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")


class Fields:
    """A view of one JSON object; `what` is the path shown in errors, e.g. ``manifest.payloads[0]``."""

    def __init__(self, value: object, *, what: str) -> None:
        if not isinstance(value, dict):
            raise MalformedError(f"{what} must be an object", found=type(value).__name__)
        self.value: dict[str, Any] = value
        self.what = what

    def __contains__(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self.value.get(name) is not None

    def _get(self, name: str, kind: type, expected: str) -> Any:
        if name not in self.value:
            raise MalformedError(f"{self.what}.{name} is missing", expected=expected)
        found = self.value[name]
        if not isinstance(found, kind) or (kind is int and isinstance(found, bool)):
            raise MalformedError(
                f"{self.what}.{name} has the wrong type", expected=expected, found=type(found).__name__
            )
        return found

    def text(
        self, name: str, *, max_length: int = 256, pattern: re.Pattern[str] | None = None, default: str | None = None
    ) -> str:
        """Return a string of at most `max_length` characters that fully matches `pattern`."""
        found = self.value.get(name)
        if found is None and default is not None:
            return default
        if not isinstance(found, str):
            found = str(self._get(name, str, "text"))  # says what is wrong
        if len(found) > max_length:
            raise MalformedError(f"{self.what}.{name} is too long", length=len(found), limit=max_length)
        if pattern is not None and not pattern.fullmatch(found):
            raise MalformedError(f"{self.what}.{name} has characters that are not allowed", pattern=pattern.pattern)
        return found

    def integer(self, name: str, *, minimum: int = 0, maximum: int = MAX_INTEGER, default: int | None = None) -> int:
        """Return an integer within the bounds; booleans are not integers."""
        found = self.value.get(name)
        if found is None and default is not None:
            return default
        if type(found) is not int:
            found = int(self._get(name, int, "an integer"))  # says what is wrong
        if not minimum <= found <= maximum:
            raise MalformedError(f"{self.what}.{name} is out of range", found=found, minimum=minimum, maximum=maximum)
        return found

    def boolean(self, name: str, *, default: bool | None = None) -> bool:
        """Return true or false."""
        if default is not None and name not in self:
            return default
        found: bool = self._get(name, bool, "true or false")
        return found

    def hex_bytes(self, name: str, *, length: int) -> bytes:
        """Return exactly `length` bytes written as lower-case hexadecimal."""
        return bytes.fromhex(self.text(name, max_length=2 * length, pattern=_hex_of(length)))

    def base64_bytes(self, name: str, *, max_length: int) -> bytes:
        """Return at most `max_length` bytes written as standard base64."""
        text = self.text(name, max_length=4 * ((max_length + 2) // 3))
        try:
            found = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise MalformedError(f"{self.what}.{name} is not base64", reason=error) from error
        if len(found) > max_length:
            raise MalformedError(f"{self.what}.{name} is too long", length=len(found), limit=max_length)
        return found

    def time(self, name: str) -> datetime:
        """Return an aware UTC time written as ``2026-11-20T12:00:00Z``."""
        return parse_time(self.text(name, max_length=20), what=f"{self.what}.{name}")

    def one_of(self, name: str, kind: type[E], *, default: E | None = None) -> E:
        """Return a member of a wire enum; raises MalformedError naming the choices."""
        if default is not None and name not in self:
            return default
        found = self.text(name, max_length=64)
        try:
            return kind(found)
        except ValueError:
            raise MalformedError(
                f"{self.what}.{name} is not one of the known words", found=found, known=" ".join(kind)
            ) from None

    def object(self, name: str, *, optional: bool = False) -> Fields:
        """Return a nested object; with `optional`, an absent one is empty."""
        if optional and name not in self:
            return Fields({}, what=f"{self.what}.{name}")
        return Fields(self._get(name, dict, "an object"), what=f"{self.what}.{name}")

    def list(self, name: str, *, max_items: int, min_items: int = 0, optional: bool = False) -> list[Any]:
        """Return a list of `min_items` to `max_items`; with `optional`, an absent one is empty."""
        if optional and name not in self:
            return []
        found: list[Any] = self._get(name, list, "a list")
        if len(found) > max_items:
            raise MalformedError(f"{self.what}.{name} has too many items", items=len(found), limit=max_items)
        if len(found) < min_items:
            raise MalformedError(f"{self.what}.{name} has too few items", items=len(found), minimum=min_items)
        return found

    def objects(self, name: str, *, max_items: int, min_items: int = 0, optional: bool = False) -> Iterator[Fields]:
        """Yield the nested objects of a list."""
        items = self.list(name, max_items=max_items, min_items=min_items, optional=optional)
        for index, item in enumerate(items):
            yield Fields(item, what=f"{self.what}.{name}[{index}]")

    def texts(
        self,
        name: str,
        *,
        max_items: int,
        min_items: int = 0,
        max_length: int = 256,
        pattern: re.Pattern[str] | None = None,
        optional: bool = False,
    ) -> tuple[str, ...]:
        """Return the strings of a list."""
        items = self.list(name, max_items=max_items, min_items=min_items, optional=optional)
        for index, item in enumerate(items):
            if not isinstance(item, str) or len(item) > max_length or pattern is not None:
                Fields({"item": item}, what=f"{self.what}.{name}[{index}]").text(
                    "item", max_length=max_length, pattern=pattern
                )
        return tuple(items)

    def text_map(self, name: str, *, max_items: int, max_length: int, optional: bool = False) -> dict[str, str]:
        """Return an object whose keys and values are strings of at most `max_length` characters."""
        inner = self.object(name, optional=optional)
        if len(inner.value) > max_items:
            raise MalformedError(f"{inner.what} has too many entries", items=len(inner.value), limit=max_items)
        for key, value in inner.value.items():
            if len(key) > max_length:
                raise MalformedError(f"{inner.what} has a name that is too long", limit=max_length)
            if not isinstance(value, str) or len(value) > max_length:
                inner.text(key, max_length=max_length)  # says what is wrong with it
        return dict(inner.value)

    def maybe(self, name: str, read: Callable[[str], T]) -> T | None:
        """Apply a reader only when the field is there: ``fields.maybe("code", fields.text)``."""
        return read(name) if name in self else None


def format_time(moment: datetime) -> str:
    """Write an aware time as UTC to the second, ``2026-11-20T12:00:00Z``."""
    if moment.tzinfo is not UTC:
        moment = moment.astimezone(UTC)
    return f"{moment.isoformat()[:19]}Z"


def parse_time(text: str, *, what: str) -> datetime:
    """Read what `format_time` writes; raises MalformedError for any other form."""
    try:
        # The pattern first: fromisoformat reads many other spellings of the same moment.
        moment = datetime.fromisoformat(text) if _TIME.fullmatch(text) else None
    except ValueError:
        moment = None
    if moment is None:
        raise MalformedError(f"{what} is not a UTC time", expected="2026-11-20T12:00:00Z", found=text[:32])
    return moment


@lru_cache(maxsize=16)
def _hex_of(length: int) -> re.Pattern[str]:
    return re.compile(rf"[0-9a-f]{{{2 * length}}}")
