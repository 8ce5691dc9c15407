"""Which wave a target goes into: pure functions of how many are wanted and how many there are (ADR-0038).

Every device draws a lot for a rollout. A chunk of targets is dealt out by comparing lots with
thresholds, so that the database does it while it writes them; the thresholds of the next chunk
make up for what chance did in this one. What differs at the end, a handful, is moved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from firmament.core.digest import Digest
from firmament.server.inventory.service import BUCKETS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PER_BUCKET: Final = 1000
LOTS: Final = BUCKETS * PER_BUCKET
"""Lots are 0..9,999,999: fine enough for fifty of ten million."""


def shuffle(rollout_id: str) -> tuple[int, int]:
    """Return factor and shift of this rollout's order of buckets: a permutation of 0..9999."""
    seed = int.from_bytes(Digest.of(rollout_id.encode()).value[:8], "big")
    # Odd and no multiple of five: coprime to 10 000, so no two buckets meet.
    factor = 10 * (seed % 1000) + (1, 3, 7, 9)[(seed >> 20) % 4]
    return factor, (seed >> 32) % BUCKETS


def lot_sql(rollout_id: str) -> str:
    """Return the lot of a device `d` in this rollout: its bucket, shuffled, so that not always the same go first."""
    factor, shift = shuffle(rollout_id)
    return f"(d.bucket * {factor} + {shift}) % {BUCKETS} * {PER_BUCKET} + d.id % {PER_BUCKET}"


def thresholds(wanted: Sequence[int], dealt: Sequence[int], *, coming: int, total: int) -> list[int]:
    """Return below which lot each wave ends for the next `coming` targets of `total`; the last wave takes the rest.

    `wanted` are the sizes of the waves at the end, `dealt` what they have by now.
    """
    by_then = min(total, sum(dealt) + coming)
    ends, end = [], 0.0
    for size, has in zip(wanted[:-1], dealt, strict=False):
        missing = size * by_then / max(total, 1) - has
        end = min(1.0, end + max(0.0, missing) / max(coming, 1))
        ends.append(round(end * LOTS))
    return ends


def differences(have: Mapping[int, int], want: Sequence[int]) -> dict[int, int]:
    """Return by wave number how many targets it has too many (above zero) or too few."""
    numbers = {*have, *range(1, len(want) + 1)}
    found = {number: have.get(number, 0) - (want[number - 1] if number <= len(want) else 0) for number in numbers}
    return {number: n for number, n in sorted(found.items()) if n}


def choose_moves(rows: Sequence[tuple[int, int]], over: Mapping[int, int]) -> list[tuple[int, int, int]]:
    """Return (device row, from, to) for some of the targets (device row, wave), in the order of their lots.

    Whoever drew the lowest lot goes into the earliest wave that has too few.
    """
    left = dict(over)
    moves = []
    for device_row, wave in rows:
        if left.get(wave, 0) <= 0:
            continue
        to = next((number for number, n in left.items() if n < 0), None)
        if to is None:
            break
        left[wave] -= 1
        left[to] += 1
        moves.append((device_row, wave, to))
    return moves
