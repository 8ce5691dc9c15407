"""The header of an MCUboot image, just enough to describe one (trust.md §6).

Little endian, 32 bytes: magic, load address, header size, protected TLV size, image size, flags,
version (MCUboot bootutil/image.h, struct image_header). The TLVs, and with them the boot loader's
own signature, are checked by the strict parser of the microcontroller gateway and by MCUboot.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from firmament.errors import MalformedError

MAGIC: Final = 0x96F3B83D
HEADER_LENGTH_BYTES: Final = 32
_HEADER: Final = struct.Struct("<IIHHIIBBHI4x")
_TLV_INFO: Final = 4


@dataclass(frozen=True, slots=True)
class McubootHeader:
    """What the header says; none of it is signed by this house."""

    header_length_bytes: int
    protected_tlv_length_bytes: int
    image_length_bytes: int
    flags: int
    version: str
    """``major.minor.revision+build``"""


def has_magic(data: bytes) -> bool:
    """Whether these first bytes are those of an MCUboot image."""
    return data[:4] == MAGIC.to_bytes(4, "little")


def check_image(data: bytes, file_length_bytes: int) -> McubootHeader:
    """Read the first 32 bytes; raises MalformedError unless the lengths fit the file."""
    if len(data) < HEADER_LENGTH_BYTES:
        raise MalformedError("An MCUboot image is at least 32 bytes long", length_bytes=len(data))
    magic, _load, header, protected, image, flags, major, minor, revision, build = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise MalformedError("This is no MCUboot image", magic=f"{magic:#x}", expected=f"{MAGIC:#x}")
    if header < HEADER_LENGTH_BYTES or image == 0:
        raise MalformedError("An MCUboot header has lengths that are not allowed", header=header, image=image)
    if header + image + protected + _TLV_INFO > file_length_bytes:
        raise MalformedError(
            "An MCUboot image is cut short",
            length_bytes=file_length_bytes,
            needed_bytes=header + image + protected + _TLV_INFO,
        )
    return McubootHeader(header, protected, image, flags, f"{major}.{minor}.{revision}+{build}")
