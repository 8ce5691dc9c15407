"""Wrap a content key for one device, or for a server: HPKE base mode, ML-KEM-768 + X25519 (docs/protocol/sealed.md).

A device's wrap says for which device, release and sealed file it was made: the three are its HPKE
`info`, each with its length before it, so that no two different triples give the same bytes.
HPKE's base mode does not say who wrapped; the director's signature does (the wrap travels in a
director target's `custom.key_wrap`). The author gives a server the key in the same form under
another label, so that neither wrap can stand for the other.

The KEM is a draft (X-Wing, KEM id 0x647a), so the suite's version is part of the label.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric import mlkem, x25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from firmament.errors import KeyWrapError

LABEL: Final = b"ota-cek-wrap-v1"
CUSTODY_LABEL: Final = b"ota-cek-custody-v1"
PUBLIC_KEY_LENGTH_BYTES: Final = 1184 + 32
"""ML-KEM-768 encapsulation key, then X25519 public key."""
PRIVATE_KEY_LENGTH_BYTES: Final = 64 + 32
"""ML-KEM seed (d || z), then X25519 private key."""
WRAP_LENGTH_BYTES: Final = 1088 + 32 + 32 + 16
"""ML-KEM ciphertext, X25519 share, key, tag."""
_SUITE: Final = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
_MLKEM_PUBLIC: Final = 1184
_MLKEM_SEED: Final = 64


@dataclass(frozen=True, slots=True)
class Purpose:
    """For whom and what a wrap was made."""

    device_id: str
    release_id: str
    sealed_sha256: bytes
    """Digest of the sealed container, as signed."""

    def info(self) -> bytes:
        """Return the HPKE info: the label and each part behind its 16-bit length."""
        return _info(LABEL, self.device_id.encode(), self.release_id.encode(), self.sealed_sha256)

    def facts(self) -> dict[str, str]:
        """Return what an error says about it."""
        return {"device_id": self.device_id, "release_id": self.release_id, "sealed": self.sealed_sha256.hex()}


@dataclass(frozen=True, slots=True)
class Custody:
    """For what a server keeps a content key."""

    release_id: str
    sealed_sha256: bytes

    def info(self) -> bytes:
        """Return the HPKE info: a label of its own, and each part behind its 16-bit length."""
        return _info(CUSTODY_LABEL, self.release_id.encode(), self.sealed_sha256)

    def facts(self) -> dict[str, str]:
        """Return what an error says about it."""
        return {"release_id": self.release_id, "sealed": self.sealed_sha256.hex()}


def _info(label: bytes, *parts: bytes) -> bytes:
    return label + b"".join(struct.pack(">H", len(part)) + part for part in parts)


def generate() -> tuple[bytes, bytes]:
    """Make a device's key pair: (private 96 bytes, public 1216 bytes)."""
    kem, curve = mlkem.MLKEM768PrivateKey.generate(), x25519.X25519PrivateKey.generate()
    private = kem.private_bytes_raw() + curve.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    return private, public_of(private)


def public_of(private: bytes) -> bytes:
    """Derive the public half of a private key."""
    kem, curve = _private(private)
    return kem.public_key().public_bytes_raw() + curve.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def wrap(key: bytes, public: bytes, purpose: Purpose | Custody) -> bytes:
    """Encrypt a content key for whoever holds the private half; KeyWrapError if `public` is no key."""
    try:
        return bytes(_SUITE.encrypt(key, _public(public), purpose.info()))
    except ValueError as error:
        raise KeyWrapError("Not a wrapping key", reason=error) from error


def is_usable(public: bytes) -> bool:
    """Whether something can be wrapped for this public key."""
    try:
        wrap(bytes(32), public, Custody("", bytes(32)))
    except KeyWrapError:
        return False
    return True


def unwrap(wrapped: bytes, private: bytes, purpose: Purpose | Custody) -> bytes:
    """Return the content key; KeyWrapError if the wrap is for another device, release or file, or was changed."""
    if len(wrapped) != WRAP_LENGTH_BYTES:
        raise KeyWrapError("A key wrap has another length", expected=WRAP_LENGTH_BYTES, got=len(wrapped))
    try:
        return bytes(_SUITE.decrypt(wrapped, hpke.MLKEM768X25519PrivateKey(*_private(private)), purpose.info()))
    except (InvalidTag, ValueError):
        raise KeyWrapError("A key wrap does not open for this device and file", **purpose.facts()) from None


def _public(public: bytes) -> hpke.MLKEM768X25519PublicKey:
    if len(public) != PUBLIC_KEY_LENGTH_BYTES:
        raise KeyWrapError("Not a wrapping key", expected=PUBLIC_KEY_LENGTH_BYTES, got=len(public))
    return hpke.MLKEM768X25519PublicKey(
        mlkem.MLKEM768PublicKey.from_public_bytes(public[:_MLKEM_PUBLIC]),
        x25519.X25519PublicKey.from_public_bytes(public[_MLKEM_PUBLIC:]),
    )


def _private(private: bytes) -> tuple[mlkem.MLKEM768PrivateKey, x25519.X25519PrivateKey]:
    if len(private) != PRIVATE_KEY_LENGTH_BYTES:
        raise KeyWrapError("Not a wrapping key", expected=PRIVATE_KEY_LENGTH_BYTES, got=len(private))
    return (
        mlkem.MLKEM768PrivateKey.from_seed_bytes(private[:_MLKEM_SEED]),
        x25519.X25519PrivateKey.from_private_bytes(private[_MLKEM_SEED:]),
    )
