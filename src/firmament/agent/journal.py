"""The agent's memory on storage: two checksummed copies of one record, written alternately in place.

A store overwrites the *older* copy and syncs it, so the newer one is whole at every moment: a
torn write costs the record that was being written, never the one before. Why in place and not
`replace_durably`: both files are made at their full length once, so storing needs no free space,
no new name and no directory sync. A full disk cannot keep the agent from going back to the
previous image, and one store is one write and one fsync.

Layout of a copy, then padding that means nothing:

    firmament-journal/<version> <generation> <length of body> <sha256 of body, hex> LF
    body: canonical JSON of `record.Record`

Of two readable copies the higher generation holds. A copy of a *newer* version refuses the whole
journal: guessing from an older copy could forget a trial. An agent that will one day write
version 2 keeps writing the version it found until its own image is confirmed.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from firmament.agent.record import Record, record_from
from firmament.core import canonical
from firmament.durable import PRIVATE_MODE, read_file, replace_durably
from firmament.errors import CorruptStateError, FirmamentError, JournalError
from firmament.log import logger

if TYPE_CHECKING:
    from pathlib import Path

    from firmament.durable import Disk

log = logger("agent.journal")

COPIES: Final = ("journal.a", "journal.b")
VERSION: Final = 1
COPY_LENGTH_BYTES: Final = 512 * 1024
# The largest record: manifest 64 KiB, 16 reports with 20 log lines of 200 four-byte characters
# 16 x 18 KiB, 64 ended attempts x 2.3 KiB, the attempt's other fields 28 KiB: 533 KiB, a tenth of it
# messages of ended attempts that may be shortened. A usual one is 4 KiB, and only that is written.
SHORT_MESSAGE_LENGTH: Final = 80
"""Characters of an ended attempt's message that are kept when there is no room for all: 101 KiB less."""
_HEADER: Final = re.compile(rb"firmament-journal/(\d{1,4}) (\d{1,18}) (\d{1,9}) ([0-9a-f]{64})\n")
_MAX_HEADER_LENGTH_BYTES: Final = 128


class Journal:
    """Loads and stores one `Record`; errors are StateError or those of the disk."""

    def __init__(self, disk: Disk, directory: Path) -> None:
        self._disk = disk
        self._paths = tuple(directory / name for name in COPIES)
        self._generation = 0
        self._newest = 1
        """Index of the copy that holds the record; the other one is written next."""

    def load(self) -> Record | None:
        """Return what was stored last, None if nothing ever was.

        Raises CorruptStateError when copies exist and none can be read, JournalError when a
        newer agent wrote one. Nothing else on the device is touched in either case.
        """
        found: dict[int, tuple[int, Record]] = {}
        damaged: list[str] = []
        for index, path in enumerate(self._paths):
            if not self._disk.exists(path):
                continue
            try:
                found[index] = _decode(read_file(self._disk, path, limit_bytes=COPY_LENGTH_BYTES), path)
            except JournalError:
                raise
            except FirmamentError as error:
                damaged.append(path.name)
                log.info("journal.copy-damaged", path=str(path), code=error.code, problem=error.problem)
        if not found:
            if damaged:
                raise CorruptStateError("The journal cannot be read", damaged=" ".join(damaged))
            return None
        self._newest = max(found, key=lambda index: found[index][0])
        self._generation, record = found[self._newest]
        return record

    def store(self, record: Record) -> Record:
        """Make `record` what `load` returns, durably, and return it; after an error the one before still is.

        What returns differs from `record` only when all its bounds come together and it would not
        fit: then the messages of ended attempts are shortened, which only people miss. Raises
        JournalError when it does not fit even so, for what a later agent wrote into it.
        """
        record, data = _fitting(record, self._generation + 1)
        target = 1 - self._newest
        path = self._paths[target]
        if self._disk.length_bytes(path) != COPY_LENGTH_BYTES:
            # The first time, or somebody cut it: made whole beside its name, so that a copy which
            # exists was written completely once.
            replace_durably(self._disk, path, data.ljust(COPY_LENGTH_BYTES, b"\n"))
        else:
            writer = self._disk.open_writer(path, mode=PRIVATE_MODE, create=False)
            try:
                writer.write_at(0, data)
                writer.sync()
            finally:
                writer.close()
        self._generation += 1
        self._newest = target
        return record


def _fitting(record: Record, generation: int) -> tuple[Record, bytes]:
    data = _encode(record, generation)
    if len(data) > COPY_LENGTH_BYTES:
        # Not a report: its bytes were perhaps sent, and its number stands for them.
        history = tuple(replace(ended, message=ended.message[:SHORT_MESSAGE_LENGTH]) for ended in record.history)
        record = replace(record, history=history)
        data = _encode(record, generation)
        log.warning("journal.history-shortened", length_bytes=len(data))
    if len(data) > COPY_LENGTH_BYTES:
        raise JournalError("The record does not fit", length_bytes=len(data), limit_bytes=COPY_LENGTH_BYTES)
    return record, data


def _encode(record: Record, generation: int) -> bytes:
    body = canonical.encode(record.to_json())
    digest = hashlib.sha256(body).hexdigest()
    return f"firmament-journal/{VERSION} {generation} {len(body)} {digest}\n".encode() + body


def _decode(data: bytes, path: Path) -> tuple[int, Record]:
    header = _HEADER.match(data[:_MAX_HEADER_LENGTH_BYTES])
    if header is None:
        raise CorruptStateError("The header of a copy is damaged", path=path)
    version, generation, length = (int(header[group]) for group in (1, 2, 3))
    if version > VERSION:
        raise JournalError("The journal was written by a newer agent", found=version, known=VERSION, path=path)
    body = data[header.end() : header.end() + length]
    if len(body) != length or hashlib.sha256(body).hexdigest().encode() != header[4]:
        raise CorruptStateError("The checksum of a copy is wrong", path=path)
    value = canonical.decode_object(body, limit_bytes=COPY_LENGTH_BYTES, what="journal")
    return generation, record_from(value)
