"""Digests as values: an algorithm from a short list and its bytes.

SHA-256 and SHA-512 only; anything weaker or unknown is refused when it is read, however well
it is signed (trust.md §1.3, case 27).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from firmament.errors import DigestMismatchError, MalformedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

ALLOWED: Final = {"sha256": 32, "sha512": 64}
"""Algorithm name as in TUF metadata, and digest length in bytes."""
_HEX: Final = re.compile(r"(?:[0-9a-f]{2})*")
# bytes.fromhex also reads capitals and white space: several spellings of one digest.


@dataclass(frozen=True, slots=True)
class Digest:
    """``Digest("sha256", <32 bytes>)``; `str` gives ``sha256:<hex>``."""

    algorithm: str
    value: bytes

    def __post_init__(self) -> None:
        """Refuse algorithms that are not allowed and values of the wrong length."""
        if ALLOWED.get(self.algorithm) != len(self.value):
            raise MalformedError("Not a digest that is allowed", algorithm=self.algorithm, allowed=" ".join(ALLOWED))

    def __str__(self) -> str:
        """Return ``algorithm:hex``."""
        return f"{self.algorithm}:{self.hex}"

    @property
    def hex(self) -> str:
        """The value as lower-case hexadecimal."""
        return self.value.hex()

    @classmethod
    def of(cls, data: bytes | Iterable[bytes], algorithm: str = "sha256") -> Self:
        """Digest bytes, or an iterable of chunks."""
        hasher = hashlib.new(algorithm)
        for chunk in (data,) if isinstance(data, bytes | bytearray | memoryview) else data:
            hasher.update(chunk)
        return cls(algorithm, hasher.digest())

    @classmethod
    def from_json(cls, value: object, *, what: str) -> Self:
        """Read TUF's ``{"sha256": "<hex>"}``; of several, the strongest allowed one counts."""
        if not isinstance(value, dict):
            raise MalformedError(f"{what} is not a digest", expected='{"sha256": "<hex>"}')
        for algorithm in reversed(ALLOWED):
            if algorithm in value:
                text = value[algorithm]
                if not isinstance(text, str) or not _HEX.fullmatch(text):
                    raise MalformedError(f"{what} is not lower-case hexadecimal", algorithm=algorithm)
                return cls(algorithm, bytes.fromhex(text))
        raise MalformedError(f"{what} has no digest that is allowed", allowed=" ".join(ALLOWED))

    def to_json(self) -> dict[str, str]:
        """Write as TUF does, ``{"sha256": "<hex>"}``."""
        return {self.algorithm: self.hex}

    def require(self, actual: Digest, *, what: str) -> None:
        """Raise DigestMismatchError unless `actual` is this digest."""
        if actual != self:
            raise DigestMismatchError(f"{what} has another digest than was signed", expected=self, got=actual)


def strongest(hashes: Mapping[str, str], *, what: str) -> Digest:
    """Read a TUF ``hashes`` mapping."""
    return Digest.from_json(dict(hashes), what=what)
