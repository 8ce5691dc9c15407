"""What the failed have in common, and whether updated devices are sicker: small, exact statistics."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

MIN_LIFT: Final = 1.5
MIN_FAILED: Final = 10
MAX_P: Final = 0.01
"""console.md §2.1: below these, nothing stands out."""


def fisher_greater(with_failed: int, failed: int, with_other: int, other: int) -> float:
    """Return the one-sided p of Fisher's exact test.

    The chance that, of `failed` and `other` devices of which `with_failed` + `with_other` have a
    property, at least `with_failed` of the failed have it, were it shared out blindly.
    """
    having, everything = with_failed + with_other, failed + other
    if having == 0 or failed == 0:
        return 1.0
    whole = _log_choose(everything, failed)
    most = min(having, failed)
    logs = [
        _log_choose(having, k) + _log_choose(everything - having, failed - k) - whole
        for k in range(with_failed, most + 1)
        if failed - k <= everything - having
    ]
    return min(1.0, math.fsum(math.exp(value) for value in logs))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


@dataclass(frozen=True, slots=True)
class Common:
    """A property that the failed have more often than the others that finished."""

    attribute: str
    value: str
    failed: int
    """How many of the failed have it."""
    share: float
    lift: float
    p: float

    def to_json(self) -> dict[str, Any]:
        """Return the shape `rollout_shapes.Common`."""
        return {
            "attribute": self.attribute,
            "value": self.value,
            "failed": self.failed,
            "share": round(self.share, 4),
            "lift": round(self.lift, 2),
            "p": self.p,
        }


def stands_out(
    failed: Mapping[tuple[str, str], int], n_failed: int, others: Mapping[tuple[str, str], int], n_others: int
) -> Common | None:
    """Return the property with the highest lift, or None when nothing stands out.

    `failed` and `others` count devices by (attribute, value). The lift is the share among the
    failed over the share among all that finished.
    """
    best: Common | None = None
    for (attribute, value), count in failed.items():
        if count < MIN_FAILED:
            continue
        share = count / n_failed
        other = others.get((attribute, value), 0)
        everywhere = (count + other) / (n_failed + n_others)
        lift = share / everywhere
        if lift < MIN_LIFT or (best is not None and (lift, share) <= (best.lift, best.share)):
            continue
        p = fisher_greater(count, n_failed, other, n_others)
        if p < MAX_P:
            best = Common(attribute, value, count, share, lift, p)
    return best


def is_sicker(updated_failing: int, updated: int, waiting_failing: int, waiting: int, *, minimum: int) -> bool:
    """Whether updated devices report ``failing`` more than devices not yet updated, beyond chance."""
    if updated < minimum or waiting < 1 or updated_failing == 0:
        return False
    share, before = updated_failing / updated, waiting_failing / waiting
    return share >= MIN_LIFT * before and fisher_greater(updated_failing, updated, waiting_failing, waiting) < MAX_P
