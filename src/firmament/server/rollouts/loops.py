"""What happens by itself: read the state, do one chunk, commit. Plain functions of (connection, now).

Any replica may call `tick`, one at a time: it takes its decisions from rows only, so a crash
between two calls costs a few seconds, and doing a call twice does nothing twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from firmament.server import events
from firmament.server.events import Event
from firmament.server.inventory.attributes import HEALTH
from firmament.server.rollouts import sites
from firmament.server.rollouts.book import rhythm
from firmament.server.rollouts.chunks import release_some, send_back_some, withdraw_offer, withdraw_offers
from firmament.server.rollouts.decide import (
    CloseWave,
    Code,
    Finish,
    Health,
    OpenWave,
    Stop,
    Wait,
    WaveView,
    next_step,
    silence_s,
)
from firmament.server.rollouts.fill import CHUNK, add_late, fill_some, start_if_due
from firmament.server.rollouts.follow import fail
from firmament.server.rollouts.machine import (
    ENDED,
    LIVE,
    MAY_START_DEVICES,
    RolloutEvent,
    RolloutState,
    TargetStatus,
    WaveState,
)
from firmament.server.rollouts.model import WaitFor, add_counts
from firmament.server.rollouts.stats import is_sicker
from firmament.server.rollouts.stop import check_stop, engine_scope, halt
from firmament.server.rollouts.store import (
    SELECT,
    RolloutRecord,
    by_row,
    move_rollout,
    set_gate,
    set_waiting_for,
    waves_of,
)
from firmament.server.rollouts.targets import Target, move_target, set_deadline

if TYPE_CHECKING:
    from datetime import datetime

    from firmament.server.database.port import Connection

MAX_CHUNKS: Final = 2000
"""In one round; what is left goes on in the next."""
MAX_ROLLOUTS: Final = 500
DEADLINE_CHUNK: Final = 500
SAMPLE_EVERY_S: Final = 60
HEALTH_SAMPLE: Final = 20_000
"""Of updated and of waiting devices at most so many are compared; a minute apart."""
FEWEST_ROWS: Final = 50
"""Of each rollout in one transaction, however many rollouts want something of it."""


def tick(connection: Connection, now: datetime, rows: int = CHUNK) -> bool:
    """Do one chunk for every rollout that needs one; return whether somebody wants more at once.

    About `rows` targets are written in all (`pace.py`). Gates read counters only: O(waves), not
    O(devices) (stack.md §3).
    """
    found = connection.execute(
        f"{SELECT} WHERE r.state IN ({', '.join('?' * len(LIVE))}) "
        "OR (r.ended_at IS NOT NULL AND r.fill_step <> 'over') "
        "ORDER BY r.id LIMIT ?",
        (*(state.value for state in sorted(LIVE)), MAX_ROLLOUTS),
    ).fetchall()
    rollouts = [RolloutRecord.of_row(row) for row in found]
    share = max(FEWEST_ROWS, rows // max(1, sum(map(_wants_rows, rollouts))))
    is_busy = expire(connection, now)
    for rollout in rollouts:
        is_busy = advance(connection, rollout, now, share) or is_busy
    return is_busy


def _wants_rows(rollout: RolloutRecord) -> bool:
    """Whether its next chunk writes many targets."""
    return not rollout.is_filled or rollout.state in ENDED or rollout.state is RolloutState.REVERTING


def advance(connection: Connection, rollout: RolloutRecord, now: datetime, rows: int = CHUNK) -> bool:
    """Do the next piece of work of one rollout, about `rows` targets; return whether there is more of it at once."""
    rollout = start_if_due(connection, rollout, now)
    if rollout.state in ENDED:
        return _clear_up(connection, rollout, now, rows)
    if rollout.state is RolloutState.REVERTING:
        return _revert(connection, rollout, now, rows)
    if rollout.state in {RolloutState.PAUSED, RolloutState.HALTED}:
        _sample(connection, rollout, waves_of(connection, rollout.row_id), now)
        return withdraw_offers(connection, rollout, now) > 0
    if rollout.state not in MAY_START_DEVICES:
        return False
    if fill_some(connection, rollout, now, rows):
        set_waiting_for(connection, rollout, Code.FILLING.value, {})
        return True
    waves = waves_of(connection, rollout.row_id)
    if rollout.is_withdrawn:
        halt(connection, rollout, Stop(Code.WITHDRAWN, _newest(waves), 0, 0), waves, now)
        return True
    if check_stop(connection, rollout.row_id, now) or _check_health(connection, rollout, waves, now):
        return True
    _sample(connection, rollout, waves, now)
    is_busy = sites.advance(connection, rollout, now)
    if rollout.policy.dynamic:
        add_late(connection, rollout, now, rows)
    return _step(connection, rollout, waves, now) or is_busy


def _newest(waves: list[WaveView]) -> int:
    return max((wave.number for wave in waves if wave.state is not WaveState.PENDING), default=1)


def _step(connection: Connection, rollout: RolloutRecord, waves: list[WaveView], now: datetime) -> bool:
    now_s = int(now.timestamp())
    wants_health = rollout.policy.wait_for is WaitFor.HEALTHY and rollout.state is RolloutState.HOLDING
    health = _health(connection, rollout, waves) if wants_health else Health()
    step = next_step(
        rollout.policy, waves, now_s=now_s, started_at=rollout.start_at, is_filled=rollout.is_filled, health=health
    )
    scope = engine_scope(rollout.tenant_id)
    match step:
        case Wait():
            facts: dict[str, Any] = {} if step.until is None else {"until": step.until}
            set_waiting_for(connection, rollout, step.code.value, facts)
            return False
        case OpenWave():
            open_wave(connection, rollout, step.number, now)
            return True
        case CloseWave():
            _close_wave(connection, rollout, step.number, step.hold_until, now)
            return True
        case Finish():
            if step.code is None and sites.are_open(connection, rollout):
                set_waiting_for(connection, rollout, Code.SITES.value, {})
                return False
            _close_wave_row(connection, rollout, _newest(waves), now_s, WaveState.DONE, None)
            set_gate(connection, rollout.row_id, 0)
            code = step.code.value if step.code is not None else ""
            finished = move_rollout(connection, scope, rollout, RolloutEvent.FINISH, now, code=code)
            connection.execute("UPDATE rollout SET fill_cursor = 0 WHERE id = ?", (finished.row_id,))
            return True


def open_wave(connection: Connection, rollout: RolloutRecord, number: int, now: datetime, *, reason: str = "") -> None:
    """Let the devices of one more wave start: three rows, however many devices there are."""
    now_s, scope = int(now.timestamp()), engine_scope(rollout.tenant_id)
    connection.execute(
        "UPDATE rollout_wave SET state = ?, closed_at = COALESCE(closed_at, ?) WHERE rollout_id = ? AND number < ?",
        (WaveState.DONE.value, now_s, rollout.row_id, number),
    )
    connection.execute(
        "UPDATE rollout_wave SET state = ?, opened_at = ? WHERE rollout_id = ? AND number = ?",
        (WaveState.OPEN.value, now_s, rollout.row_id, number),
    )
    set_gate(connection, rollout.row_id, number)
    move_rollout(connection, scope, rollout, RolloutEvent.OPEN_WAVE, now, code=Code.WAITING_FOR_DEVICES.value)
    events.append(connection, scope, Event.WAVE_OPENED, now, subject=rollout.rollout_id, wave=number, reason=reason)


def _close_wave(connection: Connection, rollout: RolloutRecord, number: int, hold_until: int, now: datetime) -> None:
    scope = engine_scope(rollout.tenant_id)
    _close_wave_row(connection, rollout, number, int(now.timestamp()), WaveState.HELD, hold_until)
    move_rollout(
        connection, scope, rollout, RolloutEvent.HOLD, now, code=Code.HOLD_TIME.value, facts={"until": hold_until}
    )
    events.append(connection, scope, Event.WAVE_CLOSED, now, subject=rollout.rollout_id, wave=number)


def _close_wave_row(
    connection: Connection, rollout: RolloutRecord, number: int, now_s: int, state: WaveState, hold_until: int | None
) -> None:
    connection.execute(
        "UPDATE rollout_wave SET state = ?, closed_at = ?, hold_until = ? WHERE rollout_id = ? AND number = ?",
        (state.value, now_s, hold_until, rollout.row_id, number),
    )


# --- deadlines -----------------------------------------------------------------------------


def expire(connection: Connection, now: datetime) -> bool:
    """Look at targets whose deadline has passed; return whether there are more."""
    now_s = int(now.timestamp())
    rows = connection.execute(
        "SELECT t.*, s.last_seen FROM rollout_target t LEFT JOIN device_seen s ON s.device_id = t.device_id "
        "WHERE t.deadline IS NOT NULL AND t.deadline <= ? ORDER BY t.deadline LIMIT ?",
        (now_s, DEADLINE_CHUNK),
    ).fetchall()
    rollouts: dict[int, RolloutRecord] = {}
    for row in rows:
        target = Target.of_row(row)
        # Read again for each: one of the targets before may have stopped the rollout.
        rollout = rollouts[target.rollout_id] = by_row(connection, target.rollout_id)
        _expire_one(connection, rollout, target, row["last_seen"], now)
    for rollout_row in rollouts:
        check_stop(connection, rollout_row, now)
    return len(rows) == DEADLINE_CHUNK


def _expire_one(
    connection: Connection, rollout: RolloutRecord, target: Target, last_seen: int | None, now: datetime
) -> None:
    now_s, policy = int(now.timestamp()), rollout.policy
    quiet_s = silence_s(policy, rhythm(connection, target.device_id))
    heard_until = (last_seen or 0) + quiet_s
    if target.status is TargetStatus.REVERTING:
        # It is asked again whenever it calls; the rollout does not wait for it any longer.
        set_deadline(connection, target, None)
    elif target.status is TargetStatus.ASKING:
        withdraw_offer(
            connection,
            rollout,
            target,
            now,
            reason="the owner has not answered",
            to=TargetStatus.POSTPONED,
            not_before=now_s + policy.answer_s,
            code=target.code,
        )
    elif heard_until <= now_s:
        move_target(connection, target, TargetStatus.SILENT, now_s=now_s, code=Code.NO_CALL_BACK.value)
    elif now_s - target.updated_at < policy.finish_s:
        set_deadline(connection, target, min(heard_until, target.updated_at + policy.finish_s))
    elif target.status is TargetStatus.OFFERED:
        # It calls, and waits for its own window, power or space: not a failure.
        withdraw_offer(
            connection,
            rollout,
            target,
            now,
            reason="the device waits for something of its own",
            to=TargetStatus.POSTPONED,
            not_before=now_s + policy.answer_s,
            code=target.code,
        )
    else:
        fail(connection, rollout, target, Code.TOOK_TOO_LONG.value, now)


# --- health --------------------------------------------------------------------------------


def _health(connection: Connection, rollout: RolloutRecord, waves: list[WaveView]) -> Health:
    updated = sum(wave.counts.of(TargetStatus.UPDATED) for wave in waves)
    said = _count_health(connection, rollout, UPDATED_LAST) if updated else {}
    return Health(ok=said.get("ok", 0), failing=said.get("failing", 0), updated=updated)


UPDATED_LAST: Final = (
    "SELECT device_id FROM rollout_target WHERE rollout_id = ? AND status = 'updated' ORDER BY updated_at DESC LIMIT ?"
)
WAITING_LONGEST: Final = (
    "SELECT device_id FROM (SELECT device_id, status FROM rollout_target WHERE rollout_id = ? ORDER BY updated_at "
    "LIMIT ?) AS oldest WHERE status = 'waiting'"
)
"""Both look at no more rows than their limit, by an index; those that wait changed before all others."""


def _count_health(connection: Connection, rollout: RolloutRecord, sample: str) -> dict[str, int]:
    """Return how many of a sample of targets report which health."""
    rows = connection.execute(
        f"SELECT x.value, COUNT(*) AS n FROM ({sample}) AS chosen JOIN device_attribute x "
        "ON x.device_id = chosen.device_id AND x.name = ? GROUP BY x.value",
        (rollout.row_id, HEALTH_SAMPLE, HEALTH),
    )
    return {row["value"]: int(row["n"]) for row in rows}


def _check_health(connection: Connection, rollout: RolloutRecord, waves: list[WaveView], now: datetime) -> bool:
    """Stop when updated devices are sicker than those not yet updated, beyond chance."""
    now_s = int(now.timestamp())
    if not rollout.policy.gate.health or now_s - rollout.checked_at < SAMPLE_EVERY_S:
        return False
    if not any(wave.counts.of(TargetStatus.UPDATED) for wave in waves):
        return False
    updated = _count_health(connection, rollout, UPDATED_LAST)
    if not updated.get("failing"):
        return False
    waiting = _count_health(connection, rollout, WAITING_LONGEST)
    if not is_sicker(
        updated["failing"],
        sum(updated.values()),
        waiting.get("failing", 0),
        sum(waiting.values()),
        minimum=rollout.policy.gate.min_finished,
    ):
        return False
    stop = Stop(Code.HEALTH, _newest(waves), updated["failing"], sum(updated.values()))
    halt(connection, rollout, stop, waves, now)
    return True


def _sample(connection: Connection, rollout: RolloutRecord, waves: list[WaveView], now: datetime) -> None:
    """Keep a point of the failure rate for the chart, once a minute."""
    now_s = int(now.timestamp())
    if now_s - rollout.checked_at < SAMPLE_EVERY_S:
        return
    opened = [wave for wave in waves if wave.state is not WaveState.PENDING]
    if opened:
        connection.execute(
            "INSERT INTO rollout_sample(rollout_id, at, tenant_id, wave, finished, failed, updated) "
            "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT(rollout_id, at) DO NOTHING",
            (
                rollout.row_id,
                now_s,
                rollout.tenant_id,
                opened[-1].number,
                sum(wave.finished for wave in opened),
                sum(wave.failed for wave in opened),
                sum(wave.counts.of(TargetStatus.UPDATED) for wave in opened),
            ),
        )
    connection.execute("UPDATE rollout SET checked_at = ? WHERE id = ?", (now_s, rollout.row_id))


# --- going back, and the end ---------------------------------------------------------------


def _revert(connection: Connection, rollout: RolloutRecord, now: datetime, rows: int) -> bool:
    if withdraw_offers(connection, rollout, now):
        return True
    if send_back_some(connection, rollout, now, rows):
        return True
    counts = add_counts([wave.counts for wave in waves_of(connection, rollout.row_id)])
    waiting = connection.execute(
        "SELECT 1 FROM rollout_target WHERE deadline IS NOT NULL AND rollout_id = ? LIMIT 1", (rollout.row_id,)
    ).fetchone()
    if waiting is not None:
        set_waiting_for(connection, rollout, "", {"reverting": counts.of(TargetStatus.REVERTING)})
        return False
    facts = {
        "went_back": counts.of(TargetStatus.WENT_BACK),
        "kept": counts.of(TargetStatus.UPDATED),
        "not_heard": counts.of(TargetStatus.REVERTING),
    }
    move_rollout(connection, engine_scope(rollout.tenant_id), rollout, RolloutEvent.WENT_BACK, now, facts=facts)
    connection.execute("UPDATE rollout SET fill_cursor = 0 WHERE id = ?", (rollout.row_id,))
    return True


def _clear_up(connection: Connection, rollout: RolloutRecord, now: datetime, rows: int) -> bool:
    if withdraw_offers(connection, rollout, now):
        return True
    if rollout.fill_step != "over":
        if release_some(connection, rollout, rows):
            return True
        connection.execute("UPDATE rollout SET fill_step = 'over', fill_cursor = 0 WHERE id = ?", (rollout.row_id,))
    return False
