"""Small secrets in a file under a passphrase: content keys on the author's bench.

One canonical JSON object: the scrypt parameters (those of `key_files`), and the secret under
ChaCha20-Poly1305. What the file is for is authenticated with it, so that one cannot be put in
another's place.

    {"v": 1, "scrypt": {"n": 16384, "r": 8, "p": 5, "salt": "<hex>"}, "nonce": "<hex>", "sealed": "<base64>"}
"""

from __future__ import annotations

import base64
import secrets
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from firmament.core import canonical
from firmament.core.fields import Fields
from firmament.errors import PassphraseError
from firmament.trust.key_files import MIN_PASSPHRASE_LENGTH_BYTES

if TYPE_CHECKING:
    from firmament.trust.signers import Secrets

FILE_VERSION: Final = 1
MAX_FILE_LENGTH_BYTES: Final = 64 * 1024
SCRYPT_N: Final = 2**14
SCRYPT_R: Final = 8
SCRYPT_P: Final = 5
# 16 MiB and about a fifth of a second for each guess; the reasons are in `key_files`.
SALT_LENGTH_BYTES: Final = 16
NONCE_LENGTH_BYTES: Final = 12
_KEY_LENGTH_BYTES: Final = 32


def seal(secret: bytes, passphrase: bytes, *, purpose: str) -> bytes:
    """Return the file; raises PassphraseError for a passphrase that is too short."""
    if len(passphrase) < MIN_PASSPHRASE_LENGTH_BYTES:
        raise PassphraseError("The passphrase is too short", minimum=MIN_PASSPHRASE_LENGTH_BYTES)
    salt, nonce = secrets.token_bytes(SALT_LENGTH_BYTES), secrets.token_bytes(NONCE_LENGTH_BYTES)
    sealed = _cipher(passphrase, salt).encrypt(nonce, secret, purpose.encode())
    value = {
        "v": FILE_VERSION,
        "scrypt": {"n": SCRYPT_N, "r": SCRYPT_R, "p": SCRYPT_P, "salt": salt.hex()},
        "nonce": nonce.hex(),
        "sealed": base64.b64encode(sealed).decode(),
    }
    return canonical.encode(value) + b"\n"


def unseal(data: bytes, passphrase: bytes, *, purpose: str) -> bytes:
    """Return the secret; raises MalformedError, and PassphraseError for a wrong passphrase, purpose or byte."""
    salt, nonce, sealed = decode(data, what=purpose)
    try:
        return _cipher(passphrase, salt).decrypt(nonce, sealed, purpose.encode())
    except InvalidTag as error:
        raise PassphraseError(f"{purpose} cannot be opened: wrong passphrase or damaged file") from error


def decode(data: bytes, *, what: str) -> tuple[bytes, bytes, bytes]:
    """Read salt, nonce and ciphertext; raises MalformedError or TooLargeError."""
    fields = Fields(canonical.decode_object(data, limit_bytes=MAX_FILE_LENGTH_BYTES, what=what), what=what)
    fields.integer("v", minimum=FILE_VERSION, maximum=FILE_VERSION)
    derivation = fields.object("scrypt")
    # The cost is what we write and nothing else: a file must not decide how long we work.
    for name, known in (("n", SCRYPT_N), ("r", SCRYPT_R), ("p", SCRYPT_P)):
        derivation.integer(name, minimum=known, maximum=known)
    return (
        derivation.hex_bytes("salt", length=SALT_LENGTH_BYTES),
        fields.hex_bytes("nonce", length=NONCE_LENGTH_BYTES),
        fields.base64_bytes("sealed", max_length=MAX_FILE_LENGTH_BYTES),
    )


def open_file(data: bytes, secrets_: Secrets, *, purpose: str) -> bytes:
    """Open with the passphrases that `secrets_` gives, one after the other; raises the last PassphraseError."""
    passphrase: bytes | None = secrets_.passphrase(purpose)
    while True:
        assert passphrase is not None
        try:
            return unseal(data, passphrase, purpose=purpose)
        except PassphraseError:
            passphrase = secrets_.another_passphrase(purpose)
            if passphrase is None:
                raise


def _cipher(passphrase: bytes, salt: bytes) -> ChaCha20Poly1305:
    derivation = Scrypt(salt=salt, length=_KEY_LENGTH_BYTES, n=SCRYPT_N, r=SCRYPT_R, p=SCRYPT_P)
    return ChaCha20Poly1305(derivation.derive(passphrase))
