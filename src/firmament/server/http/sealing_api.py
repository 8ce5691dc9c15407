"""Operator API: content keys of sealed payloads, and the wrapping keys of devices."""

from __future__ import annotations

import asyncio
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

from fastapi import Request, Response

from firmament.core.ids import PRODUCT, VERSION, check, release_id
from firmament.errors import DigestMismatchError, ForbiddenError
from firmament.payload.sealed import Opener
from firmament.payload.wrap import WRAP_LENGTH_BYTES, Custody
from firmament.server.http import shapes
from firmament.server.http.operator_base import OBJECT, TEXT, OperatorPart
from firmament.server.inventory import wrapping_keys
from firmament.server.payloads import content_keys, ownership
from firmament.server.payloads.port import digest_of_hex
from firmament.server.reports import open_wrapping_key
from firmament.server.scope import Action

if TYPE_CHECKING:
    from firmament.core.digest import Digest
    from firmament.server.payloads.port import BlobStore

MAX_KEYID_LENGTH: Final = 64


class SealingApi(OperatorPart):
    """Who may open sealed payloads."""

    def add_routes(self) -> None:
        """See the base."""
        router = self.router
        router.get(
            "/api/v1/content-keys/recipient",
            response_model=shapes.ContentKeyRecipient,
            summary="The key that content keys are wrapped for",
        )(self.recipient)
        router.put(
            "/api/v1/content-keys/{sha256}",
            response_model=shapes.ContentKey,
            summary="Give the content key of a sealed payload",
            openapi_extra=shapes.takes({"release": TEXT, "keyid": TEXT, "wrap": TEXT}),
        )(self.put_key)
        device = "/api/v1/devices/{device_id}/wrapping-key"
        router.put(
            device,
            status_code=204,
            summary="Register a device's new wrapping key",
            openapi_extra=shapes.takes({"envelope": OBJECT}),
        )(self.register)
        router.post(
            device + "/revoke",
            status_code=204,
            summary="Wrap no content key for a device any more",
            openapi_extra=shapes.takes({"reason": TEXT}),
        )(self.revoke)

    async def recipient(self, request: Request) -> dict[str, Any]:
        """Return the newest of this server's keys."""
        scope = await self._scope(request)
        scope.require(Action.UPLOAD)
        custodian = self._parts.custodian
        return {"keyid": custodian.keyid, "public_key": custodian.public_key.hex()}

    async def put_key(self, request: Request, sha256: str) -> dict[str, Any]:
        """Keep a content key that is wrapped for this server; it must open the payload, which must be here."""
        scope = await self._scope(request)
        scope.require(Action.UPLOAD)
        digest = digest_of_hex(sha256)
        fields = await self._fields(request)
        product, _, version = fields.text("release", max_length=128).partition("/")
        check(product, PRODUCT, what="The product name")
        check(version, VERSION, what="The version")
        scope.require_product(product)
        release, keyid = release_id(product, version), fields.text("keyid", max_length=MAX_KEYID_LENGTH)
        wrapped = fields.base64_bytes("wrap", max_length=WRAP_LENGTH_BYTES)
        if not await self._read(ownership.has_blob, scope, digest):
            raise DigestMismatchError("The bytes of a target were not uploaded", sha256=sha256)
        key = self._parts.custodian.open(wrapped, keyid, Custody(release, digest.value))
        await asyncio.to_thread(_require_opens, self._parts.blobs, digest, key)
        await self._change(
            content_keys.put_key,
            scope,
            digest,
            release=release,
            keyid=keyid,
            wrapped=wrapped,
            now=self._parts.clock.now(),
        )
        return {"sha256": sha256, "release": release, "keyid": keyid}

    async def register(self, request: Request, device_id: str) -> Response:
        """Take a new wrapping key that the device's identity key signed."""
        scope = await self._scope(request)
        envelope = (await self._fields(request)).object("envelope").value
        identity_key, keyid = await self._read(wrapping_keys.identity_of, scope, device_id)
        found = open_wrapping_key(envelope, identity_key=identity_key, keyid=keyid)
        if found.device_id != device_id:
            raise ForbiddenError("A wrapping key is for another device", device_id=device_id, claimed=found.device_id)
        await self._change(
            wrapping_keys.register, scope, device_id, public_key=found.hpke_public_key, now=self._parts.clock.now()
        )
        return Response(status_code=204)

    async def revoke(self, request: Request, device_id: str) -> Response:
        """Stop wrapping for a device."""
        scope = await self._scope(request)
        scope.require(Action.MANAGE_DEVICES)
        reason = (await self._fields(request)).text("reason", max_length=wrapping_keys.MAX_REASON_LENGTH)
        await self._change(wrapping_keys.revoke, scope, device_id, reason=reason, now=self._parts.clock.now())
        return Response(status_code=204)


def _require_opens(blobs: BlobStore, digest: Digest, key: bytes) -> None:
    """Raise SealedError unless the key opens the container's first chunk (blocking)."""
    with closing(blobs.open_blob(digest)) as source:
        Opener(source, source.length_bytes, key, max_plain_length_bytes=source.length_bytes).chunk(0)
