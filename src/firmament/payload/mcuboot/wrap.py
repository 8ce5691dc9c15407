"""The content key of an encrypted MCUboot image, wrapped for one device at a time.

The key entry is not covered by the signature, so the same signed and encrypted image serves a
whole fleet: for each device only that entry is written anew (trust.md §6). Schemes are those of
MCUboot's page on encrypted images: ECIES on P-256 or X25519 with HKDF, AES-CTR and HMAC, and
RSA-OAEP.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, hmac, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, x25519
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from firmament.errors import KeyWrapError, MalformedError
from firmament.payload.mcuboot.layout import ENCRYPTIONS, McubootImage, TlvType

if TYPE_CHECKING:
    from firmament.payload.readers import Reader

WrapPublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | x25519.X25519PublicKey
WrapPrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | x25519.X25519PrivateKey
_INFO: Final = b"MCUBoot_ECIES_v1"
_POINT_LENGTH_BYTES: Final = {TlvType.ENC_EC256: 65, TlvType.ENC_X25519: 32, TlvType.ENC_X25519_SHA512: 32}


@dataclass(frozen=True, slots=True)
class Splice:
    """Where a device's own bytes go into the common image."""

    offset: int
    data: bytes


def unwrap_content_key(image: McubootImage, source: Reader, key: WrapPrivateKey) -> bytes:
    """Return the content key of an encrypted image; raises KeyWrapError for another device's key."""
    kind, data = _entry(image, source)
    length_bytes = image.content_key_length_bytes
    if kind is TlvType.ENC_RSA2048:
        if not isinstance(key, rsa.RSAPrivateKey):
            raise KeyWrapError("The content key is wrapped for another kind of key", scheme=kind.name)
        try:
            found = key.decrypt(data, _oaep())
        except ValueError as error:
            raise KeyWrapError("The content key is wrapped for another device", scheme=kind.name) from error
    elif kind in _POINT_LENGTH_BYTES:
        found = _open_ecies(kind, data, key, length_bytes)
    else:
        raise KeyWrapError("This scheme of wrapping is not supported", scheme=kind.name)
    if len(found) != length_bytes:
        raise KeyWrapError("The content key has a wrong length", expected=length_bytes, got=len(found))
    return found


def wrap_content_key(content_key: bytes, device_key: WrapPublicKey, kind: TlvType) -> bytes:
    """Return the value of a key entry of type `kind` for one device; raises KeyWrapError."""
    if kind is TlvType.ENC_RSA2048 and isinstance(device_key, rsa.RSAPublicKey):
        return device_key.encrypt(content_key, _oaep())
    if kind is TlvType.ENC_EC256 and isinstance(device_key, ec.EllipticCurvePublicKey):
        ephemeral = ec.generate_private_key(ec.SECP256R1())
        shared = ephemeral.exchange(ec.ECDH(), device_key)
        point = ephemeral.public_key().public_bytes(
            serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
        )
    elif kind in {TlvType.ENC_X25519, TlvType.ENC_X25519_SHA512} and isinstance(device_key, x25519.X25519PublicKey):
        own = x25519.X25519PrivateKey.generate()
        shared = own.exchange(device_key)
        point = own.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    else:
        raise KeyWrapError("The device's key does not fit the image's scheme of wrapping", scheme=kind.name)
    cipher_key, mac_key, algorithm = _derive(kind, shared, len(content_key))
    encryptor = Cipher(algorithms.AES(cipher_key), modes.CTR(bytes(16))).encryptor()
    wrapped = encryptor.update(content_key) + encryptor.finalize()
    mac = hmac.HMAC(mac_key, algorithm)
    mac.update(wrapped)
    return point + mac.finalize() + wrapped


def rewrap(image: McubootImage, source: Reader, content_key: bytes, device_key: WrapPublicKey) -> Splice:
    """Return what to write over the common image so that this device, and no other, can open it.

    The image's length does not change and its signature stays valid. Raises KeyWrapError,
    MalformedError.
    """
    if len(content_key) != image.content_key_length_bytes:
        raise KeyWrapError("The content key has a wrong length", expected=image.content_key_length_bytes)
    kind, data = _entry(image, source)
    fresh = wrap_content_key(content_key, device_key, kind)
    if len(fresh) != len(data):
        raise KeyWrapError("A wrapped key does not fit the image's entry", expected=len(data), got=len(fresh))
    tlv = image.find(ENCRYPTIONS)
    assert tlv is not None  # _entry found it
    return Splice(tlv.offset, fresh)


def _entry(image: McubootImage, source: Reader) -> tuple[TlvType, bytes]:
    tlv = image.find(ENCRYPTIONS)
    if tlv is None:
        raise MalformedError("This MCUboot image is not encrypted")
    data = source.read_at(tlv.offset, tlv.length_bytes)
    if len(data) != tlv.length_bytes:
        raise MalformedError("An MCUboot image is cut short", offset=tlv.offset)
    return TlvType(tlv.type), data


def _open_ecies(kind: TlvType, data: bytes, key: WrapPrivateKey, length_bytes: int) -> bytes:
    split = _POINT_LENGTH_BYTES[kind]
    mac_length = 64 if kind is TlvType.ENC_X25519_SHA512 else 32
    point, tag, wrapped = data[:split], data[split : split + mac_length], data[split + mac_length :]
    if len(wrapped) != length_bytes:
        raise KeyWrapError("A wrapped content key has a wrong length", expected=length_bytes, got=len(wrapped))
    try:
        if kind is TlvType.ENC_EC256 and isinstance(key, ec.EllipticCurvePrivateKey):
            shared = key.exchange(ec.ECDH(), ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point))
        elif kind is not TlvType.ENC_EC256 and isinstance(key, x25519.X25519PrivateKey):
            shared = key.exchange(x25519.X25519PublicKey.from_public_bytes(point))
        else:
            raise KeyWrapError("The content key is wrapped for another kind of key", scheme=kind.name)
    except ValueError as error:
        raise KeyWrapError("A wrapped content key holds no point of its curve", scheme=kind.name) from error
    cipher_key, mac_key, algorithm = _derive(kind, shared, length_bytes)
    mac = hmac.HMAC(mac_key, algorithm)
    mac.update(wrapped)
    try:
        mac.verify(tag)
    except InvalidSignature as error:
        raise KeyWrapError("The content key is wrapped for another device", scheme=kind.name) from error
    decryptor = Cipher(algorithms.AES(cipher_key), modes.CTR(bytes(16))).decryptor()
    return decryptor.update(wrapped) + decryptor.finalize()


def _derive(kind: TlvType, shared: bytes, length_bytes: int) -> tuple[bytes, bytes, hashes.HashAlgorithm]:
    algorithm: hashes.HashAlgorithm = hashes.SHA512() if kind is TlvType.ENC_X25519_SHA512 else hashes.SHA256()
    derived = HKDF(algorithm, length_bytes + algorithm.digest_size, None, _INFO).derive(shared)
    return derived[:length_bytes], derived[length_bytes:], algorithm


def _oaep() -> padding.OAEP:
    return padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
