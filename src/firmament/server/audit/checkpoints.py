"""Having the signer vouch for where chain and release log stand, and reading what it signed."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from firmament.core import canonical
from firmament.core.fields import Fields
from firmament.errors import ChainBrokenError, TrustError
from firmament.log import logger
from firmament.server import events
from firmament.server.audit import chain
from firmament.server.audit.signer import MAX_DIGESTS, Signed, read_signed
from firmament.server.events import Event
from firmament.server.releases import log as release_log
from firmament.server.scope import Scope
from firmament.trust import merkle
from firmament.trust.audit import event_digest

if TYPE_CHECKING:
    from firmament.core.clock import Clock
    from firmament.server.database.port import Connection, Database
    from firmament.server.signer_client import SignerClient

log = logger("server.audit")

MAX_ENVELOPE_LENGTH_BYTES: Final = 4096
MAX_PAGE: Final = 500
_PAGE_OF_DIGESTS: Final = 2000


@dataclass(frozen=True, slots=True)
class Rhythm:
    """When a checkpoint is due: after so many events, or so long after the first one that none covers."""

    every_events: int
    interval_s: int

    def is_due(self, *, behind: int, age_s: int) -> bool:
        """Whether `behind` events, the oldest of them `age_s` old, want a checkpoint."""
        return behind >= self.every_events or (behind > 0 and age_s >= self.interval_s)


class Checkpoints:
    """Asks the signer; one a server process. A checkpoint that is there already is harmless."""

    def __init__(self, database: Database, signer: SignerClient, clock: Clock, rhythm: Rhythm) -> None:
        self._database = database
        self._signer = signer
        self._clock = clock
        self._rhythm = rhythm
        self._refused: set[int] = set()
        # What the signer signed last must not change between asking for it and asking for more.
        self._turn = asyncio.Lock()
        self._key: dict[str, Any] | None = None

    async def key(self) -> dict[str, Any]:
        """Return the public audit key: ``{"keyid", "key"}``."""
        if self._key is None:
            self._key = await self._signer.audit("audit-public")
        return self._key

    async def make_due(self) -> None:
        """Make the checkpoints and tree heads that are due, for every tenant."""
        now = int(self._clock.now().timestamp())
        for tenant_id in await self._database.read(_tenants):
            behind, oldest = await self._database.read(lambda connection, tenant=tenant_id: _behind(connection, tenant))  # type: ignore[misc]  # bound now
            if self._rhythm.is_due(behind=behind, age_s=now - oldest):
                await self.make(tenant_id)
        for tenant_id in await self._database.read(release_log.tenants_behind):
            await self.tree_head(tenant_id)

    async def make(self, tenant_id: int) -> None:
        """Have the chain signed up to its head. A refusal is written down once as an event."""
        try:
            async with self._turn:
                while await self._step(tenant_id):
                    pass
            self._refused.discard(tenant_id)
        except TrustError as error:
            await self._write_refusal(tenant_id, error)

    async def _step(self, tenant_id: int) -> bool:
        signed = read_signed(Fields(await self._signer.audit("audit-state", tenant=tenant_id), what="audit-state"))
        digests = await self._database.read(lambda connection: _digests_after(connection, tenant_id, signed))
        if not digests:
            return False
        made = await self._signer.audit("checkpoint", tenant=tenant_id, after=signed.number, digests=digests.hex())
        await self._database.submit(lambda connection: _store(connection, tenant_id, made))
        log.info("audit.checkpoint", tenant_id=tenant_id, number=made["number"], hash=made["hash"])
        return len(digests) // 32 == MAX_DIGESTS

    async def tree_head(self, tenant_id: int) -> dict[str, Any] | None:
        """Return a tree head over all releases that are logged, signed now if there is none; None when empty."""
        async with self._turn:
            return await self._tree_head(tenant_id)

    async def _tree_head(self, tenant_id: int) -> dict[str, Any] | None:
        leaves = await self._database.read(lambda connection: release_log.leaf_hashes(connection, tenant_id))
        if not leaves:
            return None
        found = await self._database.read(
            lambda connection: release_log.stored_head(connection, tenant_id, len(leaves))
        )
        if found is not None:
            return found
        try:
            signed = read_signed(Fields(await self._signer.audit("audit-state", tenant=tenant_id), what="audit-state"))
            proof = merkle.consistency_proof(leaves, signed.size) if 0 < signed.size < len(leaves) else []
            made = await self._signer.audit(
                "tree-head",
                tenant=tenant_id,
                size=len(leaves),
                root=merkle.root(leaves).hex(),
                proof=[part.hex() for part in proof],
            )
        except TrustError as error:
            await self._write_refusal(tenant_id, error)
            raise
        await self._database.submit(lambda connection: release_log.store_head(connection, tenant_id, made))
        envelope: dict[str, Any] = made["envelope"]
        return envelope

    async def _write_refusal(self, tenant_id: int, error: TrustError) -> None:
        log.error("audit.refused", tenant_id=tenant_id, code=error.code, reason=str(error))
        if tenant_id in self._refused:
            return
        self._refused.add(tenant_id)
        facts = {name: str(value) for name, value in error.facts.items()}
        now = self._clock.now()
        await self._database.submit(
            lambda connection: events.append(
                connection,
                Scope(tenant_id, "server"),
                Event.AUDIT_REFUSED,
                now,
                code=error.code,
                problem=error.problem,
                **facts,
            )
        )


def _tenants(connection: Connection) -> list[int]:
    return [row["tenant_id"] for row in connection.execute("SELECT tenant_id FROM chain_head ORDER BY tenant_id")]


def _behind(connection: Connection, tenant_id: int) -> tuple[int, int]:
    """Return how many events no checkpoint covers, and the time of the first of them."""
    covered = connection.execute(
        "SELECT COALESCE(max(number), 0) AS number FROM checkpoint WHERE tenant_id = ?", (tenant_id,)
    ).fetchone()["number"]
    number, _ = chain.head(connection, tenant_id)
    row = connection.execute(
        "SELECT at FROM event WHERE tenant_id = ? AND number = ?", (tenant_id, covered + 1)
    ).fetchone()
    # A head below what was covered: history was cut. The signer shall see it at once.
    return (max(1, number - covered) if number != covered else 0), (0 if row is None else int(row["at"]))


def _digests_after(connection: Connection, tenant_id: int, signed: Signed) -> bytes:
    """Return the digests of the events after what was signed, computed from the events themselves.

    Hashes stored after what was signed are not used: what the signer binds is what an auditor will
    read. Raises ChainBrokenError when the chain ends before what was signed, or was another there:
    the events after it would be bound to a past that nobody can read any more.
    """
    if chain.hash_at(connection, tenant_id, signed.number) != signed.hash:
        number, _ = chain.head(connection, tenant_id)
        raise ChainBrokenError(
            "The chain ends before what the signer signed, or is another one there",
            tenant=tenant_id,
            signed=signed.number,
            head=number,
        )
    digests = bytearray()
    after = signed.number
    while len(digests) // 32 < MAX_DIGESTS:
        rows = connection.execute(
            "SELECT number, at, kind, actor, subject, facts FROM event WHERE tenant_id = ? AND number > ? "
            "ORDER BY number LIMIT ?",
            (tenant_id, after, min(_PAGE_OF_DIGESTS, MAX_DIGESTS - len(digests) // 32)),
        ).fetchall()
        if not rows:
            break
        for row in rows:
            digests += event_digest(chain.value_of(row, tenant_id=tenant_id, number=int(row["number"])))
        after = int(rows[-1]["number"])
    return bytes(digests)


def _store(connection: Connection, tenant_id: int, made: dict[str, Any]) -> None:
    connection.execute(
        "INSERT INTO checkpoint(tenant_id, number, at, envelope) VALUES (?, ?, ?, ?) "
        "ON CONFLICT (tenant_id, number) DO NOTHING",
        (tenant_id, made["number"], made["at"], canonical.encode(made["envelope"])),
    )


def list_checkpoints(
    connection: Connection, scope: Scope, *, after: int = 0, last: int | None = None, limit: int = MAX_PAGE
) -> list[dict[str, Any]]:
    """Return signed checkpoints with numbers above `after`, up to `last`."""
    scope.require_unlimited("Reading the audit chain")
    rows = connection.execute(
        "SELECT number, at, envelope FROM checkpoint WHERE tenant_id = ? AND number > ? AND number <= ? "
        "ORDER BY number LIMIT ?",
        (scope.tenant_id, after, 2**62 if last is None else last, max(1, min(limit, MAX_PAGE))),
    )
    return [
        {
            "number": row["number"],
            "at": row["at"],
            "envelope": canonical.decode_object(
                bytes(row["envelope"]), limit_bytes=MAX_ENVELOPE_LENGTH_BYTES, what="checkpoint"
            ),
        }
        for row in rows
    ]
