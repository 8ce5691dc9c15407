"""Writing the targets: once, in chunks that no other writer notices, resumable at any point (ADR-0038).

Step *select* walks the devices in the order of their rows, and the database itself writes the
targets of each chunk, with their waves. Step *deal* moves the few that are in another wave than
was asked for, so that every wave has exactly as many. Counters change in the same transactions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from firmament.server.inventory.query_sql import FROM
from firmament.server.inventory.store import decode_manifest
from firmament.server.rollouts.deal import LOTS, choose_moves, differences, lot_sql, thresholds
from firmament.server.rollouts.machine import RolloutEvent, RolloutState, TargetStatus, WaveState
from firmament.server.rollouts.model import WaveSpec, propose_waves, wave_sizes
from firmament.server.rollouts.selection import Selection, select
from firmament.server.rollouts.stop import engine_scope
from firmament.server.rollouts.store import RolloutRecord, by_row, move_rollout
from firmament.server.rollouts.targets import add_count, counters

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from firmament.server.database.port import Connection

CHUNK: Final = 2000
"""Of late joiners in a round, and of targets where nobody measures how long a chunk takes (`pace.py`)."""
NAMED: Final = -1_000_000
"""Lots of devices that a wave names are below zero: nobody moves them to another wave."""


def fill_some(connection: Connection, rollout: RolloutRecord, now: datetime, rows: int = CHUNK) -> bool:
    """Do one chunk of a rollout's filling, at most `rows` targets; return whether there is more to do."""
    if rollout.fill_step == "select":
        _select_chunk(connection, rollout, now, rows)
        return True
    if rollout.fill_step == "deal":
        _deal_chunk(connection, rollout, rows)
        return True
    return False


def _chosen(connection: Connection, rollout: RolloutRecord, now: datetime) -> Selection:
    return select(
        connection,
        engine_scope(rollout.tenant_id),
        selector=rollout.selector,
        manifest=decode_manifest(rollout.manifest),
        release_row=rollout.release_id,
        now=now,
        rollout_row=rollout.row_id,
    )


def _next_devices(connection: Connection, after: int, rows: int) -> tuple[int, bool]:
    """Return the last of the next `rows` devices, whoever's they are, and whether there are no more.

    So many are looked at, however few of them match.
    """
    found = connection.execute(
        "SELECT MAX(id) AS last, COUNT(*) AS n FROM (SELECT id FROM device WHERE id > ? ORDER BY id LIMIT ?) AS part",
        (after, rows),
    ).fetchone()
    return (after if found["last"] is None else int(found["last"])), found["n"] < rows


def _select_chunk(connection: Connection, rollout: RolloutRecord, now: datetime, rows: int) -> None:
    after = rollout.fill_cursor
    last, is_end = _next_devices(connection, after, rows)
    chosen = _chosen(connection, rollout, now)
    written = _write_targets(connection, rollout, chosen, now, after=after, last=last, rows=rows)
    _count_excluded(connection, rollout, chosen, after=after, last=last, written=written)
    connection.execute(
        "UPDATE rollout SET fill_cursor = ?, fill_position = fill_position + ?, revision = revision + 1 WHERE id = ?",
        (last, written, rollout.row_id),
    )
    if is_end:
        _write_waves(connection, rollout)


def _count_excluded(  # one chunk
    connection: Connection, rollout: RolloutRecord, chosen: Selection, *, after: int, last: int, written: int
) -> None:
    """Count by rule the matching devices of a chunk that are no targets."""
    matching = f"{FROM} WHERE d.id > ? AND d.id <= ? AND {chosen.matching.text}"
    parameters = (after, last, *chosen.matching.parameters)
    n = connection.execute(f"SELECT COUNT(*) AS n FROM {matching}", parameters).fetchone()["n"]
    if n == written:
        return
    excluded = connection.execute(
        f"SELECT rule, COUNT(*) AS n FROM (SELECT {chosen.excluded_by.text} AS rule FROM {matching} AND NOT EXISTS "
        "(SELECT 1 FROM rollout_target o WHERE o.rollout_id = ? AND o.device_id = d.id)) AS judged GROUP BY rule",
        (*chosen.excluded_by.parameters, *parameters, rollout.row_id),
    ).fetchall()
    for row in excluded:
        connection.execute(
            "INSERT INTO rollout_excluded(rollout_id, rule, tenant_id, n) VALUES (?, ?, ?, ?) "
            "ON CONFLICT(rollout_id, rule) DO UPDATE SET n = rollout_excluded.n + excluded.n",
            # No rule any more: on PostgreSQL another server may have made it free since the targets were written.
            (rollout.row_id, row["rule"] or "free", rollout.tenant_id, row["n"]),
        )


def _write_targets(  # one chunk, all of it
    connection: Connection,
    rollout: RolloutRecord,
    chosen: Selection,
    now: datetime,
    *,
    after: int,
    last: int,
    rows: int,
) -> int:
    """Write the targets among the devices after `after` up to `last`, with their waves; return how many."""
    lot, names = _lot(rollout)
    written = connection.execute(
        "INSERT INTO rollout_target(rollout_id, device_id, tenant_id, wave, place, status, source, site_id, "
        f"gateway_id, updated_at) SELECT ?, id, tenant_id, {_wave(connection, rollout, rows)}, lot, ?, version, "
        f"site_id, gateway_id, ? FROM (SELECT d.id, d.tenant_id, {lot} AS lot, d.version, x.site_id, x.gateway_id "
        f"FROM {FROM} LEFT JOIN device_place x ON x.device_id = d.id WHERE d.id > ? AND d.id <= ? "
        f"AND {chosen.writable.text}) AS fitting WHERE true ON CONFLICT(device_id) WHERE active = 1 DO NOTHING",
        (
            rollout.row_id,
            TargetStatus.WAITING.value,
            int(now.timestamp()),
            *names,
            after,
            last,
            *chosen.writable.parameters,
        ),
    ).rowcount
    for row in connection.execute(
        "SELECT wave, COUNT(*) AS n FROM rollout_target WHERE rollout_id = ? AND device_id > ? AND device_id <= ? "
        "GROUP BY wave",
        (rollout.row_id, after, last),
    ).fetchall():
        add_count(connection, rollout.tenant_id, rollout.row_id, row["wave"], TargetStatus.WAITING, row["n"])
    return written


def _lot(rollout: RolloutRecord) -> tuple[str, tuple[str, ...]]:
    """Return the SQL of a device's lot, and the names in it."""
    lot = lot_sql(rollout.rollout_id)
    names: list[str] = []
    cases = []
    for index, wave in enumerate(rollout.policy.waves):
        if wave.devices:
            cases.append(f"WHEN d.uid IN ({', '.join('?' * len(wave.devices))}) THEN {NAMED + index}")
            names += wave.devices
    return (f"CASE {' '.join(cases)} ELSE {lot} END", tuple(names)) if cases else (lot, ())


def _wave(connection: Connection, rollout: RolloutRecord, rows: int) -> str:
    """Return the SQL of the wave that a lot falls into in this chunk."""
    # The total is the plan's; when there are more by now, this chunk's are the last ones as far as anybody knows.
    coming = rows if rollout.fill_position >= rollout.total else min(rows, rollout.total - rollout.fill_position)
    total = max(rollout.total, rollout.fill_position + coming)
    specs = wave_specs(rollout, rollout.total)
    have = _have(connection, rollout)
    # A wave that names its devices draws nobody.
    wanted = [
        0 if spec.devices else size
        for spec, size in zip(specs, wave_sizes(specs, total, [len(spec.devices) for spec in specs]), strict=True)
    ]
    dealt = [0 if spec.devices else have.get(number, 0) for number, spec in enumerate(specs, 1)]
    ends = thresholds(wanted, dealt, coming=coming, total=sum(wanted))
    named = f"WHEN lot < 0 THEN lot - {NAMED - 1} " if any(spec.devices for spec in specs) else ""
    # From the last wave down: it is usually the largest, and most lots are compared once.
    drawn = "".join(f"WHEN lot >= {end} THEN {number} " for number, end in reversed(list(enumerate(ends, 2))))
    return f"CASE {named}{drawn}ELSE 1 END" if named or drawn else "1"


def _have(connection: Connection, rollout: RolloutRecord) -> dict[int, int]:
    return {wave: sum(of.values()) for wave, of in counters(connection, rollout.row_id).items()}


def wave_specs(rollout: RolloutRecord, total: int) -> tuple[WaveSpec, ...]:
    """Return the waves that were asked for, or the proposed ones; the last takes whoever is left."""
    return rollout.policy.waves or propose_waves(total)


def _write_waves(connection: Connection, rollout: RolloutRecord) -> None:
    total = sum(_have(connection, rollout).values())
    connection.executemany(
        "INSERT INTO rollout_wave(rollout_id, number, tenant_id, name, state) VALUES (?, ?, ?, ?, ?)",
        [
            (rollout.row_id, number, rollout.tenant_id, wave.name, WaveState.PENDING.value)
            for number, wave in enumerate(wave_specs(rollout, total), 1)
        ],
    )
    connection.execute(
        "UPDATE rollout SET total = ?, fill_cursor = 0, fill_step = 'deal', revision = revision + 1 WHERE id = ?",
        (total, rollout.row_id),
    )


def _deal_chunk(connection: Connection, rollout: RolloutRecord, rows: int) -> None:
    """Move targets out of waves that have too many, among the next `rows`; done when every wave is right."""
    specs = wave_specs(rollout, rollout.total)
    want = wave_sizes(specs, rollout.total, _named_counts(connection, rollout, specs))
    over = differences(_have(connection, rollout), want)
    last = _next_targets(connection, rollout, rows) if over else None
    if last is None:
        connection.execute(
            "UPDATE rollout SET fill_cursor = 0, fill_step = 'done', revision = revision + 1 WHERE id = ?",
            (rollout.row_id,),
        )
        return
    crowded = [number for number, n in over.items() if n > 0]
    found = connection.execute(
        f"SELECT device_id, wave FROM rollout_target WHERE rollout_id = ? AND device_id > ? AND device_id <= ? "
        f"AND place >= 0 AND wave IN ({', '.join('?' * len(crowded))}) ORDER BY place, device_id",
        (rollout.row_id, rollout.fill_cursor, last, *crowded),
    ).fetchall()
    for device_row, was, to in choose_moves([(row["device_id"], row["wave"]) for row in found], over):
        moved = connection.execute(
            "UPDATE rollout_target SET wave = ? WHERE rollout_id = ? AND device_id = ? AND wave = ? RETURNING status",
            (to, rollout.row_id, device_row, was),
        ).fetchone()
        # Nobody starts before all waves are right, but a poll or a person may have had it skipped meanwhile.
        status = TargetStatus(moved["status"])
        add_count(connection, rollout.tenant_id, rollout.row_id, was, status, -1)
        add_count(connection, rollout.tenant_id, rollout.row_id, to, status, 1)
    connection.execute("UPDATE rollout SET fill_cursor = ? WHERE id = ?", (last, rollout.row_id))


def _next_targets(connection: Connection, rollout: RolloutRecord, rows: int) -> int | None:
    found = connection.execute(
        "SELECT MAX(device_id) AS last FROM (SELECT device_id FROM rollout_target WHERE rollout_id = ? "
        "AND device_id > ? ORDER BY device_id LIMIT ?) AS part",
        (rollout.row_id, rollout.fill_cursor, rows),
    ).fetchone()
    return None if found["last"] is None else int(found["last"])


def _named_counts(connection: Connection, rollout: RolloutRecord, waves: Sequence[WaveSpec]) -> list[int]:
    found = []
    for wave in waves:
        n = 0
        if wave.devices:
            row = connection.execute(
                "SELECT COUNT(*) AS n FROM device d JOIN rollout_target t ON t.device_id = d.id AND t.rollout_id = ? "
                f"WHERE d.tenant_id = ? AND d.uid IN ({', '.join('?' * len(wave.devices))})",
                (rollout.row_id, rollout.tenant_id, *wave.devices),
            ).fetchone()
            n = int(row["n"])
        found.append(n)
    return found


def add_late(connection: Connection, rollout: RolloutRecord, now: datetime, rows: int = CHUNK) -> int:
    """Let devices that match by now join the last wave, one chunk; return how many."""
    last, is_end = _next_devices(connection, rollout.fill_cursor, rows)
    chosen = _chosen(connection, rollout, now)
    wave = connection.execute(
        "SELECT MAX(number) AS n FROM rollout_wave WHERE rollout_id = ?", (rollout.row_id,)
    ).fetchone()["n"]
    late = connection.execute(
        "INSERT INTO rollout_target(rollout_id, device_id, tenant_id, wave, place, status, source, site_id, "
        "gateway_id, updated_at) SELECT ?, d.id, d.tenant_id, ?, ?, ?, d.version, x.site_id, x.gateway_id, ? "
        f"FROM {FROM} LEFT JOIN device_place x ON x.device_id = d.id WHERE d.id > ? AND d.id <= ? "
        "AND NOT EXISTS (SELECT 1 FROM rollout_target t WHERE t.rollout_id = ? AND t.device_id = d.id) "
        f"AND {chosen.writable.text} ON CONFLICT(device_id) WHERE active = 1 DO NOTHING",
        (
            rollout.row_id,
            wave,
            LOTS,
            TargetStatus.WAITING.value,
            int(now.timestamp()),
            rollout.fill_cursor,
            last,
            rollout.row_id,
            *chosen.writable.parameters,
        ),
    ).rowcount
    if late:
        add_count(connection, rollout.tenant_id, rollout.row_id, wave, TargetStatus.WAITING, late)
    connection.execute(
        # From the first device again when the end was reached.
        "UPDATE rollout SET total = total + ?, fill_cursor = ? WHERE id = ?",
        (late, 0 if is_end else last, rollout.row_id),
    )
    return late


def start_if_due(connection: Connection, rollout: RolloutRecord, now: datetime) -> RolloutRecord:
    """Begin a scheduled rollout when its time has come."""
    if rollout.state is RolloutState.SCHEDULED and now.timestamp() >= rollout.start_at:
        return move_rollout(connection, engine_scope(rollout.tenant_id), rollout, RolloutEvent.START, now)
    return by_row(connection, rollout.row_id)
