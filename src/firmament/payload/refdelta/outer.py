"""Make a refdelta payload of version 2: over images whose compressed parts are unpacked (author's bench).

`pays` tells quickly whether there is anything to unpack or to reorder; if not, version 1 is all there is.
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


def pays(old: bytes, new: bytes) -> bool:
    """Whether version 2 may do what version 1 cannot."""
    return next(streams(new), None) is not None or bool(types.tables(old, 1) and types.tables(new, 1))


def encode(old: bytes, new: bytes, *, progress: Callable[[str], None] = lambda _: None) -> bytes:
    """Return the payload."""
    progress("unpacking")
    before, sources = _unpacked_old(old)
    after, packed, recipes = _unpacked_new(new)
    before, tables, orders, added = _reordered(before, after)
    length = len(after)
    inner = encode_inner(before, after, progress=progress)
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
    head = wire.MAGIC + bytes((FORMAT_VERSION,)) + wire.varints((len(old), len(new), length))
    return head + wire.write_group(parts, most_log2=20) + inner


def _columns(rows: list[tuple[int, ...]]) -> list[int]:
    return [value for column in zip(*rows, strict=True) for value in column]


def _unpacked_old(old: bytes) -> tuple[bytes, list[int]]:
    out, end = bytearray(old), 0
    rows: list[tuple[int, ...]] = []
    for found in streams(old):
        if len(rows) == MAX_STREAMS:
            break
        out += bytes(aligned(len(out)) - len(out)) + found.contents
        rows.append((found.offset - end, found.packed_bytes, len(found.contents)))
        end = found.offset + found.packed_bytes
    return bytes(out) if rows else old, _columns(rows)


def _unpacked_new(new: bytes) -> tuple[bytes, list[int], list[Recipe]]:
    out, end = bytearray(), 0
    rows: list[tuple[int, ...]] = []
    recipes: list[Recipe] = []
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
    out += new[end:]
    return bytes(out) if rows else new, _columns(rows), recipes


def _reordered(old: bytes, new: bytes) -> tuple[bytes, list[int], list[list[int]], bytes]:
    """Put behind the old image what its tables of types become; the first of the one is the first of the other."""
    rows: list[tuple[int, ...]] = []
    orders: list[list[int]] = [[], [], [], []]
    added = bytearray()
    behind, end = bytearray(), len(old)
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
            btf.words_of(parts[0] + order.added_types),
            parts[1] + order.added_names,
            type_runs=columns[:2],
            name_runs=columns[2:],
        )
        rows.append(
            (
                theirs.types_at, theirs.types_bytes, theirs.names_at, theirs.names_bytes, len(order.added_types),
                len(order.added_names), len(columns[0]), len(columns[2]), len(made),
            )
        )  # fmt: skip
        orders = [kept + column for kept, column in zip(orders, columns, strict=True)]
        added += order.added_types + order.added_names
        behind += bytes(aligned(end) - end) + made
        end = aligned(end) + len(made)
    return old + bytes(behind) if behind else old, _columns(rows), orders, bytes(added)
