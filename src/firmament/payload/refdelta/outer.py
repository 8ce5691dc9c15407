"""Make a refdelta payload of version 2: over images whose compressed parts are unpacked (author's bench).

Whether there is anything to unpack or to reorder is found by looking; if not, version 1 is all there is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from firmament.payload.refdelta import btf, types, wire
from firmament.payload.refdelta.container import FORMAT_VERSION, MAX_STREAMS, MAX_TABLES
from firmament.payload.refdelta.encoder import encode as encode_inner
from firmament.payload.refdelta.unpack import Recipe, recipe, streams
from firmament.payload.refdelta.views import aligned

if TYPE_CHECKING:
    from collections.abc import Callable


def encode(old: bytes, new: bytes, *, progress: Callable[[str], None] = lambda _: None) -> bytes:
    """Return the payload; raises ValueError if version 1 would do as well."""
    progress("unpacking")
    before, sources = _unpacked_old(old)
    after, packed, recipes = _unpacked_new(new)
    before, tables, orders, added = _reordered(before, after)
    if not packed and not tables:
        raise ValueError("nothing in the images is compressed in a way that can be made again, and no table of types")
    inner = encode_inner(bytes(before), bytes(after), progress=progress)
    parts = [
        wire.varints(packed),
        wire.varints(value for one in recipes for value in one.numbers),
        wire.varints(value for one in recipes for value in one.edits),
        b"".join(bytes(one.bits) for one in recipes),
        wire.varints(sources),
        wire.varints(tables),
        *(wire.signed_varints(column) for column in orders),
        added,
    ]
    head = wire.MAGIC + bytes((FORMAT_VERSION,)) + wire.varints((len(old), len(new), len(after)))
    return head + wire.write_group(parts, most_log2=20) + inner


def _columns(rows: list[tuple[int, ...]]) -> list[int]:
    return [value for column in zip(*rows, strict=True) for value in column]


def _unpacked_old(old: bytes) -> tuple[bytearray, list[int]]:
    out, rows, end = bytearray(old), [], 0
    for found in streams(old):
        if len(rows) == MAX_STREAMS:
            break
        out += bytes(aligned(len(out)) - len(out)) + found.contents
        rows.append((found.offset - end, found.packed_bytes, len(found.contents)))
        end = found.offset + found.packed_bytes
    return out, _columns(rows)


def _unpacked_new(new: bytes) -> tuple[bytearray, list[int], list[Recipe]]:
    out, rows, recipes, end = bytearray(), [], [], 0
    for found in streams(new):
        packed = new[found.offset : found.offset + found.packed_bytes]
        how = recipe(packed, found.contents) if len(rows) < MAX_STREAMS else None
        if how is None:
            continue
        out += new[end : found.offset]
        out += bytes(aligned(len(out)) - len(out)) + found.contents
        out += bytes(aligned(len(out)) - len(out))
        asked = how.parameters
        rows.append(
            (
                found.offset - end, found.packed_bytes, len(found.contents), asked.level, asked.memory,
                asked.strategy, how.blocks,
            )
        )  # fmt: skip
        recipes.append(how)
        end = found.offset + found.packed_bytes
    return out + new[end:], _columns(rows), recipes


def _reordered(before: bytearray, after: bytearray) -> tuple[bytearray, list[int], list[list[int]], bytes]:
    """Put behind the old image what its tables of types become; the first of the one is the first of the other."""
    rows: list[tuple[int, ...]] = []
    orders: list[list[int]] = [[], [], [], []]
    added = bytearray()
    old, new = bytes(before), bytes(after)
    pairs = zip(types.tables(old, MAX_TABLES), types.tables(new, MAX_TABLES), strict=False)
    for theirs, ours in pairs:
        parts = [
            image[at : at + count]
            for image, table in ((old, theirs), (new, ours))
            for at, count in ((table.types_at, table.types_bytes), (table.names_at, table.names_bytes))
        ]
        if parts[:2] == parts[2:]:
            continue
        order = types.order(*parts)
        columns = (order.type_jumps, order.type_lengths, order.name_jumps, order.name_lengths)
        made = btf.predict(
            parts[0] + order.added_types, parts[1] + order.added_names, type_runs=columns[:2], name_runs=columns[2:]
        )
        rows.append(
            (
                theirs.types_at, theirs.types_bytes, theirs.names_at, theirs.names_bytes, len(order.added_types),
                len(order.added_names), len(columns[0]), len(columns[2]), len(made),
            )
        )  # fmt: skip
        for kept, column in zip(orders, columns, strict=True):
            kept += column
        added += order.added_types + order.added_names
        before += bytes(aligned(len(before)) - len(before)) + made
    return before, _columns(rows), orders, bytes(added)
