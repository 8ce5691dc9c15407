"""The server's own wrapping keys: what content keys are at rest wrapped for (ADR-0023).

``content/<number>.key``, 96 bytes each, mode 0600 or 0400; the highest number is the one that
authors wrap for, older ones open what was wrapped before the last rotation. Database and payloads
without these files say nothing of what is inside a sealed payload.
"""

from __future__ import annotations

import hashlib
import re
import stat
from typing import TYPE_CHECKING, Final

from firmament.durable import read_file, replace_durably
from firmament.errors import KeyFileError, KeyWrapError
from firmament.payload import wrap
from firmament.payload.wrap import Custody, Purpose

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from firmament.durable import Disk

MAX_KEYS: Final = 16
"""More than two are there only when rotations were cut short."""
_KEYID_LENGTH: Final = 32
_NAME: Final = re.compile(r"([1-9][0-9]{0,8})\.key")


class Custodian:
    """Opens content keys that are wrapped for this server, and wraps them for one device."""

    def __init__(self, privates: Sequence[bytes]) -> None:
        self._privates = {keyid_of(wrap.public_of(private)): private for private in privates}
        self.public_key: Final = wrap.public_of(privates[-1])
        self.keyid: Final = keyid_of(self.public_key)

    @property
    def keyids(self) -> frozenset[str]:
        """The names of all its keys."""
        return frozenset(self._privates)

    def open(self, wrapped: bytes, keyid: str, custody: Custody) -> bytes:
        """Return a content key; raises KeyWrapError for another server's, another file's or a changed one."""
        private = self._privates.get(keyid)
        if private is None:
            raise KeyWrapError("A content key is wrapped for a key that this server does not have", keyid=keyid)
        return wrap.unwrap(wrapped, private, custody)

    def wrap_for(self, wrapped: bytes, keyid: str, custody: Custody, *, device_id: str, public_key: bytes) -> bytes:
        """Return the same content key wrapped for a device; raises KeyWrapError."""
        purpose = Purpose(device_id, custody.release_id, custody.sealed_sha256)
        return wrap.wrap(self.open(wrapped, keyid, custody), public_key, purpose)

    def renew(self, wrapped: bytes, keyid: str, custody: Custody) -> bytes:
        """Return the same content key wrapped for the newest of this server's keys; raises KeyWrapError."""
        return wrap.wrap(self.open(wrapped, keyid, custody), self.public_key, custody)


def keyid_of(public_key: bytes) -> str:
    """Return the name of a public key: the beginning of its SHA-256."""
    return hashlib.sha256(public_key).hexdigest()[:_KEYID_LENGTH]


def load_custodian(disk: Disk, directory: Path) -> Custodian:
    """Read the key files, making the first when there is none; raises KeyFileError.

    A file that others may read is refused.
    """
    if not key_files(disk, directory):
        make_key(disk, directory)
    return Custodian([_read(disk, path) for path in key_files(disk, directory)])


def read_keyids(disk: Disk, directory: Path) -> frozenset[str]:
    """Return the names of the keys that are there, making none; raises KeyFileError."""
    return frozenset(keyid_of(wrap.public_of(_read(disk, path))) for path in key_files(disk, directory))


def make_key(disk: Disk, directory: Path) -> Path:
    """Make the next key file; from the next start on authors wrap for it."""
    files = key_files(disk, directory)
    number = 1 + (int(files[-1].stem) if files else 0)
    disk.make_directory(directory, mode=0o700)
    path = directory / f"{number}.key"
    replace_durably(disk, path, wrap.generate()[0])
    return path


def key_files(disk: Disk, directory: Path) -> list[Path]:
    """Return the key files, the newest last; raises KeyFileError for too many."""
    names = [name for name in disk.list(directory) if _NAME.fullmatch(name)] if disk.exists(directory) else []
    if len(names) > MAX_KEYS:
        raise KeyFileError("There are too many content key files", path=directory, most=MAX_KEYS)
    return sorted((directory / name for name in names), key=lambda path: int(path.stem))


def _read(disk: Disk, path: Path) -> bytes:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise KeyFileError("A key file may be read by others", path=path, mode=f"{mode:04o}")
    private = read_file(disk, path, limit_bytes=wrap.PRIVATE_KEY_LENGTH_BYTES + 1)
    if len(private) != wrap.PRIVATE_KEY_LENGTH_BYTES:
        raise KeyFileError("A key file has the wrong length", path=path, expected=wrap.PRIVATE_KEY_LENGTH_BYTES)
    return private
