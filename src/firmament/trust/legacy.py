"""Detached signatures, HMAC tags and ``version.json`` for devices that know nothing of TUF (trust.md §7).

Byte-compatible with `openssl dgst -sha256 -sign/-verify` and `-hmac`. These forms come from
clients that exist; they protect against a bad download or an altered mirror, not against replay of
an old release, and a device of ours never takes one in place of TUF.

The algorithm belongs to the *pin*, in the product's configuration; nothing in the file or the
signature chooses it. Content is streamed. SHA-1, MD5, RSA below 2048 bits and Ed25519 (which
`openssl dgst` cannot make) are refused.
"""

from __future__ import annotations

import hmac
import json
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from firmament.core import canonical
from firmament.core.digest import Digest
from firmament.core.fields import Fields
from firmament.core.ids import VERSION
from firmament.errors import KeyFileError, SettingError, SignatureError
from firmament.trust.keys import RSA_MAXIMUM_BITS, RSA_MINIMUM_BITS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes

MAX_SIGNATURE_LENGTH_BYTES: Final = 1024
# RSA-8192 makes exactly 1024 bytes; a DER P-256 signature is at most 72.
MAX_PUBLIC_KEY_LENGTH_BYTES: Final = 16 * 1024
MAX_VERSION_FILE_LENGTH_BYTES: Final = 16 * 1024
MIN_TAG_KEY_LENGTH_BYTES: Final = 16
# RFC 2104 section 3 wants the hash's length (32); seeds in the field have 16-byte device secrets.
_FILE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")


class LegacyScheme(StrEnum):
    """The signature forms of `openssl dgst`, by the name used in settings."""

    RSA_PKCS1V15_SHA256 = "rsa-pkcs1v15-sha256"
    RSA_PSS_SHA256 = "rsa-pss-sha256"
    ECDSA_SHA256 = "ecdsa-sha256"


@dataclass(frozen=True, slots=True)
class LegacyPin:
    """The one key and scheme that a product's legacy signatures are made and checked with."""

    scheme: LegacyScheme
    public_key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey


def pin(scheme: str, public_key_pem: bytes) -> LegacyPin:
    """Read a pin from settings.

    Raises SettingError for an unknown or weak scheme (SHA-1, MD5), KeyFileError for a key that is
    weak, of another kind, or not a PEM public key.
    """
    try:
        chosen = LegacyScheme(scheme)
    except ValueError:
        raise SettingError(
            "This signature scheme is not accepted", found=scheme, known=" ".join(LegacyScheme)
        ) from None
    try:
        if len(public_key_pem) > MAX_PUBLIC_KEY_LENGTH_BYTES:
            raise ValueError("too long")  # noqa: TRY301 - one exit for all that is no key
        key = load_pem_public_key(public_key_pem)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyFileError("This is no PEM public key", reason=error) from error
    return LegacyPin(chosen, _matching(chosen, key))


def sign(chunks: Iterable[bytes], private_key: PrivateKeyTypes, scheme: LegacyScheme) -> bytes:
    """Return the detached signature over streamed content, as `openssl dgst -sha256 -sign` writes it.

    PSS uses a salt as long as the digest, which both `openssl -sigopt rsa_pss_saltlen:-1` and the
    default of `openssl dgst -verify` accept. Raises KeyFileError for a key that does not fit.
    """
    digest = Digest.of(chunks).value
    prehashed = utils.Prehashed(hashes.SHA256())
    _matching(scheme, private_key.public_key())
    match private_key, scheme:
        case rsa.RSAPrivateKey(), LegacyScheme.RSA_PKCS1V15_SHA256:
            return private_key.sign(digest, padding.PKCS1v15(), prehashed)
        case rsa.RSAPrivateKey(), LegacyScheme.RSA_PSS_SHA256:
            pss = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)
            return private_key.sign(digest, pss, prehashed)
        case ec.EllipticCurvePrivateKey(), LegacyScheme.ECDSA_SHA256:
            return private_key.sign(digest, ec.ECDSA(prehashed))
        case _:  # pragma: no cover - _matching has refused it
            raise KeyFileError("The key does not fit the scheme", scheme=scheme)


def verify(chunks: Iterable[bytes], signature: bytes | None, pinned: LegacyPin) -> Digest:
    """Check a detached signature over streamed content; return the content's digest.

    Raises SignatureError when it is missing, too long, made by another key or scheme, or over
    other content. Every salt length of PSS is accepted, as `openssl dgst` writes the longest.
    """
    if signature is None:
        raise SignatureError("The detached signature is missing")
    if not 0 < len(signature) <= MAX_SIGNATURE_LENGTH_BYTES:
        raise SignatureError("The detached signature has a length that is not possible", length_bytes=len(signature))
    digest = Digest.of(chunks)
    prehashed = utils.Prehashed(hashes.SHA256())
    try:
        match pinned.public_key, pinned.scheme:
            case rsa.RSAPublicKey() as key, LegacyScheme.RSA_PKCS1V15_SHA256:
                key.verify(signature, digest.value, padding.PKCS1v15(), prehashed)
            case rsa.RSAPublicKey() as key, LegacyScheme.RSA_PSS_SHA256:
                pss = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.AUTO)
                key.verify(signature, digest.value, pss, prehashed)
            case ec.EllipticCurvePublicKey() as key, LegacyScheme.ECDSA_SHA256:
                key.verify(signature, digest.value, ec.ECDSA(prehashed))
            case _:
                raise KeyFileError("The key does not fit the scheme", scheme=pinned.scheme)
    except (InvalidSignature, ValueError) as error:
        raise SignatureError("The detached signature does not verify", scheme=pinned.scheme, digest=digest) from error
    return digest


def tag(manifest: bytes, device_key: bytes) -> bytes:
    """Return the per-device HMAC-SHA256 over a legacy manifest, as `openssl dgst -sha256 -hmac` does.

    Whoever knows the device's key can make it, the server too: it shows that the manifest was
    meant for this device and not altered on the way, nothing more. Raises SettingError for a
    short key.
    """
    if len(device_key) < MIN_TAG_KEY_LENGTH_BYTES:
        raise SettingError("The device's key is too short", minimum_bytes=MIN_TAG_KEY_LENGTH_BYTES)
    return hmac.digest(device_key, manifest, "sha256")


def verify_tag(manifest: bytes, found: bytes | None, device_key: bytes) -> None:
    """Raise SignatureError unless `found` is the manifest's tag under this device's key."""
    if found is None or not hmac.compare_digest(tag(manifest, device_key), found):
        raise SignatureError("The manifest's tag is not made with this device's key")


@dataclass(frozen=True, slots=True)
class VersionFile:
    """``version.json`` as small clients read it: which version, and the files beside it."""

    version: str
    firmware: str
    """File name of the payload, beside this file."""
    signature: str
    """File name of the payload's detached signature."""
    sequence_number: int
    length_bytes: int
    digest: Digest

    def to_bytes(self) -> bytes:
        """Return the file; its bytes are what is signed and tagged, so it is written in one way only.

        The three old fields stand first and in their old order: clients are known that cut them out by
        position.
        """
        value = {
            "version": self.version,
            "firmware": self.firmware,
            "signature": self.signature,
            "sequence_number": self.sequence_number,
            "size": self.length_bytes,
            "sha256": self.digest.hex,
        }
        return json.dumps(value, indent=2).encode() + b"\n"


def read_version_file(data: bytes) -> VersionFile:
    """Read a ``version.json`` that this house wrote; raises MalformedError or TooLargeError.

    Unknown fields are ignored.
    """
    what = "version.json"
    fields = Fields(canonical.decode_object(data, limit_bytes=MAX_VERSION_FILE_LENGTH_BYTES, what=what), what=what)
    return VersionFile(
        version=fields.text("version", pattern=VERSION),
        firmware=fields.text("firmware", pattern=_FILE_NAME),
        signature=fields.text("signature", pattern=_FILE_NAME),
        sequence_number=fields.integer("sequence_number", minimum=1),
        length_bytes=fields.integer("size"),
        digest=Digest("sha256", fields.hex_bytes("sha256", length=32)),
    )


def _matching(scheme: LegacyScheme, key: PublicKeyTypes | Any) -> rsa.RSAPublicKey | ec.EllipticCurvePublicKey:
    if isinstance(key, rsa.RSAPublicKey) and scheme is not LegacyScheme.ECDSA_SHA256:
        if not RSA_MINIMUM_BITS <= key.key_size <= RSA_MAXIMUM_BITS:
            raise KeyFileError("The RSA key has a length that is not allowed", bits=key.key_size)
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and scheme is LegacyScheme.ECDSA_SHA256:
        if key.curve.name != "secp256r1":
            raise KeyFileError("The curve is not allowed", curve=key.curve.name, allowed="secp256r1")
        return key
    raise KeyFileError("The key does not fit the scheme", scheme=scheme, key=type(key).__name__)
