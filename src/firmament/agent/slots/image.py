"""A slot that is a raw image in a file or on a block device.

One pass of writes, in place, no temporary copy: the bytes of the image are the bytes of the
slot, so nothing has to be unpacked, and the old content of the slot is overwritten where it
lies. A block device keeps its length; a file gets the image's. The running digest is kept while
writing, and after the last byte the slot is read again with the page cache dropped, because what
was written and what the storage returns are different claims (testbed.md A.2).

Memory: one chunk of `CHUNK_BYTES` at a time, whatever the image's length.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from firmament.agent.slots.progress import Progress
from firmament.core.digest import Digest
from firmament.durable import PRIVATE_MODE, DropsCache
from firmament.errors import BootControlError, DigestMismatchError, ReadBackError, SlotTooSmallError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from firmament.agent.slots.port import Label
    from firmament.core.manifest import Image
    from firmament.durable import Disk, Reader, Writer

CHUNK_BYTES: Final = 256 * 1024
# Reading back: beyond 128 KiB the rate no longer grows on eMMC, NVMe and loop devices.
DEVICES: Final = "/dev"


class ImageSlot:
    """`Slot` over one file or block device at `path`.

    `limit_bytes` bounds a file (None: what is free on its file system); a device has its own
    length. A path below /dev that is not a regular file is a device: it is never created and
    never truncated, so a missing card does not become a file in memory.
    """

    def __init__(self, disk: Disk, label: Label, path: Path, *, limit_bytes: int | None = None) -> None:
        self._disk = disk
        self._label = label
        self._path = path
        self._limit_bytes = limit_bytes
        self._progress: Progress | None = None
        self._writer: Writer | None = None
        self._is_named_durably = False

    @property
    def label(self) -> Label:  # noqa: D102 - see Slot, here and below
        return self._label

    @property
    def path(self) -> Path:
        """Return the file or device, for boot loaders' settings and people."""
        return self._path

    def capacity_bytes(self) -> int:  # noqa: D102
        length = self._disk.length_bytes(self._path) or 0
        if self._is_device():
            return length
        room = length + self._disk.free_bytes(self._path.parent)
        return room if self._limit_bytes is None else min(room, self._limit_bytes)

    def begin(self, image: Image) -> None:  # noqa: D102
        self._open(image)

    def resume(self, image: Image, offset: int) -> int:  # noqa: D102
        progress = self._open(image)
        if not 0 < offset <= image.length_bytes or (self._disk.length_bytes(self._path) or 0) < offset:
            return 0
        for chunk in self._chunks(offset):
            progress.take(chunk)
        if progress.offset != offset:  # the file became shorter while it was read
            return self.resume(image, 0)
        self._is_named_durably = True
        return offset

    def write(self, data: bytes | bytearray | memoryview) -> None:  # noqa: D102
        progress, writer = self._session()
        offset = progress.offset
        progress.take(data)
        writer.write_at(offset, data)

    def checkpoint(self) -> int:  # noqa: D102
        progress, writer = self._session()
        writer.sync()
        if not self._is_named_durably and not self._is_device():
            self._disk.sync_directory(self._path.parent)
        self._is_named_durably = True
        return progress.offset

    def finish(self) -> None:  # noqa: D102
        progress, writer = self._session()
        progress.require_complete()
        if not self._is_device() and self._disk.length_bytes(self._path) != progress.offset:
            writer.truncate(progress.offset)
        self.checkpoint()

    def verify(self, image: Image) -> None:  # noqa: D102
        length = self._disk.length_bytes(self._path) or 0
        fits = length >= image.length_bytes if self._is_device() else length == image.length_bytes
        if not fits:
            raise ReadBackError(
                "The slot has another length than the image",
                slot=self._label,
                expected_bytes=image.length_bytes,
                got_bytes=length,
            )
        if isinstance(self._disk, DropsCache):
            self._disk.drop_cache(self._path)
        try:
            image.digest.require(
                Digest.of(self._chunks(image.length_bytes), image.digest.algorithm), what=f"Slot {self._label}"
            )
        except DigestMismatchError as error:
            raise ReadBackError("The slot does not hold the image", slot=self._label, **error.facts) from error

    def open_image(self, image: Image) -> Reader:  # noqa: D102
        return _Bounded(self._disk.open_reader(self._path), image.length_bytes)

    def close(self) -> None:  # noqa: D102
        if self._writer is not None:
            self._writer.close()
        self._writer = self._progress = None

    def _open(self, image: Image) -> Progress:
        self.close()
        capacity = self.capacity_bytes()
        if image.length_bytes > capacity:
            raise SlotTooSmallError(
                "The image does not fit into the slot",
                slot=self._label,
                image_bytes=image.length_bytes,
                slot_bytes=capacity,
            )
        _refuse_in_use(self._path)
        self._writer = self._disk.open_writer(self._path, mode=PRIVATE_MODE, create=not self._is_device())
        self._progress = Progress(image)
        self._is_named_durably = False
        return self._progress

    def _session(self) -> tuple[Progress, Writer]:
        if self._progress is None or self._writer is None:
            msg = "begin or resume comes first"
            raise RuntimeError(msg)
        return self._progress, self._writer

    def _is_device(self) -> bool:
        return self._path.is_block_device() or (self._path.is_relative_to(DEVICES) and not self._path.is_file())

    def _chunks(self, length_bytes: int) -> Iterator[bytes]:
        reader = self._disk.open_reader(self._path)
        try:
            offset = 0
            while offset < length_bytes:
                chunk = reader.read_at(offset, min(CHUNK_BYTES, length_bytes - offset))
                if not chunk:
                    return
                offset += len(chunk)
                yield chunk
        finally:
            reader.close()


class _Bounded:
    """A reader that ends where the image does: a device is longer."""

    def __init__(self, reader: Reader, length_bytes: int) -> None:
        self._reader = reader
        self._length_bytes = length_bytes

    def read_at(self, offset: int, length_bytes: int) -> bytes:
        return self._reader.read_at(offset, max(0, min(length_bytes, self._length_bytes - offset)))

    def close(self) -> None:
        self._reader.close()


def _refuse_in_use(path: Path) -> None:
    """Raise BootControlError when the kernel says that a block device is mounted or held.

    The last line of defence against a wrong slot label: Linux lets nobody open a mounted device
    with O_EXCL (open(2)).
    """
    if not path.is_block_device():
        return
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise BootControlError("The slot to be written is in use by the running system", path=path) from error
