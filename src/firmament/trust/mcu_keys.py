"""Keys that the content keys of encrypted MCUboot images are wrapped for, read from PEM.

They are no signing keys: RSA of 2048 bits, ECDSA's curve P-256, or X25519 (MCUboot's page on
encrypted images). A device's private one lives in its microcontroller; the bench has only its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa, x25519

from firmament.errors import KeyFileError, PassphraseError

if TYPE_CHECKING:
    from collections.abc import Callable

WrapPublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | x25519.X25519PublicKey
WrapPrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | x25519.X25519PrivateKey
MAX_PEM_LENGTH_BYTES: Final = 16 * 1024
# An encrypted RSA key of 2048 bits is 2 KiB.
_CURVE: Final = "secp256r1"
_RSA_BITS: Final = 2048


def load_public(pem: bytes) -> WrapPublicKey:
    """Read a device's public key; raises KeyFileError unless MCUboot wraps content keys for its kind."""
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeyFileError("This is not a public key in PEM", reason=error) from error
    if isinstance(key, x25519.X25519PublicKey):
        return key
    if isinstance(key, rsa.RSAPublicKey) and key.key_size == _RSA_BITS:
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name == _CURVE:
        return key
    raise _unfit(key)


def load_private(pem: bytes, *, ask: Callable[[], bytes] | None = None) -> WrapPrivateKey:
    """Read a private key; `ask` is called for its passphrase if it is encrypted.

    Raises KeyFileError, or PassphraseError when there is nobody to ask or the passphrase is wrong.
    """
    is_encrypted = b"ENCRYPTED" in pem
    if is_encrypted and ask is None:
        raise PassphraseError("The key is encrypted and needs a passphrase")
    try:
        key = serialization.load_pem_private_key(pem, ask() if is_encrypted and ask is not None else None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        if is_encrypted:
            raise PassphraseError("The key cannot be opened with this passphrase") from error
        raise KeyFileError("This is not a private key in PEM", reason=error) from error
    if isinstance(key, x25519.X25519PrivateKey):
        return key
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size == _RSA_BITS:
        return key
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name == _CURVE:
        return key
    raise _unfit(key)


def _unfit(key: object) -> KeyFileError:
    return KeyFileError(
        "MCUboot wraps content keys for RSA of 2048 bits, P-256 or X25519", found=type(key).__name__.strip("_")
    )
