"""What a person may do to a rollout, what it would mean, and doing it: one table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from firmament.errors import ConflictError, ForbiddenError, MalformedError
from firmament.server import events
from firmament.server.events import Event
from firmament.server.inventory.query_sql import FROM
from firmament.server.inventory.search import condition
from firmament.server.rollouts.chunks import withdraw_offers
from firmament.server.rollouts.decide import Code
from firmament.server.rollouts.loops import open_wave
from firmament.server.rollouts.machine import (
    COUNTS_AS_FAILED,
    RolloutEvent,
    RolloutState,
    TargetStatus,
    WaveState,
    after,
)
from firmament.server.rollouts.model import Counts, add_counts
from firmament.server.rollouts.plan import blockers, needs_approval
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
from firmament.server.scope import Action, Scope

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from firmament.server.database.port import Connection

SECOND_PERSON_ABOVE: Final = 1000
"""Resuming after a halt, skipping a gate and reverting more devices than this need an approver."""
_DECISIONS: Final = frozenset({"approve", "deny"})
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


@dataclass(frozen=True, slots=True)
class _Rule:
    """One action: when it is possible, who may, and what it says it will do."""

    event: RolloutEvent | None
    needs: Action
    count: Callable[[Counts], int]
    sentence: Callable[[RolloutRecord, Counts], str]
    risky_after_halt: bool = False
    """Needs a reason when the rollout was stopped, and an approver above a number of devices."""
    always_reason: bool = False


def _not_started(counts: Counts) -> int:
    return counts.of(TargetStatus.WAITING, TargetStatus.POSTPONED, TargetStatus.OFFERED, TargetStatus.ASKING)


def _in_flight(counts: Counts) -> int:
    return counts.of(TargetStatus.IN_FLIGHT)


def _updated(counts: Counts) -> int:
    return counts.of(TargetStatus.UPDATED)


def _failed(counts: Counts) -> int:
    return counts.of(*COUNTS_AS_FAILED)


def _say_stop(counts: Counts) -> str:
    return (
        f"{_not_started(counts)} not started stay as they are; {_in_flight(counts)} in flight finish or fall back; "
        f"{_updated(counts)} keep the release."
    )


RULES: Final[dict[str, _Rule]] = {
    "start": _Rule(
        RolloutEvent.SCHEDULE, Action.START_ROLLOUT, _not_started, lambda r, _: f"Start {r.release} for its targets."
    ),
    "approve": _Rule(
        RolloutEvent.APPROVE, Action.APPROVE, _not_started, lambda r, _: f"Let {r.release} begin as planned."
    ),
    "deny": _Rule(RolloutEvent.DENY, Action.APPROVE, _not_started, lambda *_: "Nothing starts.", always_reason=True),
    "pause": _Rule(RolloutEvent.PAUSE, Action.STOP, _not_started, lambda _, c: f"No new device starts. {_say_stop(c)}"),
    "resume": _Rule(
        RolloutEvent.RESUME,
        Action.START_ROLLOUT,
        _not_started,
        lambda _, c: f"{_not_started(c)} devices go on getting it, wave by wave.",
        risky_after_halt=True,
    ),
    "next-wave": _Rule(
        RolloutEvent.OPEN_WAVE,
        Action.START_ROLLOUT,
        _not_started,
        lambda *_: "The next wave opens now, whatever is still waited for.",
        risky_after_halt=True,
        always_reason=True,
    ),
    "abort": _Rule(RolloutEvent.ABORT, Action.STOP, _not_started, lambda _, c: f"It ends here. {_say_stop(c)}"),
    "revert": _Rule(
        RolloutEvent.REVERT,
        Action.REVERT,
        _updated,
        lambda _, c: f"{_updated(c)} updated devices go back to the slot they still hold, without a download.",
        risky_after_halt=True,
        always_reason=True,
    ),
    "retry-failed": _Rule(
        None,
        Action.START_ROLLOUT,
        _failed,
        lambda _, c: f"{_failed(c)} failed devices are offered it again.",
        always_reason=True,
    ),
    "acknowledge": _Rule(None, Action.STOP, lambda _: 0, lambda *_: "Others see that you look after it."),
}


def preview(connection: Connection, scope: Scope, rollout_id: str, action: str) -> dict[str, Any]:
    """Return what an action would do now; raises NotFoundError, or MalformedError for an unknown action."""
    scope.require(Action.READ)
    rollout = get_rollout(connection, scope, rollout_id)
    return describe(connection, scope, rollout, action)


def describe(connection: Connection, scope: Scope, rollout: RolloutRecord, action: str) -> dict[str, Any]:
    """Return the preview of one action."""
    rule = _rule(action)
    counts = add_counts([wave.counts for wave in waves_of(connection, rollout.row_id)])
    problem = _why_not(scope, rollout, action, rule, counts)
    return {
        "action": action,
        "sentence": rule.sentence(rollout, counts),
        "count": rule.count(counts),
        "counts": counts.by_status,
        "needs_reason": _needs_reason(rollout, rule),
        "needs_second_person": _needs_second_person(rollout, rule, counts),
        "is_possible": problem == "",
        "why_not": problem,
    }


def act(
    connection: Connection, scope: Scope, rollout_id: str, action: str, request: Request, now: datetime
) -> RolloutRecord:
    """Do an action; raises ConflictError when it cannot be done now or another state was looked at.

    Raises ForbiddenError for a role that may not, or for one's own rollout where a second person
    is needed, and MalformedError when a reason is missing.
    """
    rule = _rule(action)
    rollout = get_rollout(connection, scope, rollout_id)
    scope.require(rule.needs, product=rollout.product)
    if request.expect_revision is not None and request.expect_revision != rollout.revision:
        raise ConflictError("The rollout changed since you looked", revision=rollout.revision)
    counts = add_counts([wave.counts for wave in waves_of(connection, rollout.row_id)])
    if request.expect_count is not None and request.expect_count != rule.count(counts):
        raise ConflictError("Another number of devices is concerned now", found=rule.count(counts))
    if _needs_reason(rollout, rule) and not request.reason.strip():
        raise MalformedError("This action needs a reason", action=action)
    if action in _DECISIONS:
        scope.require_second_person(rollout.created_by)
    if _needs_second_person(rollout, rule, counts):
        _require_second_person(scope, rollout)
    _ACTIONS[action](connection, scope, rollout, request, now)
    connection.execute("UPDATE rollout SET revision = revision + 1 WHERE id = ?", (rollout.row_id,))
    return by_row(connection, rollout.row_id)


def _require_second_person(scope: Scope, rollout: RolloutRecord) -> None:
    scope.require(Action.APPROVE)
    scope.require_second_person(rollout.created_by)


def _rule(action: str) -> _Rule:
    rule = RULES.get(action)
    if rule is None:
        raise MalformedError("There is no such action", action=action[:40], known=" ".join(RULES))
    return rule


def _needs_reason(rollout: RolloutRecord, rule: _Rule) -> bool:
    return rule.always_reason or (rule.risky_after_halt and rollout.state is RolloutState.HALTED)


def _needs_second_person(rollout: RolloutRecord, rule: _Rule, counts: Counts) -> bool:
    is_risky = rule.risky_after_halt and (rollout.state is RolloutState.HALTED or rule.always_reason)
    return is_risky and rule.count(counts) > SECOND_PERSON_ABOVE


def _why_not(scope: Scope, rollout: RolloutRecord, action: str, rule: _Rule, counts: Counts) -> str:
    try:
        scope.require(rule.needs, product=rollout.product)
        if _needs_second_person(rollout, rule, counts):
            _require_second_person(scope, rollout)
        if action in _DECISIONS:
            scope.require_second_person(rollout.created_by)
    except ForbiddenError as error:
        return error.problem
    if rule.event is not None and after(rollout.state, rule.event) is None:
        return f"The rollout is {rollout.state.value}"
    if action == "revert" and rule.count(counts) == 0:
        return "No device was updated"
    return ""


# --- doing it ------------------------------------------------------------------------------


def start(connection: Connection, scope: Scope, rollout: RolloutRecord, request: Request, now: datetime) -> None:
    """Let a draft begin, or ask a second person."""
    total = rollout.total
    problem = blockers(is_withdrawn=rollout.is_withdrawn, total=total, release=rollout.release)
    if problem:
        raise ConflictError(problem[0]["message"].rstrip("."), code=problem[0]["code"])
    event = RolloutEvent.ASK_APPROVAL if needs_approval(rollout.policy, total) else RolloutEvent.SCHEDULE
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
    if request.exclude.strip():
        _exclude(connection, scope, rollout, request.exclude, now)
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


def _exclude(connection: Connection, scope: Scope, rollout: RolloutRecord, query: str, now: datetime) -> None:
    """Skip the matching devices that have not started."""
    where = condition(connection, scope, query, now)
    rows = connection.execute(
        f"SELECT t.* FROM {FROM} JOIN rollout_target t ON t.device_id = d.id WHERE {where.text} AND t.rollout_id = ? "
        "AND t.status IN (?, ?) ORDER BY d.id LIMIT ?",
        (*where.parameters, rollout.row_id, TargetStatus.WAITING.value, TargetStatus.POSTPONED.value, MAX_EXCLUDED + 1),
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
    pending = [wave.number for wave in waves if wave.state is WaveState.PENDING]
    if not pending or rollout.state not in {RolloutState.RUNNING, RolloutState.HOLDING} or not rollout.is_filled:
        raise ConflictError("There is no next wave to open now", state=rollout.state.value)
    open_wave(connection, rollout, pending[0], now, reason=request.reason)
    events.append(
        connection,
        scope,
        Event.ROLLOUT_CHANGED,
        now,
        subject=rollout.rollout_id,
        opened_wave=pending[0],
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
    if rollout.halt is None:
        raise ConflictError("Nothing was stopped", state=rollout.state.value)
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
