"""What every poll looks at without asking the database: a few rows for each live rollout, seconds old.

It only saves work: whoever the board lets through is decided about again in a transaction
(`offers.begin`), and whom it holds back wrongly for two seconds asks again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from firmament.server.inventory.attributes import ZONE, decode_attributes
from firmament.server.rollouts.machine import MAY_START_DEVICES, RolloutState, TargetStatus
from firmament.server.rollouts.model import Policy, read_policy
from firmament.server.rollouts.targets import EVERYTHING
from firmament.server.rollouts.windows import is_any_open, zone_named, zone_or

if TYPE_CHECKING:
    from datetime import datetime

    from firmament.server.database.port import Connection

REFRESH_S: Final = 2.0
_BEGINS: Final = frozenset({TargetStatus.WAITING, TargetStatus.POSTPONED, TargetStatus.SILENT})


@dataclass(frozen=True, slots=True)
class PendingTarget:
    """The one target that wants something of a device that polls; from the poll's own read."""

    rollout_row: int
    wave: int
    status: TargetStatus
    not_before: int


@dataclass(frozen=True, slots=True)
class _Entry:
    state: RolloutState
    open_wave: int
    is_full: bool
    policy: Policy


class Board:
    """Live rollouts, as of the last refresh."""

    def __init__(self) -> None:
        self._entries: dict[int, _Entry] = {}

    def refresh(self, connection: Connection) -> None:
        """Read the few rows anew."""
        rows = connection.execute(
            "SELECT r.id, r.state, r.policy, l.open_wave, l.in_flight FROM rollout r "
            "JOIN rollout_limit l ON l.rollout_id = r.id AND l.scope = ? WHERE r.state IN (?, ?)",
            (EVERYTHING, *(state.value for state in sorted(MAY_START_DEVICES))),
        )
        entries = {}
        for row in rows:
            policy = read_policy(row["policy"])
            is_full = policy.caps.total is not None and row["in_flight"] >= policy.caps.total
            entries[int(row["id"])] = _Entry(RolloutState(row["state"]), row["open_wave"], is_full, policy)
        self._entries = entries

    def may_begin(self, target: PendingTarget, *, sequence_number: int, attributes: str, now: datetime) -> bool:
        """Whether it is worth asking the database about a device that has nothing to do."""
        if target.status is TargetStatus.REVERTING:
            return True
        entry = self._entries.get(target.rollout_row)
        if entry is None or target.wave == 0 or target.status not in _BEGINS or target.not_before > now.timestamp():
            return False
        lane = entry.policy.old_stock
        if lane is not None and sequence_number < lane.sequence_below and entry.open_wave > 1:
            return self._is_open(entry, attributes, now)
        return target.wave <= entry.open_wave and not entry.is_full and self._is_open(entry, attributes, now)

    @staticmethod
    def _is_open(entry: _Entry, attributes: str, now: datetime) -> bool:
        if not entry.policy.windows:
            return True
        zone = zone_or(decode_attributes(attributes).get(ZONE), zone_named(entry.policy.default_zone))
        return is_any_open(entry.policy.windows, now, zone)
