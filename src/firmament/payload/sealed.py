"""The sealed container: a payload encrypted once, readable only with its content key (trust.md §4.3).

A sealed payload is the same object for every device, so that any cache can hold it; the content
key (CEK) travels apart, wrapped for one device (`wrap`). Chunks are AEAD-encrypted one by one, so
that a device opens any chunk without the others: opening resumes at each chunk boundary and a
delta applier may read the payload at random.

A CEK is known to every device of the fleet, so the AEAD does not say who wrote the bytes: that
is the signed digest's part. Verify the digest of the sealed bytes first, then open.

Format (all integers big-endian): docs/protocol/sealed.md. Vectors: vectors/sealed-1.json.
"""

from __future__ import annotations

import hashlib
import secrets
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from firmament.errors import SealedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from firmament.payload.readers import Reader

MAGIC: Final = b"OTAE"
FORMAT_VERSION: Final = 1
HEADER_LENGTH_BYTES: Final = 64
TAG_LENGTH_BYTES: Final = 16
KEY_LENGTH_BYTES: Final = 32
DEFAULT_LOG2_CHUNK: Final = 16
# 64 KiB: 1.3 GiB/s to open on one core, 0.025 % longer, one buffer in memory (trust.md §4.2).
MIN_LOG2_CHUNK: Final = 12
MAX_LOG2_CHUNK: Final = 20
# A chunk is held in memory twice while it is opened: 1 MiB keeps that within any Linux device.
_HEADER: Final = struct.Struct(">4sBBBBQ16s32s")
_INFO: Final = b"ota-sealed-v1"
_NONCE: Final = struct.Struct(">3xQB")


class Suite(IntEnum):
    """Which AEAD seals the chunks; the author chooses by what the devices' processors do well."""

    AES_256_GCM = 1
    """For processors with AES instructions."""
    CHACHA20_POLY1305 = 2
    """For those without, e.g. a Raspberry Pi up to 4."""


class _Cipher(Protocol):
    def encrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes: ...
    def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Header:
    """The first 64 bytes, bound into every chunk as associated data."""

    suite: Suite
    log2_chunk: int
    plain_length_bytes: int
    file_id: bytes
    salt: bytes

    @property
    def chunk_length_bytes(self) -> int:
        """Plain bytes per chunk."""
        return 1 << self.log2_chunk

    @property
    def chunk_count(self) -> int:
        """How many chunks; an empty payload has one, so that its end is authenticated too."""
        return max(1, -(-self.plain_length_bytes >> self.log2_chunk)) if self.plain_length_bytes else 1

    @property
    def sealed_length_bytes(self) -> int:
        """Length of the whole container."""
        return HEADER_LENGTH_BYTES + self.plain_length_bytes + TAG_LENGTH_BYTES * self.chunk_count

    def encode(self) -> bytes:
        """Return the 64 bytes."""
        return _HEADER.pack(
            MAGIC,
            FORMAT_VERSION,
            self.suite,
            self.log2_chunk,
            0,
            self.plain_length_bytes,
            self.file_id,
            self.salt,
        )

    @classmethod
    def decode(cls, data: bytes, *, max_plain_length_bytes: int) -> Header:
        """Read a header; raises SealedError for anything that is not one within the ceiling."""
        if len(data) != HEADER_LENGTH_BYTES:
            raise SealedError("A sealed payload ends within its header", length_bytes=len(data))
        magic, version, suite, log2_chunk, reserved, plain, file_id, salt = _HEADER.unpack(data)
        if magic != MAGIC or version != FORMAT_VERSION or reserved:
            raise SealedError("Not a sealed payload of a version this code knows", version=version, known=1)
        if suite not in tuple(Suite) or not MIN_LOG2_CHUNK <= log2_chunk <= MAX_LOG2_CHUNK:
            raise SealedError(
                "A sealed payload has an unknown cipher suite or chunk size", suite=suite, log2=log2_chunk
            )
        if plain > max_plain_length_bytes:
            raise SealedError(
                "A sealed payload claims to be longer than signed", claimed=plain, most=max_plain_length_bytes
            )
        return cls(Suite(suite), log2_chunk, plain, file_id, salt)


def sealed_length_bytes(plain_length_bytes: int, log2_chunk: int = DEFAULT_LOG2_CHUNK) -> int:
    """Length of the container around a payload of this length."""
    return Header(Suite.AES_256_GCM, log2_chunk, plain_length_bytes, bytes(16), bytes(32)).sealed_length_bytes


def new_key() -> bytes:
    """Make the content key of one payload; never use one for two payloads."""
    return secrets.token_bytes(KEY_LENGTH_BYTES)


def seal(
    source: Reader,
    plain_length_bytes: int,
    key: bytes,
    write: Callable[[bytes], object],
    *,
    suite: Suite = Suite.AES_256_GCM,
    log2_chunk: int = DEFAULT_LOG2_CHUNK,
    identity: tuple[bytes, bytes] | None = None,
) -> str:
    """Write the container and return its SHA-256 in hexadecimal, which is what is signed.

    `identity` is (file id, salt); fresh random bytes unless test vectors are made. A salt per
    file keeps (key, nonce) pairs apart even if a key were used twice (trust.md §9, 12).
    """
    if len(key) != KEY_LENGTH_BYTES:
        raise SealedError("A content key has 32 bytes", length_bytes=len(key))
    if not MIN_LOG2_CHUNK <= log2_chunk <= MAX_LOG2_CHUNK:
        raise SealedError("No such chunk size", log2=log2_chunk, least=MIN_LOG2_CHUNK, most=MAX_LOG2_CHUNK)
    file_id, salt = identity or (secrets.token_bytes(16), secrets.token_bytes(32))
    header = Header(suite, log2_chunk, plain_length_bytes, file_id, salt)
    associated = header.encode()
    cipher = _cipher(header, key)
    hasher = hashlib.sha256(associated)
    write(associated)
    for index in range(header.chunk_count):
        length = _plain_chunk_length(header, index)
        plain = source.read_at(index << log2_chunk, length)
        if len(plain) != length:
            raise SealedError("The payload ended while it was sealed", chunk=index)
        sealed = cipher.encrypt(_nonce(header, index), plain, associated)
        hasher.update(sealed)
        write(sealed)
    return hasher.hexdigest()


class Opener:
    """Reads the plain bytes of a sealed payload, each chunk authenticated before it is given out.

    It is a `Reader` of the plain payload: `read_at` at any offset opens only the chunks it needs
    and keeps the last one. `length_bytes` is the container's, as signed.
    """

    def __init__(self, source: Reader, length_bytes: int, key: bytes, *, max_plain_length_bytes: int) -> None:
        if len(key) != KEY_LENGTH_BYTES:
            raise SealedError("A content key has 32 bytes", length_bytes=len(key))
        self._source = source
        self._associated = source.read_at(0, HEADER_LENGTH_BYTES)
        self.header = Header.decode(self._associated, max_plain_length_bytes=max_plain_length_bytes)
        if length_bytes != self.header.sealed_length_bytes:
            raise SealedError(
                "A sealed payload has another length than its header says",
                expected=self.header.sealed_length_bytes,
                got=length_bytes,
            )
        self._cipher = _cipher(self.header, key)
        self._cached: tuple[int, bytes] = (-1, b"")

    @property
    def length_bytes(self) -> int:
        """Length of the plain payload."""
        return self.header.plain_length_bytes

    def chunk(self, index: int) -> bytes:
        """Open one chunk; raises SealedError if a single bit of it, of its place or of the header changed."""
        if self._cached[0] == index:
            return self._cached[1]
        if not 0 <= index < self.header.chunk_count:
            raise SealedError("A sealed payload has no such chunk", chunk=index, chunks=self.header.chunk_count)
        stride = self.header.chunk_length_bytes + TAG_LENGTH_BYTES
        length = _plain_chunk_length(self.header, index) + TAG_LENGTH_BYTES
        sealed = self._source.read_at(HEADER_LENGTH_BYTES + index * stride, length)
        if len(sealed) != length:
            raise SealedError("A sealed payload is cut short", chunk=index, expected=length, got=len(sealed))
        try:
            plain = self._cipher.decrypt(_nonce(self.header, index), sealed, self._associated)
        except InvalidTag:
            raise SealedError("A sealed payload does not open with this key", chunk=index) from None
        self._cached = (index, plain)
        return plain

    def chunks(self, *, first: int = 0) -> Iterator[bytes]:
        """Yield the plain chunks from `first` to the end: resume where the last run stopped."""
        for index in range(first, self.header.chunk_count):
            yield self.chunk(index)

    def read_at(self, offset: int, length_bytes: int) -> bytes:
        """Return plain bytes as a Reader does."""
        end = min(offset + length_bytes, self.length_bytes)
        parts = []
        while offset < end:
            index = offset >> self.header.log2_chunk
            start = offset - (index << self.header.log2_chunk)
            part = self.chunk(index)[start : start + end - offset]
            parts.append(part)
            offset += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


def _plain_chunk_length(header: Header, index: int) -> int:
    return min(header.chunk_length_bytes, header.plain_length_bytes - (index << header.log2_chunk))


def _nonce(header: Header, index: int) -> bytes:
    return _NONCE.pack(index, index == header.chunk_count - 1)


def _cipher(header: Header, key: bytes) -> _Cipher:
    derivation = HKDF(hashes.SHA256(), KEY_LENGTH_BYTES, header.salt, _INFO + header.encode()[:32])
    derived = derivation.derive(key)
    return AESGCM(derived) if header.suite is Suite.AES_256_GCM else ChaCha20Poly1305(derived)
