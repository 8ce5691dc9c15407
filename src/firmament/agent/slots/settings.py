"""The settings table ``[slots]``.

    kind = "bundle"  directory = "/opt/app"  limit_bytes = 100000000
    kind = "image"   a = "/dev/mmcblk0p2"  b = "/dev/mmcblk0p3"

Another kind is an entry point in the group ``firmament.slots``: ``read(fields, disk=...) -> Slots``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from firmament.agent.kinds import SLOTS, read_kind
from firmament.agent.slots.bundle import BundleSlot
from firmament.agent.slots.image import ImageSlot
from firmament.agent.slots.port import Label, Slots
from firmament.core.manifest import MAX_IMAGE_LENGTH_BYTES
from firmament.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from firmament.core.fields import Fields
    from firmament.durable import Disk

MAX_PATH_LENGTH: Final = 4096  # PATH_MAX of Linux


def slots_from_fields(fields: Fields, *, disk: Disk) -> Slots:
    """Read ``[slots]``; touches nothing. Raises SettingError or MalformedError."""
    return read_kind(fields, KINDS, group=SLOTS, disk=disk)


def absolute(fields: Fields, name: str, *, default: str | None = None) -> Path:
    """Read an absolute path; raises SettingError."""
    path = Path(fields.text(name, max_length=MAX_PATH_LENGTH, default=default))
    if not path.is_absolute():
        raise SettingError("The path must be absolute", setting=f"{fields.what}.{name}", found=path)
    return path


def _bundle(fields: Fields, *, disk: Disk) -> Slots:
    directory, limit = absolute(fields, "directory"), _limit(fields)
    a, b = (BundleSlot(disk, label, directory, limit_bytes=limit) for label in Label)
    return Slots("bundle", a, b)


def _image(fields: Fields, *, disk: Disk) -> Slots:
    paths, limit = [absolute(fields, label) for label in Label], _limit(fields)
    if paths[0] == paths[1]:
        raise SettingError("Slots A and B must be two places", setting=f"{fields.what}.b", found=paths[1])
    a, b = (ImageSlot(disk, label, path, limit_bytes=limit) for label, path in zip(Label, paths, strict=True))
    return Slots("image", a, b)


def _limit(fields: Fields) -> int | None:
    if "limit_bytes" not in fields:
        return None
    return fields.integer("limit_bytes", minimum=1, maximum=MAX_IMAGE_LENGTH_BYTES)


KINDS: Final[Mapping[str, Callable[..., Slots]]] = {"bundle": _bundle, "image": _image}
