"""Signing keys: the four kinds, their public records, and how a role is told by its key.

Signers are `securesystemslib.signer.Signer` objects; keyids and key dictionaries are those of
TUF. ML-DSA keys are TAP 21's (`ml-dsa-65/1`): an ML-DSA key used for TUF is never used for
anything else, because TUF and in-toto share its domain prefix (trust.md §5).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from securesystemslib.signer import CryptoSigner, Key, SSlibKey

from firmament.core import canonical
from firmament.core.fields import Fields, format_time
from firmament.core.ids import check
from firmament.errors import KeyFileError, MalformedError

if TYPE_CHECKING:
    from datetime import datetime

    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

__all__ = ("KeyKind", "KeyRecord", "check_strength", "generate", "kind_of", "read_record", "signer_of")

RSA_DEFAULT_BITS: Final = 3072
RSA_MINIMUM_BITS: Final = 2048
RSA_MAXIMUM_BITS: Final = 8192
# An 8192-bit key signs 20 times a second; beyond that a verifying device is what suffers.
MAX_RECORD_LENGTH_BYTES: Final = 64 * 1024
# The largest public key is ML-DSA-87's, 3.6 KiB as PEM.
KEY_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
_URI: Final = re.compile(r"(?:file|hsm):[^\x00-\x1f\x7f]{1,1000}")


class KeyKind(StrEnum):
    """What `firmament key generate --kind` takes."""

    ED25519 = "ed25519"
    ECDSA_P256 = "ecdsa-p256"
    RSA_PSS = "rsa-pss"
    ML_DSA_65 = "ml-dsa-65"


_KINDS: Final = {
    ("ed25519", "ed25519"): KeyKind.ED25519,
    ("ecdsa", "ecdsa-sha2-nistp256"): KeyKind.ECDSA_P256,
    ("rsa", "rsassa-pss-sha256"): KeyKind.RSA_PSS,
    ("ml-dsa", "ml-dsa-65/1"): KeyKind.ML_DSA_65,
}


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """The public half of a key, as kept beside it in ``NAME.pub.json`` and carried to others."""

    name: str
    key: Key
    uri: str
    """Where the private half is, ``file:PATH`` or ``hsm:label=...;token=...``."""
    created_at: datetime
    expires_at: datetime | None = None
    """When its owner means to replace it; a reminder, nothing is refused because of it."""

    @property
    def kind(self) -> KeyKind:
        """The kind; raises KeyFileError for one that this house does not use."""
        return kind_of(self.key)

    def to_json(self) -> dict[str, Any]:
        """Return the inverse of `read_record`."""
        value: dict[str, Any] = {
            "name": self.name,
            "keyid": self.key.keyid,
            "key": self.key.to_dict(),
            "uri": self.uri,
            "created_at": format_time(self.created_at),
        }
        if self.expires_at is not None:
            value["expires_at"] = format_time(self.expires_at)
        return value


def read_record(data: bytes, *, what: str) -> KeyRecord:
    """Read a ``.pub.json`` file; raises MalformedError, TooLargeError or KeyFileError."""
    fields = Fields(canonical.decode_object(data, limit_bytes=MAX_RECORD_LENGTH_BYTES, what=what), what=what)
    key = read_key(fields.object("key").value, keyid=fields.text("keyid", max_length=64), what=what)
    return KeyRecord(
        name=fields.text("name", max_length=64, pattern=KEY_NAME),
        key=key,
        uri=fields.text("uri", max_length=1024, pattern=_URI),
        created_at=fields.time("created_at"),
        expires_at=fields.maybe("expires_at", fields.time),
    )


def read_key(value: dict[str, Any], *, keyid: str, what: str) -> SSlibKey:
    """Read a TUF key dictionary and check that `keyid` is the one TUF computes for it.

    TUF itself lets a keyid be any unique text; we always compute it, so that one public key can
    never count twice towards a threshold under two names (trust.md §10, case 15).
    """
    try:
        key = Key.from_dict(keyid, dict(value))
        assert isinstance(key, SSlibKey)
        computed = SSlibKey.from_crypto(key._crypto_key(), scheme=key.scheme).keyid  # noqa: SLF001 - no public way
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        raise MalformedError(f"{what} does not hold a public key", reason=error) from error
    if key.unrecognized_fields or computed != keyid:
        raise MalformedError(f"{what} names another key than it holds", keyid=keyid[:64], computed=computed)
    kind_of(key)
    return key


def kind_of(key: Key) -> KeyKind:
    """Return the kind of a public key; raises KeyFileError for one that this house does not use."""
    kind = _KINDS.get((key.keytype, key.scheme))
    if kind is None:
        raise KeyFileError("This kind of key is not used here", keytype=key.keytype, scheme=key.scheme)
    return kind


def is_post_quantum(key: Key) -> bool:
    """Whether forging this key's signatures is believed to resist a quantum computer."""
    return key.keytype == "ml-dsa"


def generate(kind: KeyKind, *, rsa_bits: int = RSA_DEFAULT_BITS) -> CryptoSigner:
    """Make a new key pair in memory; raises KeyFileError for an RSA length out of bounds."""
    match kind:
        case KeyKind.ED25519:
            return CryptoSigner.generate_ed25519()
        case KeyKind.ECDSA_P256:
            return CryptoSigner.generate_ecdsa(scheme="ecdsa-sha2-nistp256")
        case KeyKind.ML_DSA_65:
            return CryptoSigner.generate_mldsa(scheme="ml-dsa-65/1")
        case KeyKind.RSA_PSS:
            _check_rsa(rsa_bits)
            return CryptoSigner.generate_rsa(scheme="rsassa-pss-sha256", size=rsa_bits)


def signer_of(private_key: PrivateKeyTypes) -> CryptoSigner:
    """Make a signer of a private key, RSA with PSS; raises KeyFileError for other kinds or weak keys."""
    check_strength(private_key)
    return CryptoSigner(private_key)


def check_strength(private_key: PrivateKeyTypes) -> None:
    """Refuse kinds and lengths that are not allowed; raises KeyFileError."""
    match private_key:
        case ed25519.Ed25519PrivateKey() | mldsa.MLDSA65PrivateKey():
            return
        case ec.EllipticCurvePrivateKey() if isinstance(private_key.curve, ec.SECP256R1):
            return
        case rsa.RSAPrivateKey():
            _check_rsa(private_key.key_size)
            return
        case _:
            raise KeyFileError("This kind of key is not used here", allowed=" ".join(KeyKind))


def _check_rsa(bits: int) -> None:
    if not RSA_MINIMUM_BITS <= bits <= RSA_MAXIMUM_BITS:
        raise KeyFileError(
            "The RSA key has a length that is not allowed", bits=bits, allowed=f"{RSA_MINIMUM_BITS}-{RSA_MAXIMUM_BITS}"
        )


def public_pem(key: Key) -> bytes:
    """Return a public key as PEM, which `openssl` reads."""
    assert isinstance(key, SSlibKey)
    return key._crypto_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)  # noqa: SLF001 - no public way


def check_name(name: str) -> str:
    """Check a key's name, which is also its file's; raises MalformedError."""
    return check(name, KEY_NAME, what="The key's name")
