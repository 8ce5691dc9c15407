"""Publishing: verify, sign, write, switch, index, in this order, one at a time.

On a database of its own the switch is a symlink (generations.py) and the index follows. On a
shared one both are one transaction that only the server wins whose generation is still the
served one (shared.py); the others begin again, and everybody's directory follows the rows.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from firmament.errors import (
    FirmamentError,
    MalformedMetadataError,
    NotFoundError,
    OverloadedError,
    TornPublishError,
)
from firmament.log import logger
from firmament.server import events, products
from firmament.server.consent.answers import require_notes
from firmament.server.events import Event
from firmament.server.payloads.ownership import pin_blobs
from firmament.server.payloads.port import require_blob
from firmament.server.releases import shared, store
from firmament.server.releases.admission import Circumstances, admit
from firmament.server.releases.generations import require_signed
from firmament.server.releases.model import Carried
from firmament.server.scope import FIRST_TENANT, SERVER, Action
from firmament.trust import repository
from firmament.trust.roles import ROOT, TARGETS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from firmament.core.clock import Clock
    from firmament.server.database.port import Connection, Database
    from firmament.server.payloads.port import BlobStore
    from firmament.server.releases.generations import Generations
    from firmament.server.releases.model import Admitted, Published, Submission
    from firmament.server.scope import Scope
    from firmament.server.signer_client import SignerClient

log = logger("server.releases")

MAX_TRIES: Final = 5
"""Of a publish while other servers publish as well."""


class Publisher:
    """The one that changes the repository."""

    def __init__(
        self,
        *,
        generations: Generations,
        blobs: BlobStore,
        signer: SignerClient,
        database: Database,
        online_keyids: Mapping[str, Mapping[str, str]],
        clock: Clock,
    ) -> None:
        self._generations = generations
        self._blobs = blobs
        self._signer = signer
        self._database = database
        self._online_keyids = online_keyids
        self._clock = clock
        self._turn = asyncio.Lock()
        self._catching_up = asyncio.Lock()
        self.published: Published = generations.load()

    async def recover(self) -> None:
        """Bring rows and directory together: a crash, a restore or a command may have come between them."""
        if self._database.is_shared:
            await self.catch_up()
        ours, releases = self.published, store.published_releases(self.published)

        def mend(connection: Connection) -> None:
            if self._database.is_shared and not self._is_ours(connection, ours):
                return  # another server publishes at this moment, rows and all
            store.index(connection, SERVER, releases, self._clock.now())

        await self._database.submit(mend)

    @staticmethod
    def _is_ours(connection: Connection, ours: Published) -> bool:
        """Whether ours is what the rows serve, now: after a restore the directory may be newer than they are."""
        found = shared.number(connection)
        if found < ours.generation:
            return shared.commit(connection, ours, instead_of=found)
        return found == ours.generation

    async def catch_up(self) -> None:
        """Serve what any server published: nothing to do on a database of our own.

        Raises OverloadedError when the database cannot say: an older timestamp than a device saw
        would be refused by it as a rollback.
        """
        if not self._database.is_shared:
            return
        row = await self._database.look_up(shared.NUMBER_QUERY, shared.GENERATION)
        if row is None or int(row["value"]) <= self.published.generation:
            return
        found = await self._database.read(shared.load)
        if found is not None:
            await self._serve(found)

    async def _serve(self, published: Published) -> None:
        async with self._catching_up:
            if published.generation > self.published.generation:
                await asyncio.to_thread(self._generations.install, published)
                self.published = published

    async def publish(self, scope: Scope, submission: Submission) -> dict[str, Any]:
        """Publish all of it or nothing; see `admission.admit` for what can be wrong."""
        async with self._turn:
            try:
                return await self._publish(scope, submission)
            except FirmamentError as error:
                code, problem = error.code, error.problem
                log.warning("publish.refused", code=code, actor=scope.actor, reason=str(error))
                await self._database.submit(
                    lambda connection: events.append(
                        connection, scope, Event.PUBLISH_REFUSED, self._clock.now(), code=code, problem=problem
                    )
                )
                raise

    async def _publish(self, scope: Scope, submission: Submission) -> dict[str, Any]:
        for _ in range(MAX_TRIES):
            await self.catch_up()
            current = self.published
            known = await self._database.read(store.histories)
            owners = await self._database.read(products.owners)
            _require_own(owners, current, submission, scope)
            circumstances = Circumstances(self._online_keyids, known, self._clock.now())
            admitted = await asyncio.to_thread(admit, current, submission, scope, circumstances)
            if await self._switch(scope, current, admitted):
                break
        else:
            raise OverloadedError("Other servers publish all the time", tries=MAX_TRIES, retry_after_s=1)
        log.info("publish.done", actor=scope.actor, snapshot_version=self.published.snapshot_version)
        return {
            "snapshot_version": self.published.snapshot_version,
            "releases": [
                release.manifest.release_id
                for release in admitted.releases
                if owners.get(release.manifest.product, FIRST_TENANT) == scope.tenant_id
            ],
        }

    async def _switch(self, scope: Scope, current: Published, admitted: Admitted) -> bool:
        """Sign, write and index; return whether `current` was still what is served."""
        complete = current
        if admitted.is_changed:
            new = [(path, repository.digest_of(admitted.targets[path])) for path in admitted.new_targets]
            now = self._clock.now()
            await self._database.submit(lambda connection: pin_blobs(connection, scope, new, now))
            await self._database.read(lambda connection: self._require_notes(connection, scope, admitted))
            await asyncio.to_thread(self._require_blobs, admitted)
            signed = await self._signer.publish(current, admitted.next.versions)
            complete = require_signed(admitted.next, _files(signed))
            await asyncio.to_thread(self._show_targets, admitted)
            if not self._database.is_shared:
                await self._serve(complete)

        def write(connection: Connection) -> bool:
            if self._database.is_shared and not _is_won(connection, complete, current):
                return False
            store.index(connection, scope, admitted.releases, self._clock.now())
            return True

        is_won = await self._database.submit(write)
        if is_won:
            await self._serve(complete)
        return is_won

    def _require_notes(self, connection: Connection, scope: Scope, admitted: Admitted) -> None:
        """Refuse a new release without notes for owners where owners are asked (docs/integrate/consent.md)."""
        new, now = set(admitted.new_targets), self._clock.now()
        for release in admitted.releases:
            if release.target in new:
                require_notes(connection, scope, release.manifest, now)

    def _require_blobs(self, admitted: Admitted) -> None:
        for path in admitted.new_targets:
            target = admitted.targets[path]
            require_blob(self._blobs, repository.digest_of(target), target.length, target=path)

    async def carried(self, product: str, *, lifetime_s: int) -> Carried:
        """Return what a parcel needs of the repository, for one product; raises NotFoundError, TornPublishError."""
        async with self._turn:
            await self.catch_up()
            current = self.published
            if not current.timestamp_version or product not in current.products:
                raise NotFoundError("Nothing was published for this product", product=product)
            signed = await self._signer.carried(current, lifetime_s=lifetime_s)
        assert current.root is not None
        assert current.targets is not None
        assert current.director_root is not None
        role = current.products[product]
        wanted = {f"{current.targets.signed.version}.{TARGETS}.json", f"{role.signed.version}.{product}.json"}
        image = {
            name: data for name, data in current.image_files.items() if name in wanted or name.endswith(f".{ROOT}.json")
        }
        return Carried(
            image={**image, **_files(signed)},
            director=current.director_files,
            expires_at=min(one.signed.expires for one in (current.root, current.targets, current.director_root, role)),
        )

    def _show_targets(self, admitted: Admitted) -> None:
        for target in admitted.targets.values():
            self._blobs.publish(repository.target_file_name(target), repository.digest_of(target))

    async def refresh(self) -> bool:
        """Let the signer renew what is about to expire; whether something was renewed."""
        async with self._turn:
            await self.catch_up()
            current = self.published
            if not current.timestamp_version:
                return False
            try:
                signed = await self._signer.refresh(current)
            except TornPublishError as error:
                log.error("signer.torn-publish", reason=str(error))  # noqa: TRY400 - a sentence, no traceback
                return False
            files = _files(signed)
            if not files:
                return False
            complete = require_signed(_next(current), files)
            if self._database.is_shared and not await self._database.submit(
                lambda connection: _is_won(connection, complete, current)
            ):
                return False
            await self._serve(complete)
            log.info("signer.refreshed", timestamp_version=complete.timestamp_version)
            return True


def _is_won(connection: Connection, complete: Published, current: Published) -> bool:
    if complete is current:
        return shared.number(connection) == current.generation
    return shared.commit(connection, complete, instead_of=current.generation)


def _require_own(owners: Mapping[str, int], current: Published, submission: Submission, scope: Scope) -> None:
    """Refuse metadata of another tenant's product like that of one that is not delegated.

    Together with new delegations, which only the first tenant may publish, it is taken: a change
    of keys has to come with the roles that the new keys signed.
    """
    names = {name.split(".")[1] for name in submission.metadata if name.count(".") == 2}  # noqa: PLR2004 - N.role.json
    if TARGETS in names and scope.may(Action.PUBLISH_ROOT):
        return
    foreign = {
        name
        for name in names - {ROOT, TARGETS}
        if owners.get(name, FIRST_TENANT if name in current.products else scope.tenant_id) != scope.tenant_id
    }
    if foreign:
        raise MalformedMetadataError("A role is not delegated by the targets", roles=" ".join(sorted(foreign)))


def _files(signed: Mapping[str, Any]) -> dict[str, bytes]:
    return {str(name): str(text).encode() for name, text in signed["files"].items()}


def _next(published: Published) -> Published:
    return replace(published, generation=published.generation + 1)
