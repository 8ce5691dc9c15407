"""Operator API: bills of materials, vulnerabilities, the compliance report."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from fastapi import Request, Response

from firmament.core.digest import Digest
from firmament.errors import MalformedError
from firmament.server import events
from firmament.server.audit import chain, checkpoints
from firmament.server.events import Wanted
from firmament.server.evidence import store
from firmament.server.evidence.compliance import Fold
from firmament.server.evidence.sbom import MAX_SBOM_LENGTH_BYTES, read_sbom
from firmament.server.evidence.statements import MAX_STATEMENT_LENGTH_BYTES, read_statements
from firmament.server.http import evidence_shapes as shapes
from firmament.server.http.messages import read_body
from firmament.server.http.operator_base import OperatorPart, query_integer
from firmament.server.payloads import ownership
from firmament.server.scope import Action, Scope

if TYPE_CHECKING:
    from firmament.server.database.port import Connection

BODY_DEADLINE_S: Final = 120.0


class SbomApi(OperatorPart):
    """What releases are made of, and who still runs what is known to be bad."""

    def add_routes(self) -> None:
        """See the base."""
        router = self.router
        body = {"requestBody": {"required": True, "content": {"application/json": {}}}}
        release = "/api/v1/sbom/{product}/{version}"
        self._turn = asyncio.Lock()
        router.put(
            release,
            response_model=shapes.SbomAdded,
            summary="Add the bill of materials that was signed",
            openapi_extra=body,
        )(self.put_sbom)
        router.get(release, response_model=shapes.Sbom, summary="Show the components of a release")(self.get_sbom)
        router.get(release + "/diff", response_model=shapes.SbomDiff, summary="Compare with another release")(self.diff)
        everything = "/api/v1/vulnerabilities"
        router.post(
            everything,
            response_model=shapes.VulnerabilitiesStated,
            summary="Import a statement: OSV, CycloneDX VEX, or simple",
            openapi_extra=body,
        )(self.state)
        router.get(everything, response_model=shapes.Vulnerabilities, summary="List vulnerabilities")(self.list_all)
        one = everything + "/{name}"
        router.get(one, response_model=shapes.Vulnerability, summary="Show who still runs it")(self.show)
        router.delete(one, status_code=204, summary="Forget a statement that was wrong")(self.drop)
        router.get(
            "/api/v1/evidence/compliance", response_model=shapes.Compliance, summary="Make the compliance report"
        )(self.compliance)

    async def _body(self, request: Request, limit_bytes: int) -> bytes:
        return await read_body(request.scope, request.receive, limit_bytes=limit_bytes, deadline_s=BODY_DEADLINE_S)

    async def put_sbom(self, request: Request, product: str, version: str) -> dict[str, Any]:
        """Take the bytes whose digest the signed manifest names; keep them as a blob."""
        scope = await self._scope(request)
        scope.require(Action.IMPORT_EVIDENCE, product=product)
        wanted = await self._read(store.wanted_digest, scope, product, version)
        async with self._turn:  # one at a time: each may take some hundred MB while it is read
            data = await self._body(request, MAX_SBOM_LENGTH_BYTES)
            store.require_digest(wanted, Digest.of(data))
            components = await asyncio.to_thread(read_sbom, data)
            await asyncio.to_thread(self._keep, wanted, data)
        now = self._parts.clock.now()

        def keep(connection: Connection) -> int:
            ownership.note_blob(connection, scope, wanted, length_bytes=len(data), now=now)
            return store.add_sbom(
                connection, scope, product=product, version=version, digest=wanted, components=components, now=now
            )

        findings = await self._change(keep)
        ownership.require_kept(await asyncio.to_thread(self._parts.blobs.length_bytes, wanted), len(data))
        return {
            "release": f"{product}/{version}",
            "digest": str(wanted),
            "components": len(components),
            "findings": findings,
        }

    def _keep(self, digest: Digest, data: bytes) -> None:
        upload = self._parts.blobs.receive(digest, expected_bytes=len(data))
        try:
            upload.write(data)
            upload.finish()
        finally:
            upload.abandon()

    async def get_sbom(self, request: Request, product: str, version: str) -> dict[str, Any]:
        """Show it."""
        scope = await self._readable(request, product=product)
        return await self._read(store.show_sbom, scope, product=product, version=version)

    async def diff(self, request: Request, product: str, version: str) -> dict[str, Any]:
        """Compare with the release of the query ``with``."""
        scope = await self._readable(request, product=product)
        old = request.query_params.get("with", "")
        if not old:
            raise MalformedError("Which release to compare with is missing", parameter="with")
        return await self._read(store.diff, scope, product=product, old=old, new=version)

    async def state(self, request: Request) -> dict[str, Any]:
        """Import statements."""
        scope = await self._scope(request)
        scope.require(Action.IMPORT_EVIDENCE)
        statements = await asyncio.to_thread(read_statements, await self._body(request, MAX_STATEMENT_LENGTH_BYTES))
        now = self._parts.clock.now()
        findings = await self._change(lambda connection: store.state(connection, scope, statements, now))
        return {"vulnerabilities": [statement.name for statement in statements], "findings": findings}

    async def list_all(self, request: Request) -> dict[str, Any]:
        """List, oldest first."""
        scope = await self._readable(request)
        limit = max(1, min(query_integer(request, "limit", 100), store.MAX_PAGE))
        after = query_integer(request, "cursor", 0)
        found = await self._read(store.list_vulnerabilities, scope, after=after, limit=limit)
        return {"vulnerabilities": found, "next": found[-1]["id"] if len(found) == limit else None}

    async def show(self, request: Request, name: str) -> dict[str, Any]:
        """Show one."""
        return await self._read(store.show_vulnerability, await self._readable(request), name)

    async def drop(self, request: Request, name: str) -> Response:
        """Forget one."""
        scope, now = await self._scope(request), self._parts.clock.now()
        await self._change(lambda connection: store.drop(connection, scope, name, now))
        return Response(status_code=204)

    async def compliance(self, request: Request) -> dict[str, Any]:
        """Fold the chain, page by page, and add what devices run now."""
        scope = await self._scope(request)
        scope.require(Action.SEE_AUDIT)
        scope.require_unlimited("The compliance report")
        now = int(self._parts.clock.now().timestamp())
        fold = Fold(since=query_integer(request, "since", 0), until=query_integer(request, "until", now + 1))
        await self._parts.checkpoints.make(scope.tenant_id)
        number, found_hash = await self._read(chain.head, scope.tenant_id)
        after = 0
        while after < number:
            page = await self._read(events.find_events, scope, Wanted(), after=after)
            for event in page:
                fold.add(event)
            after = page[-1]["id"] if page else number
            await asyncio.sleep(0)  # others first
        signed = await self._read(checkpoints.list_checkpoints, scope, after=number - 1, last=number)
        vulnerabilities = [
            await self._read(store.show_vulnerability, scope, each["name"])
            for each in await self._read(store.list_vulnerabilities, scope, after=0, limit=store.MAX_PAGE)
        ]
        return {
            **fold.result(),
            "generated_at": now,
            "since": fold.since,
            "until": fold.until,
            "chain": {
                "number": number,
                "hash": found_hash.hex(),
                "checkpoint": signed[0]["envelope"] if signed else None,
            },
            "running": await self._read(_running, scope),
            "vulnerabilities": vulnerabilities,
        }


def _running(connection: Connection, scope: Scope) -> list[dict[str, Any]]:
    """Return how many devices run what, by product and version: the supported versions in the field."""
    rows = connection.execute(
        "SELECT p.name AS product, d.version, count(*) AS devices, max(r.published_at) AS published_at "
        "FROM device d JOIN product p ON p.id = d.product_id "
        "LEFT JOIN release r ON r.product_id = d.product_id AND r.version = d.version "
        "WHERE d.tenant_id = ? AND d.disabled = 0 GROUP BY p.name, d.version ORDER BY p.name, d.version LIMIT ?",
        (scope.tenant_id, 10_000),
    )
    return [{name: row[name] for name in ("product", "version", "devices", "published_at")} for row in rows]
