"""One encrypted file, written and read as a stream: a backup holds every key of a server.

``FMBK1`` and a 16-byte salt; then frames of at most 1 MiB, each a 4-byte length and ChaCha20-Poly1305
over it. The key is scrypt of the passphrase; the nonce is the frame's number, and whether it is
the last is authenticated, so that frames cannot be changed, swapped, dropped or cut off.
"""

from __future__ import annotations

import io
import secrets
from typing import TYPE_CHECKING, BinaryIO, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from firmament.errors import MalformedError, PassphraseError

if TYPE_CHECKING:
    from typing_extensions import Buffer

MAGIC: Final = b"FMBK1"
SALT_BYTES: Final = 16
FRAME_BYTES: Final = 1024 * 1024
TAG_BYTES: Final = 16
SCRYPT_LOG2_N: Final = 16
"""64 MiB and about a fifth of a second: what a thief of the file pays for each guess."""


def _cipher(passphrase: bytes, salt: bytes) -> ChaCha20Poly1305:
    return ChaCha20Poly1305(Scrypt(salt=salt, length=32, n=2**SCRYPT_LOG2_N, r=8, p=1).derive(passphrase))


class SealedWriter(io.RawIOBase):
    """Write plain bytes; call `finish` at the end, else the file is refused as cut off."""

    def __init__(self, file: BinaryIO, passphrase: bytes) -> None:
        salt = secrets.token_bytes(SALT_BYTES)
        self._file = file
        self._cipher = _cipher(passphrase, salt)
        self._pending = bytearray()
        self._number = 0
        file.write(MAGIC + salt)

    def writable(self) -> bool:
        """See the base."""
        return True

    def write(self, data: Buffer, /) -> int:
        """See the base."""
        view = bytes(data)
        self._pending += view
        while len(self._pending) > FRAME_BYTES:
            self._frame(bytes(self._pending[:FRAME_BYTES]), is_last=False)
            del self._pending[:FRAME_BYTES]
        return len(view)

    def finish(self) -> None:
        """Write what is pending as the last frame."""
        self._frame(bytes(self._pending), is_last=True)
        self._pending.clear()

    def _frame(self, data: bytes, *, is_last: bool) -> None:
        sealed = self._cipher.encrypt(_nonce(self._number), data, _associated(is_last=is_last))
        self._file.write(len(sealed).to_bytes(4) + sealed)
        self._number += 1


class SealedReader(io.RawIOBase):
    """Read plain bytes; raises PassphraseError, or MalformedError for a file that was changed or cut off."""

    def __init__(self, file: BinaryIO, passphrase: bytes) -> None:
        head = file.read(len(MAGIC) + SALT_BYTES)
        if len(head) != len(MAGIC) + SALT_BYTES or not head.startswith(MAGIC):
            raise MalformedError("This is not a backup of a server")
        self._file = file
        self._cipher = _cipher(passphrase, head[len(MAGIC) :])
        self._number = 0
        self._plain = b""
        self._is_over = False

    def readable(self) -> bool:
        """See the base."""
        return True

    def read(self, size: int = -1, /) -> bytes:
        """See the base; `size` bytes, fewer only at the end."""
        parts: list[bytes] = []
        wanted = size
        while wanted != 0:
            if not self._plain and not self._next():
                break
            part = self._plain if wanted < 0 else self._plain[:wanted]
            self._plain = self._plain[len(part) :]
            parts.append(part)
            wanted -= len(part) if wanted > 0 else 0
        return b"".join(parts)

    def _next(self) -> bool:
        if self._is_over:
            return False
        length = int.from_bytes(self._file.read(4))
        sealed = self._file.read(length) if TAG_BYTES <= length <= FRAME_BYTES + TAG_BYTES else b""
        if not sealed or len(sealed) != length:
            raise MalformedError("The backup was cut off or changed", frame=self._number)
        for is_last in (False, True):
            try:
                self._plain = self._cipher.decrypt(_nonce(self._number), sealed, _associated(is_last=is_last))
            except InvalidTag:
                continue
            if is_last and self._file.read(1):
                raise MalformedError("Something was added to the backup", frame=self._number)
            self._is_over = is_last
            self._number += 1
            return bool(self._plain) or not is_last
        if self._number == 0:
            raise PassphraseError("The passphrase is wrong, or the backup was changed")
        raise MalformedError("The backup was changed", frame=self._number)


def _nonce(number: int) -> bytes:
    return number.to_bytes(12)


def _associated(*, is_last: bool) -> bytes:
    return b"last" if is_last else b"more"
