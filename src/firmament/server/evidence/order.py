"""Which of two component versions is newer: for matching ranges of vulnerability statements only.

Never for deciding what a device installs: that is the sequence number (ADR-0005). The order is
Debian's, with the pre-release words of semantic and Python versions: numbers compare as numbers,
`~`, `-alpha`, `-beta`, `-rc`, `-pre` and `-dev` come before the end, other letters after it.
"""

from __future__ import annotations

import re
from itertools import zip_longest
from typing import Final

_PART: Final = re.compile(r"[0-9]+|[a-zA-Z]+|~")
_EPOCH: Final = re.compile(r"([0-9]{1,9}):")
_BEFORE_THE_END: Final = {"~": -6, "dev": -5, "a": -4, "alpha": -4, "b": -3, "beta": -3, "pre": -2, "rc": -1}
_END: Final = (0, 0, "")
MAX_LENGTH: Final = 256


def key(version: str) -> tuple[int, list[tuple[int, int, str]]]:
    """Return epoch and parts, for `compare`."""
    text = version[:MAX_LENGTH].strip().removeprefix("v")
    match = _EPOCH.match(text)
    epoch = int(match[1]) if match else 0
    text = text[match.end() :] if match else text
    text = text.partition("+")[0] if "+" in text and "-" not in text.partition("+")[2] else text
    parts: list[tuple[int, int, str]] = []
    for part in _PART.findall(text):
        if part.isdigit():
            parts.append((2, int(part[:18]), ""))
        elif (rank := _BEFORE_THE_END.get(part.lower())) is not None:
            parts.append((-1, rank, ""))
        else:
            parts.append((1, 0, part))
    return epoch, parts


def compare(one: str, other: str) -> int:
    """Return -1, 0 or 1 as `one` is older, equal, or newer."""
    (epoch, left), (other_epoch, right) = key(one), key(other)
    if epoch != other_epoch:
        return -1 if epoch < other_epoch else 1
    for a, b in zip_longest(left, right, fillvalue=_END):
        if _is_zero(a) and _is_zero(b):
            continue  # 1.0 and 1.0.0 are the same
        if a != b:
            return -1 if a < b else 1
    return 0


def _is_zero(part: tuple[int, int, str]) -> bool:
    return part in {_END, (2, 0, "")}
