"""Where targets are looked up and moved: row by row, or a set of them held in memory and written at once.

`follow.py` decides what becomes of a target and knows neither. A `HeldBook` leaves what a `DirectBook`
leaves, in the same order as far as anybody can see it (ADR-0039): it works the same tables out on
values, and whoever has to look at the database itself lets it write first.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Protocol

from firmament.errors import OverloadedError
from firmament.server.database.writer import BUSY_RETRY_S
from firmament.server.rollouts import stop
from firmament.server.rollouts.decide import find_stop
from firmament.server.rollouts.machine import COUNTS_AS_FAILED, STARTED, WANTS_SOMETHING, move
from firmament.server.rollouts.model import Counts, add_counts
from firmament.server.rollouts.store import RolloutRecord, by_row, waves_of
from firmament.server.rollouts.targets import Target, find_target, held_scopes, is_free, move_target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime

    from firmament.server.database.port import Connection
    from firmament.server.rollouts.decide import WaveView
    from firmament.server.rollouts.machine import TargetStatus

Key = tuple[int, int]
"""Row ids of rollout and device."""

_FIND: Final = (
    "SELECT t.*, s.interval_s FROM given JOIN rollout_target t ON t.rollout_id = given.rollout_id "
    "AND t.device_id = given.device_id LEFT JOIN device_seen s ON s.device_id = given.device_id"
)
_FIND_COLUMNS: Final = "rollout_id bigint, device_id bigint"
_UPDATE: Final = (
    "UPDATE rollout_target SET status = given.status, active = given.active, holds_slot = given.holds_slot, "
    "code = given.code, deadline = given.deadline, not_before = given.not_before, updated_at = given.updated_at "
    "FROM given WHERE rollout_target.rollout_id = given.rollout_id AND rollout_target.device_id = given.device_id "
    "AND rollout_target.status = given.was AND rollout_target.holds_slot = given.held "
    "AND rollout_target.wave = given.wave"
)
_UPDATE_COLUMNS: Final = (
    "rollout_id bigint, device_id bigint, status text, active bigint, holds_slot bigint, code text, deadline bigint, "
    "not_before bigint, updated_at bigint, was text, held bigint, wave bigint"
)
_LIMIT: Final = (
    "UPDATE rollout_limit SET in_flight = in_flight + given.n FROM given "
    "WHERE rollout_limit.rollout_id = given.rollout_id AND rollout_limit.scope = given.scope"
)
_COUNT: Final = (
    "INSERT INTO rollout_counter(rollout_id, wave, status, tenant_id, n) "
    "SELECT rollout_id, wave, status, tenant_id, n FROM given WHERE 1 = 1 "
    "ON CONFLICT(rollout_id, wave, status) DO UPDATE SET n = rollout_counter.n + excluded.n"
)
_REASON: Final = (
    "INSERT INTO rollout_reason(rollout_id, code, tenant_id, n) "
    "SELECT rollout_id, code, tenant_id, n FROM given WHERE 1 = 1 "
    "ON CONFLICT(rollout_id, code) DO UPDATE SET n = rollout_reason.n + excluded.n"
)
_FAILURE_COLUMNS: Final = "device_id bigint, release_id bigint, tenant_id bigint, code text, at bigint, tries bigint"
_FAILURE: Final = (
    "INSERT INTO device_failure(device_id, release_id, tenant_id, code, at, tries) "
    "SELECT device_id, release_id, tenant_id, code, at, tries FROM given WHERE 1 = 1 "
    "ON CONFLICT(device_id, release_id) DO UPDATE SET code = excluded.code, at = excluded.at, "
    "tries = device_failure.tries + excluded.tries"
)


class Book(Protocol):
    """Targets, and what hangs on them."""

    def find(self, rollout_row: int, device_row: int) -> Target | None:
        """Return one target as it is now."""

    def rollout(self, rollout_row: int) -> RolloutRecord:
        """Return one rollout as it is now."""

    def rhythm(self, target: Target) -> int | None:
        """Return how often the device asks when it has nothing to do, None before it was heard twice."""

    def move(  # every fact of a move, by name
        self,
        target: Target,
        to: TargetStatus,
        *,
        now_s: int,
        code: str = "",
        deadline: int | None = None,
        not_before: int = 0,
        stays_active: bool = True,
    ) -> Target | None:
        """See `targets.move_target`."""

    def note_failure(self, target: Target, release_id: int, code: str, now_s: int) -> None:
        """Remember not to offer a release to a device again."""

    def check_stop(self, rollout_row: int, now: datetime) -> None:
        """Ask the stop rule."""


def rhythm(connection: Connection, device_row: int) -> int | None:
    """Return how often a device asks when it has nothing to do, None before it was heard twice."""
    row = connection.execute("SELECT interval_s FROM device_seen WHERE device_id = ?", (device_row,)).fetchone()
    return None if row is None or row["interval_s"] == 0 else int(row["interval_s"])


class DirectBook:
    """Row by row; see `Book`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def find(self, rollout_row: int, device_row: int) -> Target | None:
        """See `Book`."""
        return find_target(self._connection, rollout_row, device_row)

    def rollout(self, rollout_row: int) -> RolloutRecord:
        """See `Book`."""
        return by_row(self._connection, rollout_row)

    def rhythm(self, target: Target) -> int | None:
        """See `Book`."""
        return rhythm(self._connection, target.device_id)

    def move(  # every fact of a move, by name
        self,
        target: Target,
        to: TargetStatus,
        *,
        now_s: int,
        code: str = "",
        deadline: int | None = None,
        not_before: int = 0,
        stays_active: bool = True,
    ) -> Target | None:
        """See `Book`."""
        return move_target(
            self._connection,
            target,
            to,
            now_s=now_s,
            code=code,
            deadline=deadline,
            not_before=not_before,
            stays_active=stays_active,
        )

    def note_failure(self, target: Target, release_id: int, code: str, now_s: int) -> None:
        """See `Book`."""
        self._connection.change_many(
            _FAILURE,
            _FAILURE_COLUMNS,
            [(target.device_id, release_id, target.tenant_id, code, now_s, target.tries)],
        )

    def check_stop(self, rollout_row: int, now: datetime) -> None:
        """See `Book`."""
        stop.check_stop(self._connection, rollout_row, now)


@dataclass(slots=True)
class _Held:
    stored: Target
    now: Target
    interval_s: int | None


class HeldBook:
    """The targets of one set of reports, inside one transaction of the writer, whose turn it is; see `Book`."""

    def __init__(self, connection: Connection, keys: Iterable[Key], write_all: Callable[[], None]) -> None:
        """`write_all` writes everything that is held, this book included, before something looks for itself."""
        self._connection = connection
        self._write_all = write_all
        self._targets: dict[Key, _Held] = {}
        for row in connection.find_many(_FIND, _FIND_COLUMNS, list(keys)):
            target = Target.of_row(row)
            self._targets[target.rollout_id, target.device_id] = _Held(target, target, row["interval_s"] or None)
        self._rollouts: dict[int, RolloutRecord] = {}
        self._waves: dict[int, list[WaveView]] = {}
        self._limits: Counter[tuple[int, str]] = Counter()
        self._counters: Counter[tuple[int, int, str, int]] = Counter()
        self._reasons: Counter[tuple[int, str, int]] = Counter()
        self._failures: dict[Key, tuple[int, str, int, int]] = {}

    def find(self, rollout_row: int, device_row: int) -> Target | None:
        """See `Book`."""
        held = self._targets.get((rollout_row, device_row))
        return None if held is None else held.now

    def rollout(self, rollout_row: int) -> RolloutRecord:
        """See `Book`."""
        found = self._rollouts.get(rollout_row)
        if found is None:
            found = self._rollouts[rollout_row] = by_row(self._connection, rollout_row)
        return found

    def rhythm(self, target: Target) -> int | None:
        """See `Book`."""
        return self._targets[target.rollout_id, target.device_id].interval_s

    def move(  # every fact of a move, by name
        self,
        target: Target,
        to: TargetStatus,
        *,
        now_s: int,
        code: str = "",
        deadline: int | None = None,
        not_before: int = 0,
        stays_active: bool = True,
    ) -> Target | None:
        """See `Book`."""
        held = self._targets[target.rollout_id, target.device_id]
        was = held.now
        if move(was.status, to) is None:
            return None
        slot = was.slot if to in STARTED else 0
        is_active = stays_active and to in WANTS_SOMETHING and self._is_free(was)
        if was.slot and not slot:
            self._limits.update({(was.rollout_id, scope): -1 for scope in held_scopes(was)})
        self._counters[was.rollout_id, was.wave, was.status.value, was.tenant_id] -= 1
        self._counters[was.rollout_id, was.wave, to.value, was.tenant_id] += 1
        if was.status in COUNTS_AS_FAILED:
            self._reasons[was.rollout_id, was.code, was.tenant_id] -= 1
        if to in COUNTS_AS_FAILED:
            self._reasons[was.rollout_id, code, was.tenant_id] += 1
        held.now = replace(
            was,
            status=to,
            is_active=is_active,
            slot=slot,
            code=code,
            deadline=deadline,
            not_before=not_before,
            updated_at=now_s,
        )
        return held.now

    def _is_free(self, target: Target) -> bool:
        if target.is_active:
            return True
        self._write_all()  # another rollout's target of the device may be among those that are held
        return is_free(self._connection, target)

    def note_failure(self, target: Target, release_id: int, code: str, now_s: int) -> None:
        """See `Book`."""
        _, _, _, tries = self._failures.get((target.device_id, release_id), (0, "", 0, 0))
        self._failures[target.device_id, release_id] = (target.tenant_id, code, now_s, tries + target.tries)

    def check_stop(self, rollout_row: int, now: datetime) -> None:
        """See `Book`: the rule sees the counters as they are after this very report."""
        rollout = self.rollout(rollout_row)
        if rollout.state not in stop.MAY_STOP or find_stop(rollout.policy, self._waves_now(rollout_row)) is None:
            return
        self._write_all()
        stop.check_stop(self._connection, rollout_row, now)
        del self._rollouts[rollout_row]

    def _waves_now(self, rollout_row: int) -> list[WaveView]:
        waves = self._waves.get(rollout_row)
        if waves is None:
            waves = self._waves[rollout_row] = waves_of(self._connection, rollout_row)
        more: dict[int, dict[str, int]] = {}
        for (rollout_id, wave, status, _), n in self._counters.items():
            if rollout_id == rollout_row:
                more.setdefault(wave, {})[status] = n
        return [
            replace(wave, counts=add_counts([wave.counts, Counts(more[wave.number])])) if wave.number in more else wave
            for wave in waves
        ]

    def write(self) -> None:
        """Write what is held; raises OverloadedError if a target is not where it was, which undoes the set."""
        connection, changed = self._connection, [held for held in self._targets.values() if held.now is not held.stored]
        rows = [
            (
                held.now.rollout_id,
                held.now.device_id,
                held.now.status.value,
                int(held.now.is_active),
                held.now.slot,
                held.now.code,
                held.now.deadline,
                held.now.not_before,
                held.now.updated_at,
                held.stored.status.value,
                held.stored.slot,
                held.stored.wave,
            )
            for held in changed
        ]
        if connection.change_many(_UPDATE, _UPDATE_COLUMNS, rows) != len(rows):
            raise OverloadedError("A target was moved by somebody else meanwhile", retry_after_s=BUSY_RETRY_S)
        for held in changed:
            held.stored = held.now
        connection.change_many(
            _LIMIT, "rollout_id bigint, scope text, n bigint", [(*key, n) for key, n in self._limits.items() if n]
        )
        connection.change_many(
            _COUNT,
            "rollout_id bigint, wave bigint, status text, tenant_id bigint, n bigint",
            [(*key, n) for key, n in self._counters.items()],
        )
        connection.change_many(
            _REASON,
            "rollout_id bigint, code text, tenant_id bigint, n bigint",
            [(*key, n) for key, n in self._reasons.items()],
        )
        connection.change_many(
            _FAILURE, _FAILURE_COLUMNS, [(*key, *failure) for key, failure in self._failures.items()]
        )
        self._waves.clear()
        for held_back in (self._limits, self._counters, self._reasons, self._failures):
            held_back.clear()
