"""MCUboot images, read strictly: what a boot loader will make of them is known before they travel.

    found = read_image(reader, length_bytes)       # layout.py: header, both TLV areas, exact end
    verify(found, reader, public_key)              # verify.py: digest and signature by a pinned key
    fresh = rewrap(found, reader, content_key, device_key)   # wrap.py: the same image for one device

Images are made by MCUboot's own `imgtool` (release/mcuboot_build.py); nothing here writes one.
Sources: MCUboot ``boot/bootutil/include/bootutil/image.h`` and its page on design; sizes and
pitfalls as measured in trust.md §6.
"""

from __future__ import annotations

from firmament.payload.mcuboot.layout import (
    HEADER_LENGTH_BYTES,
    MAX_IMAGE_LENGTH_BYTES,
    Dependency,
    McubootImage,
    Tlv,
    TlvType,
    has_magic,
    name_of,
    read_image,
)
from firmament.payload.mcuboot.verify import PublicKey, load_public_key, verify, verify_digest
from firmament.payload.mcuboot.wrap import Splice, rewrap, unwrap_content_key, wrap_content_key

__all__ = (
    "HEADER_LENGTH_BYTES",
    "MAX_IMAGE_LENGTH_BYTES",
    "Dependency",
    "McubootImage",
    "PublicKey",
    "Splice",
    "Tlv",
    "TlvType",
    "has_magic",
    "load_public_key",
    "name_of",
    "read_image",
    "rewrap",
    "unwrap_content_key",
    "verify",
    "verify_digest",
    "wrap_content_key",
)
