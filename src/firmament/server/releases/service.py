"""Publishing: verify, sign, write, switch, index, in this order, one at a time."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from firmament.errors import FirmamentError, TornPublishError
from firmament.log import logger
from firmament.server import events
from firmament.server.events import Event
from firmament.server.payloads.store import require_blob
from firmament.server.releases import store
from firmament.server.releases.admission import Circumstances, admit
from firmament.server.releases.generations import require_signed
from firmament.server.scope import SERVER
from firmament.trust import repository

if TYPE_CHECKING:
    from collections.abc import Mapping

    from firmament.core.clock import Clock
    from firmament.server.database.port import Database
    from firmament.server.payloads.store import BlobStore
    from firmament.server.releases.generations import Generations
    from firmament.server.releases.model import Admitted, Published, Submission
    from firmament.server.scope import Scope
    from firmament.server.signer_client import SignerClient

log = logger("server.releases")


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
        self.published: Published = generations.load()

    async def recover(self) -> None:
        """Bring the index up to what is served: a crash may have come between the two."""
        releases = store.published_releases(self.published)
        await self._database.submit(lambda connection: store.index(connection, SERVER, releases, self._clock.now()))

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
        known = await self._database.read(lambda connection: store.histories(connection, scope))
        circumstances = Circumstances(self._online_keyids, known, self._clock.now())
        admitted = await asyncio.to_thread(admit, self.published, submission, scope, circumstances)
        if admitted.is_changed:
            await asyncio.to_thread(self._require_blobs, admitted)
            signed = await self._signer.publish(self.published, admitted.next.versions)
            complete = require_signed(admitted.next, _files(signed))
            await asyncio.to_thread(self._install, complete, admitted)
            self.published = complete
        await self._database.submit(
            lambda connection: store.index(connection, scope, admitted.releases, self._clock.now())
        )
        log.info("publish.done", actor=scope.actor, snapshot_version=self.published.snapshot_version)
        return {
            "snapshot_version": self.published.snapshot_version,
            "releases": [release.manifest.release_id for release in admitted.releases],
        }

    def _require_blobs(self, admitted: Admitted) -> None:
        for path in admitted.new_targets:
            target = admitted.targets[path]
            require_blob(self._blobs, repository.digest_of(target), target.length, target=path)

    def _install(self, published: Published, admitted: Admitted) -> None:
        self._generations.link_targets(admitted.targets, self._blobs)
        self._generations.install(published)

    async def refresh(self) -> bool:
        """Let the signer renew what is about to expire; whether something was renewed."""
        async with self._turn:
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
            await asyncio.to_thread(self._generations.install, complete)
            self.published = complete
            log.info("signer.refreshed", timestamp_version=complete.timestamp_version)
            return True


def _files(signed: Mapping[str, Any]) -> dict[str, bytes]:
    return {str(name): str(text).encode() for name, text in signed["files"].items()}


def _next(published: Published) -> Published:
    return replace(published, generation=published.generation + 1)
