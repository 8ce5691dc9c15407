"""Refdelta version 2: version 1 over images whose compressed parts are unpacked (device).

    applier = ViewApplier(payload, payload_length, precursor, precursor_length_bytes=..., image_length_bytes=...)
    for offset, data in applier.pieces(start=stored): ...

The payload says which streams of the precursor to unpack, and how an old table of types becomes nearly the
new one; behind them a version 1 payload makes the new image unpacked; what was compressed is packed
again. docs/protocol/refdelta.md specifies the bytes.

The resumable state is the count of image bytes that are durable. A stream that is packed again is
packed from its beginning; nothing is fetched again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from firmament.errors import MalformedPayloadError, PrecursorMismatchError
from firmament.payload.readers import BytesReader, read_all
from firmament.payload.refdelta import btf, wire
from firmament.payload.refdelta.applier import Applier
from firmament.payload.refdelta.repack import EDITED, GIVEN, Parameters, Recipe, pack
from firmament.payload.refdelta.views import Contents, Views, aligned, step_bytes

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable, Iterator

    from firmament.payload.readers import Reader

FORMAT_VERSION: Final = 2
STREAMS: Final = 11
MAX_STREAMS: Final = 1 << 16
MAX_TABLES: Final = 16
MAX_LENGTH_BYTES: Final = 1 << 40
SOURCE_COLUMNS: Final = 3
TABLE_COLUMNS: Final = 9
PACKED_COLUMNS: Final = 7


@dataclass(frozen=True, slots=True)
class Packed:
    """A stream of the new image that is packed again."""

    gap_bytes: int
    """From the end of the one before."""
    packed_bytes: int
    length_bytes: int
    parameters: Parameters
    blocks: int
    """0: zlib packs all at once."""


class _Slice:
    def __init__(self, source: Reader, offset: int) -> None:
        self._source, self._offset = source, offset

    def read_at(self, offset: int, length_bytes: int) -> bytes:
        return self._source.read_at(self._offset + offset, length_bytes)


class ViewApplier:
    """Applies one payload; checks its tables when it is made."""

    def __init__(
        self,
        payload: Reader,
        payload_length_bytes: int,
        precursor: Reader,
        *,
        precursor_length_bytes: int,
        image_length_bytes: int,
    ) -> None:
        self._payload, self._end = payload, payload_length_bytes
        self.length_bytes = image_length_bytes
        cursor = wire.Cursor(payload, 0, payload_length_bytes)
        head = bytes(cursor.byte() for _ in range(4))
        if head != wire.MAGIC + bytes((FORMAT_VERSION,)):
            raise MalformedPayloadError(
                "Not a refdelta payload of a version this code knows", found=head.hex(), known=FORMAT_VERSION
            )
        old_length = cursor.varint(1 << 62, "the precursor's length")
        if old_length != precursor_length_bytes:
            raise PrecursorMismatchError(
                "The delta starts from an image of another length", expected=old_length, got=precursor_length_bytes
            )
        if cursor.varint(1 << 62, "the image's length") != image_length_bytes:
            raise MalformedPayloadError("The delta makes an image of another length", expected=image_length_bytes)
        unpacked = cursor.varint(MAX_LENGTH_BYTES, "the unpacked image's length")
        self._tables_at = cursor.offset
        streams = self._streams(cursor)
        self._packed = _packed(_column(streams[0]), image_length_bytes)
        views = _views(precursor, precursor_length_bytes, streams)
        if unpacked != self._unpacked_length():
            raise MalformedPayloadError("The delta makes an unpacked image of another length", got=unpacked)
        self._inner = Applier(
            _Slice(payload, cursor.offset),
            payload_length_bytes - cursor.offset,
            views,
            precursor_length_bytes=views.length_bytes,
            image_length_bytes=unpacked,
        )

    def _streams(self, cursor: wire.Cursor) -> list[wire.Stream]:
        return wire.open_group(self._payload, cursor, STREAMS, most_bytes=wire.MAX_COLUMN_BYTES)

    def _unpacked_length(self) -> int:
        place = 0
        for _, _, begin, end in self._parts():
            place = begin + end
        return place

    def _parts(self) -> Iterator[tuple[Packed | None, int, int, int]]:
        """Yield (stream or None, length in the image, begin in the unpacked image, length there)."""
        at = place = 0
        for stream in self._packed:
            if stream.gap_bytes:
                yield None, stream.gap_bytes, place, stream.gap_bytes
            place = aligned(place + stream.gap_bytes)
            yield stream, stream.packed_bytes, place, stream.length_bytes
            place = aligned(place + stream.length_bytes)
            at += stream.gap_bytes + stream.packed_bytes
        yield None, self.length_bytes - at, place, self.length_bytes - at

    def pieces(self, *, start: int = 0) -> Iterator[tuple[int, bytes]]:
        """Yield (offset, bytes) of the image in order, from `start` to the end.

        Raises MalformedPayloadError, PrecursorMismatchError, and what the readers raise.
        """
        recipe = self._recipe()
        source: _Source | None = None
        at = 0
        for stream, length, begin, unpacked in self._parts():
            end = at + length
            if end <= start:
                if stream is not None:
                    _skip(stream, recipe)
                at = end
                continue
            skip = max(start - at, 0)
            if source is None:
                source = _Source(self._inner, begin + (skip if stream is None else 0))
            if stream is None:
                source.go_to(begin + skip)
                at += skip
                for piece in source.take(unpacked - skip):
                    yield at, piece
                    at += len(piece)
                continue
            source.go_to(begin)
            for piece in pack(source.take, unpacked, stream.parameters, stream.blocks, recipe):
                stop = at + len(piece)
                if stop > end:
                    break
                if stop > start and piece:
                    first = max(start - at, 0)
                    yield at + first, piece[first:]
                at = stop
            if at != end:
                raise MalformedPayloadError("A stream of a delta packs to another length", expected=length)

    def _recipe(self) -> Recipe:
        streams = self._streams(wire.Cursor(self._payload, self._tables_at, self._end))
        return Recipe(_numbers(_column(streams[1])), _numbers(_column(streams[2])), streams[3])


class _Source:
    """The unpacked image in order, as much at a time as somebody wants."""

    def __init__(self, inner: Applier, start: int) -> None:
        self._pieces = inner.pieces(start=start)
        self._held = b""
        self._at = start

    def take(self, length_bytes: int) -> Iterator[bytes]:
        """Yield the next bytes, so many."""
        while length_bytes:
            if not self._held:
                self._held = next(self._pieces, (0, b""))[1]
                if not self._held:
                    raise MalformedPayloadError("A delta ends before its image", offset=self._at)
            piece, self._held = self._held[:length_bytes], self._held[length_bytes:]
            self._at += len(piece)
            length_bytes -= len(piece)
            yield piece

    def go_to(self, offset: int) -> None:
        """Leave out what is between two parts."""
        for _ in self.take(offset - self._at):
            pass


def _column(stream: wire.Stream) -> array[int]:
    return wire.read_varints(stream.read(stream.left_bytes))


def _numbers(column: array[int]) -> Callable[[], int]:
    values = iter(column)

    def following() -> int:
        value = next(values, None)
        if value is None:
            raise MalformedPayloadError("A recipe of a delta is too short")
        return value

    return following


def _rows(values: array[int], columns: int, most: int, what: str) -> list[list[int]]:
    count, rest = divmod(len(values), columns)
    if rest or count > most:
        raise MalformedPayloadError("A delta has an impossible table", what=what, values=len(values))
    return [list(values[index::count]) for index in range(count)]


def _packed(values: array[int], image_length: int) -> list[Packed]:
    found, end = [], 0
    for gap, packed, length, level, memory, strategy, blocks in _rows(values, PACKED_COLUMNS, MAX_STREAMS, "streams"):
        end += gap + packed
        if end > image_length or not packed or length > MAX_LENGTH_BYTES:
            raise MalformedPayloadError("A stream of a delta lies outside the image", end=end)
        found.append(Packed(gap, packed, length, Parameters(level, memory, strategy), blocks))
    return found


def _skip(stream: Packed, recipe: Recipe) -> None:
    """Read past a stream's part of the recipe."""
    for _ in range(stream.blocks):
        recipe.numbers()
        kind = recipe.numbers() & 3
        if kind in {EDITED, GIVEN}:
            recipe.bits.read(-(-recipe.edits() // 8))
        if kind == EDITED:
            for _ in range(recipe.edits()):
                recipe.edits()
                for _ in range(recipe.edits()):
                    if recipe.edits() > 1:
                        recipe.edits()


def _views(precursor: Reader, length: int, streams: list[wire.Stream]) -> Views:
    views = Views(precursor, length)
    sources = _rows(_column(streams[4]), SOURCE_COLUMNS, MAX_STREAMS, "sources")
    step = step_bytes(sum(row[2] for row in sources))
    end = 0
    for gap, packed, unpacked in sources:
        offset = end + gap
        end = offset + packed
        if end > length or unpacked > MAX_LENGTH_BYTES:
            raise MalformedPayloadError("A delta names a stream outside the precursor", end=end)
        views.add(Contents(precursor, offset, packed, unpacked, step), unpacked)
    tables = _rows(_column(streams[5]), TABLE_COLUMNS, MAX_TABLES, "tables")
    orders = [wire.read_signed_varints(stream.read(stream.left_bytes)) for stream in streams[6:10]]
    used = [0, 0]
    for types_at, types, names_at, names, added_types, added_names, type_runs, name_runs, made in tables:
        if max(types, names, added_types, added_names, made) > btf.MOST_BYTES or types % 4 or added_types % 4:
            raise MalformedPayloadError("A delta names too long a table of types", types=types, names=names)
        counts = (type_runs, name_runs)
        picked = []
        for kind in (0, 1):
            first, used[kind] = used[kind], used[kind] + counts[kind]
            picked.append((orders[2 * kind][first : used[kind]], orders[2 * kind + 1][first : used[kind]]))
        words = btf.words_of(read_all(_Slice(views, types_at), types))
        words += btf.words_of(streams[10].read(added_types))
        old_names = read_all(_Slice(views, names_at), names) + streams[10].read(added_names)
        found = btf.predict(words, old_names, type_runs=picked[0], name_runs=picked[1])
        if len(found) != made:
            raise MalformedPayloadError("A table of a delta has another length", expected=made, got=len(found))
        views.add(BytesReader(found), made)
    return views
