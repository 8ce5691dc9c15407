"""A QR code as geometry for SVG: what an authenticator reads (ISO/IEC 18004, bytes, level L, versions 1 to 10).

Pure. 271 bytes at most; a provisioning address has about 120.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from firmament.errors import TooLargeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BLOCKS: Final = {
    # version: (codewords that correct, per block; codewords of data in each block)
    1: (7, (19,)), 2: (10, (34,)), 3: (15, (55,)), 4: (20, (80,)), 5: (26, (108,)), 6: (18, (68, 68)),
    7: (20, (78, 78)), 8: (24, (97, 97)), 9: (30, (116, 116)), 10: (18, (68, 68, 69, 69)),
}  # fmt: skip
ALIGNMENT: Final = {
    1: (), 2: (6, 18), 3: (6, 22), 4: (6, 26), 5: (6, 30), 6: (6, 34), 7: (6, 22, 38), 8: (6, 24, 42),
    9: (6, 26, 46), 10: (6, 28, 50),
}  # fmt: skip
QUIET: Final = 4
"""Modules of margin that the standard asks for."""
LONG_COUNT_FROM: Final = 10
VERSION_FROM: Final = 7
_LEVEL_L: Final = 1
_FORMAT_GENERATOR, _FORMAT_MASK, _VERSION_GENERATOR = 0x537, 0x5412, 0x1F25
_FIELD: Final = 0x11D
_MASKS: Final[tuple[Callable[[int, int], bool], ...]] = (
    lambda y, x: (y + x) % 2 == 0,
    lambda y, _: y % 2 == 0,
    lambda _, x: x % 3 == 0,
    lambda y, x: (y + x) % 3 == 0,
    lambda y, x: (y // 2 + x // 3) % 2 == 0,
    lambda y, x: y * x % 2 + y * x % 3 == 0,
    lambda y, x: (y * x % 2 + y * x % 3) % 2 == 0,
    lambda y, x: ((y + x) % 2 + y * x % 3) % 2 == 0,
)


@dataclass(frozen=True, slots=True)
class Picture:
    """A square of `size` modules a side, margin included, and the dark ones as an SVG path."""

    size: int
    path: str


def draw(text: str) -> Picture:
    """Return the code of a text; raises TooLargeError."""
    modules = encode(text.encode())
    strokes = [
        f"M{x + QUIET} {y + QUIET}h1v1h-1z" for y, row in enumerate(modules) for x, dark in enumerate(row) if dark
    ]
    return Picture(len(modules) + 2 * QUIET, "".join(strokes))


def encode(data: bytes) -> list[list[bool]]:
    """Return the modules, dark ones true; raises TooLargeError."""
    version = next((number for number in BLOCKS if _room(number) >= len(data)), None)
    if version is None:
        raise TooLargeError("The text is too long for a code to be photographed", limit_bytes=_room(max(BLOCKS)))
    stream = _interleaved(version, _codewords(version, data))
    candidates = [_drawn(version, stream, mask) for mask in range(len(_MASKS))]
    return min(candidates, key=_ugliness)


def _room(version: int) -> int:
    return sum(BLOCKS[version][1]) - (2 if version < LONG_COUNT_FROM else 3)


def _codewords(version: int, data: bytes) -> bytes:
    total = sum(BLOCKS[version][1])
    bits = "0100" + format(len(data), "08b" if version < LONG_COUNT_FROM else "016b")
    bits += "".join(format(byte, "08b") for byte in data)
    bits += "0" * min(4, total * 8 - len(bits))
    bits += "0" * (-len(bits) % 8)
    found = bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))
    padding = bytes((0xEC, 0x11)) * total
    return found + padding[: total - len(found)]


def _interleaved(version: int, codewords: bytes) -> bytes:
    length, sizes = BLOCKS[version]
    blocks, at = [], 0
    for size in sizes:
        blocks.append(codewords[at : at + size])
        at += size
    corrections = [_correction(block, length) for block in blocks]
    mixed = [block[i] for i in range(max(sizes)) for block in blocks if i < len(block)]
    return bytes(mixed + [correction[i] for i in range(length) for correction in corrections])


def _times(a: int, b: int) -> int:
    product = 0
    while b:
        if b & 1:
            product ^= a
        a = a << 1 ^ (_FIELD if a & 0x80 else 0)
        b >>= 1
    return product


def _correction(block: bytes, length: int) -> list[int]:
    """Return the remainder of the block, as a polynomial, by the one whose roots are 2^0 to 2^(length-1)."""
    generator, root = [1], 1
    for _ in range(length):
        generator = [a ^ _times(root, b) for a, b in zip([*generator, 0], [0, *generator], strict=True)]
        root = _times(root, 2)
    rest = [0] * length
    for byte in block:
        factor = byte ^ rest[0]
        rest = [a ^ _times(factor, b) for a, b in zip([*rest[1:], 0], generator[1:], strict=True)]
    return rest


def _drawn(version: int, stream: bytes, mask: int) -> list[list[bool]]:
    size = 17 + 4 * version
    modules: list[list[bool | None]] = [[None] * size for _ in range(size)]
    _fixed(modules, version)
    _format(modules, mask)
    bits = (byte >> shift & 1 for byte in stream for shift in range(7, -1, -1))
    for y, x in _path(size):
        if modules[y][x] is None:
            modules[y][x] = bool(next(bits, 0)) != _MASKS[mask](y, x)
    return [[bool(module) for module in row] for row in modules]


def _path(size: int) -> Iterator[tuple[int, int]]:
    """Go through the square as the standard says: pairs of columns from the right, up and down in turn."""
    is_upward = True
    for right in [*range(size - 1, 6, -2), 5, 3, 1]:
        for step in range(size):
            y = size - 1 - step if is_upward else step
            yield y, right
            yield y, right - 1
        is_upward = not is_upward


def _fixed(modules: list[list[bool | None]], version: int) -> None:
    size = len(modules)
    for top, left in ((0, 0), (0, size - 7), (size - 7, 0)):
        for y in range(max(0, top - 1), min(size, top + 8)):
            for x in range(max(0, left - 1), min(size, left + 8)):
                ring = max(abs(y - top - 3), abs(x - left - 3))
                modules[y][x] = ring not in {2, 4}
    places = ALIGNMENT[version]
    for top in places:
        for left in places:
            if modules[top][left] is None:
                for y in range(top - 2, top + 3):
                    for x in range(left - 2, left + 3):
                        modules[y][x] = max(abs(y - top), abs(x - left)) != 1
    for i in range(8, size - 8):
        modules[6][i] = modules[i][6] = i % 2 == 0
    if version >= VERSION_FROM:
        value = version << 12 | _remainder(version << 12, _VERSION_GENERATOR)
        for i in range(18):
            bit = bool(value >> i & 1)
            modules[size - 11 + i % 3][i // 3] = modules[i // 3][size - 11 + i % 3] = bit


def _format(modules: list[list[bool | None]], mask: int) -> None:
    size = len(modules)
    data = (_LEVEL_L << 3 | mask) << 10
    value = (data | _remainder(data, _FORMAT_GENERATOR)) ^ _FORMAT_MASK
    first = [(8, x) for x in (0, 1, 2, 3, 4, 5, 7, 8)] + [(y, 8) for y in (7, 5, 4, 3, 2, 1, 0)]
    second = [(size - 1 - i, 8) for i in range(7)] + [(8, size - 8 + i) for i in range(8)]
    for i, ((y, x), (other_y, other_x)) in enumerate(zip(first, second, strict=True)):
        modules[y][x] = modules[other_y][other_x] = bool(value >> 14 - i & 1)
    modules[size - 8][8] = True


def _remainder(value: int, generator: int) -> int:
    while value.bit_length() >= generator.bit_length():
        value ^= generator << value.bit_length() - generator.bit_length()
    return value


def _ugliness(modules: list[list[bool]]) -> int:
    """Count what a camera finds hard: long runs, and squares of one colour."""
    worst = 0
    for lines in (modules, list(zip(*modules, strict=True))):
        for line in lines:
            run = 1
            for before, after in itertools.pairwise(line):
                run = run + 1 if before == after else 1
                worst += 3 if run == 5 else run > 5  # noqa: PLR2004 - the standard's weights
    for above, below in itertools.pairwise(modules):
        for x in range(len(above) - 1):
            worst += 3 * (above[x] == above[x + 1] == below[x] == below[x + 1])
    return worst
