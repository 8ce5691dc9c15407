"""Secrets of people at rest: sealed with a key file of the server, so that a database alone gives none away.

ChaCha20-Poly1305 with a random nonce; what a secret is for is authenticated, so that a row cannot
be moved to another person. The key lies beside the server's other online keys (mode 0600).
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import stat
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from firmament.durable import read_file, replace_durably
from firmament.errors import CorruptStateError, KeyFileError

if TYPE_CHECKING:
    from pathlib import Path

    from firmament.durable import Disk

KEY_LENGTH_BYTES: Final = 32
NONCE_LENGTH_BYTES: Final = 12


class Vault:
    """Seals and opens small secrets, and digests those that are only compared."""

    def __init__(self, key: bytes) -> None:
        self._cipher = ChaCha20Poly1305(key)
        self._mac_key = hmac.digest(key, b"firmament compare", "sha256")

    def seal(self, secret: bytes, *, purpose: str) -> bytes:
        """Return nonce and ciphertext; only `open` with the same purpose reads it."""
        nonce = secrets.token_bytes(NONCE_LENGTH_BYTES)
        return nonce + self._cipher.encrypt(nonce, secret, purpose.encode())

    def open(self, sealed: bytes, *, purpose: str) -> bytes:
        """Return the secret; raises CorruptStateError when it was changed or sealed for something else."""
        nonce, data = sealed[:NONCE_LENGTH_BYTES], sealed[NONCE_LENGTH_BYTES:]
        try:
            return self._cipher.decrypt(nonce, data, purpose.encode())
        except (InvalidTag, ValueError) as error:
            raise CorruptStateError("A sealed secret cannot be opened with this server's key") from error

    def mac(self, text: str, *, purpose: str) -> bytes:
        """Return what is stored of a code that is only compared: useless without the key."""
        return hmac.digest(self._mac_key, f"{purpose}:{text}".encode(), hashlib.sha256)


def load_vault(disk: Disk, path: Path) -> Vault:
    """Read the key file, making it when it is not there; raises KeyFileError."""
    if not disk.exists(path):
        disk.make_directory(path.parent, mode=0o700)
        replace_durably(disk, path, secrets.token_bytes(KEY_LENGTH_BYTES))
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise KeyFileError("A key file may be read by others", path=path, mode=f"{mode:04o}")
    key = read_file(disk, path, limit_bytes=KEY_LENGTH_BYTES + 1)
    if len(key) != KEY_LENGTH_BYTES:
        raise KeyFileError("A key file has the wrong length", path=path, expected=KEY_LENGTH_BYTES)
    return Vault(key)
