"""Make the new image from the precursor and a refdelta payload, on the device.

    applier = Applier(payload, payload_length, precursor, precursor_length_bytes=..., image_length_bytes=...)
    for offset, data in applier.pieces(start=stored):
        slot.write_at(offset, data)

The whole resumable state is one number, the count of image bytes that are durable: `start` may be
any of them. Nothing is decided here about trust: the payload's digest was verified before, the
image's is verified after (the caller reads the slot back). A wrong precursor gives a wrong image,
never a crash or a write outside; a wrong payload raises MalformedPayloadError.

Memory is bounded by the ceilings here and in `wire`: docs/protocol/refdelta.md adds them up.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from typing import TYPE_CHECKING, Final

from firmament.errors import MalformedPayloadError, PrecursorMismatchError
from firmament.payload.refdelta import wire
from firmament.payload.refdelta.labels import Labels, corrected, label_map, offset_map
from firmament.payload.refdelta.predict import BLOCK_LENGTH_BYTES, KNOWN_MODES, PREDICTING, Mode, predict
from firmament.payload.refdelta.regions import MAX_OBJECTS, OBJECT_SPAN, Regions

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from firmament.payload.readers import Reader

CHUNK_LENGTH_BYTES: Final = 64 * 1024
MAX_COPIES: Final = 1 << 19
# 400 MB of recompiled packages need 150 000 (docs/performance/delta.md); each costs 24 bytes of memory.
MAX_FRAMES: Final = 1 << 14
MAX_FRAME_STREAM_BYTES: Final = 1 << 31
HEAD_STREAMS: Final = 7
FRAME_STREAMS: Final = 5
GAP_SKIP: Final = 240
"""A gap byte of this or more only moves on: (byte - 239) * 240 bytes without a difference."""
_PIECE: Final = 4096


class Applier:
    """Applies one payload; checks all of its tables when it is made."""

    def __init__(
        self,
        payload: Reader,
        payload_length_bytes: int,
        precursor: Reader,
        *,
        precursor_length_bytes: int,
        image_length_bytes: int,
    ) -> None:
        self._payload, self._precursor = payload, precursor
        self._old_length = precursor_length_bytes
        self.length_bytes = image_length_bytes
        cursor = wire.Cursor(payload, 0, payload_length_bytes)
        head = bytes(cursor.byte() for _ in range(4))
        if head != wire.MAGIC + bytes((wire.FORMAT_VERSION,)):
            raise MalformedPayloadError(
                "Not a refdelta payload of a version this code knows", found=head.hex(), known=1
            )
        old_length = cursor.varint(1 << 62, "the precursor's length")
        if old_length != precursor_length_bytes:
            raise PrecursorMismatchError(
                "The delta starts from an image of another length", expected=old_length, got=precursor_length_bytes
            )
        new_length = cursor.varint(1 << 62, "the image's length")
        if new_length != image_length_bytes:
            raise MalformedPayloadError(
                "The delta makes an image of another length", expected=image_length_bytes, got=new_length
            )
        frames = cursor.varint(MAX_FRAMES, "the number of frames")
        sizes = [
            (
                cursor.varint(new_length, "a frame's image bytes"),
                cursor.varint(payload_length_bytes, "a frame's length"),
            )
            for _ in range(frames)
        ]
        # No frames: a small payload, which has its head and its only frame in one group.
        self._joined_at = None if frames else cursor.offset
        streams = self._open(cursor, HEAD_STREAMS if frames else HEAD_STREAMS + FRAME_STREAMS)
        sizes = sizes or [(new_length, 0)]
        self._frames = _frame_table(sizes, new_length, cursor.offset, payload_length_bytes)
        self._read_head(streams[:HEAD_STREAMS])

    def _open(self, cursor: wire.Cursor, count: int) -> list[wire.Stream]:
        head = count != FRAME_STREAMS
        most = wire.MAX_COLUMN_BYTES if head else MAX_FRAME_STREAM_BYTES
        return wire.open_group(self._payload, cursor, count, most_bytes=most)

    def _read_head(self, streams: Sequence[wire.Stream]) -> None:
        def column(index: int) -> bytes:
            return streams[index].read(streams[index].left_bytes)

        old, new, length = _copies(column(0), column(1), column(2), self._old_length, self.length_bytes)
        self._copy_old, self._copy_new, self._copy_length = old, new, length
        self._old = Regions.decode(column(3), image_length_bytes=self._old_length)
        self._new = Regions.decode(column(4), image_length_bytes=self.length_bytes, like=self._old)
        keys, values = _corrections(column(5), column(6))
        if self._old.rows:
            labels, moves = label_map(*offset_map(old, new, length), self._old, self._new)
            self._labels = Labels(*corrected(labels, moves, keys, values))
        else:
            self._labels = Labels(array("q"), array("q"))

    def pieces(self, *, start: int = 0) -> Iterator[tuple[int, bytes]]:
        """Yield (offset, bytes) of the image in order, from `start` to the end, in pieces of at most 64 KiB.

        Raises MalformedPayloadError if the payload does not decode, whatever its reader and the
        precursor's raise, and nothing else.
        """
        for begin, end, offset, packed in self._frames:
            if end <= start:
                continue
            if self._joined_at is not None:
                cursor = wire.Cursor(self._payload, self._joined_at, offset + packed)
                streams = self._open(cursor, HEAD_STREAMS + FRAME_STREAMS)[HEAD_STREAMS:]
            else:
                streams = self._open(wire.Cursor(self._payload, offset, offset + packed), FRAME_STREAMS)
            frame = _Frame(self, begin, end, streams)
            for at in range(begin, end, CHUNK_LENGTH_BYTES):
                stop = min(at + CHUNK_LENGTH_BYTES, end)
                data = frame.chunk(at, stop, wanted=stop > start)
                if stop > start:
                    yield max(at, start), bytes(data) if at >= start else bytes(data[start - at :])
            frame.finish()

    def copy_index(self, offset: int) -> int:
        """Return the first copy that ends after an offset of the image."""
        index = bisect_right(self._copy_new, offset) - 1
        if index >= 0 and self._copy_new[index] + self._copy_length[index] > offset:
            return index
        return index + 1

    def copies(self) -> tuple[array[int], array[int], array[int]]:
        """Return (offset in the precursor, offset in the image, length) of the copies, in order of the image."""
        return self._copy_old, self._copy_new, self._copy_length

    def read_precursor(self, offset: int, length_bytes: int) -> bytes:
        """Read old bytes; a copy was checked to lie inside, so fewer bytes mean a precursor that shrank."""
        data = self._precursor.read_at(offset, length_bytes)
        if len(data) != length_bytes:
            raise PrecursorMismatchError("The precursor ends too early", offset=offset, got=len(data))
        return data

    def predict(self, cell: bytearray, old_offset: int, new_offset: int, mode: int) -> None:
        """Predict the references of one cell in place."""
        predict(cell, old_offset, new_offset, mode, self._old, self._new, self._labels)


class _Frame:
    """The decoding of one frame: its streams and how far they are."""

    def __init__(self, applier: Applier, begin: int, end: int, streams: Sequence[wire.Stream]) -> None:
        self._applier, self._end = applier, end
        self._modes, self._gap_stream, self._value_stream, self._dense, self._extra = streams
        self._gaps, self._values = _bytes_of(self._gap_stream), _bytes_of(self._value_stream)
        self._copy = applier.copy_index(begin)
        self._position = self._next_difference(begin)

    def chunk(self, at: int, stop: int, *, wanted: bool) -> bytearray:
        """Decode one chunk; one that is not wanted only moves the streams on."""
        modes = self._modes.read(-(-(stop - at) // BLOCK_LENGTH_BYTES))
        if not set(modes) <= _MODE_BYTES:
            raise MalformedPayloadError("A delta has an unknown block mode", modes=sorted(set(modes) - _MODE_BYTES))
        out = bytearray(stop - at)
        old, new, length = self._applier.copies()
        place = at
        while place < stop:
            k = self._copy
            if k < len(new) and new[k] <= place:
                end = new[k] + length[k]
                self._copied(out, at, place, min(end, stop), old[k] - new[k], modes, wanted=wanted)
                if end <= stop:
                    self._copy += 1
                place = min(end, stop)
            else:
                end = min(new[k], stop) if k < len(new) else stop
                out[place - at : end - at] = self._extra.read(end - place)
                place = end
        if self._position < stop:
            self._differences(out, at, stop)
        return out

    def finish(self) -> None:
        """Refuse what is left over."""
        streams = (self._modes, self._gap_stream, self._value_stream, self._dense, self._extra)
        if (
            self._position < _NEVER
            or next(self._values, None) is not None
            or any(stream.left_bytes for stream in streams)
        ):
            raise MalformedPayloadError("A frame of a delta holds more than its image bytes use")

    def _copied(self, out: bytearray, at: int, begin: int, end: int, move: int, modes: bytes, *, wanted: bool) -> None:
        """Fill [begin, end) of the image from the precursor at +`move`, cell by cell."""
        applier = self._applier
        data = applier.read_precursor(begin + move, end - begin) if wanted else bytes(end - begin)
        first, last = (begin - at) // BLOCK_LENGTH_BYTES, (end - 1 - at) // BLOCK_LENGTH_BYTES
        out[begin - at : end - at] = data
        if not any(modes[first : last + 1]):
            return
        for block in range(first, last + 1):
            mode = modes[block]
            if not mode:
                continue
            start = max(begin, at + block * BLOCK_LENGTH_BYTES)
            stop = min(end, at + (block + 1) * BLOCK_LENGTH_BYTES)
            cell = bytearray(data[start - begin : stop - begin])
            if wanted and mode & PREDICTING:
                applier.predict(cell, start + move, start, mode)
            if mode & Mode.DENSE:
                out[start - at : stop - at] = add_bytes(cell, self._dense.read(stop - start))
            else:
                out[start - at : stop - at] = cell

    def _next_difference(self, position: int) -> int:
        for gap in self._gaps:
            if gap < GAP_SKIP:
                return position + gap
            position = self._skipped(position, gap)
        return _NEVER

    def _skipped(self, position: int, gap: int) -> int:
        """Move on; refused past the frame's end, so that no payload keeps a device counting gaps."""
        position += (gap - GAP_SKIP + 1) * GAP_SKIP
        if position >= self._end:
            raise MalformedPayloadError("A difference of a delta lies outside its frame", position=position)
        return position

    def _differences(self, out: bytearray, at: int, stop: int) -> None:
        position, gaps, values = self._position, self._gaps, self._values
        while position < stop:
            value = next(values, None)
            if value is None:
                raise MalformedPayloadError("A delta has fewer differences than gaps")
            index = position - at
            out[index] = out[index] + value & 0xFF
            position += 1
            for gap in gaps:
                if gap < GAP_SKIP:
                    position += gap
                    break
                position = self._skipped(position, gap)
            else:
                position = _NEVER
        self._position = position


def _bytes_of(stream: wire.Stream) -> Iterator[int]:
    while stream.left_bytes:
        yield from stream.read(min(_PIECE, stream.left_bytes))


def add_bytes(cell: bytes | bytearray, difference: bytes) -> bytes:
    """Add byte by byte, modulo 256, as two numbers whose carries cannot meet."""
    count = len(cell)
    low = _LOW if count == BLOCK_LENGTH_BYTES else int.from_bytes(b"\x7f" * count, "little")
    high = low ^ (1 << 8 * count) - 1
    one, other = int.from_bytes(cell, "little"), int.from_bytes(difference, "little")
    return ((one & low) + (other & low) ^ (one ^ other) & high).to_bytes(count, "little")


_LOW: Final = int.from_bytes(b"\x7f" * BLOCK_LENGTH_BYTES, "little")
_NEVER: Final = 1 << 63
_MODE_BYTES: Final = frozenset(mode for mode in range(256) if not mode & ~KNOWN_MODES)


def _copies(
    moves: bytes, gaps: bytes, lengths: bytes, old_length: int, new_length: int
) -> tuple[array[int], array[int], array[int]]:
    """Decode the copies and check that each lies in both images and after the one before."""
    columns = wire.read_signed_varints(moves), wire.read_varints(gaps), wire.read_varints(lengths)
    if len({len(column) for column in columns}) != 1 or len(columns[0]) > MAX_COPIES:
        raise MalformedPayloadError("A delta has an impossible table of copies", copies=len(columns[0]))
    old, new, length = array("q"), array("q"), array("q")
    old_end = new_end = 0
    for move, gap, count in zip(*columns, strict=True):
        start, place = old_end + move, new_end + gap
        old_end, new_end = start + count, place + count
        if count <= 0 or start < 0 or old_end > old_length or new_end > new_length:
            raise MalformedPayloadError("A copy of a delta lies outside an image", copy=len(old))
        old.append(start)
        new.append(place)
        length.append(count)
    return old, new, length


def _corrections(keys: bytes, values: bytes) -> tuple[array[int], array[int]]:
    labels, changes = wire.read_varints(keys), wire.read_signed_varints(values)
    if len(labels) != len(changes) or len(labels) > MAX_COPIES:
        raise MalformedPayloadError("A delta has an impossible table of corrections", corrections=len(labels))
    label = value = 0
    for index, (step, change) in enumerate(zip(labels, changes, strict=True)):
        label += step
        value += change
        if label >= OBJECT_SPAN * MAX_OBJECTS or abs(value) > OBJECT_SPAN or (index and not step):
            raise MalformedPayloadError("A correction of a delta is out of range", correction=index)
        labels[index], changes[index] = label, value
    return labels, changes


def _frame_table(
    sizes: Sequence[tuple[int, int]], length: int, offset: int, payload_length: int
) -> list[tuple[int, int, int, int]]:
    """Return (begin, end, offset, packed length) of each frame; together they are the image and the payload."""
    frames, begin = [], 0
    for index, (size, packed) in enumerate(sizes):
        last = index == len(sizes) - 1
        if not last and (size == 0 or size % CHUNK_LENGTH_BYTES):
            raise MalformedPayloadError("A frame of a delta has an odd length", frame=index, length=size)
        frames.append((begin, begin + size, offset, packed))
        begin += size
        offset += packed
    if begin != length or offset != payload_length:
        raise MalformedPayloadError(
            "The frames of a delta do not make its image",
            image=length,
            frames=begin,
            payload=payload_length,
            end=offset,
        )
    return frames
