"""Lengths that make trouble, each with its reason (after MCUboot's `DeviceName`).

Images are as small as the trouble allows: what matters is where their ends lie relative to
network pieces, checkpoints, old content and slot, not how many bytes are between.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from firmament.sim.world import Geometry, SlotKind, pack

if TYPE_CHECKING:
    from collections.abc import Mapping


def _noise(length_bytes: int, salt: int) -> bytes:
    """Return bytes without period or zeros, so that a stale or missing piece never looks right."""
    return bytes(1 + (index * index // 7 + index * 31 + salt * 97) % 255 for index in range(length_bytes))


IMAGES: Final = (
    Geometry(
        name="uneven",
        why="network pieces, checkpoints and slot do not divide the image's length, and the old image is longer",
        old=_noise(4000, 1),
        new=_noise(3457, 2),
        slot_bytes=5000,
        chunk_bytes=700,
        checkpoint_bytes=1500,
    ),
    Geometry(
        name="exact",
        why="the slot is exactly as long as the image, and the last checkpoint falls on its last byte",
        old=_noise(2048, 3),
        new=_noise(4096, 4),
        slot_bytes=4096,
        chunk_bytes=512,
        checkpoint_bytes=2048,
    ),
    Geometry(
        name="tiny",
        why="the image arrives in one piece and no checkpoint is ever reached",
        old=_noise(600, 5),
        new=_noise(3, 6),
        slot_bytes=1024,
        chunk_bytes=1000,
        checkpoint_bytes=2000,
    ),
)

_OLD_TREE: Final[Mapping[str, bytes | str | None]] = {
    "main.py": _noise(300, 7),
    "lib": None,
    "lib/old.py": _noise(600, 8),
    "gone": b"removed in the new release\n",
}
BUNDLES: Final = (
    Geometry(
        name="files",
        why="directories, an empty file, a symlink, and a checkpoint in the middle of a file",
        old=pack(_OLD_TREE),
        new=pack(
            {
                "bin": None,
                "bin/tool": _noise(513, 9),
                "current": "lib/new.py",
                "empty": b"",
                "lib": None,
                "lib/new.py": _noise(1700, 10),
                "main.py": _noise(301, 11),
            }
        ),
        slot_bytes=0,
        chunk_bytes=700,
        checkpoint_bytes=1900,
    ),
    Geometry(
        name="one-file",
        why="a bundle of a single file that ends on a block boundary, cut inside its only header and its end mark",
        old=pack(_OLD_TREE),
        new=pack({"app": _noise(1024, 12)}),
        slot_bytes=0,
        chunk_bytes=100,
        checkpoint_bytes=300,
    ),
)


def geometries(slot: SlotKind) -> tuple[Geometry, ...]:
    """Return the rows for a kind of slot."""
    return BUNDLES if slot is SlotKind.BUNDLE else IMAGES
