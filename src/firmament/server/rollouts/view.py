"""A rollout as people and programs see it: the shapes of http/rollout_shapes.py, made from rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from firmament.server.rollouts.decide import Code, WaveView, may_fail
from firmament.server.rollouts.machine import WAITS_FOR, RolloutState, TargetStatus, WaveState
from firmament.server.rollouts.model import add_counts
from firmament.server.rollouts.permitted import look
from firmament.server.rollouts.reasons import find_common, sentence
from firmament.server.rollouts.selection import SENTENCES
from firmament.server.rollouts.store import waves_of
from firmament.server.rollouts.targets import Target

if TYPE_CHECKING:
    from firmament.server.database.port import Connection
    from firmament.server.rollouts.store import RolloutRecord
    from firmament.server.scope import Scope

MAX_POINTS: Final = 500
MAX_PAGE: Final = 500
MAX_SOURCES: Final = 20
FEW: Final = 30
"""Under so many finished, counts and no percentages (console.md §2.1)."""
NEXT_ACTIONS: Final = ("resume", "revert", "abort", "retry-failed", "acknowledge")

MESSAGES: Final[dict[str, str]] = {
    Code.FAILURES: "Too many devices failed",
    Code.CANNOT_PASS: "So many failed that the wave cannot keep the limit any more",
    Code.HEALTH: "Updated devices report worse health than the others",
    Code.WITHDRAWN: "The release was withdrawn",
    Code.LATE_JOINERS: "Everybody is through; open for devices that match later",
    Code.WAITING_FOR_DEVICES: "Waits for devices of the open wave",
    Code.FEW_FINISHED: "Too few devices of the wave asked; a person decides",
    Code.HOLD_TIME: "The wave is through; the hold time runs",
    Code.HEALTH_UNKNOWN: "Waits for updated devices to report that they are healthy",
    Code.BY_HAND: "A person opens the next wave",
    Code.FILLING: "Writes the list of targets",
    Code.SITES: "Waits for sites to commit as a whole",
    Code.OVER: "Its lifetime is over",
}


def show_rollout(connection: Connection, scope: Scope, rollout: RolloutRecord) -> dict[str, Any]:
    """Return one rollout, whole."""
    waves = waves_of(connection, rollout.row_id)
    counts = add_counts([wave.counts for wave in waves])
    return {
        "rollout_id": rollout.rollout_id,
        "name": rollout.name,
        "release": rollout.release,
        "product": rollout.product,
        "version": rollout.version,
        "selector": rollout.selector,
        "note": rollout.note,
        "state": rollout.state.value,
        "state_since": rollout.state_since,
        "state_reason": _state_reason(rollout),
        "created_by": rollout.created_by,
        "created_at": rollout.created_at,
        "decided_by": rollout.decided_by or None,
        "start_at": rollout.start_at,
        "ended_at": rollout.ended_at,
        "policy": rollout.policy.to_json(),
        "waves": _waves(connection, rollout, waves),
        "counts": counts.by_status,
        "total": rollout.total,
        "is_filled": rollout.is_filled,
        "gate": _gate(rollout, waves),
        "halt": _halt(connection, scope, rollout, waves),
        "excluded": _excluded(connection, rollout),
        "sources": _sources(connection, rollout),
        "revision": rollout.revision,
    }


def _state_reason(rollout: RolloutRecord) -> dict[str, Any]:
    waits = WAITS_FOR[rollout.state]
    message = MESSAGES.get(rollout.state_code) or (f"Waits for {waits}" if waits else "")
    return {"code": rollout.state_code, "message": message, "facts": rollout.state_facts}


def _waves(connection: Connection, rollout: RolloutRecord, waves: list[WaveView]) -> list[dict[str, Any]]:
    names = {
        row["number"]: row
        for row in connection.execute(
            "SELECT number, name, opened_at, closed_at, hold_until FROM rollout_wave WHERE rollout_id = ?",
            (rollout.row_id,),
        )
    }
    return [
        {
            "number": wave.number,
            "name": names[wave.number]["name"],
            "state": wave.state.value,
            "size": wave.counts.total,
            "counts": wave.counts.by_status,
            "finished": wave.finished,
            "failed": wave.failed,
            "failure_ratio": wave.failed / wave.finished if wave.finished >= FEW else None,
            "opened_at": names[wave.number]["opened_at"],
            "closed_at": names[wave.number]["closed_at"],
            "hold_until": names[wave.number]["hold_until"],
        }
        for wave in waves
    ]


def _gate(rollout: RolloutRecord, waves: list[WaveView]) -> dict[str, Any]:
    gate = rollout.policy.gate
    opened = [wave for wave in waves if wave.state is not WaveState.PENDING]
    failed, finished = (opened[-1].new_failed, opened[-1].new_finished) if opened else (0, 0)
    return {
        "wave": opened[-1].number if opened else 0,
        "limit_ratio": gate.limit_ratio,
        "min_finished": gate.min_finished,
        "failed": failed,
        "finished": finished,
        "rate": failed / finished if finished >= gate.min_finished else None,
    }


def _halt(connection: Connection, scope: Scope, rollout: RolloutRecord, waves: list[WaveView]) -> dict[str, Any] | None:
    if rollout.halt is None:
        return None
    stored = rollout.halt
    counts = add_counts([wave.counts for wave in waves])
    silent = counts.of(TargetStatus.SILENT)
    done_by = connection.execute(
        "SELECT MAX(deadline) AS last FROM rollout_target WHERE deadline IS NOT NULL AND rollout_id = ? AND status = ?",
        (rollout.row_id, TargetStatus.IN_FLIGHT.value),
    ).fetchone()["last"]
    common = find_common(connection, rollout)
    limit = float(stored["limit_ratio"])
    shown = {
        "at": stored["at"],
        "wave": stored["wave"],
        "code": stored["code"],
        "failed": stored["failed"],
        "finished": stored["finished"],
        "limit_ratio": limit,
        "min_finished": stored["min_finished"],
        "went_back_online": counts.of(TargetStatus.FAILED),
        "silent": silent,
        "not_started": counts.of(TargetStatus.WAITING, TargetStatus.POSTPONED),
        "in_flight": counts.of(TargetStatus.IN_FLIGHT, TargetStatus.OFFERED, TargetStatus.ASKING),
        "in_flight_done_by": done_by,
        "updated": counts.of(TargetStatus.UPDATED),
        "common": common.to_json() if common is not None else None,
        "next_actions": [look(connection, scope, rollout, action).show() for action in NEXT_ACTIONS],
        "acknowledged_by": rollout.acknowledged_by or None,
    }
    return {**shown, "sentence": halt_sentence({**stored, **shown}, rollout.state)}


def halt_sentence(halt: dict[str, Any], state: RolloutState) -> str:
    """Say a stop in words that are enough to decide whether to get up."""
    if halt["code"] == Code.WITHDRAWN:
        return "Stopped: the release was withdrawn. No new device starts."
    then = "Updated devices are being brought back." if state is RolloutState.REVERTING else "No new device starts."
    return (
        f"Stopped in wave {halt['wave']}: {_why_halted(halt)}. {halt['went_back_online']} failed and called back, "
        f"{halt['silent']} have not called back. {halt['not_started']} not started, safe; "
        f"{halt['in_flight']} in flight; {halt['updated']} updated. {then}"
    )


def _why_halted(halt: dict[str, Any]) -> str:
    limit = f"{100 * halt['limit_ratio']:g} %"
    possible = int(halt.get("possible", 0))  # stops of earlier releases do not say it
    if halt["code"] == Code.CANNOT_PASS and possible:
        return (
            f"{halt['failed']} failed, the limit of {limit} allows {may_fail(halt['limit_ratio'], possible)} of the "
            f"wave's {possible} devices; it cannot pass whatever the others do, so nobody waited for "
            f"{halt['min_finished']} to finish"
        )
    share = f"{100 * halt['failed'] / halt['finished']:.1f} %" if halt["finished"] >= FEW else "too many"
    what = "report failing health" if halt["code"] == Code.HEALTH else "failed"
    return f"{halt['failed']} of {halt['finished']} {what} ({share}), the limit is {limit}"


def _excluded(connection: Connection, rollout: RolloutRecord) -> list[dict[str, Any]]:
    rows = connection.execute(
        "SELECT rule, n FROM rollout_excluded WHERE rollout_id = ? AND n > 0 ORDER BY n DESC", (rollout.row_id,)
    )
    return [
        {
            "rule": row["rule"],
            "count": int(row["n"]),
            "sentence": f"{row['n']} {SENTENCES[row['rule']][0]}",
            "hint": SENTENCES[row["rule"]][1],
            "sample": [],
        }
        for row in rows
    ]


def _sources(connection: Connection, rollout: RolloutRecord) -> list[str]:
    rows = connection.execute(
        "SELECT source FROM (SELECT source FROM rollout_target WHERE rollout_id = ? LIMIT 10000) AS part "
        "GROUP BY source ORDER BY COUNT(*) DESC LIMIT ?",
        (rollout.row_id, MAX_SOURCES),
    )
    return [row["source"] for row in rows]


def list_targets(  # filters of one list
    connection: Connection,
    rollout: RolloutRecord,
    *,
    status: str | None,
    reason: str | None,
    wave: int | None,
    after: int,
    limit: int,
    newest: bool = False,
) -> dict[str, Any]:
    """Return one page of targets in the order of their devices, or those that changed last."""
    rows = connection.execute(
        "SELECT t.*, d.uid, d.serial, d.hardware, d.version AS device_version, a.uid AS attempt_uid "
        "FROM rollout_target t JOIN device d ON d.id = t.device_id LEFT JOIN attempt a ON a.id = t.attempt_id "
        "WHERE t.rollout_id = ? AND t.device_id > ? AND (CAST(? AS TEXT) IS NULL OR t.status = ?) "
        "AND (CAST(? AS TEXT) IS NULL OR t.code = ?) AND (CAST(? AS INTEGER) IS NULL OR t.wave = ?) "
        f"ORDER BY {'t.updated_at DESC, t.device_id' if newest else 't.device_id'} LIMIT ?",
        (rollout.row_id, after, status, status, reason, reason, wave, wave, min(limit, MAX_PAGE)),
    ).fetchall()
    targets = []
    for row in rows:
        target = Target.of_row(row)
        targets.append(
            {
                "device_id": row["uid"],
                "serial": row["serial"],
                "hardware": row["hardware"],
                "version": row["device_version"],
                "wave": target.wave,
                "status": target.status.value,
                "code": target.code,
                "message": sentence(target.code),
                "attempt_id": row["attempt_uid"],
                "tries": target.tries,
                "deadline": target.deadline,
                "not_before": target.not_before,
                "updated_at": target.updated_at,
            }
        )
    return {"targets": targets, "next": str(rows[-1]["device_id"]) if len(rows) == limit and not newest else None}


def series(connection: Connection, rollout: RolloutRecord) -> dict[str, Any]:
    """Return the failure rate over time, at most `MAX_POINTS` points, evenly spread."""
    rows = connection.execute(
        "SELECT at, wave, finished, failed, updated FROM rollout_sample WHERE rollout_id = ? ORDER BY at DESC LIMIT ?",
        (rollout.row_id, MAX_POINTS * 20),
    ).fetchall()
    rows.reverse()
    step = max(1, len(rows) // MAX_POINTS)
    points = [
        {
            "at": row["at"],
            "wave": row["wave"],
            "finished": row["finished"],
            "failed": row["failed"],
            "updated": row["updated"],
            "failure_ratio": row["failed"] / row["finished"] if row["finished"] else 0.0,
        }
        for row in rows[:: max(1, step)][-MAX_POINTS:]
    ]
    return {"limit_ratio": rollout.policy.gate.limit_ratio, "points": points}
