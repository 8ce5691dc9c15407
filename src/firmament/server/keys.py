"""The server's online keys: three for the director, two for the isolated signer (trust.md §3.1).

Ed25519, one file each, mode 0600, not encrypted: the server starts unattended, so a passphrase
would lie beside the key. What a thief can do with them is bounded by the offline keys: delay and
re-order, never ship other bytes. A file that others may read is refused.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, Any, Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner, Signature

from firmament.core import canonical
from firmament.durable import PUBLIC_MODE, read_file, replace_durably
from firmament.errors import FileError, KeyFileError
from firmament.trust.director import DirectorKeys

if TYPE_CHECKING:
    from pathlib import Path

    from firmament.durable import Disk

DIRECTOR_ROLES: Final = ("targets", "snapshot", "timestamp")
SIGNER_ROLES: Final = ("snapshot", "timestamp")
MAX_KEY_LENGTH_BYTES: Final = 4096


class OnlineSigner(CryptoSigner):
    """An Ed25519 key that signs as its base does, without what the base does for other kinds of key."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        super().__init__(private)
        self._sign = private.sign
        self._keyid = self.public_key.keyid

    def sign(self, payload: bytes) -> Signature:
        """Return the signature; each poll waits for two of them."""
        return Signature(self._keyid, self._sign(payload).hex())


def make_key(disk: Disk, path: Path) -> dict[str, Any]:
    """Make an Ed25519 key file; return ``{"keyid", "key"}`` for online-public.json."""
    private = Ed25519PrivateKey.generate()
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    replace_durably(disk, path, pem)
    public = CryptoSigner(private).public_key
    return {"keyid": public.keyid, "key": public.to_dict()}


def load_signer(disk: Disk, path: Path) -> CryptoSigner:
    """Read a key file; raises KeyFileError if others may read it or it is not Ed25519."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise KeyFileError("A key file cannot be read", path=path, reason=error.strerror or error) from error
    if stat.S_IMODE(mode) & 0o077:
        raise KeyFileError("A key file may be read by others", path=path, mode=f"{stat.S_IMODE(mode):04o}")
    try:
        key = serialization.load_pem_private_key(read_file(disk, path, limit_bytes=MAX_KEY_LENGTH_BYTES), None)
    except (ValueError, TypeError, FileError) as error:
        raise KeyFileError("A key file cannot be used", path=path, reason=type(error).__name__) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError("An online key is not Ed25519", path=path)
    return OnlineSigner(key)


def load_director_keys(disk: Disk, directory: Path) -> DirectorKeys:
    """Read the director's keys; raises KeyFileError."""
    targets, snapshot, timestamp = (load_signer(disk, directory / f"{role}.pem") for role in DIRECTOR_ROLES)
    return DirectorKeys(targets=targets, snapshot=snapshot, timestamp=timestamp)


def make_online_keys(disk: Disk, *, director: Path, signer: Path, public: Path) -> None:
    """Make all five keys and write their public halves for the author's root."""
    for directory in (director, signer):
        disk.make_directory(directory)
    make_key(disk, signer / "audit.pem")
    value = {
        "v": 1,
        "image": {role: make_key(disk, signer / f"{role}.pem") for role in SIGNER_ROLES},
        "director": {role: make_key(disk, director / f"{role}.pem") for role in DIRECTOR_ROLES},
    }
    replace_durably(disk, public, canonical.encode(value) + b"\n", mode=PUBLIC_MODE)


def read_online_keyids(disk: Disk, public: Path) -> dict[str, dict[str, str]]:
    """Return ``{"image": {role: keyid}, "director": {role: keyid}}`` from online-public.json."""
    data = read_file(disk, public, limit_bytes=64 * 1024)
    value = canonical.decode_object(data, limit_bytes=64 * 1024, what="online-public.json")
    return {
        repository: {role: str(entry["keyid"]) for role, entry in value[repository].items()}
        for repository in ("image", "director")
    }
