"""Reading rollouts, and the few changes of their own rows; every query has the scope or comes from one that had."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from firmament.errors import ConflictError, NotFoundError
from firmament.server import events
from firmament.server.events import Event
from firmament.server.rollouts.decide import WaveView
from firmament.server.rollouts.machine import ENDED, RolloutEvent, RolloutState, WaveState, after
from firmament.server.rollouts.model import Counts, Policy, read_policy
from firmament.server.rollouts.targets import EVERYTHING, counters

if TYPE_CHECKING:
    from datetime import datetime

    from firmament.server.database.port import Connection, Row
    from firmament.server.scope import Scope

SELECT: Final = """
SELECT r.*, p.name AS product, e.version, e.sequence_number, e.withdrawn_at, e.manifest
FROM rollout r JOIN release e ON e.id = r.release_id JOIN product p ON p.id = r.product_id
"""
MAX_PAGE: Final = 200


@dataclass(frozen=True, slots=True)
class RolloutRecord:
    """One rollout, as stored."""

    row_id: int
    tenant_id: int
    rollout_id: str
    name: str
    product: str
    product_id: int
    release_id: int
    version: str
    sequence_number: int
    is_withdrawn: bool
    manifest: bytes
    selector: str
    policy: Policy
    note: str
    state: RolloutState
    state_since: int
    state_code: str
    state_facts: dict[str, Any]
    halt: dict[str, Any] | None
    created_by: str
    created_at: int
    decided_by: str
    acknowledged_by: str
    start_at: int
    ended_at: int | None
    fill_step: str
    fill_cursor: int
    fill_position: int
    total: int
    checked_at: int
    revision: int

    @property
    def release(self) -> str:
        """``product/version``."""
        return f"{self.product}/{self.version}"

    @property
    def is_filled(self) -> bool:
        """Whether every target is written and in its wave."""
        return self.fill_step in {"done", "over"}

    @classmethod
    def of_row(cls, row: Row) -> RolloutRecord:
        """Read a row of `SELECT`."""
        return cls(
            row_id=row["id"],
            tenant_id=row["tenant_id"],
            rollout_id=row["uid"],
            name=row["name"],
            product=row["product"],
            product_id=row["product_id"],
            release_id=row["release_id"],
            version=row["version"],
            sequence_number=row["sequence_number"],
            is_withdrawn=row["withdrawn_at"] is not None,
            manifest=bytes(row["manifest"]),
            selector=row["selector"],
            policy=read_policy(row["policy"]),
            note=row["note"],
            state=RolloutState(row["state"]),
            state_since=row["state_since"],
            state_code=row["state_code"],
            state_facts=json.loads(row["state_facts"]),
            halt=json.loads(row["halt"]) if row["halt"] else None,
            created_by=row["created_by"],
            created_at=row["created_at"],
            decided_by=row["decided_by"],
            acknowledged_by=row["acknowledged_by"],
            start_at=row["start_at"],
            ended_at=row["ended_at"],
            fill_step=row["fill_step"],
            fill_cursor=row["fill_cursor"],
            fill_position=row["fill_position"],
            total=row["total"],
            checked_at=row["checked_at"],
            revision=row["revision"],
        )


def by_row(connection: Connection, row_id: int) -> RolloutRecord:
    """Return a rollout by its row, for the engine."""
    return RolloutRecord.of_row(connection.execute(f"{SELECT} WHERE r.id = ?", (row_id,)).fetchone())


def get_rollout(connection: Connection, scope: Scope, rollout_id: str) -> RolloutRecord:
    """Return one rollout; raises NotFoundError, also for another tenant's or product's."""
    row = connection.execute(
        f"{SELECT} WHERE r.tenant_id = ? AND r.uid = ? AND (CAST(? AS TEXT) IS NULL OR p.name = ?)",
        (scope.tenant_id, rollout_id, scope.product, scope.product),
    ).fetchone()
    if row is None:
        raise NotFoundError("There is no such rollout", rollout_id=rollout_id[:80])
    return RolloutRecord.of_row(row)


def list_rollouts(
    connection: Connection, scope: Scope, *, state: str | None, product: str | None, before: int, limit: int
) -> list[RolloutRecord]:
    """Return one page, newest first; `before` is the last row id of the page before, 0 for the first."""
    wanted = product or scope.product
    if product is not None:
        scope.require_product(product)
    rows = connection.execute(
        f"{SELECT} WHERE r.tenant_id = ? AND (CAST(? AS TEXT) IS NULL OR r.state = ?) "
        "AND (CAST(? AS TEXT) IS NULL OR p.name = ?) AND (? = 0 OR r.id < ?) ORDER BY r.id DESC LIMIT ?",
        (scope.tenant_id, state, state, wanted, wanted, before, before, min(limit, MAX_PAGE)),
    )
    return [RolloutRecord.of_row(row) for row in rows]


def waves_of(connection: Connection, rollout_row: int) -> list[WaveView]:
    """Return the waves with their counts, in order."""
    counts = counters(connection, rollout_row)
    rows = connection.execute(
        "SELECT number, state, opened_at, hold_until, forgiven_failed, forgiven_finished "
        "FROM rollout_wave WHERE rollout_id = ? ORDER BY number",
        (rollout_row,),
    )
    return [
        WaveView(
            row["number"],
            WaveState(row["state"]),
            Counts(counts.get(row["number"], {})),
            row["opened_at"],
            row["hold_until"],
            row["forgiven_failed"],
            row["forgiven_finished"],
        )
        for row in rows
    ]


def move_rollout(  # every fact of a move, by name
    connection: Connection,
    scope: Scope,
    rollout: RolloutRecord,
    event: RolloutEvent,
    now: datetime,
    *,
    code: str = "",
    facts: dict[str, Any] | None = None,
    reason: str = "",
) -> RolloutRecord:
    """Move a rollout by its table and write the event; raises ConflictError when it cannot happen now."""
    to = after(rollout.state, event)
    if to is None:
        raise ConflictError("That cannot be done in this state", state=rollout.state.value, action=event.value)
    moment = int(now.timestamp())
    changed = connection.execute(
        "UPDATE rollout SET state = ?, state_since = ?, state_code = ?, state_facts = ?, ended_at = ?, "
        "revision = revision + 1 WHERE id = ? AND state = ?",
        (
            to.value,
            moment if to is not rollout.state else rollout.state_since,
            code,
            json.dumps(facts or {}, sort_keys=True),
            moment if to in ENDED else None,
            rollout.row_id,
            rollout.state.value,
        ),
    )
    if changed.rowcount != 1:
        raise ConflictError("The rollout changed meanwhile", state=rollout.state.value, action=event.value)
    if to is not rollout.state:
        events.append(
            connection,
            scope,
            Event.ROLLOUT_MOVED,
            now,
            subject=rollout.rollout_id,
            was=rollout.state.value,
            state=to.value,
            action=event.value,
            code=code,
            reason=reason,
            release=rollout.release,
        )
    return by_row(connection, rollout.row_id)


def set_waiting_for(connection: Connection, rollout: RolloutRecord, code: str, facts: dict[str, Any]) -> None:
    """Say what an open rollout waits for; written only when it is something else."""
    text = json.dumps(facts, sort_keys=True)
    if (rollout.state_code, rollout.state_facts) != (code, facts):
        connection.execute(
            "UPDATE rollout SET state_code = ?, state_facts = ? WHERE id = ?", (code, text, rollout.row_id)
        )


def set_gate(connection: Connection, rollout_row: int, open_wave: int) -> None:
    """Let devices of waves up to `open_wave` start; 0 lets none."""
    connection.execute(
        "UPDATE rollout_limit SET open_wave = ? WHERE rollout_id = ? AND scope = ?",
        (open_wave, rollout_row, EVERYTHING),
    )


def insert_rollout(  # one row, all of it
    connection: Connection,
    scope: Scope,
    *,
    name: str,
    product_id: int,
    release_id: int,
    selector: str,
    policy_text: str,
    note: str,
    start_at: int,
    now_s: int,
) -> RolloutRecord:
    """Write a new rollout, as a draft, with its limit row."""
    row = connection.execute(
        "INSERT INTO rollout(tenant_id, uid, name, product_id, release_id, selector, policy, note, state, state_since, "
        "created_by, created_at, start_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id",
        (
            scope.tenant_id,
            str(uuid.uuid4()),
            name,
            product_id,
            release_id,
            selector,
            policy_text,
            note,
            RolloutState.DRAFT.value,
            now_s,
            scope.actor,
            now_s,
            start_at,
        ),
    ).fetchone()
    connection.execute(
        "INSERT INTO rollout_limit(rollout_id, scope, tenant_id) VALUES (?, ?, ?)",
        (row["id"], EVERYTHING, scope.tenant_id),
    )
    return by_row(connection, row["id"])
