"""Header and TLV areas of an MCUboot image; every length is checked before it is used.

    header | padding | body | protected TLVs | TLVs          (little endian throughout)

Stricter than the boot loader on purpose. What decides about trust or fitness (security counter,
dependencies, vendor and class id) counts only in the *protected* area, which the hash covers; in
the other area it is refused, not ignored. Nothing may follow the last TLV.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from firmament.errors import MalformedError, TooLargeError

if TYPE_CHECKING:
    from firmament.payload.readers import Reader

MAGIC: Final = 0x96F3B83D
HEADER_LENGTH_BYTES: Final = 32
MAX_IMAGE_LENGTH_BYTES: Final = 64 * 1024**2
# The largest microcontroller flash in scope is 16 MiB, external flash included; four times that.
MAX_TLVS: Final = 64
# imgtool writes at most a dozen, and one per dependency and custom entry.
_HEADER: Final = struct.Struct("<IIHHIIBBHI4x")
_INFO: Final = struct.Struct("<HH")
_TLV: Final = struct.Struct("<HH")
_DEPENDENCY: Final = struct.Struct("<B3xBBHI")
_INFO_MAGIC: Final = 0x6907
_PROTECTED_INFO_MAGIC: Final = 0x6908
_ENCRYPTED: Final = 0x4 | 0x8
_KNOWN_FLAGS: Final = 0x1 | _ENCRYPTED | 0x10 | 0x20 | 0x100 | 0x200 | 0x400 | 0x800
_VENDOR: Final = range(0xA0, 0xFFFF)


class TlvType(IntEnum):
    """Entries of the two areas that this reader knows (image.h, IMAGE_TLV_*)."""

    KEYHASH = 0x01
    PUBKEY = 0x02
    SHA256 = 0x10
    SHA384 = 0x11
    SHA512 = 0x12
    RSA2048 = 0x20
    ECDSA = 0x22
    RSA3072 = 0x23
    ED25519 = 0x24
    SIG_PURE = 0x25
    ENC_RSA2048 = 0x30
    ENC_KW = 0x31
    ENC_EC256 = 0x32
    ENC_X25519 = 0x33
    ENC_X25519_SHA512 = 0x34
    DEPENDENCY = 0x40
    SECURITY_COUNTER = 0x50
    BOOT_RECORD = 0x60
    DECOMPRESSED_SIZE = 0x70
    DECOMPRESSED_SHA = 0x71
    DECOMPRESSED_SIGNATURE = 0x72
    COMPRESSED_SIZE = 0x73
    VENDOR_ID = 0x74
    CLASS_ID = 0x75


HASHES: Final = {TlvType.SHA256: 32, TlvType.SHA384: 48, TlvType.SHA512: 64}
SIGNATURES: Final = frozenset({TlvType.RSA2048, TlvType.ECDSA, TlvType.RSA3072, TlvType.ED25519})
ENCRYPTIONS: Final = frozenset(
    {TlvType.ENC_RSA2048, TlvType.ENC_KW, TlvType.ENC_EC256, TlvType.ENC_X25519, TlvType.ENC_X25519_SHA512}
)
PROTECTED_ONLY: Final = frozenset(
    {
        TlvType.DEPENDENCY,
        TlvType.SECURITY_COUNTER,
        TlvType.BOOT_RECORD,
        TlvType.DECOMPRESSED_SIZE,
        TlvType.DECOMPRESSED_SHA,
        TlvType.DECOMPRESSED_SIGNATURE,
        TlvType.COMPRESSED_SIZE,
        TlvType.VENDOR_ID,
        TlvType.CLASS_ID,
    }
)
"""Moved to the other area they would not be covered by the signature (CVE-2024-32883 class)."""


@dataclass(frozen=True, slots=True)
class Tlv:
    """One entry: its type, where its value is in the file, and whether the hash covers it."""

    type: int
    offset: int
    length_bytes: int
    is_protected: bool


@dataclass(frozen=True, slots=True)
class Dependency:
    """Another image of the device that must be at least of this version."""

    image: int
    version: str


@dataclass(frozen=True, slots=True)
class McubootImage:
    """What an image says about itself; only `verify` tells whether its author said it."""

    header_length_bytes: int
    body_length_bytes: int
    protected_length_bytes: int
    flags: int
    load_address: int
    version: str
    """``major.minor.revision+build``."""
    length_bytes: int
    tlvs: tuple[Tlv, ...]
    digest: bytes
    """Value of the hash TLV; empty in an image whose signature is over the image itself."""
    security_counter: int | None
    dependencies: tuple[Dependency, ...]
    vendor_id: bytes | None
    class_id: bytes | None

    @property
    def is_encrypted(self) -> bool:
        """Whether the body is ciphertext."""
        return bool(self.flags & _ENCRYPTED)

    @property
    def content_key_length_bytes(self) -> int:
        """Length of the AES key of an encrypted image."""
        return 32 if self.flags & 0x8 else 16

    @property
    def signed_length_bytes(self) -> int:
        """Header, body and protected TLVs: what the hash covers, from the first byte on."""
        return self.header_length_bytes + self.body_length_bytes + self.protected_length_bytes

    def find(self, kinds: frozenset[TlvType] | set[TlvType]) -> Tlv | None:
        """Return the entry of one of these types; there is at most one of each kind."""
        return next((tlv for tlv in self.tlvs if tlv.type in kinds), None)


def read_image(source: Reader, length_bytes: int) -> McubootImage:
    """Read and check the layout of a whole image; raises MalformedError or TooLargeError.

    `length_bytes` is the length of the file or slot content, which must end with the last TLV.
    """
    if length_bytes > MAX_IMAGE_LENGTH_BYTES:
        raise TooLargeError(
            "An MCUboot image is longer than allowed", length_bytes=length_bytes, limit_bytes=MAX_IMAGE_LENGTH_BYTES
        )
    load, header, protected, body, flags, version = _header(source)
    end = header + body
    if end + protected + _INFO.size > length_bytes:
        raise MalformedError(
            "An MCUboot image is cut short", length_bytes=length_bytes, needed_bytes=end + protected + _INFO.size
        )
    tlvs: list[Tlv] = []
    if protected:
        stop = _area(source, end, length_bytes, tlvs, is_protected=True)
        if stop != end + protected:
            raise MalformedError(
                "The protected TLVs of an MCUboot image are not as long as its header says",
                expected=protected,
                got=stop - end,
            )
        end = stop
    end = _area(source, end, length_bytes, tlvs, is_protected=False)
    if end != length_bytes:
        raise MalformedError("An MCUboot image goes on after its last TLV", expected=end, got=length_bytes)
    _check_places(tlvs, is_encrypted=bool(flags & _ENCRYPTED))
    return McubootImage(
        header_length_bytes=header,
        body_length_bytes=body,
        protected_length_bytes=protected,
        flags=flags,
        load_address=load,
        version=version,
        length_bytes=length_bytes,
        tlvs=tuple(tlvs),
        digest=_hash(source, tlvs),
        security_counter=_security_counter(source, tlvs),
        dependencies=_dependencies(source, tlvs),
        vendor_id=_identifier(source, tlvs, TlvType.VENDOR_ID),
        class_id=_identifier(source, tlvs, TlvType.CLASS_ID),
    )


def has_magic(data: bytes) -> bool:
    """Whether these first bytes are those of an MCUboot image."""
    return data[:4] == MAGIC.to_bytes(4, "little")


def name_of(tlv: Tlv) -> str:
    """Return the type of an entry in words: its name, or its number for a vendor's own."""
    return TlvType(tlv.type).name.lower().replace("_", "-") if tlv.type in set(TlvType) else f"{tlv.type:#06x}"


def _header(source: Reader) -> tuple[int, int, int, int, int, str]:
    data = source.read_at(0, HEADER_LENGTH_BYTES)
    if len(data) < HEADER_LENGTH_BYTES:
        raise MalformedError("An MCUboot image is at least 32 bytes long", length_bytes=len(data))
    magic, load, header, protected, body, flags, major, minor, revision, build = _HEADER.unpack(data)
    if magic != MAGIC:
        raise MalformedError("This is no MCUboot image", magic=f"{magic:#x}", expected=f"{MAGIC:#x}")
    if header < HEADER_LENGTH_BYTES or body == 0:
        raise MalformedError("An MCUboot header has lengths that are not allowed", header=header, image=body)
    if flags & ~_KNOWN_FLAGS or flags & _ENCRYPTED == _ENCRYPTED:
        raise MalformedError("An MCUboot header has flags that are not known", flags=f"{flags:#x}")
    return load, header, protected, body, flags, f"{major}.{minor}.{revision}+{build}"


def _area(source: Reader, start: int, limit: int, tlvs: list[Tlv], *, is_protected: bool) -> int:
    """Read one TLV area from `start`; return where it ends."""
    info = source.read_at(start, _INFO.size)
    wanted = _PROTECTED_INFO_MAGIC if is_protected else _INFO_MAGIC
    magic, total = _INFO.unpack(info) if len(info) == _INFO.size else (0, 0)
    if magic != wanted:
        raise MalformedError("A TLV area of an MCUboot image is missing", magic=f"{magic:#x}", expected=f"{wanted:#x}")
    stop: int = start + total
    if total < _INFO.size or stop > limit:
        raise MalformedError("A TLV area of an MCUboot image does not fit the file", length_bytes=total)
    offset = start + _INFO.size
    while offset < stop:
        if len(tlvs) >= MAX_TLVS:
            raise TooLargeError("An MCUboot image has too many TLVs", limit=MAX_TLVS)
        head = source.read_at(offset, _TLV.size) if offset + _TLV.size <= stop else b""
        if len(head) < _TLV.size:
            raise MalformedError("A TLV of an MCUboot image is cut short", offset=offset)
        kind, length_bytes = _TLV.unpack(head)
        offset += _TLV.size
        if offset + length_bytes > stop:
            raise MalformedError("A TLV of an MCUboot image is cut short", type=f"{kind:#x}", length_bytes=length_bytes)
        tlvs.append(Tlv(kind, offset, length_bytes, is_protected))
        offset += length_bytes
    return stop


def _check_places(tlvs: list[Tlv], *, is_encrypted: bool) -> None:
    known = {int(kind) for kind in TlvType}
    seen: dict[str, int] = {}
    for tlv in tlvs:
        if tlv.type in PROTECTED_ONLY and not tlv.is_protected:
            raise MalformedError("A TLV that must be protected is not covered by the hash", type=f"{tlv.type:#x}")
        if tlv.is_protected and tlv.type in known - {int(kind) for kind in PROTECTED_ONLY}:
            raise MalformedError("A TLV stands in the protected area where none of its type may", type=f"{tlv.type:#x}")
        if tlv.type not in known and tlv.type not in _VENDOR:
            raise MalformedError("A TLV of an MCUboot image has a type that is not known", type=f"{tlv.type:#x}")
        group = _group(tlv.type)
        if group is not None:
            seen[group] = seen.get(group, 0) + 1
            if seen[group] > 1:
                raise MalformedError("An MCUboot image says the same thing twice", type=f"{tlv.type:#x}", what=group)
    if ("encryption" in seen) and not is_encrypted:
        raise MalformedError("An MCUboot image carries a key but says it is not encrypted")
    if is_encrypted and "encryption" not in seen:
        raise MalformedError("An encrypted MCUboot image carries no key")


def _group(kind: int) -> str | None:
    """Return what may be said once only; None for dependencies and a vendor's own entries."""
    if kind in HASHES:
        return "hash"
    if kind in SIGNATURES:
        return "signature"
    if kind in ENCRYPTIONS:
        return "encryption"
    if kind in {TlvType.KEYHASH, TlvType.PUBKEY}:
        return "key"
    return f"{kind:#x}" if kind != TlvType.DEPENDENCY and kind not in _VENDOR else None


def _value(source: Reader, tlv: Tlv, expected_bytes: int) -> bytes:
    data = source.read_at(tlv.offset, tlv.length_bytes) if tlv.length_bytes == expected_bytes else b""
    if len(data) != expected_bytes:
        raise MalformedError(
            "A TLV of an MCUboot image has a wrong length",
            type=f"{tlv.type:#x}",
            length_bytes=tlv.length_bytes,
            expected=expected_bytes,
        )
    return data


def _hash(source: Reader, tlvs: list[Tlv]) -> bytes:
    tlv = next((tlv for tlv in tlvs if tlv.type in HASHES), None)
    return b"" if tlv is None else _value(source, tlv, HASHES[TlvType(tlv.type)])


def _security_counter(source: Reader, tlvs: list[Tlv]) -> int | None:
    tlv = next((tlv for tlv in tlvs if tlv.type == TlvType.SECURITY_COUNTER), None)
    return None if tlv is None else int.from_bytes(_value(source, tlv, 4), "little")


def _dependencies(source: Reader, tlvs: list[Tlv]) -> tuple[Dependency, ...]:
    found = []
    for tlv in tlvs:
        if tlv.type == TlvType.DEPENDENCY:
            image, major, minor, revision, build = _DEPENDENCY.unpack(_value(source, tlv, _DEPENDENCY.size))
            found.append(Dependency(image, f"{major}.{minor}.{revision}+{build}"))
    return tuple(found)


def _identifier(source: Reader, tlvs: list[Tlv], kind: TlvType) -> bytes | None:
    tlv = next((tlv for tlv in tlvs if tlv.type == kind), None)
    return None if tlv is None else _value(source, tlv, 16)
