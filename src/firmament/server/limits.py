"""Token buckets: how often somebody may ask, with a ceiling on the memory that takes.

A key that is not in the table has a full bucket. When the table is full the least recently used
entry is dropped: an attacker with many addresses can only give others *more*, never fill memory.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from firmament.errors import RateLimitedError

MAX_KEYS: Final = 100_000
# 100 000 entries of key, float pair and dictionary slot come to about 30 MB.


class TokenBuckets:
    """One bucket per key: `burst` at once, `rate_per_s` sustained. Time comes with each question."""

    def __init__(self, *, rate_per_s: float, burst: int, max_keys: int = MAX_KEYS) -> None:
        self._rate_per_s = rate_per_s
        self._burst = float(burst)
        self._max_keys = max_keys
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        """How many keys are remembered."""
        return len(self._buckets)

    def take(self, key: str, now_s: float) -> float:
        """Take one token; return 0, or the seconds after which there will be one.

        `now_s` is monotonic time; a step back counts as standing still.
        """
        burst, buckets = self._burst, self._buckets
        level, at_s = buckets.pop(key, (burst, now_s))
        # Not min and max: every request of every device comes through here, twice.
        if now_s > at_s:
            level += (now_s - at_s) * self._rate_per_s
            level = burst if level > burst else level  # noqa: FURB136
            at_s = now_s
        wait_s = 0.0
        if level >= 1.0:
            level -= 1.0
        else:
            wait_s = (1.0 - level) / self._rate_per_s
        buckets[key] = (level, at_s)
        if len(buckets) > self._max_keys:
            buckets.popitem(last=False)
        return wait_s

    def require(self, key: str, now_s: float, *, what: str) -> None:
        """Raise RateLimitedError, with `retry_after_s`, when the bucket is empty."""
        wait_s = self.take(key, now_s)
        if wait_s > 0:
            raise RateLimitedError(f"Too many {what}", retry_after_s=max(1, round(wait_s + 0.5)))
