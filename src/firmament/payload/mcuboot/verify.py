"""Digest and signature of an MCUboot image, by a key that was pinned before.

The boot loader decides in the end; this finds out *before* an image travels to a device. Unlike
``imgtool verify`` it never accepts an image without a signature, and opens an encrypted body
first when it is given the content key (the hash is over the plaintext).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, utils
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from firmament.errors import DigestMismatchError, KeyFileError, MalformedError, SignatureError
from firmament.payload.mcuboot.layout import SIGNATURES, McubootImage, TlvType
from firmament.payload.readers import read_all

if TYPE_CHECKING:
    from collections.abc import Iterator

    from firmament.payload.readers import Reader

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey
PIECE_LENGTH_BYTES: Final = 64 * 1024
MAX_SIGNATURE_LENGTH_BYTES: Final = 512
_PSS_SALT_LENGTH_BYTES: Final = 32
_RSA_BITS: Final = {2048: TlvType.RSA2048, 3072: TlvType.RSA3072}
_CURVES: Final[dict[str, str]] = {"secp256r1": "sha256", "secp384r1": "sha384"}


def load_public_key(pem: bytes) -> PublicKey:
    """Read a public key in PEM; raises KeyFileError unless MCUboot can use a key of this kind."""
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeyFileError("This is not a public key in PEM", reason=error) from error
    if isinstance(key, rsa.RSAPublicKey) and key.key_size in _RSA_BITS:
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVES:
        return key
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key
    raise KeyFileError("MCUboot takes RSA of 2048 or 3072 bits, ECDSA P-256 or P-384, or Ed25519", found=_kind(key))


def verify(image: McubootImage, source: Reader, key: PublicKey, *, content_key: bytes | None = None) -> None:
    """Check that `key` signed exactly this image.

    An encrypted image needs `content_key`. Raises DigestMismatchError, SignatureError, or
    MalformedError for an image that lacks hash, signature or key.
    """
    if image.is_encrypted and content_key is None:
        raise MalformedError("An encrypted MCUboot image can be verified only with its content key")
    hasher = hashlib.new(_algorithm(image))
    signed = bytearray()
    is_pure = image.find({TlvType.SIG_PURE}) is not None
    for piece in plain_pieces(image, source, content_key):
        hasher.update(piece)
        if is_pure:
            signed += piece
    verify_digest(image, source, key, hasher.digest(), pure=bytes(signed) if is_pure else None)


def verify_digest(
    image: McubootImage, source: Reader, key: PublicKey, digest: bytes, *, pure: bytes | None = None
) -> None:
    """Check hash and signature against a digest of the plaintext that is known from elsewhere.

    `pure` is that plaintext for an image that is signed as a whole (Ed25519 only). Raises as `verify`.
    """
    algorithm = _algorithm(image)
    if digest != image.digest:
        raise DigestMismatchError(
            "An MCUboot image does not have the digest it names", expected=image.digest.hex(), got=digest.hex()
        )
    _check_key(image, source, key, algorithm)
    tlv = image.find(SIGNATURES)
    if tlv is None:
        raise SignatureError("An MCUboot image is not signed")
    if tlv.length_bytes > MAX_SIGNATURE_LENGTH_BYTES:
        raise SignatureError("The signature of an MCUboot image is too long", length_bytes=tlv.length_bytes)
    if tlv.type != _signature_type(key):
        raise SignatureError("An MCUboot image is signed by another kind of key", type=f"{tlv.type:#x}")
    try:
        _check_signature(key, source.read_at(tlv.offset, tlv.length_bytes), digest, pure)
    except InvalidSignature as error:
        raise SignatureError("The signature of an MCUboot image is wrong") from error


def plain_pieces(image: McubootImage, source: Reader, content_key: bytes | None) -> Iterator[bytes]:
    """Yield the bytes the hash covers, the body decrypted (AES-CTR from counter 0) if it was encrypted."""
    yield _exactly(source, 0, image.header_length_bytes)
    body_end = image.header_length_bytes + image.body_length_bytes
    decryptor = None
    if image.is_encrypted and content_key is not None:
        if len(content_key) != image.content_key_length_bytes:
            raise MalformedError(
                "The content key of an MCUboot image has a wrong length", expected=image.content_key_length_bytes
            )
        decryptor = Cipher(algorithms.AES(content_key), modes.CTR(bytes(16))).decryptor()
    offset = image.header_length_bytes
    while offset < body_end:
        piece = _exactly(source, offset, min(PIECE_LENGTH_BYTES, body_end - offset))
        offset += len(piece)
        yield decryptor.update(piece) if decryptor is not None else piece
    if image.protected_length_bytes:
        yield _exactly(source, body_end, image.protected_length_bytes)


def key_hash(key: PublicKey, algorithm: str) -> bytes:
    """Return the digest of the public key in the form that MCUboot embeds (PKCS#1 for RSA, else SPKI)."""
    return hashlib.new(algorithm, _embedded(key)).digest()


def _embedded(key: PublicKey) -> bytes:
    form = (
        serialization.PublicFormat.PKCS1
        if isinstance(key, rsa.RSAPublicKey)
        else serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return key.public_bytes(serialization.Encoding.DER, form)


def _algorithm(image: McubootImage) -> str:
    for kind, name in ((TlvType.SHA256, "sha256"), (TlvType.SHA384, "sha384"), (TlvType.SHA512, "sha512")):
        if image.find({kind}) is not None:
            return name
    raise MalformedError("An MCUboot image has no hash")


def _check_key(image: McubootImage, source: Reader, key: PublicKey, algorithm: str) -> None:
    tlv = image.find({TlvType.KEYHASH, TlvType.PUBKEY})
    if tlv is None:
        raise SignatureError("An MCUboot image does not say which key signed it")
    expected = _embedded(key) if tlv.type == TlvType.PUBKEY else key_hash(key, algorithm)
    if tlv.length_bytes != len(expected) or source.read_at(tlv.offset, tlv.length_bytes) != expected:
        raise SignatureError("An MCUboot image is signed by another key than the pinned one")


def _signature_type(key: PublicKey) -> TlvType:
    if isinstance(key, rsa.RSAPublicKey):
        return _RSA_BITS[key.key_size]
    return TlvType.ED25519 if isinstance(key, ed25519.Ed25519PublicKey) else TlvType.ECDSA


def _check_signature(key: PublicKey, signature: bytes, digest: bytes, pure: bytes | None) -> None:
    if isinstance(key, ed25519.Ed25519PublicKey):
        key.verify(signature, digest if pure is None else pure)
        return
    if pure is not None:
        raise InvalidSignature
    algorithm = {32: hashes.SHA256(), 48: hashes.SHA384(), 64: hashes.SHA512()}[len(digest)]
    if isinstance(key, rsa.RSAPublicKey):
        scheme = padding.PSS(padding.MGF1(hashes.SHA256()), _PSS_SALT_LENGTH_BYTES)
        key.verify(signature, digest, scheme, utils.Prehashed(algorithm))
        return
    if algorithm.name != _CURVES[key.curve.name]:
        raise InvalidSignature
    key.verify(signature, digest, ec.ECDSA(utils.Prehashed(algorithm)))


def _exactly(source: Reader, offset: int, length_bytes: int) -> bytes:
    data = source.read_at(offset, length_bytes)
    if len(data) < length_bytes:
        data += read_all(_Shifted(source, offset + len(data)), length_bytes - len(data))
    if len(data) != length_bytes:
        raise MalformedError("An MCUboot image is cut short", offset=offset, length_bytes=len(data))
    return data


class _Shifted:
    """A reader that begins elsewhere."""

    def __init__(self, source: Reader, start: int) -> None:
        self._source = source
        self._start = start

    def read_at(self, offset: int, length_bytes: int) -> bytes:
        return self._source.read_at(self._start + offset, length_bytes)


def _kind(key: object) -> str:
    return type(key).__name__.strip("_")
