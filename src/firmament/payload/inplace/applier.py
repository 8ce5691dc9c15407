"""The device: writes the new image over the old one, block by block, whatever happens to the power.

Before the first erase the whole payload is read once and every operation checked, so that a
payload that cannot be applied changes nothing. Then, for each block in the payload's order:

    save    its old content into the next slot of the ring, if copies need it     (record 2n + 1)
    write   erase it and write the new content, made from what is untouched,
            the ring and the payload                                              (record 2n + 2)

Each step may be done again after a cut, for its sources are still there: what a step changes it
does not read. The journal tells how many steps are done; the rest of the state is worked out from
the payload again. There is no way back after the first block: verify payload and precursor before.

Memory is counted as the device holds it, in a `Ledger`, and never above what the header says.
"""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from firmament.errors import DigestMismatchError, MalformedPayloadError, PrecursorMismatchError, SlotTooSmallError
from firmament.payload.inplace.blocks import Ring, Script, What, Window, cells, is_there
from firmament.payload.inplace.moves import Moves
from firmament.payload.inplace.predict import predict
from firmament.payload.inplace.wire import FIXED_RAM_BYTES, MAX_RAM_BYTES, read_header, streams

if TYPE_CHECKING:
    from collections.abc import Iterator

    from firmament.payload.inplace.wire import Stream
    from firmament.payload.readers import Reader

PIECE_LENGTH_BYTES: Final = 256
RECORD_LENGTH_BYTES: Final = 16
_ID_LENGTH_BYTES: Final = 8
JOURNAL_BLOCKS: Final = 2


class Flash(Protocol):
    """A part of a NOR flash: writes need erased bytes and whole units; what a cut interrupts is undefined."""

    @property
    def length_bytes(self) -> int:
        """Size, a multiple of the block."""

    @property
    def block_length_bytes(self) -> int:
        """What is erased at once."""

    @property
    def write_unit_bytes(self) -> int:
        """What is written at once, 1 to 256."""

    def read_at(self, offset: int, length_bytes: int) -> bytes:
        """Return bytes."""

    def erase(self, block: int) -> None:
        """Make every byte of a block 0xff."""

    def write(self, offset: int, data: bytes) -> None:
        """Write whole units of erased flash."""


@dataclass(frozen=True, slots=True)
class Areas:
    """Where the image is, where old blocks are saved, and where the journal is (two blocks)."""

    slot: Flash
    ring: Flash
    journal: Flash


class Ledger:
    """What the device holds in memory, by the format's accounting; going above the limit is a RuntimeError of ours."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self.peak_bytes = 0

    def take(self, count: int) -> None:
        """Hold more."""
        self.held_bytes += count
        self.peak_bytes = max(self.peak_bytes, self.held_bytes)
        if self.held_bytes > self.limit_bytes:
            raise RuntimeError("an in-place payload takes more memory than its header says")

    def give(self, count: int) -> None:
        """Let go."""
        self.held_bytes -= count


class Maker:
    """Makes the content of blocks from a payload; where old bytes are read is the subclass's to say."""

    def __init__(self, payload: Reader, length_bytes: int, *, max_ram_bytes: int = MAX_RAM_BYTES) -> None:
        self._payload = payload
        self.header, self._start = read_header(payload, length_bytes, max_ram_bytes=max_ram_bytes)
        self.ledger = Ledger(self.header.ram_bytes)
        self.moves = Moves(self.header.address, self.header.precursor_length)

    def rehearse(self) -> None:
        """Read everything once, learn how things moved, check every operation; raises MalformedPayloadError.

        Takes the memory that all later passes share.
        """
        header = self.header
        self.ledger.take(FIXED_RAM_BYTES + sum(packing.ram_bytes for packing in header.packings))
        script, values = self._open()
        script.corrections(self.moves)
        ring = Ring(header.ring_blocks)
        for block in header.order():
            what = script.what()
            if what is What.SAVED:
                ring.save(block)
            if what is What.KEPT:
                continue
            for window in script.windows(block):
                self._learn(window, block, what, ring)
                self._gaps(script, window)
                literal = sum(operation.literal for operation in window.operations)
                for at in range(0, literal + window.differences, PIECE_LENGTH_BYTES):
                    values.take(min(PIECE_LENGTH_BYTES, literal + window.differences - at))
        script.end()
        values.end()
        if len(self.moves.copied) != header.moves:
            raise MalformedPayloadError("Copies are not as many as the header says", moves=header.moves)
        self.ledger.take(8 * (header.moves + header.corrections))

    def script(self) -> tuple[Script, Stream]:
        """Begin again, behind the corrections."""
        script, values = self._open()
        script.corrections(Moves(0, 0))
        return script, values

    def _open(self) -> tuple[Script, Stream]:
        operations, values = streams(self._payload, self.header, self._start)
        return Script(self.header, operations), values

    def _learn(self, window: Window, block: int, what: What, ring: Ring) -> None:
        for operation in window.operations:
            if not operation.copy:
                continue
            if not is_there(self.header, block, what, ring, operation.old, operation.copy):
                raise MalformedPayloadError("A copy reads what is written over already", offset=operation.old)
            self.moves.copy(operation.old, operation.new + operation.literal - operation.old)
            if len(self.moves.copied) > self.header.moves:
                raise MalformedPayloadError("Copies are more than the header says", moves=self.header.moves)

    @staticmethod
    def _gaps(script: Script, window: Window) -> None:
        copied = sum(operation.copy for operation in window.operations)
        for _ in range(window.differences):
            copied -= script.gap() + 1
            if copied < 0:
                raise MalformedPayloadError("A difference is outside of its window", start=window.start)

    def skip(self, script: Script, values: Stream, block: int) -> None:
        """Pass over a block that is written already."""
        for window in script.windows(block):
            self._gaps(script, window)
            for operation in window.operations:
                for at in range(0, operation.literal, PIECE_LENGTH_BYTES):
                    values.take(min(PIECE_LENGTH_BYTES, operation.literal - at))
            for _ in range(window.differences):
                values.take(1)

    def make(self, script: Script, values: Stream, block: int, read: Read) -> Iterator[bytes]:
        """Yield a block's new content in small pieces; `read(offset, length)` gives old bytes."""
        for window in script.windows(block):
            left = window.differences
            gap = script.gap() if left else -1
            for operation in window.operations:
                for at in range(0, operation.literal, PIECE_LENGTH_BYTES):
                    yield values.take(min(PIECE_LENGTH_BYTES, operation.literal - at))
                for old, new, length in cells(operation):
                    cell = bytearray(
                        predict(read(old, length), old, new, window.mode, self.moves, self.header.address)
                    )  # fmt: skip
                    place = 0
                    while 0 <= gap < length - place:
                        place += gap
                        cell[place] = (cell[place] + values.take(1)[0]) & 0xFF
                        place += 1
                        left -= 1
                        gap = script.gap() if left else -1
                    if gap >= 0:
                        gap -= length - place
                    yield bytes(cell)


def image(payload: Reader, length_bytes: int, precursor: Reader, *, image_length_bytes: int) -> bytes:
    """Make the whole image elsewhere, for a device with room for both and for whoever checks a payload."""
    maker = Maker(payload, length_bytes)
    header = maker.header
    if header.image_length != image_length_bytes:
        raise MalformedPayloadError("A payload makes another length than the signed one", expected=image_length_bytes)
    maker.rehearse()
    out = bytearray(header.image_length)
    script, values = maker.script()
    for block in header.order():
        start = block * header.block
        if script.what() is What.KEPT:
            length = min(header.block, header.image_length - start)
            out[start : start + length] = precursor.read_at(start, length)
            continue
        for piece in maker.make(script, values, block, precursor.read_at):
            out[start : start + len(piece)] = piece
            start += len(piece)
    return bytes(out)


class Read(Protocol):
    """How old bytes are read."""

    def __call__(self, offset: int, length_bytes: int, /) -> bytes:
        """Return them."""


class Applier(Maker):
    """One payload on one device; `run` again after every power cut until it returns."""

    def __init__(
        self,
        payload: Reader,
        length_bytes: int,
        areas: Areas,
        *,
        precursor_digest: bytes,
        image_digest: bytes,
        max_ram_bytes: int = MAX_RAM_BYTES,
    ) -> None:
        """Both digests are SHA-256 of the signed manifest. Raises MalformedPayloadError, SlotTooSmallError."""
        super().__init__(payload, length_bytes, max_ram_bytes=max_ram_bytes)
        header, slot = self.header, areas.slot
        if slot.length_bytes < header.memory_length or areas.ring.length_bytes < header.ring_blocks * header.block:
            raise SlotTooSmallError(
                "The flash is smaller than the payload was made for",
                memory=header.memory_length,
                ring=header.ring_blocks,
            )
        if any(area.block_length_bytes != header.block for area in (slot, areas.ring)):
            raise MalformedPayloadError("The payload is for another erase block", block=header.block)
        self._areas = areas
        self._digests = precursor_digest, image_digest
        self._journal = Journal(areas.journal, image_digest[:_ID_LENGTH_BYTES])
        self._ring = Ring(header.ring_blocks)

    def run(self) -> None:
        """Write what is left of the new image.

        Raises PrecursorMismatchError before anything is changed when the old image is another one,
        DigestMismatchError at the end when the flash did not keep what was written.
        """
        self.rehearse()
        done = self._begin()
        script, values = self.script()
        for index, block in enumerate(self.header.order()):
            what = script.what()
            slot = self._ring.save(block) if what is What.SAVED else None
            if what is What.KEPT:
                continue
            if done >= 2 * index + 2:
                self.skip(script, values, block)
                continue
            if slot is not None and done < 2 * index + 1:
                self._copy(block, slot)
                self._journal.write(2 * index + 1)
            self._write(block, self.make(script, values, block, self._read))
            self._journal.write(2 * index + 2)
        self._expect(self.header.image_length, self._digests[1], DigestMismatchError)

    def _begin(self) -> int:
        """Return how many steps are done; 0 for an update that has not begun.

        While the slot holds the old image nothing is done, whatever the journal says: its records
        are of an earlier update to the same image.
        """
        done = self._journal.read()
        if done is not None and (done < 2 or not self._holds(self.header.precursor_length, self._digests[0])):  # noqa: PLR2004 - the first block is written by step 2
            return done
        self._expect(self.header.precursor_length, self._digests[0], PrecursorMismatchError)
        self._journal.clear()
        self._journal.write(0)
        return 0

    def _holds(self, length: int, digest: bytes) -> bool:
        return self._digest(length) == digest

    def _expect(self, length: int, digest: bytes, kind: type[PrecursorMismatchError | DigestMismatchError]) -> None:
        found = self._digest(length)
        if found != digest:
            raise kind("The slot holds another image", expected=digest.hex()[:16], got=found.hex()[:16])

    def _digest(self, length: int) -> bytes:
        found = hashlib.sha256()
        for at in range(0, length, PIECE_LENGTH_BYTES):
            found.update(self._areas.slot.read_at(at, min(PIECE_LENGTH_BYTES, length - at)))
        return found.digest()

    def _read(self, offset: int, length: int) -> bytes:
        """Read old bytes where they are now; `rehearse` has made sure that they are."""
        out = bytearray()
        size = self.header.block
        while len(out) < length:
            place = offset + len(out)
            number, inside = divmod(place, size)
            count = min(length - len(out), size - inside)
            slot = self._ring.slot(number)
            if slot is None:
                out += self._areas.slot.read_at(place, count)
            else:
                out += self._areas.ring.read_at(slot * size + inside, count)
        return bytes(out)

    def _copy(self, block: int, slot: int) -> None:
        size = self.header.block
        self._areas.ring.erase(slot)
        for at in range(0, size, PIECE_LENGTH_BYTES):
            data = self._areas.slot.read_at(block * size + at, min(PIECE_LENGTH_BYTES, size - at))
            self._areas.ring.write(slot * size + at, data)

    def _write(self, block: int, pieces: Iterator[bytes]) -> None:
        flash, offset = self._areas.slot, block * self.header.block
        flash.erase(block)
        held = bytearray()
        for piece in pieces:
            held += piece
            while len(held) >= PIECE_LENGTH_BYTES:
                flash.write(offset, bytes(held[:PIECE_LENGTH_BYTES]))
                offset += PIECE_LENGTH_BYTES
                del held[:PIECE_LENGTH_BYTES]
        if held:
            held += b"\xff" * (-len(held) % flash.write_unit_bytes)
            flash.write(offset, bytes(held))


class Journal:
    """How many steps are done: records in two blocks, one of which is always whole.

    A record is the number, eight bytes that name the update, and a CRC-32 over both; one that a cut
    tore is as good as none, and its place is used up. When a block is full the other, with older
    records only, is erased.
    """

    def __init__(self, flash: Flash, name: bytes) -> None:
        self._flash = flash
        self._name = name
        self._size = -(-RECORD_LENGTH_BYTES // flash.write_unit_bytes) * flash.write_unit_bytes
        if flash.length_bytes < JOURNAL_BLOCKS * flash.block_length_bytes:
            raise SlotTooSmallError("The journal needs two blocks", length=flash.length_bytes)
        self._block = 0
        self._next = self._places

    @property
    def _places(self) -> int:
        return self._flash.block_length_bytes // self._size

    def read(self) -> int | None:
        """Return the newest number of this update; None if it has not begun."""
        best: int | None = None
        for block in range(JOURNAL_BLOCKS):
            used, newest = 0, None
            for place in range(self._places):
                data = self._flash.read_at(block * self._flash.block_length_bytes + place * self._size, self._size)
                if data != b"\xff" * self._size:
                    used = place + 1
                number = self._number(data)
                if number is not None and (newest is None or number > newest):
                    newest = number
            if newest is not None and (best is None or newest > best):
                best, self._block, self._next = newest, block, used
        return best

    def clear(self) -> None:
        """Forget every update; before the first step of a new one."""
        for block in range(JOURNAL_BLOCKS):
            self._flash.erase(block)
        self._block = self._next = 0

    def write(self, number: int) -> None:
        """Write a number; it holds when this returns, and the one before it until then."""
        if self._next >= self._places:
            self._block = 1 - self._block
            self._flash.erase(self._block)
            self._next = 0
        body = number.to_bytes(4, "little") + self._name
        record = body + zlib.crc32(body).to_bytes(4, "little")
        offset = self._block * self._flash.block_length_bytes + self._next * self._size
        self._next += 1
        self._flash.write(offset, record.ljust(self._size, b"\xff"))

    def _number(self, data: bytes) -> int | None:
        body, check = data[:12], data[12:RECORD_LENGTH_BYTES]
        if body[4:] != self._name or zlib.crc32(body).to_bytes(4, "little") != check:
            return None
        return int.from_bytes(body[:4], "little")
