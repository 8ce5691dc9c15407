"""Sites that commit as a whole: all devices of a site confirm before a deadline, or all go back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from firmament.server import events
from firmament.server.events import Event
from firmament.server.rollouts.chunks import withdraw_offer
from firmament.server.rollouts.decide import Code
from firmament.server.rollouts.follow import send_back
from firmament.server.rollouts.machine import COUNTS_AS_FAILED, TargetStatus
from firmament.server.rollouts.stop import engine_scope
from firmament.server.rollouts.targets import Target, move_target

if TYPE_CHECKING:
    from datetime import datetime

    from firmament.server.database.port import Connection
    from firmament.server.rollouts.store import RolloutRecord

MAX_SITES_AT_ONCE: Final = 200
MAX_DEVICES: Final = 5000
OPEN: Final = "open"
COMMITTED: Final = "committed"
GOING_BACK: Final = "reverting"
WENT_BACK: Final = "reverted"
_SETTLED: Final = frozenset({TargetStatus.UPDATED, TargetStatus.SKIPPED, TargetStatus.DECLINED})


def advance(connection: Connection, rollout: RolloutRecord, now: datetime) -> bool:
    """Decide the sites that are open or going back; return whether one changed."""
    if rollout.policy.site_commit_s is None:
        return False
    rows = connection.execute(
        "SELECT x.site_id, x.state, x.deadline, y.name FROM rollout_site x JOIN site y ON y.id = x.site_id "
        "WHERE x.rollout_id = ? AND x.state IN (?, ?) ORDER BY x.deadline LIMIT ?",
        (rollout.row_id, OPEN, GOING_BACK, MAX_SITES_AT_ONCE),
    ).fetchall()
    is_changed = False
    for row in rows:
        targets = [
            Target.of_row(found)
            for found in connection.execute(
                "SELECT * FROM rollout_target WHERE rollout_id = ? AND site_id = ? ORDER BY device_id LIMIT ?",
                (rollout.row_id, row["site_id"], MAX_DEVICES),
            )
        ]
        state = decide(row["state"], targets, is_late=now.timestamp() >= row["deadline"])
        if state == GOING_BACK:
            _bring_back(connection, rollout, targets, now)
        if state != row["state"]:
            is_changed = True
            _set_state(connection, rollout, row["site_id"], row["name"], state, now)
    return is_changed


def are_open(connection: Connection, rollout: RolloutRecord) -> bool:
    """Whether a site has neither committed nor gone back."""
    if rollout.policy.site_commit_s is None:
        return False
    row = connection.execute(
        "SELECT 1 FROM rollout_site WHERE rollout_id = ? AND state IN (?, ?) LIMIT 1",
        (rollout.row_id, OPEN, GOING_BACK),
    ).fetchone()
    return row is not None


def decide(state: str, targets: list[Target], *, is_late: bool) -> str:
    """Return where a site is, given its targets and whether its deadline has passed. Pure."""
    if state == GOING_BACK:
        is_through = not any(
            target.status in {TargetStatus.IN_FLIGHT, TargetStatus.REVERTING}
            or (target.status is TargetStatus.UPDATED and not target.code)
            for target in targets
        )
        return WENT_BACK if is_through else GOING_BACK
    if any(target.status in COUNTS_AS_FAILED for target in targets):
        return GOING_BACK
    if all(target.status in _SETTLED for target in targets):
        return COMMITTED
    return GOING_BACK if is_late else OPEN


def _bring_back(connection: Connection, rollout: RolloutRecord, targets: list[Target], now: datetime) -> None:
    for target in targets:
        if target.status is TargetStatus.UPDATED and not target.code:
            send_back(connection, rollout, target, now)
        elif target.status in {TargetStatus.OFFERED, TargetStatus.ASKING}:
            withdraw_offer(
                connection,
                rollout,
                target,
                now,
                reason="its site goes back",
                to=TargetStatus.SKIPPED,
                code=Code.SITE.value,
            )
        elif target.status in {TargetStatus.WAITING, TargetStatus.POSTPONED}:
            move_target(connection, target, TargetStatus.SKIPPED, now_s=int(now.timestamp()), code=Code.SITE.value)


def _set_state(
    connection: Connection, rollout: RolloutRecord, site_row: int, name: str, state: str, now: datetime
) -> None:
    connection.execute(
        "UPDATE rollout_site SET state = ? WHERE rollout_id = ? AND site_id = ?", (state, rollout.row_id, site_row)
    )
    event = Event.SITE_COMMITTED if state == COMMITTED else Event.SITE_REVERTED
    events.append(
        connection, engine_scope(rollout.tenant_id), event, now, subject=rollout.rollout_id, site=name, state=state
    )
