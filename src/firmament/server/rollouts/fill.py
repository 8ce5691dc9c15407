"""Writing the targets: once, in chunks that no other writer notices, resumable at any point.

Step *select* inserts targets by device row, step *deal* walks them in the order of their places
and puts each into its wave, so that every wave has exactly as many as was asked for. A place is
the device's bucket, shuffled anew for every rollout: not always the same devices go first.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from firmament.core.digest import Digest
from firmament.server.inventory.query_sql import FROM
from firmament.server.inventory.service import BUCKETS
from firmament.server.inventory.store import decode_manifest
from firmament.server.rollouts.machine import RolloutEvent, RolloutState, TargetStatus, WaveState
from firmament.server.rollouts.model import WaveSpec, boundaries, propose_waves
from firmament.server.rollouts.selection import select
from firmament.server.rollouts.stop import engine_scope
from firmament.server.rollouts.store import RolloutRecord, by_row, move_rollout
from firmament.server.rollouts.targets import add_count

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from firmament.server.database.port import Connection

CHUNK: Final = 5000
"""At most 6 ms of the writer each (stack.md §3)."""
NAMED: Final = -1_000_000
"""Places of devices that a wave names are below zero, in the order of the waves."""
_DEVICE_ROWS: Final = 2**32
"""A cursor holds a place and a device's row: place x 2^32 + row."""


def fill_some(connection: Connection, rollout: RolloutRecord, now: datetime) -> bool:
    """Do one chunk of a rollout's filling; return whether there is more to do."""
    if rollout.fill_step == "select":
        _select_chunk(connection, rollout, now)
        return True
    if rollout.fill_step == "deal":
        _deal_chunk(connection, rollout)
        return True
    return False


def _select_chunk(connection: Connection, rollout: RolloutRecord, now: datetime) -> None:
    scope = engine_scope(rollout.tenant_id)
    chosen = select(
        connection,
        scope,
        selector=rollout.selector,
        manifest=decode_manifest(rollout.manifest),
        release_row=rollout.release_id,
        now=now,
        rollout_row=rollout.row_id,
    )
    rows = connection.execute(
        f"SELECT d.id, d.uid, d.bucket, d.version, x.site_id, x.gateway_id, {chosen.excluded_by.text} AS rule "
        f"FROM {FROM} LEFT JOIN device_place x ON x.device_id = d.id "
        f"WHERE {chosen.matching.text} AND d.id > ? ORDER BY d.id LIMIT ?",
        (*chosen.excluded_by.parameters, *chosen.matching.parameters, rollout.fill_cursor, CHUNK),
    ).fetchall()
    named = {name: index for index, wave in enumerate(rollout.policy.waves) for name in wave.devices}
    factor, shift = shuffle(rollout.rollout_id)
    now_s = int(now.timestamp())
    chosen_rows = [
        (
            rollout.row_id,
            row["id"],
            rollout.tenant_id,
            NAMED + named[row["uid"]] if row["uid"] in named else (row["bucket"] * factor + shift) % BUCKETS,
            TargetStatus.WAITING.value,
            row["version"],
            row["site_id"],
            row["gateway_id"],
            now_s,
        )
        for row in rows
        if not row["rule"]
    ]
    connection.executemany(
        "INSERT INTO rollout_target(rollout_id, device_id, tenant_id, wave, place, status, source, site_id, "
        "gateway_id, updated_at) VALUES (?, ?, ?, 0, ?, ?, ?, ?, ?, ?)",
        chosen_rows,
    )
    excluded = Counter(row["rule"] for row in rows if row["rule"])
    for rule, n in excluded.items():
        connection.execute(
            "INSERT INTO rollout_excluded(rollout_id, rule, tenant_id, n) VALUES (?, ?, ?, ?) "
            "ON CONFLICT(rollout_id, rule) DO UPDATE SET n = rollout_excluded.n + excluded.n",
            (rollout.row_id, rule, rollout.tenant_id, n),
        )
    # Before the first chunk the total is the plan's.
    total = (rollout.total if rollout.fill_cursor else 0) + len(chosen_rows)
    is_last = len(rows) < CHUNK
    connection.execute(
        "UPDATE rollout SET total = ?, fill_cursor = ?, fill_step = ?, revision = revision + 1 WHERE id = ?",
        (total, rows[-1]["id"] if rows else rollout.fill_cursor, "deal" if is_last else "select", rollout.row_id),
    )
    if is_last:
        _write_waves(connection, rollout, total)


def wave_specs(rollout: RolloutRecord, total: int) -> tuple[WaveSpec, ...]:
    """Return the waves that were asked for, or the proposed ones; the last takes whoever is left."""
    return rollout.policy.waves or propose_waves(total)


def _write_waves(connection: Connection, rollout: RolloutRecord, total: int) -> None:
    connection.executemany(
        "INSERT INTO rollout_wave(rollout_id, number, tenant_id, name, state) VALUES (?, ?, ?, ?, ?)",
        [
            (rollout.row_id, number, rollout.tenant_id, wave.name, WaveState.PENDING.value)
            for number, wave in enumerate(wave_specs(rollout, total), 1)
        ],
    )
    first = 2 * NAMED * _DEVICE_ROWS
    connection.execute("UPDATE rollout SET fill_cursor = ?, fill_position = 0 WHERE id = ?", (first, rollout.row_id))


def _deal_chunk(connection: Connection, rollout: RolloutRecord) -> None:
    """Put the next targets, in order of place, into their waves."""
    waves = wave_specs(rollout, rollout.total)
    ends = boundaries(waves, rollout.total, _named_counts(connection, rollout, waves))
    place, device_row = divmod(rollout.fill_cursor, _DEVICE_ROWS)
    rows = connection.execute(
        "SELECT place, device_id, status FROM rollout_target WHERE rollout_id = ? AND (place, device_id) > (?, ?) "
        "ORDER BY place, device_id LIMIT ?",
        (rollout.row_id, place, device_row, CHUNK),
    ).fetchall()
    moves = [
        (_wave_of(ends, rollout.fill_position + offset), rollout.row_id, row["device_id"])
        for offset, row in enumerate(rows)
    ]
    connection.executemany("UPDATE rollout_target SET wave = ? WHERE rollout_id = ? AND device_id = ?", moves)
    # Nobody starts before its wave is known, but a poll or a person may have had it skipped meanwhile.
    dealt = Counter((move[0], TargetStatus(row["status"])) for move, row in zip(moves, rows, strict=True))
    for (wave, status), n in dealt.items():
        add_count(connection, rollout.tenant_id, rollout.row_id, wave, status, n)
    is_last = len(rows) < CHUNK
    cursor = 0 if is_last else rows[-1]["place"] * _DEVICE_ROWS + rows[-1]["device_id"]
    connection.execute(
        "UPDATE rollout SET fill_position = fill_position + ?, fill_cursor = ?, fill_step = ?, "
        "revision = revision + 1 WHERE id = ?",
        (len(rows), cursor, "done" if is_last else "deal", rollout.row_id),
    )


def _wave_of(ends: Sequence[int], position: int) -> int:
    return next((number for number, end in enumerate(ends, 1) if position < end), len(ends))


def _named_counts(connection: Connection, rollout: RolloutRecord, waves: Sequence[WaveSpec]) -> list[int]:
    found = []
    for index, wave in enumerate(waves):
        n = 0
        if wave.devices:
            row = connection.execute(
                "SELECT COUNT(*) AS n FROM rollout_target WHERE rollout_id = ? AND place = ?",
                (rollout.row_id, NAMED + index),
            ).fetchone()
            n = int(row["n"])
        found.append(n)
    return found


def shuffle(rollout_id: str) -> tuple[int, int]:
    """Return factor and shift of this rollout's order of buckets: a permutation of 0..9999."""
    seed = int.from_bytes(Digest.of(rollout_id.encode()).value[:8], "big")
    # Odd and no multiple of five: coprime to 10 000, so no two buckets meet.
    factor = 10 * (seed % 1000) + (1, 3, 7, 9)[(seed >> 20) % 4]
    return factor, (seed >> 32) % BUCKETS


def add_late(connection: Connection, rollout: RolloutRecord, now: datetime) -> int:
    """Let devices that match by now join the last wave, one chunk; return how many."""
    scope = engine_scope(rollout.tenant_id)
    chosen = select(
        connection,
        scope,
        selector=rollout.selector,
        manifest=decode_manifest(rollout.manifest),
        release_row=rollout.release_id,
        now=now,
        rollout_row=rollout.row_id,
    )
    rows = connection.execute(
        f"SELECT d.id, d.version, x.site_id, x.gateway_id, {chosen.excluded_by.text} AS rule, "
        "EXISTS (SELECT 1 FROM rollout_target t WHERE t.rollout_id = ? AND t.device_id = d.id) AS known "
        f"FROM {FROM} LEFT JOIN device_place x ON x.device_id = d.id "
        f"WHERE {chosen.matching.text} AND d.id > ? ORDER BY d.id LIMIT ?",
        (
            *chosen.excluded_by.parameters,
            rollout.row_id,
            *chosen.matching.parameters,
            rollout.fill_cursor,
            CHUNK,
        ),
    ).fetchall()
    last = connection.execute(
        "SELECT MAX(number) AS n FROM rollout_wave WHERE rollout_id = ?", (rollout.row_id,)
    ).fetchone()["n"]
    late = [row for row in rows if not row["rule"] and not row["known"]]
    connection.executemany(
        "INSERT INTO rollout_target(rollout_id, device_id, tenant_id, wave, place, status, source, site_id, "
        "gateway_id, updated_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (
                rollout.row_id,
                row["id"],
                rollout.tenant_id,
                last,
                BUCKETS,
                TargetStatus.WAITING.value,
                row["version"],
                row["site_id"],
                row["gateway_id"],
                int(now.timestamp()),
            )
            for row in late
        ],
    )
    if late:
        add_count(connection, rollout.tenant_id, rollout.row_id, last, TargetStatus.WAITING, len(late))
    # From the first device again when the end was reached.
    cursor = rows[-1]["id"] if len(rows) == CHUNK else 0
    connection.execute(
        "UPDATE rollout SET total = total + ?, fill_cursor = ? WHERE id = ?", (len(late), cursor, rollout.row_id)
    )
    return len(late)


def start_if_due(connection: Connection, rollout: RolloutRecord, now: datetime) -> RolloutRecord:
    """Begin a scheduled rollout when its time has come."""
    if rollout.state is RolloutState.SCHEDULED and now.timestamp() >= rollout.start_at:
        return move_rollout(connection, engine_scope(rollout.tenant_id), rollout, RolloutEvent.START, now)
    return by_row(connection, rollout.row_id)
