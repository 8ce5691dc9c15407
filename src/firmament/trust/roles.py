"""How many of which keys a role needs, and for how long its file is good.

Hybrid by threshold arithmetic (trust.md D5): a role with n classical keys, n ML-DSA keys and the
threshold n+k is met only with at least k signatures of each class, with standard TUF clients.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from firmament.core.ids import product_name
from firmament.errors import MalformedError, ThresholdNotMetError
from firmament.trust.keys import is_post_quantum

if TYPE_CHECKING:
    from collections.abc import Iterable

    from securesystemslib.signer import Key

ROOT: Final = "root"
TARGETS: Final = "targets"
SNAPSHOT: Final = "snapshot"
TIMESTAMP: Final = "timestamp"
TOP_LEVEL: Final = (ROOT, TARGETS, SNAPSHOT, TIMESTAMP)

# trust.md §3.1. Root is renewed at 270 days, timestamp daily.
ROOT_LIFETIME: Final = timedelta(days=365)
TARGETS_LIFETIME: Final = timedelta(days=180)
SNAPSHOT_LIFETIME: Final = timedelta(days=14)
TIMESTAMP_LIFETIME: Final = timedelta(days=3)
ROOT_RENEWAL: Final = timedelta(days=270)
MAX_KEYS: Final = 32
# 4 custodians have 8 keys; a root with 32 ML-DSA keys and signatures is 300 kB, below ngclient's 512 kB.


@dataclass(frozen=True, slots=True)
class RoleKeys:
    """The keys of one role and how many must sign; checked when made.

    Raises MalformedError for no key, a threshold that is zero or out of reach, or one public key
    under two names (trust.md §10, cases 15 and 16).
    """

    keys: tuple[Key, ...]
    threshold: int

    def __post_init__(self) -> None:
        """Refuse what no role may have."""
        if not 1 <= len(self.keys) <= MAX_KEYS:
            raise MalformedError("A role has no key or too many", keys=len(self.keys), limit=MAX_KEYS)
        if not 1 <= self.threshold <= len(self.keys):
            raise MalformedError("A role's threshold is out of reach", threshold=self.threshold, keys=len(self.keys))
        if len({key.keyid for key in self.keys}) != len(self.keys) or len({material(key) for key in self.keys}) != len(
            self.keys
        ):
            raise MalformedError("A role lists one key twice", keyids=" ".join(key.keyid[:12] for key in self.keys))

    @property
    def hybrid_minimum(self) -> int:
        """How many signatures of each class are certain once the threshold is met; 0 is not hybrid."""
        return hybrid_minimum(self.keys, self.threshold)

    @property
    def is_hybrid(self) -> bool:
        """Whether neither a forged classical nor a forged ML-DSA scheme is enough alone."""
        return self.hybrid_minimum >= 1


def material(key: Key) -> str:
    """Return what makes a key itself, whatever it is called: its type and public value."""
    return f"{key.keytype}:{str(key.keyval.get('public', '')).strip()}"


def hybrid_minimum(keys: Iterable[Key], threshold: int) -> int:
    """Return the least number of signatures of either class among any `threshold` of these keys.

    Of m keys of a class, at most m can be among the signers, so the other class gives at least
    threshold - m. 2 of (2 + 2) gives 0: the two classical keys alone meet it (trust.md §5, the
    pitfall).
    """
    found = list(keys)
    post_quantum = sum(1 for key in found if is_post_quantum(key))
    classical = len(found) - post_quantum
    return max(0, min(threshold - classical, threshold - post_quantum))


def hybrid_threshold(pairs: int, *, minimum: int = 1) -> int:
    """Return the threshold for `pairs` classical and as many ML-DSA keys, `minimum` of each certain.

    1 pair: 2; 2 pairs: 3; 4 pairs with minimum 2: 6 (trust.md D5). Raises MalformedError when
    `minimum` is out of reach.
    """
    if not 1 <= minimum <= pairs:
        raise MalformedError("No threshold gives that many signatures of each class", pairs=pairs, minimum=minimum)
    return pairs + minimum


def require_hybrid(role: str, keys: RoleKeys) -> None:
    """Raise ThresholdNotMetError unless meeting the threshold takes both classes of keys."""
    if not keys.is_hybrid:
        post_quantum = sum(1 for key in keys.keys if is_post_quantum(key))
        raise ThresholdNotMetError(
            f"The threshold of {role} can be met without one of the two classes of keys: it is not hybrid",
            threshold=keys.threshold,
            classical=len(keys.keys) - post_quantum,
            post_quantum=post_quantum,
        )


def check_product_role(name: str) -> str:
    """Check that a product name can be a role name; raises MalformedError for TUF's own four names."""
    if name in TOP_LEVEL:
        raise MalformedError("This product name is the name of a TUF role", name=name)
    return product_name(name)
