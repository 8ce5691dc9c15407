"""What a person may do to a rollout now, to how many devices, and why not: one decision for preview and deed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from firmament.errors import ConflictError, FirmamentError, ForbiddenError, MalformedError
from firmament.server.inventory.query_sql import FROM, Sql
from firmament.server.inventory.search import condition
from firmament.server.rollouts.machine import (
    COUNTS_AS_FAILED,
    ENDED,
    RolloutEvent,
    RolloutState,
    TargetStatus,
    WaveState,
    after,
)
from firmament.server.rollouts.model import Counts, add_counts
from firmament.server.rollouts.plan import blockers
from firmament.server.rollouts.store import RolloutRecord, get_rollout, waves_of
from firmament.server.scope import Action, Scope

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from firmament.server.database.port import Connection
    from firmament.server.rollouts.decide import WaveView

SECOND_PERSON_ABOVE: Final = 1000
"""Resuming after a halt, skipping a gate and reverting more devices than this need an approver."""
_DECISIONS: Final = frozenset({"approve", "deny"})
LEFT_OUT_FROM: Final = (TargetStatus.WAITING, TargetStatus.POSTPONED)
"""Who may be left out of a rollout that goes on: whoever has not started."""


@dataclass(frozen=True, slots=True)
class Rule:
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


RULES: Final[dict[str, Rule]] = {
    "start": Rule(
        RolloutEvent.SCHEDULE, Action.START_ROLLOUT, _not_started, lambda r, _: f"Start {r.release} for its targets."
    ),
    "approve": Rule(
        RolloutEvent.APPROVE, Action.APPROVE, _not_started, lambda r, _: f"Let {r.release} begin as planned."
    ),
    "deny": Rule(RolloutEvent.DENY, Action.APPROVE, _not_started, lambda *_: "Nothing starts.", always_reason=True),
    "pause": Rule(RolloutEvent.PAUSE, Action.STOP, _not_started, lambda _, c: f"No new device starts. {_say_stop(c)}"),
    "resume": Rule(
        RolloutEvent.RESUME,
        Action.START_ROLLOUT,
        _not_started,
        lambda _, c: f"{_not_started(c)} devices go on getting it, wave by wave.",
        risky_after_halt=True,
    ),
    "next-wave": Rule(
        RolloutEvent.OPEN_WAVE,
        Action.START_ROLLOUT,
        _not_started,
        lambda *_: "The next wave opens now, whatever is still waited for.",
        risky_after_halt=True,
        always_reason=True,
    ),
    "abort": Rule(RolloutEvent.ABORT, Action.STOP, _not_started, lambda _, c: f"It ends here. {_say_stop(c)}"),
    "revert": Rule(
        RolloutEvent.REVERT,
        Action.REVERT,
        _updated,
        lambda _, c: f"{_updated(c)} updated devices go back to the slot they still hold, without a download.",
        risky_after_halt=True,
        always_reason=True,
    ),
    "retry-failed": Rule(
        None,
        Action.START_ROLLOUT,
        _failed,
        lambda _, c: f"{_failed(c)} failed devices are offered it again.",
        always_reason=True,
    ),
    "acknowledge": Rule(None, Action.STOP, lambda _: 0, lambda *_: "Others see that you look after it."),
}


@dataclass(frozen=True, slots=True)
class Look:
    """One action on one rollout, as things are now."""

    rule: Rule
    action: str
    rollout: RolloutRecord
    counts: Counts
    needs_reason: bool
    needs_second_person: bool
    refusal: FirmamentError | None
    """Why it cannot be done now, or not by this person."""

    @property
    def count(self) -> int:
        """How many devices it is about."""
        return self.rule.count(self.counts)

    def show(self) -> dict[str, Any]:
        """Return the preview."""
        return {
            "action": self.action,
            "sentence": self.rule.sentence(self.rollout, self.counts),
            "count": self.count,
            "counts": self.counts.by_status,
            "needs_reason": self.needs_reason,
            "needs_second_person": self.needs_second_person,
            "is_possible": self.refusal is None,
            "why_not": "" if self.refusal is None else self.refusal.problem,
        }


def preview(
    connection: Connection, scope: Scope, rollout_id: str, action: str, *, exclude: str = "", now: datetime
) -> dict[str, Any]:
    """Return what an action would do now; raises NotFoundError, or MalformedError for an unknown action or query."""
    scope.require(Action.READ)
    rollout = get_rollout(connection, scope, rollout_id)
    return look(connection, scope, rollout, action, leave_out=left_out(connection, scope, action, exclude, now)).show()


def left_out(connection: Connection, scope: Scope, action: str, query: str, now: datetime) -> Sql | None:
    """Return the condition for the devices that an action leaves out, None for nobody; raises MalformedError."""
    if not query.strip():
        return None
    if action != "resume":
        raise MalformedError("Only resume can leave devices out", action=action[:40])
    return condition(connection, scope, query, now)


def look(
    connection: Connection, scope: Scope, rollout: RolloutRecord, action: str, *, leave_out: Sql | None = None
) -> Look:
    """Return what an action means now, and whether it can be done; raises MalformedError for an unknown action."""
    rule = find_rule(action)
    waves = waves_of(connection, rollout.row_id)
    counts = add_counts([wave.counts for wave in waves])
    if leave_out is not None:
        counts = _without(connection, rollout, counts, leave_out)
    is_risky = rule.risky_after_halt and (rollout.state is RolloutState.HALTED or rule.always_reason)
    needs_second_person = is_risky and rule.count(counts) > SECOND_PERSON_ABOVE
    return Look(
        rule,
        action,
        rollout,
        counts,
        needs_reason=rule.always_reason or (rule.risky_after_halt and rollout.state is RolloutState.HALTED),
        needs_second_person=needs_second_person,
        refusal=_not_this_person(scope, rollout, action, rule, needs_second_person=needs_second_person)
        or _not_now(rollout, action, rule, counts, waves),
    )


def find_rule(action: str) -> Rule:
    """Return the row of an action; raises MalformedError."""
    rule = RULES.get(action)
    if rule is None:
        raise MalformedError("There is no such action", action=action[:40], known=" ".join(RULES))
    return rule


def _without(connection: Connection, rollout: RolloutRecord, counts: Counts, where: Sql) -> Counts:
    by_status = dict(counts.by_status)
    rows = connection.execute(
        f"SELECT t.status, COUNT(*) AS n FROM {FROM} JOIN rollout_target t ON t.device_id = d.id "
        f"WHERE {where.text} AND t.rollout_id = ? AND t.status IN (?, ?) GROUP BY t.status",
        (*where.parameters, rollout.row_id, *(status.value for status in LEFT_OUT_FROM)),
    ).fetchall()
    for row in rows:
        by_status[row["status"]] -= row["n"]
        by_status[TargetStatus.SKIPPED] = by_status.get(TargetStatus.SKIPPED, 0) + row["n"]
    return Counts({status: n for status, n in by_status.items() if n})


def _not_this_person(
    scope: Scope, rollout: RolloutRecord, action: str, rule: Rule, *, needs_second_person: bool
) -> FirmamentError | None:
    try:
        scope.require(rule.needs, product=rollout.product)
        if needs_second_person:
            scope.require(Action.APPROVE)
            scope.require_second_person(rollout.created_by)
        if action in _DECISIONS:
            scope.require_second_person(rollout.created_by)
    except ForbiddenError as error:
        return error
    return None


def _not_now(
    rollout: RolloutRecord, action: str, rule: Rule, counts: Counts, waves: Sequence[WaveView]
) -> FirmamentError | None:
    """Return why the state of things stands against an action. Pure."""
    state = rollout.state
    is_over = action == "retry-failed" and (state in ENDED or state is RolloutState.REVERTING)
    if is_over or (rule.event is not None and after(state, rule.event) is None):
        return ConflictError(f"The rollout is {state.value}", state=state.value, action=action)
    if action == "start":
        found = blockers(is_withdrawn=rollout.is_withdrawn, total=rollout.total, release=rollout.release)
        if found:
            return ConflictError(found[0]["message"].rstrip("."), code=found[0]["code"])
    if action == "next-wave" and not (rollout.is_filled and any(wave.state is WaveState.PENDING for wave in waves)):
        return ConflictError("There is no next wave to open now", state=state.value)
    if action == "acknowledge" and rollout.halt is None:
        return ConflictError("Nothing was stopped", state=state.value)
    if action in _NOBODY and rule.count(counts) == 0:
        return ConflictError(_NOBODY[action], state=state.value)
    return None


_NOBODY: Final = {"revert": "No device was updated", "retry-failed": "No device failed"}
