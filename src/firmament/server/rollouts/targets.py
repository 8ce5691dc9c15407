"""Moving one target: status, slots, counters and reasons change together, or not at all.

Everything that changes `rollout_target.status` of one device comes through `move_target`, so that
counters always equal a recount. What moves many at once is in `chunks.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from firmament.server.rollouts.machine import (
    COUNTS_AS_FAILED,
    STARTED,
    WANTS_SOMETHING,
    TargetStatus,
    move,
)

if TYPE_CHECKING:
    from firmament.server.database.port import Connection, Row

EVERYTHING: Final = ""
"""Scope of the limit that every start takes."""
OLD_STOCK: Final = "old-stock"
MAX_TRIES: Final = 5
"""Another replica may move the same target between our look and our change; it cannot for ever."""
_KEEP: Final = -1


@dataclass(frozen=True, slots=True)
class Target:
    """One device in one rollout."""

    rollout_id: int
    device_id: int
    tenant_id: int
    wave: int
    status: TargetStatus
    is_active: bool
    slot: int
    """0: holds none; 1: of everything; 2: of the old stock's lane."""
    tries: int
    attempt_id: int | None
    deadline: int | None
    not_before: int
    code: str
    source: str
    site_id: int | None
    gateway_id: int | None
    updated_at: int

    @classmethod
    def of_row(cls, row: Row) -> Target:
        """Read a row of `SELECT`."""
        return cls(
            rollout_id=row["rollout_id"],
            device_id=row["device_id"],
            tenant_id=row["tenant_id"],
            wave=row["wave"],
            status=TargetStatus(row["status"]),
            is_active=bool(row["active"]),
            slot=row["holds_slot"],
            tries=row["tries"],
            attempt_id=row["attempt_id"],
            deadline=row["deadline"],
            not_before=row["not_before"],
            code=row["code"],
            source=row["source"],
            site_id=row["site_id"],
            gateway_id=row["gateway_id"],
            updated_at=row["updated_at"],
        )


def find_target(connection: Connection, rollout_id: int, device_id: int) -> Target | None:
    """Return one target."""
    row = connection.execute(
        "SELECT * FROM rollout_target WHERE rollout_id = ? AND device_id = ?", (rollout_id, device_id)
    ).fetchone()
    return None if row is None else Target.of_row(row)


def active_target(connection: Connection, device_id: int) -> Target | None:
    """Return the one target that still wants something of a device."""
    row = connection.execute("SELECT * FROM rollout_target WHERE device_id = ? AND active = 1", (device_id,)).fetchone()
    return None if row is None else Target.of_row(row)


def move_target(  # every fact of a move, by name
    connection: Connection,
    target: Target,
    to: TargetStatus,
    *,
    now_s: int,
    code: str = "",
    deadline: int | None = None,
    not_before: int = 0,
    attempt_id: int | None = _KEEP,
    counts_a_try: bool = False,
    source: str | None = None,
    takes_slot: int = 0,
    stays_active: bool = True,
) -> Target | None:
    """Move one target and everything that is counted about it; return it as it is now.

    None when the table does not allow the move, or the target is somewhere else by now and the
    move is not allowed from there. A slot is taken before (`take_slot`) and given back here. With
    `stays_active` False, or while another rollout wants the device, nobody looks at it again.
    """
    for _ in range(MAX_TRIES):
        if move(target.status, to) is None:
            return None
        slot = (takes_slot or target.slot) if to in STARTED else 0
        is_active = stays_active and to in WANTS_SOMETHING and is_free(connection, target)
        changed = connection.execute(
            "UPDATE rollout_target SET status = ?, active = ?, holds_slot = ?, code = ?, deadline = ?, not_before = ?, "
            "attempt_id = ?, tries = ?, source = ?, updated_at = ? "
            "WHERE rollout_id = ? AND device_id = ? AND status = ? AND holds_slot = ? AND wave = ?",
            (
                to.value,
                int(is_active),
                slot,
                code,
                deadline,
                not_before,
                target.attempt_id if attempt_id == _KEEP else attempt_id,
                target.tries + int(counts_a_try),
                target.source if source is None else source,
                now_s,
                target.rollout_id,
                target.device_id,
                target.status.value,
                target.slot,
                target.wave,
            ),
        )
        if changed.rowcount == 1:
            if target.slot and not slot:
                give_slot(connection, target)
            count(connection, target, target.status, -1)
            count(connection, target, to, 1)
            _count_reason(connection, target, to, code)
            return find_target(connection, target.rollout_id, target.device_id)
        found = find_target(connection, target.rollout_id, target.device_id)
        if found is None:
            return None
        target = found
    return None


def is_free(connection: Connection, target: Target) -> bool:
    """Whether the target is the active one of its device, or may become it."""
    if target.is_active:
        return True
    other = connection.execute(
        "SELECT 1 FROM rollout_target WHERE device_id = ? AND active = 1 AND rollout_id <> ?",
        (target.device_id, target.rollout_id),
    ).fetchone()
    return other is None


def count(connection: Connection, target: Target, status: TargetStatus, n: int) -> None:
    """Add to one counter."""
    add_count(connection, target.tenant_id, target.rollout_id, target.wave, status, n)


def add_count(connection: Connection, tenant_id: int, rollout_id: int, wave: int, status: TargetStatus, n: int) -> None:
    """Add to one counter of a wave."""
    connection.execute(
        "INSERT INTO rollout_counter(rollout_id, wave, status, tenant_id, n) VALUES (?, ?, ?, ?, ?) "
        "ON CONFLICT(rollout_id, wave, status) DO UPDATE SET n = rollout_counter.n + excluded.n",
        (rollout_id, wave, status.value, tenant_id, n),
    )


def _count_reason(connection: Connection, target: Target, to: TargetStatus, code: str) -> None:
    if target.status in COUNTS_AS_FAILED:
        add_reason(connection, target.tenant_id, target.rollout_id, target.code, -1)
    if to in COUNTS_AS_FAILED:
        add_reason(connection, target.tenant_id, target.rollout_id, code, 1)


def add_reason(connection: Connection, tenant_id: int, rollout_id: int, code: str, n: int) -> None:
    """Add to the count of failures of one kind."""
    connection.execute(
        "INSERT INTO rollout_reason(rollout_id, code, tenant_id, n) VALUES (?, ?, ?, ?) "
        "ON CONFLICT(rollout_id, code) DO UPDATE SET n = rollout_reason.n + excluded.n",
        (rollout_id, code, tenant_id, n),
    )


def set_code(connection: Connection, target: Target, code: str) -> None:
    """Say why a target waits, without moving it."""
    if target.code != code:
        connection.execute(
            "UPDATE rollout_target SET code = ? WHERE rollout_id = ? AND device_id = ?",
            (code, target.rollout_id, target.device_id),
        )


def set_deadline(connection: Connection, target: Target, deadline: int | None) -> None:
    """Look at a target again at another time."""
    connection.execute(
        "UPDATE rollout_target SET deadline = ? WHERE rollout_id = ? AND device_id = ?",
        (deadline, target.rollout_id, target.device_id),
    )


# --- slots ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Room:
    """What one start needs: the open wave, and a place in each limit that applies."""

    wave: int
    total: int | None
    per_site: int | None
    per_gateway: int | None
    starts_per_minute: int | None
    is_old_stock: bool = False


def take_slot(connection: Connection, target: Target, room: Room, *, now_s: int) -> int:
    """Take a place in every limit, or in none; return what `Target.slot` becomes, 0 when there is no room.

    The row of everything is changed by every start and by every stop: of two transactions the
    later one sees what the earlier one did, on both engines.
    """
    taken: list[str] = []
    for scope, limit in _scopes(target, room):
        if not _take(connection, target, scope, limit):
            for undone in taken:
                _give(connection, target.rollout_id, undone)
            return 0
        taken.append(scope)
    minute = now_s // 60
    everything = connection.execute(
        "UPDATE rollout_limit SET in_flight = in_flight + ?, minute = ?, "
        "started = CASE WHEN minute = ? THEN started + 1 ELSE 1 END "
        "WHERE rollout_id = ? AND scope = ? AND open_wave >= ? AND in_flight + ? <= ? AND (minute <> ? OR started < ?)",
        (
            int(not room.is_old_stock),
            minute,
            minute,
            target.rollout_id,
            EVERYTHING,
            room.wave,
            int(not room.is_old_stock),
            _or_many(room.total) if not room.is_old_stock else _or_many(None),
            minute,
            _or_many(room.starts_per_minute),
        ),
    )
    if everything.rowcount != 1:
        for undone in taken:
            _give(connection, target.rollout_id, undone)
        return 0
    return 2 if room.is_old_stock else 1


def give_slot(connection: Connection, target: Target) -> None:
    """Give a target's places back."""
    for scope in held_scopes(target):
        _give(connection, target.rollout_id, scope)


def held_scopes(target: Target) -> list[str]:
    """Return the limits in which a target that has a slot holds a place."""
    scopes = _scopes(target, Room(0, None, 1, 1, None, is_old_stock=target.slot == 2))  # noqa: PLR2004 - see Target
    return [scope for scope, _ in scopes] + ([EVERYTHING] if target.slot == 1 else [])


def _scopes(target: Target, room: Room) -> list[tuple[str, int | None]]:
    found: list[tuple[str, int | None]] = []
    if target.site_id is not None:
        found.append((f"site:{target.site_id}", room.per_site))
    if target.gateway_id is not None:
        found.append((f"gateway:{target.gateway_id}", room.per_gateway))
    if room.is_old_stock:
        found.append((OLD_STOCK, room.total))
    return found


def _take(connection: Connection, target: Target, scope: str, limit: int | None) -> bool:
    connection.execute(
        "INSERT INTO rollout_limit(rollout_id, scope, tenant_id) VALUES (?, ?, ?) ON CONFLICT(rollout_id, scope) "
        "DO NOTHING",
        (target.rollout_id, scope, target.tenant_id),
    )
    changed = connection.execute(
        "UPDATE rollout_limit SET in_flight = in_flight + 1 WHERE rollout_id = ? AND scope = ? AND in_flight < ?",
        (target.rollout_id, scope, _or_many(limit)),
    )
    return changed.rowcount == 1


def _give(connection: Connection, rollout_id: int, scope: str) -> None:
    connection.execute(
        "UPDATE rollout_limit SET in_flight = in_flight - 1 WHERE rollout_id = ? AND scope = ?", (rollout_id, scope)
    )


def _or_many(limit: int | None) -> int:
    return 2**31 - 1 if limit is None else limit


def counters(connection: Connection, rollout_id: int) -> dict[int, dict[str, int]]:
    """Return how many targets of each wave are where."""
    found: dict[int, dict[str, int]] = {}
    rows: Any = connection.execute("SELECT wave, status, n FROM rollout_counter WHERE rollout_id = ?", (rollout_id,))
    for row in rows:
        if row["n"]:
            found.setdefault(row["wave"], {})[row["status"]] = int(row["n"])
    return found
