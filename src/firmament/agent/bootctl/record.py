"""A choice in a record of our own: two copies, each with a checksum, each overwritten in place.

Used where the boot loader is ours (the simulator, the supervisor). While one copy is being
written the other is whole; afterwards both say the same, so that losing either loses nothing.
A record that was never written is the default choice; two damaged copies are an error.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final

from firmament.agent.bootctl.choice import Choice, Other, decide
from firmament.agent.slots.port import Label
from firmament.core import canonical
from firmament.core.fields import Fields
from firmament.durable import make_directory_durably, read_file, replace_durably
from firmament.errors import BootControlError, FirmamentError
from firmament.log import logger

if TYPE_CHECKING:
    from pathlib import Path

    from firmament.durable import Disk

log = logger("agent.bootctl")

COPIES: Final = ("boot.a", "boot.b")
MAX_LENGTH_BYTES: Final = 4096
# A record is 80 bytes; one block leaves room for fields of later agents.
LENGTH_BYTES: Final = 512
# One sector of most storage; padded with line feeds.
_HEADER: Final = b"firmament-boot/1 "


class RecordStore:
    """`ChoiceStore` in two files under `directory`."""

    def __init__(self, disk: Disk, directory: Path) -> None:
        self._disk = disk
        self._directory = directory

    def load(self) -> Choice:  # noqa: D102 - see ChoiceStore
        return max(self._load().values(), key=lambda item: item[1], default=(Choice(), 0))[0]

    def store(self, choice: Choice) -> None:  # noqa: D102
        found = self.prepare()
        data = _padded(choice, max(generation for _, generation in found.values()) + 1)
        # The worse copy first: while it is overwritten the better one is whole.
        for name in sorted(COPIES, key=lambda name: found[name][1] if name in found else 0):
            self._replace(self._directory / name, data)

    def prepare(self) -> dict[str, tuple[Choice, int]]:
        """Make the copies that are missing, which takes space; after that no change does."""
        found = self._load()
        choice, generation = max(found.values(), key=lambda item: item[1], default=(Choice(), 0))
        make_directory_durably(self._disk, self._directory)
        for name in COPIES:
            if not self._disk.exists(self._directory / name):
                self._replace(self._directory / name, _padded(choice, generation))
                found[name] = choice, generation
        return found

    def _replace(self, path: Path, data: bytes) -> None:
        if self._disk.length_bytes(path) != len(data):
            replace_durably(self._disk, path, data)
            return
        # In place, because that needs no space: a full disk must not keep a device from going back.
        writer = self._disk.open_writer(path, create=False)
        try:
            writer.write_at(0, data)
            writer.sync()
        finally:
            writer.close()

    def _load(self) -> dict[str, tuple[Choice, int]]:
        """Return the readable copies with their generations; raises when there are only damaged ones."""
        found: dict[str, tuple[Choice, int]] = {}
        damaged: list[str] = []
        for name in COPIES:
            path = self._directory / name
            if not self._disk.exists(path):
                continue
            try:
                found[name] = decode(read_file(self._disk, path, limit_bytes=MAX_LENGTH_BYTES))
            except FirmamentError as error:
                damaged.append(name)
                log.warning("bootctl.copy-damaged", path=str(path), code=error.code, problem=error.problem)
        if not found and damaged:
            raise BootControlError("The boot record cannot be read", directory=self._directory, damaged=damaged)
        return found


def _padded(choice: Choice, generation: int) -> bytes:
    return encode(choice, generation).ljust(LENGTH_BYTES, b"\n")


def encode(choice: Choice, generation: int) -> bytes:
    """Return a copy of the record: one line with a checksum, one line of canonical JSON."""
    body = canonical.encode({"primary": choice.primary, "other": choice.other, "generation": generation})
    return _HEADER + b"%08x\n" % zlib.crc32(body) + body


def decode(data: bytes) -> tuple[Choice, int]:
    """Read one copy; raises BootControlError or MalformedError."""
    head, _, body = data.rstrip(b"\n").partition(b"\n")
    if head != _HEADER + b"%08x" % zlib.crc32(body):
        raise BootControlError("The checksum of a copy of the boot record is wrong")
    fields = Fields(canonical.decode_object(body, limit_bytes=MAX_LENGTH_BYTES, what="boot record"), what="boot record")
    choice = Choice(fields.one_of("primary", Label), fields.one_of("other", Other))
    return choice, fields.integer("generation")


def decide_bytes(data: bytes) -> tuple[Label, bytes]:
    """Return what a loader starts that finds this copy, and the copy it must write first."""
    choice, generation = decode(data)
    label, after = decide(choice)
    return label, data if after == choice else encode(after, generation + 1)
