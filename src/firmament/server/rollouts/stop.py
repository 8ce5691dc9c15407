"""The stop rule at work: in the transaction of the failure that crosses the limit, and every few seconds."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from firmament.server import events
from firmament.server.events import Event
from firmament.server.rollouts.decide import Code, Stop, WaveView, find_stop
from firmament.server.rollouts.machine import RolloutEvent, RolloutState, TargetStatus, WaveState
from firmament.server.rollouts.model import OnStop, add_counts
from firmament.server.rollouts.store import RolloutRecord, by_row, move_rollout, set_gate, waves_of
from firmament.server.scope import Scope

if TYPE_CHECKING:
    from datetime import datetime

    from firmament.server.database.port import Connection

MAY_STOP: Final = frozenset({RolloutState.RUNNING, RolloutState.HOLDING, RolloutState.PAUSED})


def engine_scope(tenant_id: int) -> Scope:
    """Return who acts when nobody asked: the server, in the rollout's tenant."""
    return Scope(tenant_id, "server")


def check_stop(connection: Connection, rollout_row: int, now: datetime) -> bool:
    """Stop a rollout if its counters say so; return whether it was stopped now."""
    rollout = by_row(connection, rollout_row)
    if rollout.state not in MAY_STOP:
        return False
    waves = waves_of(connection, rollout_row)
    stop = find_stop(rollout.policy, waves)
    if stop is None:
        return False
    halt(connection, rollout, stop, waves, now)
    return True


def halt(connection: Connection, rollout: RolloutRecord, stop: Stop, waves: list[WaveView], now: datetime) -> None:
    """Let no device start any more, and write down what was known at that moment."""
    scope = engine_scope(rollout.tenant_id)
    set_gate(connection, rollout.row_id, 0)
    connection.execute(
        "UPDATE rollout_wave SET state = ? WHERE rollout_id = ? AND number = ?",
        (WaveState.HALTED.value, rollout.row_id, stop.wave),
    )
    counts = add_counts([wave.counts for wave in waves])
    facts = {
        "wave": stop.wave,
        "failed": stop.failed,
        "finished": stop.finished,
        "limit_ratio": repr(rollout.policy.gate.limit_ratio),
        "min_finished": rollout.policy.gate.min_finished,
    }
    moved = move_rollout(connection, scope, rollout, RolloutEvent.STOP, now, code=stop.code.value, facts=facts)
    stored = {
        **facts,
        "possible": stop.possible,
        "at": int(now.timestamp()),
        "code": stop.code.value,
        "updated": counts.of(TargetStatus.UPDATED),
        "silent": counts.of(TargetStatus.SILENT),
        "in_flight": counts.of(TargetStatus.IN_FLIGHT, TargetStatus.OFFERED, TargetStatus.ASKING),
        "not_started": counts.of(TargetStatus.WAITING, TargetStatus.POSTPONED),
    }
    connection.execute(
        "UPDATE rollout SET halt = ?, acknowledged_by = '' WHERE id = ?",
        (json.dumps(stored, sort_keys=True), rollout.row_id),
    )
    events.append(
        connection, scope, Event.ROLLOUT_HALTED, now, subject=rollout.rollout_id, release=rollout.release, **stored
    )
    if rollout.policy.on_stop is OnStop.REVERT and stop.code is not Code.WITHDRAWN:
        begin_revert(connection, scope, moved, now, reason="the stop rule's action")


def begin_revert(
    connection: Connection, scope: Scope, rollout: RolloutRecord, now: datetime, *, reason: str
) -> RolloutRecord:
    """Start bringing updated devices back; the loop does it chunk by chunk."""
    set_gate(connection, rollout.row_id, 0)
    moved = move_rollout(connection, scope, rollout, RolloutEvent.REVERT, now, reason=reason)
    # One that had ended and let go of its devices does so once more when it has ended again.
    connection.execute(
        "UPDATE rollout SET fill_cursor = 0, fill_step = CASE WHEN fill_step = 'over' THEN 'done' ELSE fill_step END "
        "WHERE id = ?",
        (rollout.row_id,),
    )
    return moved
