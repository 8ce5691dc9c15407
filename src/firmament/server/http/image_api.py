"""Operator API: payload bytes, publishing, releases."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from fastapi import Request, Response

from firmament.core.ids import PRODUCT
from firmament.errors import SlowError
from firmament.server import products
from firmament.server.http import shapes
from firmament.server.http.messages import content_length
from firmament.server.http.operator_base import OBJECT, TEXT, OperatorPart
from firmament.server.payloads import ownership
from firmament.server.payloads.port import digest_of_hex
from firmament.server.releases import store as releases
from firmament.server.releases.model import MAX_FILES, Submission
from firmament.server.scope import Action

if TYPE_CHECKING:
    from firmament.core.fields import Fields

MAX_PUBLISH_LENGTH_BYTES: Final = 64 * 1024 * 1024
# Ten product roles at TUF's limit of 5 MB each; a usual publish is below 100 KiB.
MAX_METADATA_FILE_CHARACTERS: Final = 5_000_000
CHANNEL: Final = PRODUCT


class ImageApi(OperatorPart):
    """The image repository."""

    def add_routes(self) -> None:
        """See the base."""
        router = self.router
        blob = "/api/v1/blobs/{sha256}"
        body = {"requestBody": {"required": True, "content": {"application/octet-stream": {}}}}
        router.put(blob, response_model=shapes.Blob, summary="Upload bytes", openapi_extra=body)(self.put_blob)
        router.head(blob, summary="Ask whether bytes are there")(self.head_blob)
        router.post(
            "/api/v1/image/publish",
            response_model=shapes.PublishResult,
            summary="Publish signed metadata, all of it or nothing",
            openapi_extra=shapes.takes({"metadata": OBJECT}, {"director_roots": OBJECT}),
        )(self.publish)
        router.get("/api/v1/image/state", response_model=shapes.ImageState, summary="Versions of every role")(
            self.image_state
        )
        router.get("/api/v1/products", response_model=shapes.Products, summary="List products")(self.list_products)
        router.get("/api/v1/releases", response_model=shapes.Releases, summary="List releases")(self.list_releases)
        release = "/api/v1/releases/{product}/{version}"
        router.get(release, response_model=shapes.ReleaseDetail, summary="Show a release")(self.get_release)
        router.post(
            release + "/promote",
            response_model=shapes.ReleaseDetail,
            summary="Let a channel name this release",
            openapi_extra=shapes.takes({"channel": TEXT}),
        )(self.promote)

    async def put_blob(self, request: Request, response: Response, sha256: str) -> dict[str, Any]:
        """Receive bytes; they are durable and digested when this answers. Idempotent."""
        scope = await self._scope(request)
        scope.require(Action.UPLOAD)
        digest = digest_of_hex(sha256)
        blobs = self._parts.blobs
        # New to this tenant: that somebody else sent the same bytes is not told.
        is_new = not await self._read(ownership.has_blob, scope, digest)
        upload = await asyncio.to_thread(blobs.receive, digest, expected_bytes=content_length(request.scope))
        try:
            chunks = request.stream()
            while True:
                # No limit on the whole: a large image over a slow line is fine while it moves.
                async with asyncio.timeout(self._parts.settings.body_deadline_s):
                    chunk = await anext(chunks, None)
                if chunk is None:
                    break
                await asyncio.to_thread(upload.write, chunk)
            length = await asyncio.to_thread(upload.finish)
        except TimeoutError:
            raise SlowError("The upload stopped", deadline_s=self._parts.settings.body_deadline_s) from None
        finally:
            await asyncio.to_thread(upload.abandon)
        await self._change(ownership.note_blob, scope, digest, length_bytes=length, now=self._parts.clock.now())
        ownership.require_kept(await asyncio.to_thread(blobs.length_bytes, digest), length)
        response.status_code = 201 if is_new else 200
        return {"sha256": sha256, "length_bytes": length}

    async def head_blob(self, request: Request, sha256: str) -> Response:
        """Say whether bytes are there; 200 or 404."""
        scope = await self._scope(request)
        scope.require(Action.UPLOAD)
        digest = digest_of_hex(sha256)
        is_ours = await self._read(ownership.has_blob, scope, digest)
        length = await asyncio.to_thread(self._parts.blobs.length_bytes, digest) if is_ours else None
        if length is None:
            return Response(status_code=404)
        return Response(status_code=200, headers={"content-length": str(length)})

    async def publish(self, request: Request) -> dict[str, Any]:
        """Publish; see `releases.admission`."""
        scope = await self._scope(request)
        scope.require(Action.PUBLISH)
        fields = await self._fields(request, limit_bytes=MAX_PUBLISH_LENGTH_BYTES)
        submission = Submission(_files(fields, "metadata"), _files(fields, "director_roots"))
        return await self._parts.publisher.publish(scope, submission)

    async def image_state(self, request: Request) -> dict[str, Any]:
        """Return what is published."""
        scope = await self._readable(request)
        await self._parts.publisher.catch_up()
        state = self._parts.publisher.published.state()
        foreign = await self._read(products.foreign, scope, self._parts.publisher.published.products)
        return {**state, "roles": {name: version for name, version in state["roles"].items() if name not in foreign}}

    async def list_products(self, request: Request) -> dict[str, Any]:
        """List product lines."""
        return {"products": await self._read(products.list_products, await self._readable(request))}

    async def list_releases(self, request: Request) -> dict[str, Any]:
        """List releases, of one product or all."""
        product = request.query_params.get("product")
        return {"releases": await self._read(releases.list_releases, await self._readable(request), product=product)}

    async def get_release(self, request: Request, product: str, version: str) -> dict[str, Any]:
        """Show one release."""
        scope = await self._readable(request, product=product)
        return await self._read(releases.get_release, scope, product=product, version=version)

    async def promote(self, request: Request, product: str, version: str) -> dict[str, Any]:
        """Point a channel at a release."""
        scope = await self._scope(request)
        channel = (await self._fields(request)).text("channel", max_length=63, pattern=CHANNEL)
        now = self._parts.clock.now()
        await self._change(
            lambda connection: releases.promote(
                connection, scope, product=product, version=version, channel=channel, now=now
            )
        )
        return await self._read(releases.get_release, scope, product=product, version=version)


def _files(fields: Fields, name: str) -> dict[str, bytes]:
    texts = fields.text_map(
        name, max_items=MAX_FILES, max_length=MAX_METADATA_FILE_CHARACTERS, optional=name != "metadata"
    )
    return {file_name: text.encode() for file_name, text in texts.items()}
