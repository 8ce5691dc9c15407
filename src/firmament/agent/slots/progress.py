"""What every slot session keeps: how far it is, and the running digest of what was written."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from firmament.core.digest import Digest
from firmament.errors import DigestMismatchError, LengthExceededError

if TYPE_CHECKING:
    from firmament.core.manifest import Image


class Progress:
    """The image bytes taken so far."""

    def __init__(self, image: Image) -> None:
        self.image = image
        self.offset = 0
        """Length of what was taken, in bytes."""
        self._hasher = hashlib.new(image.digest.algorithm)

    def take(self, data: bytes | bytearray | memoryview) -> None:
        """Count and digest `data`; raises LengthExceededError, changing nothing, past the signed length."""
        if self.offset + len(data) > self.image.length_bytes:
            raise LengthExceededError(
                "The image is longer than was signed",
                signed_bytes=self.image.length_bytes,
                got_at_least_bytes=self.offset + len(data),
            )
        self._hasher.update(data)
        self.offset += len(data)

    def require_complete(self) -> None:
        """Raise DigestMismatchError unless what was taken is the signed image."""
        if self.offset != self.image.length_bytes:
            raise DigestMismatchError(
                "The image is shorter than was signed", signed_bytes=self.image.length_bytes, got_bytes=self.offset
            )
        self.image.digest.require(Digest(self.image.digest.algorithm, self._hasher.digest()), what="The image")
