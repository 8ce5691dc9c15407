"""The bytes of an in-place payload: header, two packed streams, the memory they need (docs/protocol/inplace.md)."""

from __future__ import annotations

import lzma
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from firmament.errors import MalformedPayloadError

if TYPE_CHECKING:
    from collections.abc import Callable

    from firmament.payload.readers import Reader

MAGIC: Final = b"FIP\x01"
MAX_RAM_BYTES: Final = 32 * 1024
"""What a payload may ask of a device; an encoder makes none that asks for more."""
MAX_IMAGE_LENGTH_BYTES: Final = 16 * 1024 * 1024
MAX_HEADER_LENGTH_BYTES: Final = 64
# Nine numbers of at most four bytes and two of five, four bytes of magic, six single bytes: 56.
LOG2_BLOCK: Final = range(8, 21)
"""Erase blocks of 256 bytes to 1 MiB."""
MAX_RING_BLOCKS: Final = 64
WINDOW_LENGTH_BYTES: Final = 4096
"""Operations are told for so much of the image at a time, or for a block where that is less."""
CELL_LENGTH_BYTES: Final = 1024
"""Copied bytes are predicted in pieces that do not cross a multiple of this in the image."""
MAX_OPERATIONS: Final = 64
LOG2_DICTIONARY: Final = range(12, 16)
MAX_LITERAL_BITS: Final = 4
FIXED_RAM_BYTES: Final = 3072
# A cell 1024, operations 64 * 12 = 768, output 256, input 2 * 64, SHA-256 112, journal record 32,
# the ring's owners 4 * 64 = 256: 2576; the rest is for variables.
_MAX_VARINT: Final = 5


@dataclass(frozen=True, slots=True)
class Packing:
    """How one stream is packed: raw LZMA."""

    lc: int = 0
    lp: int = 0
    pb: int = 0
    log2_dictionary: int = 12

    @property
    def ram_bytes(self) -> int:
        """The decoder's probabilities (2 bytes each), dictionary and state."""
        return 2 * (1846 + (768 << (self.lc + self.lp))) + (1 << self.log2_dictionary) + 128

    @property
    def filters(self) -> list[dict[str, int]]:
        """As Python's lzma module wants it."""
        return [
            {
                "id": lzma.FILTER_LZMA1,
                "preset": 9 | lzma.PRESET_EXTREME,
                "dict_size": 1 << self.log2_dictionary,
                "lc": self.lc,
                "lp": self.lp,
                "pb": self.pb,
            }
        ]


@dataclass(frozen=True, slots=True)
class Header:
    """What a payload says of itself; lengths in bytes."""

    precursor_length: int
    image_length: int
    memory_length: int
    log2_block: int
    ring_blocks: int
    is_descending: bool
    address: int
    """Where the image's first byte is linked."""
    moves: int
    corrections: int
    packings: tuple[Packing, Packing]
    packed: tuple[int, int]
    plain: tuple[int, int]

    @property
    def block(self) -> int:
        """Bytes of an erase block."""
        return 1 << self.log2_block

    @property
    def window(self) -> int:
        """Bytes that one group of operations makes."""
        return min(self.block, WINDOW_LENGTH_BYTES)

    @property
    def blocks(self) -> int:
        """Blocks of the new image."""
        return -(-self.image_length // self.block)

    @property
    def ram_bytes(self) -> int:
        """Memory that applying takes, by this format's own accounting."""
        tables = 8 * (self.moves + self.corrections)
        return FIXED_RAM_BYTES + tables + sum(packing.ram_bytes for packing in self.packings)

    def order(self) -> range:
        """Numbers of the blocks, in the order in which they are made."""
        return range(self.blocks - 1, -1, -1) if self.is_descending else range(self.blocks)

    def encode(self) -> bytes:
        """Return the header's bytes."""
        out = bytearray(MAGIC)
        for number in (self.precursor_length, self.image_length, self.memory_length):
            out += varint(number)
        out += bytes((self.log2_block, self.ring_blocks, int(self.is_descending)))
        for number in (self.address, self.moves, self.corrections):
            out += varint(number)
        for packing, packed, plain in zip(self.packings, self.packed, self.plain, strict=True):
            out += bytes(((packing.pb * 5 + packing.lp) * 9 + packing.lc, packing.log2_dictionary))
            out += varint(packed) + varint(plain)
        return bytes(out)


def read_header(payload: Reader, length: int, *, max_ram_bytes: int = MAX_RAM_BYTES) -> tuple[Header, int]:
    """Return the header and where the streams begin; raises MalformedPayloadError.

    `length` is the payload's signed length: header and streams must be exactly that.
    """
    source = _Bytes(payload.read_at(0, min(length, MAX_HEADER_LENGTH_BYTES)))
    if source.take(len(MAGIC)) != MAGIC:
        raise MalformedPayloadError("This is no in-place payload of version 1")
    lengths = source.varint(), source.varint(), source.varint()
    log2_block, ring_blocks, flags = source.take(3)
    address, moves, corrections = source.varint(), source.varint(), source.varint()
    packings, packed, plain = [], [], []
    for _ in range(2):
        packings.append(_packing(*source.take(2)))
        packed.append(source.varint())
        plain.append(source.varint())
    found = Header(
        *lengths, log2_block, ring_blocks, bool(flags), address, moves, corrections,
        (packings[0], packings[1]), (packed[0], packed[1]), (plain[0], plain[1]),
    )  # fmt: skip
    _check(found, flags, max_ram_bytes)
    if source.place + sum(found.packed) != length:
        raise MalformedPayloadError("An in-place payload is not as long as it says", length=length)
    return found, source.place


def _packing(properties: int, log2_dictionary: int) -> Packing:
    pb, rest = divmod(properties, 45)
    lp, lc = divmod(rest, 9)
    if pb > 4 or lc + lp > MAX_LITERAL_BITS or log2_dictionary not in LOG2_DICTIONARY:  # noqa: PLR2004 - LZMA's own
        raise MalformedPayloadError("A stream is packed in a way that is not allowed", properties=properties)
    return Packing(lc, lp, pb, log2_dictionary)


def _check(header: Header, flags: int, max_ram_bytes: int) -> None:
    """Refuse every header that an encoder would not write."""
    longest = max(header.precursor_length, header.image_length)
    if header.log2_block not in LOG2_BLOCK or not 1 <= header.ring_blocks <= MAX_RING_BLOCKS or flags > 1:
        raise MalformedPayloadError("A header's numbers are out of range", log2_block=header.log2_block)
    if longest > min(header.memory_length, MAX_IMAGE_LENGTH_BYTES) or header.memory_length % header.block:
        raise MalformedPayloadError("The images do not fit the memory that was meant", memory=header.memory_length)
    if header.address + header.memory_length > 1 << 32:
        raise MalformedPayloadError("The image is linked beyond 32 bits", address=header.address)
    if max(header.plain) > 2 * header.image_length + 4096 * (header.corrections + 1):
        raise MalformedPayloadError("A stream is longer than any image needs", plain=max(header.plain))
    if header.ram_bytes > max_ram_bytes:
        raise MalformedPayloadError(
            "A payload needs more memory than it may", needs=header.ram_bytes, limit=max_ram_bytes
        )


class Stream:
    """One packed stream, unpacked from its beginning as it is read; `limit` bytes and not one more."""

    def __init__(self, payload: Reader, offset: int, packed: int, plain: int, packing: Packing) -> None:
        self._payload = payload
        self._offset = offset
        self._end = offset + packed
        self._left = plain
        self._decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=packing.filters)
        self._held = b""

    def take(self, count: int) -> bytes:
        """Return the next bytes; raises MalformedPayloadError when there are fewer."""
        if count > self._left:
            raise MalformedPayloadError("A stream ends too early", wanted=count, left=self._left)
        self._left -= count
        out = bytearray(self._held[:count])
        self._held = self._held[count:]
        while len(out) < count:
            out += self._more(count - len(out))
        return bytes(out)

    def varint(self) -> int:
        """Return an unsigned number of at most 32 bits."""
        return _varint(self.take)

    def signed(self) -> int:
        """Return a signed number."""
        value = self.varint()
        return value >> 1 ^ -(value & 1)

    def end(self) -> None:
        """Raise MalformedPayloadError when anything is left."""
        if self._left:
            raise MalformedPayloadError("A stream goes on after its end", left=self._left)

    def _more(self, count: int) -> bytes:
        try:
            data = b""
            if self._decoder.eof:
                raise MalformedPayloadError("A stream ends too early", wanted=count)
            if self._decoder.needs_input:
                data = self._payload.read_at(self._offset, min(64, self._end - self._offset))
                self._offset += len(data)
                if not data:
                    raise MalformedPayloadError("A payload is cut short", offset=self._offset)
            return self._decoder.decompress(data, count)
        except (lzma.LZMAError, EOFError, ValueError) as error:
            raise MalformedPayloadError("A stream does not unpack", reason=error) from error


def streams(payload: Reader, header: Header, start: int) -> tuple[Stream, Stream]:
    """Open both streams: operations, and bytes."""
    first = Stream(payload, start, header.packed[0], header.plain[0], header.packings[0])
    second = Stream(
        payload, start + header.packed[0], header.packed[1], header.plain[1], header.packings[1]
    )  # fmt: skip
    return first, second


def varint(value: int) -> bytes:
    """Write an unsigned number, 7 bits a byte, least significant first."""
    out = bytearray()
    while value > 0x7F:  # noqa: PLR2004 - seven bits
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def signed(value: int) -> bytes:
    """Write a signed number, zigzag: 0, -1, 1, -2, ..."""
    return varint(value << 1 if value >= 0 else ~value << 1 | 1)


class _Bytes:
    """The header's bytes, taken from the front."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.place = 0

    def take(self, count: int) -> bytes:
        found = self._data[self.place : self.place + count]
        self.place += count
        if len(found) < count:
            raise MalformedPayloadError("A header is cut short", length=len(self._data))
        return found

    def varint(self) -> int:
        return _varint(self.take)


def _varint(take: Callable[[int], bytes]) -> int:
    value = 0
    for index in range(_MAX_VARINT):
        byte = take(1)[0]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:  # noqa: PLR2004 - the last one
            if value >> 32:
                break
            return value
    raise MalformedPayloadError("A number is too long")
