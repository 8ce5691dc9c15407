"""Small linked images for tests: functions that call each other, pointers to them, linked at an address."""

import random
import struct


def functions(seed: int = 1, count: int = 400) -> list[list[object]]:
    """Return bodies: numbers are instructions, ("call", k) and ("address", k) refer to function k."""
    chance = random.Random(seed)
    bodies: list[list[object]] = []
    for _ in range(count):
        body: list[object] = []
        for _ in range(chance.randrange(6, 30)):
            kind = chance.random()
            if kind < 0.2:
                body.append(("call", chance.randrange(count)))
            elif kind < 0.3:
                body.append(("address", chance.randrange(count)))
            else:
                body.append(0x8B000000 | chance.randrange(1 << 16) << 5 & 0x1FFFFF)
        bodies.append(body)
    return bodies


def changed(bodies: list[list[object]], every: int = 40) -> list[list[object]]:
    """Put an instruction into some functions, so that everything after them moves."""
    return [[0x8B0003E0, *body] if index % every == 7 else body for index, body in enumerate(bodies)]


def arm64(bodies: list[list[object]], *, base: int = 0x80000) -> bytes:
    """Link for ARM64, in U-Boot's manner: the address it is linked at is at offset 8."""
    starts, at = [], 16
    for body in bodies:
        starts.append(at)
        at += 4 * sum(2 if isinstance(word, tuple) and word[0] == "address" else 1 for word in body) + 4
    out = bytearray(struct.pack("<IIQ", 0x1400000A, 0xD503201F, base))
    for body in bodies:
        for word in body:
            here = len(out)
            if not isinstance(word, tuple):
                out += struct.pack("<I", word)
            elif word[0] == "call":
                out += struct.pack("<I", 0x94000000 | (starts[word[1]] - here) // 4 & 0x3FFFFFF)
            else:
                target = starts[word[1]]
                pages = (target >> 12) - (here >> 12)
                out += struct.pack(
                    "<II",
                    0x90000000 | (pages & 3) << 29 | (pages >> 2 & 0x7FFFF) << 5 | 3,
                    0x91000063 | (target & 0xFFF) << 10,
                )
        out += struct.pack("<I", 0xD65F03C0)
    out += bytes(-len(out) % 4096)
    for start in starts:
        out += struct.pack("<Q", base + start)
    return bytes(out)


def thumb(bodies: list[list[object]], *, base: int = 0x08010000) -> bytes:
    """Link for a Cortex-M: vector table first, literals after each function."""
    starts, at = [], 256
    for body in bodies:
        starts.append(at)
        literals = sum(isinstance(word, tuple) and word[0] == "address" for word in body)
        at += 2 + 4 * (len(body) - literals) + 2
        at += -at % 4 + 4 * literals
    out = bytearray(struct.pack("<II", 0x20010000, base + starts[0] + 1))
    out += b"".join(struct.pack("<I", base + starts[index % len(starts)] + 1) for index in range(62))
    for body in bodies:
        literals = []
        out += struct.pack("<H", 0xB510)
        for word in body:
            here = len(out)
            if not isinstance(word, tuple):
                out += struct.pack("<HH", 0x3000 | word & 0xFF, 0x1C00 | word >> 8 & 0x3F)
            elif word[0] == "call":
                distance = starts[word[1]] - here - 4
                sign = distance >> 24 & 1
                high, low = distance >> 23 & 1 ^ sign ^ 1, distance >> 22 & 1 ^ sign ^ 1
                out += struct.pack(
                    "<HH",
                    0xF000 | sign << 10 | distance >> 12 & 0x3FF,
                    0xD000 | high << 13 | low << 11 | distance >> 1 & 0x7FF,
                )
            else:
                literals.append(base + starts[word[1]] + 1)
        out += struct.pack("<H", 0xBD10)
        out += bytes(-len(out) % 4)
        out += b"".join(struct.pack("<I", literal) for literal in literals)
    return bytes(out)
