"""Removing payloads that nothing refers to any more: ``firmament server gc``, and the leader by itself.

What is referred to is read from the signed repository and the database; what is stored, from the
store. A blob goes when nothing names it and it was neither sent nor relied on within the grace
period. Each batch is decided again and removed within one transaction of the database, in turn
with every running server: a publish first writes down which blobs it relies on
(`ownership.pin_blobs`), so it either keeps them, or comes after and is told to send them again.

The order within the transaction is removal, then rows: if the commit fails, a row tells of bytes
that are gone, and the next upload sends them again. The other way round, bytes would stay for ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from tuf.api.metadata import Targets

from firmament.errors import CorruptStateError
from firmament.server import events
from firmament.server.events import Event
from firmament.server.inventory.store import decode_manifest
from firmament.server.payloads.port import digest_of_hex
from firmament.trust import repository

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from collections.abc import Set as AbstractSet

    from firmament.core.digest import Digest
    from firmament.server.database.opening import CommandDatabase
    from firmament.server.database.port import Connection
    from firmament.server.payloads.port import BlobStore, StoredBlob, StoredTarget
    from firmament.server.releases.model import Published
    from firmament.server.scope import Scope

BATCH: Final = 50
"""Blobs removed in one transaction: others wait for it, some milliseconds a blob."""
MAX_NAMED: Final = 100
"""Digests in the facts of one event."""


@dataclass(frozen=True, slots=True)
class Doomed:
    """A blob that nothing refers to, and the names it was published under."""

    digest: Digest
    length_bytes: int
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """What a look found; each batch is decided once more when it is removed."""

    stored: int
    doomed: list[Doomed]

    def batches(self) -> Iterator[list[Doomed]]:
        """Yield what goes in one transaction each."""
        for start in range(0, len(self.doomed), BATCH):
            yield self.doomed[start : start + BATCH]


@dataclass(frozen=True, slots=True)
class Collected:
    """What was removed, or would be."""

    blobs: int = 0
    length_bytes: int = 0
    kept: int = 0
    uploads: int = 0
    """Cut-short uploads that the store still held."""


def doomed(
    blobs: Iterable[StoredBlob], targets: Iterable[StoredTarget], *, referenced: AbstractSet[Digest], before: datetime
) -> list[Doomed]:
    """Decide what may go: not referred to, and neither stored nor published since `before`."""
    names: dict[Digest, list[str]] = {}
    lengths: dict[Digest, int] = {}
    kept = set(referenced)
    for blob in blobs:
        lengths[blob.digest] = blob.length_bytes
        if blob.stored_at >= before:
            kept.add(blob.digest)
    for target in targets:
        names.setdefault(target.digest, []).append(target.name)
        if target.stored_at >= before:
            kept.add(target.digest)
    # Names without a blob go too: a directory's link would hold the bytes by itself.
    return [
        Doomed(digest, lengths.get(digest, 0), tuple(sorted(names.get(digest, ()))))
        for digest in {**lengths, **names}
        if digest not in kept
    ]


def referenced_by_repository(published: Published) -> set[Digest]:
    """Return what any metadata that is still served names, expired or not."""
    found: set[Digest] = set()
    for name, data in published.image_files.items():
        role = name.removesuffix(".json").rpartition(".")[2]
        if role in {"root", "snapshot", "timestamp"}:
            continue
        signed = repository.read(data, Targets, what=name).signed
        found.update(repository.digest_of(target) for target in signed.targets.values())
    return found


def referenced_by_rows(connection: Connection, before: datetime) -> set[Digest]:
    """Return what releases, running attempts, bills of materials and recent uploads name.

    A release that was withdrawn before `before` no longer counts, unless an attempt still runs.
    """
    moment = int(before.timestamp())
    found: set[Digest] = set()
    for row in connection.execute(
        "SELECT manifest FROM release WHERE withdrawn_at IS NULL OR withdrawn_at >= ? "
        "OR EXISTS (SELECT 1 FROM attempt WHERE attempt.release_id = release.id AND attempt.active = 1)",
        (moment,),
    ):
        found.update(payload.digest for payload in decode_manifest(bytes(row["manifest"])).payloads)
    query = "SELECT digest FROM sbom UNION SELECT digest FROM tenant_blob WHERE at >= ?"
    for row in connection.execute(query, (moment,)):
        found.add(digest_of_hex(row["digest"].removeprefix("sha256:")))
    return found


def _knows_releases(connection: Connection) -> bool:
    return connection.execute("SELECT 1 FROM release LIMIT 1").fetchone() is not None


class Collector:
    """Looks and removes; servers may run."""

    def __init__(self, blobs: BlobStore, load: Callable[[Connection], Published], *, grace: timedelta) -> None:
        self._blobs = blobs
        self._load = load
        self._grace = grace

    def collect(self, database: CommandDatabase, scope: Scope, now: datetime, *, pretend: bool) -> Collected:
        """Remove what nothing refers to; with `pretend`, only say what. Raises OverloadedError, CorruptStateError.

        Whatever was removed before an error is in the audit log.
        """
        found = self.look(database, now)
        removed: list[Doomed] = found.doomed
        if not pretend:
            removed = []
            for batch in found.batches():
                removed += database.transact(lambda connection, batch=batch: self.remove(connection, scope, batch, now))  # type: ignore[misc]  # bound now
        return self.finish(found, removed, now, pretend=pretend)

    def look(self, database: CommandDatabase, now: datetime) -> Found:
        """Find what may go; changes nothing. Raises OverloadedError, CorruptStateError."""
        stored, targets = list(self._blobs.blobs()), list(self._blobs.targets())
        if targets and not database.read(_knows_releases):
            raise CorruptStateError("The database knows no release, yet payloads are published; it may be another one")
        before = self._before(now)
        referenced = database.read(lambda connection: self._referenced(connection, before))
        return Found(len(stored), doomed(stored, targets, referenced=referenced, before=before))

    def finish(self, found: Found, removed: Sequence[Doomed], now: datetime, *, pretend: bool = False) -> Collected:
        """Remove uploads that were cut short, too, and sum up."""
        blobs = [one for one in removed if one.length_bytes or not one.names]
        return Collected(
            blobs=len(blobs),
            length_bytes=sum(one.length_bytes for one in blobs),
            kept=found.stored - len(blobs),
            uploads=self._blobs.clean(self._before(now), pretend=pretend),
        )

    def _before(self, now: datetime) -> datetime:
        return now.astimezone(UTC) - self._grace

    def _referenced(self, connection: Connection, before: datetime) -> set[Digest]:
        return referenced_by_repository(self._load(connection)) | referenced_by_rows(connection, before)

    def remove(self, connection: Connection, scope: Scope, batch: list[Doomed], now: datetime) -> list[Doomed]:
        """Remove one batch, what is referred to meanwhile excepted; returns what went."""
        before = self._before(now)
        referenced = self._referenced(connection, before)
        removed = []
        for one in batch:
            at = self._blobs.stored_at(one.digest)
            if one.digest in referenced or (at is not None and at >= before):
                continue  # sent, published or relied on since the listing
            self._blobs.remove(one.digest, one.names)
            connection.execute("DELETE FROM tenant_blob WHERE digest = ?", (str(one.digest),))
            removed.append(one)
        if removed:
            events.append(
                connection,
                scope,
                Event.BLOBS_REMOVED,
                now,
                count=len(removed),
                length_bytes=sum(one.length_bytes for one in removed),
                digests=[str(one.digest) for one in removed[:MAX_NAMED]],
            )
        return removed
