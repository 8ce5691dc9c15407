"""The lock that one of several servers holds to lead, on a PostgreSQL session of its own (ADR-0024).

The session *is* the leadership: when the leader's process dies, the kernel closes the session and
PostgreSQL frees the lock at once. A leader that hangs, or whose machine vanished, keeps its
session open; one of the others ends it after `SILENT_S` without a beat. Each new leader raises
the epoch first, and what an earlier one still wants to change is refused by that (leader.py).
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from firmament import __version__
from firmament.log import logger
from firmament.server.database.postgres import Link, transact
from firmament.server.database.postgres_sql import mapped_postgres_errors
from firmament.server.leader import EPOCH

if TYPE_CHECKING:
    from firmament.core.clock import Clock
    from firmament.server.database.postgres import PostgresConnection
    from firmament.server.database.target import PostgresTarget

log = logger("server.leader")

LEADER_LOCK: Final = 0x4649524D4C  # "FIRML"
SILENT_S: Final = 10
"""A leader that says nothing for so long loses its session."""
FORGET_S: Final = 86_400
_NOW: Final = "CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS BIGINT)"
"""The database's own clock: those of the servers differ."""
_BEAT: Final = (
    "INSERT INTO replica(id, host, port, pid, version, started_at, seen_at, leads_since) "
    "VALUES (?, ?, ?, ?, ?, @now, @now, CASE WHEN ? = 1 THEN @now END) "
    "ON CONFLICT(id) DO UPDATE SET port = excluded.port, seen_at = excluded.seen_at, "
    "leads_since = CASE WHEN excluded.leads_since IS NULL THEN NULL "
    "ELSE COALESCE(replica.leads_since, excluded.leads_since) END"
).replace("@now", _NOW)
_FORGET: Final = "DELETE FROM replica WHERE seen_at < @now - ?".replace("@now", _NOW)
_END_SILENT: Final = (
    "SELECT a.pid, pg_terminate_backend(a.pid) FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid "
    "WHERE l.locktype = 'advisory' AND l.classid = ? AND l.objid = ? AND l.database = "
    "(SELECT oid FROM pg_database WHERE datname = current_database()) "
    "AND a.state_change < clock_timestamp() - make_interval(secs => ?)"
)


@dataclass(frozen=True, slots=True)
class Standing:
    """What one beat found out."""

    epoch: int | None
    """Of this server as the leader; None when another leads."""


class LeaderLock:
    """One server's beats; called from one thread at a time (blocking)."""

    def __init__(self, target: PostgresTarget, clock: Clock, replica_id: str) -> None:
        self._link = Link(target, clock, read_only=False)
        self._id = replica_id
        self._connection: PostgresConnection | None = None
        self._epoch: int | None = None

    def beat(self, port: int) -> Standing:
        """Say that this server is there; take the lock if nobody has it. Raises OverloadedError."""
        with mapped_postgres_errors():
            connection = self._link.connection()
            if connection is not self._connection:
                # A new session holds nothing, whatever the one before held.
                self._connection, self._epoch = connection, None
                # Losing the last second of beats harms nobody; waiting for the disk would.
                connection.execute("SET synchronous_commit = off")
            if self._epoch is None:
                self._epoch = self._try(connection)
            self._note(connection, port)
            return Standing(self._epoch)

    def _try(self, connection: PostgresConnection) -> int | None:
        found = connection.execute("SELECT pg_try_advisory_lock(?) AS held", (LEADER_LOCK,)).fetchone()
        if not found["held"]:
            halves = (LEADER_LOCK >> 32, LEADER_LOCK & 0xFFFFFFFF)
            for row in connection.execute(_END_SILENT, (*halves, SILENT_S)).fetchall():
                log.warning("leader.silent", backend=row["pid"], silent_s=SILENT_S)
            return None
        # In turn with all writers: what the leader before committed is there, what it has not is refused.
        epoch = transact(
            connection,
            lambda writing: int(
                writing.execute(
                    "INSERT INTO number(name, value) VALUES (?, 1) "
                    "ON CONFLICT(name) DO UPDATE SET value = number.value + 1 RETURNING value",
                    (EPOCH,),
                ).fetchone()["value"]
            ),
        )
        log.info("leader.won", epoch=epoch, replica=self._id)
        return epoch

    def _note(self, connection: PostgresConnection, port: int) -> None:
        connection.execute(
            _BEAT, (self._id, socket.gethostname(), port, os.getpid(), __version__, int(self._epoch is not None))
        )
        connection.execute(_FORGET, (FORGET_S,))

    def leave(self) -> None:
        """Give the lock back and take this server off the list (a clean stop)."""
        if self._connection is not None and not self._connection.raw.closed:
            with mapped_postgres_errors():
                self._connection.execute("DELETE FROM replica WHERE id = ?", (self._id,))
                self._connection.execute("SELECT pg_advisory_unlock_all()")  # closing frees it too, a moment later
        self._link.drop()
        self._connection, self._epoch = None, None
