"""Doing what a person asked of a rollout; whether it can be done is decided in `permitted.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from firmament.errors import ConflictError, MalformedError
from firmament.server import events
from firmament.server.events import Event
from firmament.server.inventory.query_sql import FROM, Sql
from firmament.server.rollouts.chunks import withdraw_offers
from firmament.server.rollouts.decide import Code
from firmament.server.rollouts.loops import open_wave
from firmament.server.rollouts.machine import RolloutEvent, RolloutState, TargetStatus, WaveState
from firmament.server.rollouts.permitted import LEFT_OUT_FROM, find_rule, left_out, look
from firmament.server.rollouts.plan import needs_approval
from firmament.server.rollouts.stop import begin_revert
from firmament.server.rollouts.store import (
    RolloutRecord,
    by_row,
    get_rollout,
    move_rollout,
    set_gate,
    waves_of,
)
from firmament.server.rollouts.targets import Target, move_target

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from firmament.server.database.port import Connection
    from firmament.server.scope import Scope

MAX_RETRIED: Final = 5000
MAX_EXCLUDED: Final = 50_000
MAX_REASON: Final = 500


@dataclass(frozen=True, slots=True)
class Request:
    """What a person sends with an action."""

    reason: str = ""
    exclude: str = ""
    """With resume: a query of devices that are left out from now on."""
    expect_revision: int | None = None
    expect_count: int | None = None


def act(
    connection: Connection, scope: Scope, rollout_id: str, action: str, request: Request, now: datetime
) -> RolloutRecord:
    """Do an action; raises what its preview says: ConflictError when it cannot be done now.

    Also when another state was looked at. Raises ForbiddenError for a role that may not, or for
    one's own rollout where a second person is needed, and MalformedError when a reason is missing.
    """
    rollout = get_rollout(connection, scope, rollout_id)
    scope.require(find_rule(action).needs, product=rollout.product)
    if request.expect_revision is not None and request.expect_revision != rollout.revision:
        raise ConflictError("The rollout changed since you looked", revision=rollout.revision)
    leave_out = left_out(connection, scope, action, request.exclude, now)
    found = look(connection, scope, rollout, action, leave_out=leave_out)
    if found.refusal is not None:
        raise found.refusal
    if request.expect_count is not None and request.expect_count != found.count:
        raise ConflictError("Another number of devices is concerned now", found=found.count)
    if found.needs_reason and not request.reason.strip():
        raise MalformedError("This action needs a reason", action=action)
    _ACTIONS[action](connection, scope, rollout, request, now)
    connection.execute("UPDATE rollout SET revision = revision + 1 WHERE id = ?", (rollout.row_id,))
    return by_row(connection, rollout.row_id)


# --- doing it ------------------------------------------------------------------------------


def start(connection: Connection, scope: Scope, rollout: RolloutRecord, request: Request, now: datetime) -> None:
    """Let a draft begin, or ask a second person."""
    event = RolloutEvent.ASK_APPROVAL if needs_approval(rollout.policy, rollout.total) else RolloutEvent.SCHEDULE
    move_rollout(connection, scope, rollout, event, now, reason=request.reason)


def _approve(connection: Connection, scope: Scope, rollout: RolloutRecord, request: Request, now: datetime) -> None:
    move_rollout(connection, scope, rollout, RolloutEvent.APPROVE, now, reason=request.reason)
    connection.execute("UPDATE rollout SET decided_by = ? WHERE id = ?", (scope.actor, rollout.row_id))


def _deny(connection: Connection, scope: Scope, rollout: RolloutRecord, request: Request, now: datetime) -> None:
    move_rollout(connection, scope, rollout, RolloutEvent.DENY, now, reason=request.reason)
    connection.execute("UPDATE rollout SET decided_by = ? WHERE id = ?", (scope.actor, rollout.row_id))


def _pause(connection: Connection, scope: Scope, rollout: RolloutRecord, request: Request, now: datetime) -> None:
    set_gate(connection, rollout.row_id, 0)
    moved = move_rollout(connection, scope, rollout, RolloutEvent.PAUSE, now, reason=request.reason)
    withdraw_offers(connection, moved, now)


def _resume(connection: Connection, scope: Scope, rollout: RolloutRecord, request: Request, now: datetime) -> None:
    leave_out = left_out(connection, scope, "resume", request.exclude, now)
    if leave_out is not None:
        _exclude(connection, scope, rollout, leave_out, request.exclude, now)
    waves = waves_of(connection, rollout.row_id)
    opened = [wave.number for wave in waves if wave.state is not WaveState.PENDING]
    connection.execute(
        "UPDATE rollout_wave SET state = ? WHERE rollout_id = ? AND state = ?",
        (WaveState.OPEN.value, rollout.row_id, WaveState.HALTED.value),
    )
    if rollout.state is RolloutState.HALTED:
        connection.executemany(
            "UPDATE rollout_wave SET forgiven_failed = ?, forgiven_finished = ? WHERE rollout_id = ? AND number = ?",
            [(wave.failed, wave.finished, rollout.row_id, wave.number) for wave in waves],
        )
    connection.execute("UPDATE rollout SET halt = '', acknowledged_by = '' WHERE id = ?", (rollout.row_id,))
    set_gate(connection, rollout.row_id, max(opened, default=0))
    move_rollout(connection, scope, rollout, RolloutEvent.RESUME, now, reason=request.reason)


def _exclude(  # what to leave out, and as it was said
    connection: Connection, scope: Scope, rollout: RolloutRecord, where: Sql, query: str, now: datetime
) -> None:
    """Skip the matching devices that have not started."""
    rows = connection.execute(
        f"SELECT t.* FROM {FROM} JOIN rollout_target t ON t.device_id = d.id WHERE {where.text} AND t.rollout_id = ? "
        "AND t.status IN (?, ?) ORDER BY d.id LIMIT ?",
        (*where.parameters, rollout.row_id, *(status.value for status in LEFT_OUT_FROM), MAX_EXCLUDED + 1),
    ).fetchall()
    if len(rows) > MAX_EXCLUDED:
        raise ConflictError("Too many devices would be left out at once", limit=MAX_EXCLUDED)
    for row in rows:
        move_target(
            connection, Target.of_row(row), TargetStatus.SKIPPED, now_s=int(now.timestamp()), code=Code.LEFT_OUT.value
        )
    events.append(
        connection, scope, Event.ROLLOUT_CHANGED, now, subject=rollout.rollout_id, excluded=query, count=len(rows)
    )


def _next_wave(connection: Connection, scope: Scope, rollout: RolloutRecord, request: Request, now: datetime) -> None:
    waves = waves_of(connection, rollout.row_id)
    number = next(wave.number for wave in waves if wave.state is WaveState.PENDING)
    open_wave(connection, rollout, number, now, reason=request.reason)
    events.append(
        connection,
        scope,
        Event.ROLLOUT_CHANGED,
        now,
        subject=rollout.rollout_id,
        opened_wave=number,
        reason=request.reason,
    )


def _abort(connection: Connection, scope: Scope, rollout: RolloutRecord, request: Request, now: datetime) -> None:
    set_gate(connection, rollout.row_id, 0)
    moved = move_rollout(connection, scope, rollout, RolloutEvent.ABORT, now, reason=request.reason)
    connection.execute("UPDATE rollout SET fill_cursor = 0 WHERE id = ?", (rollout.row_id,))
    withdraw_offers(connection, moved, now)


def _revert(connection: Connection, scope: Scope, rollout: RolloutRecord, request: Request, now: datetime) -> None:
    moved = begin_revert(connection, scope, rollout, now, reason=request.reason)
    withdraw_offers(connection, moved, now)


def _retry_failed(
    connection: Connection, scope: Scope, rollout: RolloutRecord, request: Request, now: datetime
) -> None:
    rows = connection.execute(
        "SELECT * FROM rollout_target WHERE rollout_id = ? AND status IN ('failed', 'silent') "
        "ORDER BY device_id LIMIT ?",
        (rollout.row_id, MAX_RETRIED),
    ).fetchall()
    for row in rows:
        target = Target.of_row(row)
        connection.execute(
            "DELETE FROM device_failure WHERE device_id = ? AND release_id = ?", (target.device_id, rollout.release_id)
        )
        move_target(connection, target, TargetStatus.WAITING, now_s=int(now.timestamp()))
    events.append(
        connection,
        scope,
        Event.ROLLOUT_CHANGED,
        now,
        subject=rollout.rollout_id,
        retried=len(rows),
        reason=request.reason,
    )


def _acknowledge(connection: Connection, scope: Scope, rollout: RolloutRecord, request: Request, now: datetime) -> None:
    connection.execute("UPDATE rollout SET acknowledged_by = ? WHERE id = ?", (scope.actor, rollout.row_id))
    events.append(connection, scope, Event.ROLLOUT_ACKNOWLEDGED, now, subject=rollout.rollout_id, reason=request.reason)


_ACTIONS: Final[dict[str, Callable[[Connection, Scope, RolloutRecord, Request, datetime], None]]] = {
    "start": start,
    "approve": _approve,
    "deny": _deny,
    "pause": _pause,
    "resume": _resume,
    "next-wave": _next_wave,
    "abort": _abort,
    "revert": _revert,
    "retry-failed": _retry_failed,
    "acknowledge": _acknowledge,
}
