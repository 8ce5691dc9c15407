"""Sealing: the last act of every transaction binds its events into their tenant's chain (ADR-0015).

`events.append` writes a row of `event_unsealed`. Whoever commits calls `seal` first: it takes the
transaction's rows, locks the head of each tenant's chain, numbers and hashes the events and writes
them to `event`, which nothing may change. The head is the last row a transaction locks and is
held for the commit alone, so replicas do not wait for each other's work, cannot deadlock on it,
and share one commit among many jobs as before. Numbers have no gap and rise in the order of
commits: whoever reads "after number n" misses nothing.
"""

from __future__ import annotations

import json
from functools import lru_cache
from hashlib import sha256
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

from firmament.core import canonical
from firmament.trust.audit import GENESIS, event_value, extend

if TYPE_CHECKING:
    from firmament.server.database.port import Connection, Row

COLUMNS: Final = (
    "tenant_id bigint, number bigint, at bigint, kind text, actor text, subject text, facts bytea, hash bytea"
)
INSERT: Final = (
    "INSERT INTO event(tenant_id, number, at, kind, actor, subject, facts, hash) "
    "SELECT tenant_id, number, at, kind, actor, subject, facts, hash FROM given"
)
_TAKE: Final = "DELETE FROM event_unsealed RETURNING id, tenant_id, at, kind, actor, subject, facts"
_LOCK: Final = "UPDATE chain_head SET number = number + ? WHERE tenant_id = ? RETURNING number, hash"


def seal(connection: Connection) -> int:
    """Bind this transaction's events into the chain; return how many. Nothing to do costs one statement."""
    rows = connection.execute(_TAKE).fetchall()
    if not rows:
        return 0
    rows.sort(key=itemgetter("tenant_id", "id"))  # tenants in one order everywhere: heads are locked in it
    for tenant_id, of_tenant in groupby(rows, key=itemgetter("tenant_id")):
        _seal_tenant(connection, int(tenant_id), list(of_tenant))
    return len(rows)


def _seal_tenant(connection: Connection, tenant_id: int, rows: list[Row]) -> None:
    head = connection.execute(_LOCK, (len(rows), tenant_id)).fetchone()
    if head is None:
        connection.execute(
            "INSERT INTO chain_head(tenant_id, number, hash) VALUES (?, 0, ?) ON CONFLICT (tenant_id) DO NOTHING",
            (tenant_id, GENESIS),
        )
        head = connection.execute(_LOCK, (len(rows), tenant_id)).fetchone()
    number, found = int(head["number"]) - len(rows), bytes(head["hash"])
    sealed = []
    for row in rows:
        number += 1
        found = extend(found, _digest_of(row, tenant_id, number))
        sealed.append(
            (tenant_id, number, row["at"], row["kind"], row["actor"], row["subject"], bytes(row["facts"]), found)
        )
    connection.change_many(INSERT, COLUMNS, sealed)
    connection.execute("UPDATE chain_head SET hash = ? WHERE tenant_id = ?", (found, tenant_id))


def _digest_of(row: Row, tenant_id: int, number: int) -> bytes:
    """Return `event_digest` of a row's value; its facts are in canonical form already, so they are not read again."""
    return sha256(
        b'{"actor":%s,"at":%d,"facts":%s,"kind":%s,"number":%d,"subject":%s,"tenant":%d,"v":1}'
        % (
            _text(row["actor"]),
            row["at"],
            bytes(row["facts"]),
            _text(row["kind"]),
            number,
            _text(row["subject"]),
            tenant_id,
        )
    ).digest()


_text: Final = lru_cache(maxsize=1024)(canonical.encode)


def value_of(row: Row, *, tenant_id: int, number: int) -> dict[str, Any]:
    """Return the value that is digested for a row of either table."""
    return event_value(
        tenant=tenant_id,
        number=number,
        at=int(row["at"]),
        kind=row["kind"],
        actor=row["actor"],
        subject=row["subject"],
        facts=json.loads(bytes(row["facts"])),  # written by this server, in canonical form
    )


def head(connection: Connection, tenant_id: int) -> tuple[int, bytes]:
    """Return number and hash of a tenant's newest event; 0 and the genesis hash when there is none."""
    row = connection.execute("SELECT number, hash FROM chain_head WHERE tenant_id = ?", (tenant_id,)).fetchone()
    return (0, GENESIS) if row is None else (int(row["number"]), bytes(row["hash"]))


def hash_at(connection: Connection, tenant_id: int, number: int) -> bytes | None:
    """Return the hash of one event of a tenant; the genesis hash before the first, None beyond the last."""
    if number == 0:
        return GENESIS
    row = connection.execute(
        "SELECT hash FROM event WHERE tenant_id = ? AND number = ?", (tenant_id, number)
    ).fetchone()
    return None if row is None else bytes(row["hash"])
