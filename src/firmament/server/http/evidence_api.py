"""Operator API: the audit chain and the release log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from fastapi import Request  # noqa: TC002 - the framework reads the annotation
from starlette.responses import StreamingResponse

from firmament.errors import MalformedError
from firmament.server import events
from firmament.server.audit import chain, checkpoints, export
from firmament.server.events import Wanted
from firmament.server.http import evidence_shapes as shapes
from firmament.server.http.operator_base import OperatorPart, query_integer
from firmament.server.releases import log as release_log
from firmament.server.scope import Action
from firmament.trust.audit import export_header

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from firmament.server.scope import Scope

MAX_WORD: Final = 256
NDJSON: Final = "application/x-ndjson"


class EvidenceApi(OperatorPart):
    """What an auditor reads."""

    def add_routes(self) -> None:
        """See the base."""
        router = self.router
        router.get("/api/v1/audit/key", response_model=shapes.AuditKey, summary="Get the public audit key")(self.key)
        router.get("/api/v1/audit/events", response_model=shapes.AuditEvents, summary="Search the audit chain")(
            self.search
        )
        router.get("/api/v1/audit/checkpoints", response_model=shapes.Checkpoints, summary="List signed checkpoints")(
            self.list_checkpoints
        )
        router.get(
            "/api/v1/audit/export",
            response_class=StreamingResponse,
            summary="Export the audit chain as JSON lines (docs/protocol/audit.md)",
        )(self.export)
        release = "/api/v1/releases/{product}/{version}/proof"
        router.get(release, response_model=shapes.ReleaseProof, summary="Prove that a release is in the log")(
            self.release_proof
        )
        router.get("/api/v1/release-log", response_model=shapes.ReleaseLog, summary="Get the signed tree head")(
            self.release_log
        )
        router.get(
            "/api/v1/release-log/leaves", response_model=shapes.ReleaseLogLeaves, summary="List the log's leaves"
        )(self.leaves)

    async def _auditor(self, request: Request) -> Scope:
        scope = await self._scope(request)
        scope.require(Action.SEE_AUDIT)
        scope.require_unlimited("Reading the audit chain")
        return scope

    async def key(self, request: Request) -> dict[str, Any]:
        """Return the public key; every operator may keep it."""
        await self._readable(request)
        return await self._parts.checkpoints.key()

    async def search(self, request: Request) -> dict[str, Any]:
        """Return one page of the events that match."""
        scope = await self._auditor(request)
        limit = max(1, min(query_integer(request, "limit", 100), events.MAX_PAGE))
        wanted = Wanted(
            subject=_word(request, "subject"),
            kind=_word(request, "kind"),
            actor=_word(request, "actor"),
            since=query_integer(request, "since", 0),
            until=query_integer(request, "until", 0),
        )
        is_newest = query_integer(request, "newest", 0) > 0
        after = query_integer(request, "cursor", 0)
        found = await self._read(events.find_events, scope, wanted, after=after, limit=limit, newest=is_newest)
        return {"events": found, "next": found[-1]["id"] if len(found) == limit else None}

    async def list_checkpoints(self, request: Request) -> dict[str, Any]:
        """Return one page of checkpoints."""
        scope = await self._auditor(request)
        found = await self._read(
            checkpoints.list_checkpoints, scope, after=query_integer(request, "cursor", 0), limit=checkpoints.MAX_PAGE
        )
        return {"checkpoints": found, "next": found[-1]["number"] if len(found) == checkpoints.MAX_PAGE else None}

    async def export(self, request: Request) -> StreamingResponse:
        """Stream events ``first`` to ``last``, pages at a time; what was signed stands beside them."""
        scope = await self._auditor(request)
        head, _ = await self._read(chain.head, scope.tenant_id)
        first, last = query_integer(request, "first", 1), min(query_integer(request, "last", head), head)
        if first < 1 or first > last + 1:
            raise MalformedError("The range is not in the chain", first=first, last=last, newest=head)
        if query_integer(request, "checkpoint", 1):
            # Whoever takes this away shall be able to keep where it ended.
            await self._parts.checkpoints.make(scope.tenant_id)
        previous = await self._read(export.hash_before, scope, first)
        keyid = (await self._parts.checkpoints.key())["keyid"]
        header = export_header(tenant=scope.tenant_id, first=first, previous=previous, keyid=keyid)
        return StreamingResponse(self._lines(scope, header, last), media_type=NDJSON)

    async def _lines(self, scope: Scope, header: dict[str, Any], last: int) -> AsyncIterator[bytes]:
        writer = export.Exporter(header)
        yield writer.begin()
        while writer.number < last:
            page = await self._read(export.page, scope, after=writer.number, last=last)
            yield writer.lines(page)
            if not page.events:
                break
        yield writer.end()

    async def release_proof(self, request: Request, product: str, version: str) -> dict[str, Any]:
        """Return the inclusion proof under a tree head that covers the release."""
        scope = await self._readable(request, product=product)
        found = await self._read(release_log.proof, scope, product=product, version=version)
        return {**found, "tree_head": await self._parts.checkpoints.tree_head(scope.tenant_id)}

    async def release_log(self, request: Request) -> dict[str, Any]:
        """Return tree head and consistency proof from the size that the asker knows."""
        scope = await self._auditor(request)
        found = await self._read(release_log.consistency, scope, old_size=query_integer(request, "old_size", 0))
        return {**found, "tree_head": await self._parts.checkpoints.tree_head(scope.tenant_id)}

    async def leaves(self, request: Request) -> dict[str, Any]:
        """Return one page of leaves."""
        scope = await self._auditor(request)
        after = query_integer(request, "cursor", 0)
        found = await self._read(release_log.list_leaves, scope, after=after, limit=release_log.MAX_PAGE)
        return {"leaves": found, "next": found[-1]["index"] + 1 if len(found) == release_log.MAX_PAGE else None}


def _word(request: Request, name: str) -> str | None:
    text = request.query_params.get(name)
    if text is not None and len(text) > MAX_WORD:
        raise MalformedError("A query parameter is too long", parameter=name, limit=MAX_WORD)
    return text or None
