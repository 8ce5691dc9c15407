"""Private keys in files: PKCS#8 PEM, encrypted, readable by their owner only.

The encryption is PBES2 with scrypt and AES-256-CBC (RFC 8018, RFC 7914 section 7), which
`openssl pkey` reads as well. `BestAvailableEncryption` of `cryptography` is not used: it is
PBKDF2 with 2048 iterations, a day's work for one graphics card against a human passphrase.
"""

from __future__ import annotations

import base64
import os
import secrets
import stat
import textwrap
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from cryptography.hazmat.primitives.padding import PKCS7
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from firmament.durable import PRIVATE_MODE, Disk, replace_durably
from firmament.errors import ConflictError, KeyFileError, PassphraseError
from firmament.trust import keys

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

MAX_KEY_FILE_LENGTH_BYTES: Final = 64 * 1024
# An encrypted RSA-8192 key is 6.5 KiB.
MIN_PASSPHRASE_LENGTH_BYTES: Final = 8
# NIST SP 800-63B-4 3.1.1.2: 8 characters is the least for a secret that people choose.
_ENCRYPTED: Final = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"

# RFC 7914 section 2 parameters. OWASP's password storage advice lists N=2^14, r=8, p=5 as equal to N=2^17,
# p=1; OpenSSL's reader refuses more than 32 MiB, which rules out a larger N.
_SCRYPT_N: Final = 2**14
_SCRYPT_R: Final = 8
_SCRYPT_P: Final = 5
_KEY_LENGTH_BYTES: Final = 32
_BLOCK_LENGTH_BYTES: Final = 16

_OID_PBES2: Final = bytes.fromhex("06092a864886f70d01050d")  # 1.2.840.113549.1.5.13
_OID_SCRYPT: Final = bytes.fromhex("06092b06010401da47040b")  # 1.3.6.1.4.1.11591.4.11
_OID_AES_256_CBC: Final = bytes.fromhex("060960864801650304012a")  # 2.16.840.1.101.3.4.1.42


def encrypt(private_key: PrivateKeyTypes, passphrase: bytes) -> bytes:
    """Return an encrypted PKCS#8 PEM file; raises PassphraseError for a passphrase that is too short."""
    if len(passphrase) < MIN_PASSPHRASE_LENGTH_BYTES:
        raise PassphraseError("The passphrase is too short", minimum=MIN_PASSPHRASE_LENGTH_BYTES)
    plain = private_key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    salt, vector = secrets.token_bytes(16), secrets.token_bytes(_BLOCK_LENGTH_BYTES)
    key = Scrypt(salt=salt, length=_KEY_LENGTH_BYTES, n=_SCRYPT_N, r=_SCRYPT_R, p=_SCRYPT_P).derive(passphrase)
    padder = PKCS7(8 * _BLOCK_LENGTH_BYTES).padder()
    encryptor = Cipher(algorithms.AES256(key), modes.CBC(vector)).encryptor()
    sealed = encryptor.update(padder.update(plain) + padder.finalize()) + encryptor.finalize()
    derivation = _sequence(
        _OID_SCRYPT, _sequence(_octets(salt), _integer(_SCRYPT_N), _integer(_SCRYPT_R), _integer(_SCRYPT_P))
    )
    scheme = _sequence(_OID_PBES2, _sequence(derivation, _sequence(_OID_AES_256_CBC, _octets(vector))))
    body = "\n".join(textwrap.wrap(base64.b64encode(_sequence(scheme, _octets(sealed))).decode(), 64))
    return f"{_ENCRYPTED.decode()}\n{body}\n-----END ENCRYPTED PRIVATE KEY-----\n".encode()


def decrypt(pem: bytes, passphrase: bytes | None, *, what: str, allow_plain: bool = False) -> PrivateKeyTypes:
    """Read a PKCS#8 PEM file of a kind that is used here.

    An unencrypted key is refused unless `allow_plain` (to import it). Raises PassphraseError for
    a wrong passphrase and KeyFileError for everything that is not an allowed private key.
    """
    needs_passphrase = is_encrypted(pem)
    if not needs_passphrase and b"PRIVATE KEY-----" in pem and not allow_plain:
        raise KeyFileError(f"{what} is not encrypted; import it with `firmament key import` first")
    if needs_passphrase and not passphrase:
        raise PassphraseError(f"{what} is encrypted and no passphrase was given")
    try:
        private_key = load_pem_private_key(pem, passphrase if needs_passphrase else None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        if needs_passphrase:  # one wrong passphrase in 256 yields valid padding: the two cannot be told apart
            raise PassphraseError(f"{what} does not open: wrong passphrase or damaged file") from error
        raise KeyFileError(f"{what} does not hold a private key in PEM form", reason=error) from error
    keys.check_strength(private_key)
    return private_key


def is_encrypted(pem: bytes) -> bool:
    """Whether a passphrase is needed to read this file."""
    return _ENCRYPTED in pem or b"Proc-Type: 4,ENCRYPTED" in pem


def read_private_file(path: Path) -> bytes:
    """Return the bytes of a key file that only its owner can read; raises KeyFileError otherwise.

    A symlink is refused: whoever may change it could make us use or overwrite another file.
    The checks are made on the opened file, so the name cannot be exchanged in between.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if path.is_symlink():
            raise KeyFileError("The key file is a symlink", path=path) from error
        raise KeyFileError("The key file cannot be opened", path=path, reason=error.strerror) from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise KeyFileError("The key file is not a regular file", path=path)
        if found.st_mode & 0o077:
            raise KeyFileError(
                "The key file may be used by others; run `chmod 600` on it",
                path=path,
                mode=f"{found.st_mode & 0o777:04o}",
            )
        data = os.read(descriptor, MAX_KEY_FILE_LENGTH_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(data) > MAX_KEY_FILE_LENGTH_BYTES:
        raise KeyFileError("The key file is too long for a key", path=path, limit_bytes=MAX_KEY_FILE_LENGTH_BYTES)
    return data


def load(path: Path, passphrase: bytes | None) -> PrivateKeyTypes:
    """Read and decrypt a key file; raises KeyFileError or PassphraseError."""
    return decrypt(read_private_file(path), passphrase, what=str(path))


def store(disk: Disk, path: Path, pem: bytes) -> None:
    """Write a new key file durably, mode 0600; raises ConflictError rather than replace a key."""
    if disk.exists(path):
        raise ConflictError("A key of this name exists already", path=path)
    replace_durably(disk, path, pem, mode=PRIVATE_MODE)


def _tlv(tag: int, body: bytes) -> bytes:
    # X.690 8.1.3: lengths below 128 take one byte, others a count and big-endian bytes.
    length = len(body)
    if length < 0x80:  # noqa: PLR2004 - X.690 8.1.3.4
        return bytes((tag, length)) + body
    encoded = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(encoded))) + encoded + body


def _sequence(*parts: bytes) -> bytes:
    return _tlv(0x30, b"".join(parts))


def _octets(value: bytes) -> bytes:
    return _tlv(0x04, value)


def _integer(value: int) -> bytes:
    return _tlv(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))
