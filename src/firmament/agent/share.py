"""What this device can give to others nearby: payloads it fetched and verified, as they travelled.

Off by default (settings ``[share]``). Two kinds are kept: a payload that was stored before it was
applied stays as a file; a whole one that went straight into a slot is read from there while the
slot holds it. An image that came sealed or as a delta is never given as an image, so what was
sealed leaves this device sealed. Metadata and keys are not here at all.

Losing what is kept costs nothing: every error here is logged and the update goes on.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from firmament.agent.slots.port import Label
from firmament.core import canonical
from firmament.core.digest import Digest
from firmament.core.fields import Fields
from firmament.core.manifest import MAX_IMAGE_LENGTH_BYTES, Image
from firmament.durable import make_directory_durably, read_file, replace_durably
from firmament.errors import FirmamentError
from firmament.log import logger

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from firmament.agent.slots.port import Slots
    from firmament.core.manifest import Payload
    from firmament.durable import Disk, Reader

log = logger("agent.share")

DIRECTORY: Final = "share"
"""Below the state directory."""
MAX_FILES: Final = 8
_KEPT: Final = re.compile(r"(\d{1,9})-([0-9a-f]{64,128})")
_IN_SLOT: Final = "slot.json"
MAX_RECORD_LENGTH_BYTES: Final = 1024


@dataclass(frozen=True, slots=True)
class ShareSettings:
    """Where payloads are offered to others nearby, and what that may cost (settings table ``[share]``)."""

    host: str
    port: int
    max_rate_bytes_per_s: int
    """All neighbours together; 0: as fast as it goes."""
    limit_bytes: int
    """What kept files may take together."""


class Share:
    """The store. The engine's thread changes it; threads of the server only read."""

    def __init__(self, disk: Disk, directory: Path, slots: Slots, *, limit_bytes: int) -> None:
        self._disk = disk
        self._directory = directory
        self._slots = slots
        self._limit_bytes = limit_bytes

    def keep(self, path: Path, payload: Payload) -> None:
        """Take over the file of a stored payload that was verified; older ones give way."""
        with self._quietly("keep"):
            if payload.length_bytes > self._limit_bytes:
                return
            make_directory_durably(self._disk, self._directory)
            kept = self._kept()
            if any(found == payload.digest.hex for _, found, _ in kept):
                return
            while kept and (
                len(kept) >= MAX_FILES
                or payload.length_bytes + sum(self._length(name) for _, _, name in kept) > self._limit_bytes
            ):
                self._disk.remove(self._directory / kept.pop(0)[2])
            number = kept[-1][0] + 1 if kept else 1
            self._disk.replace(path, self._directory / f"{number}-{payload.digest.hex}")
            self._disk.sync_directory(self._directory)
            log.info("share.kept", payload=payload.target, length_bytes=payload.length_bytes)

    def offer_slot(self, label: Label, payload: Payload) -> None:
        """Offer what a slot holds: the payload went into it as it travelled, and was read back."""
        with self._quietly("offer"):
            make_directory_durably(self._disk, self._directory)
            record = {
                "digest": payload.digest.to_json(),
                "length_bytes": payload.length_bytes,
                "slot": label.value,
            }
            replace_durably(self._disk, self._directory / _IN_SLOT, canonical.encode(record))

    def withdraw_slot(self, label: Label) -> None:
        """Offer a slot no more: something else is about to be written into it."""
        with self._quietly("withdraw"):
            found = self._in_slot()
            if found is not None and found[0] is label:
                self._disk.remove(self._directory / _IN_SLOT)

    def open(self, digest_hex: str) -> tuple[Reader, int] | None:
        """Open a payload by its digest; return reader and length, None if it is not here. The caller closes."""
        with self._quietly("open"):
            for _, found, name in self._kept():
                if found == digest_hex:
                    return self._disk.open_reader(self._directory / name), self._length(name)
            in_slot = self._in_slot()
            if in_slot is not None and in_slot[1].digest.hex == digest_hex:
                return self._slots[in_slot[0]].open_image(in_slot[1]), in_slot[1].length_bytes
        return None

    def _kept(self) -> list[tuple[int, str, str]]:
        """Return number, digest and name of each file, the oldest first."""
        names = (_KEPT.fullmatch(name) for name in self._disk.list(self._directory))
        return sorted((int(match[1]), match[2], match[0]) for match in names if match is not None)

    def _length(self, name: str) -> int:
        return self._disk.length_bytes(self._directory / name) or 0

    def _in_slot(self) -> tuple[Label, Image] | None:
        path = self._directory / _IN_SLOT
        if not self._disk.exists(path):
            return None
        data = read_file(self._disk, path, limit_bytes=MAX_RECORD_LENGTH_BYTES)
        fields = Fields(canonical.decode_object(data, limit_bytes=MAX_RECORD_LENGTH_BYTES, what="share"), what="share")
        digest = Digest.from_json(fields.object("digest").value, what="share.digest")
        length_bytes = fields.integer("length_bytes", maximum=MAX_IMAGE_LENGTH_BYTES)
        return fields.one_of("slot", Label), Image(digest, length_bytes)

    @contextlib.contextmanager
    def _quietly(self, what: str) -> Iterator[None]:
        try:
            yield
        except FirmamentError as error:
            log.warning("share.failed", what=what, code=error.code, problem=error.problem)
