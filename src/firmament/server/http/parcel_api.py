"""Operator API: what goes into a parcel, its payloads, and the receipts that come back."""

from __future__ import annotations

import asyncio
import uuid
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from fastapi import Request  # noqa: TC002 - FastAPI reads the annotations when it runs
from fastapi.responses import StreamingResponse

from firmament.core.fields import format_time
from firmament.core.ids import PRODUCT, VERSION, AttemptId
from firmament.core.manifest import CHUNKS_SUFFIX
from firmament.errors import FirmamentError, MalformedError, NotFoundError
from firmament.protocol.parcel import MAX_RECEIPT_LENGTH_BYTES, ParcelKind, ReceiptFile
from firmament.server import device_link
from firmament.server.attempts import service as attempts
from firmament.server.device_link import Session
from firmament.server.http import shapes
from firmament.server.http.device_api import reply_version
from firmament.server.http.operator_base import INTEGER, OBJECT, TEXT, OperatorPart
from firmament.server.inventory.store import get_device
from firmament.server.parcels import receipts, service
from firmament.server.payloads.port import digest_of_hex
from firmament.server.scope import Action, of_device
from firmament.trust.director import MAX_CARRIED_LIFETIME, make_carried

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from firmament.core.manifest import Payload
    from firmament.durable import Reader
    from firmament.server.inventory.model import Device

DEFAULT_LIFETIME_S: Final = 14 * 86_400
PIECE_BYTES: Final = 256 * 1024


class ParcelApi(OperatorPart):
    """Updates by hand."""

    def add_routes(self) -> None:
        """See the base."""
        router = self.router
        router.post(
            "/api/v1/parcels",
            response_model=shapes.Parcel,
            summary="Assign a release to devices without a network, and sign what is carried to them",
            openapi_extra=shapes.takes(
                {"release": TEXT}, {"ids": "array", "query": TEXT, "kind": TEXT, "lifetime_s": INTEGER}
            ),
        )(self.export)
        router.get(
            "/api/v1/releases/{product}/{version}/payloads/{sha256}",
            summary="Fetch the bytes of a release",
            response_class=StreamingResponse,
        )(self.payload)
        router.post(
            "/api/v1/receipts",
            response_model=shapes.ReceiptTaken,
            summary="Record what a device did without a network",
            openapi_extra=shapes.takes({"v": INTEGER, "device_id": TEXT, "receipt": OBJECT, "report": OBJECT}),
        )(self.receive)

    async def export(self, request: Request) -> dict[str, Any]:
        """Make one."""
        scope = await self._scope(request)
        fields = await self._fields(request)
        product, _, version = fields.text("release", max_length=128).partition("/")
        scope.require(Action.ASSIGN, product=product)
        kind = fields.one_of("kind", ParcelKind, default=ParcelKind.DIRECTOR)
        is_directed = kind is ParcelKind.DIRECTOR
        ids = fields.texts("ids", max_items=service.MAX_DEVICES, optional=True)
        query = fields.text("query", max_length=4000) if "query" in fields else None
        if is_directed == (not ids and query is None) or (ids and query is not None):
            raise MalformedError("A director's parcel is for devices, named by `ids` or by `query`; any other is not")
        longest = int(MAX_CARRIED_LIFETIME.total_seconds())
        lifetime_s = fields.integer("lifetime_s", minimum=3600, maximum=longest, default=DEFAULT_LIFETIME_S)
        now = self._parts.clock.now().replace(microsecond=0)
        wanted = await self._read(service.wanted_release, scope, product=product, version=version)
        carried = await self._parts.publisher.carried(product, lifetime_s=lifetime_s)
        expires_at = min(carried.expires_at, now + timedelta(seconds=lifetime_s))
        parcel_id = str(uuid.uuid4())
        devices: dict[str, Any] = {}
        payloads: dict[str, Payload] = {}
        if not is_directed:
            payload = service.choose_carried(wanted.manifest)
            payloads[payload.target] = payload
        else:
            custodian = self._parts.custodian
            addressees = await self._parts.database.submit(
                lambda connection: service.address(
                    connection, scope, wanted, custodian, ids=ids, query=query, parcel_id=parcel_id, now=now
                )
            )
            for one in addressees:
                payloads[one.payload.target] = one.payload
                made = make_carried(
                    self._parts.director_keys,
                    device_id=one.device_id,
                    parcel_id=parcel_id,
                    assignment=one.assignment,
                    now=now,
                    expires_at=expires_at,
                    version=await reply_version(self._parts, one.device_id, int(now.timestamp()), trusted=0),
                )
                devices[one.device_id] = made.to_json()
        return {
            "parcel_id": parcel_id,
            "kind": kind.value,
            "product": product,
            "target": wanted.target,
            "created_at": format_time(now),
            "expires_at": format_time(expires_at),
            "image": {name: data.decode() for name, data in carried.image.items()},
            "director": {name: data.decode() for name, data in carried.director.items()} if is_directed else {},
            "devices": devices,
            "payloads": [item for payload in payloads.values() for item in _payloads(payload)],
        }

    async def payload(self, request: Request, product: str, version: str, sha256: str) -> StreamingResponse:
        """Send bytes of a published release, whole."""
        scope = await self._readable(request, product=product)
        if not PRODUCT.fullmatch(product) or not VERSION.fullmatch(version):
            raise NotFoundError("There is no such release", release=f"{product}/{version}"[:128])
        wanted = await self._read(service.wanted_release, scope, product=product, version=version)
        known = {item["sha256"]: item for one in wanted.manifest.payloads for item in _payloads(one)}
        if sha256 not in known:
            raise NotFoundError("The release has no such payload", sha256=sha256[:80])
        length = known[sha256]["length_bytes"]
        reader = await asyncio.to_thread(self._parts.blobs.open_blob, digest_of_hex(sha256))
        headers = {"content-length": str(length), "content-type": "application/octet-stream"}
        return StreamingResponse(_pieces(reader, length), headers=headers)

    async def receive(self, request: Request) -> dict[str, Any]:
        """Take a receipt."""
        scope = await self._scope(request)
        scope.require(Action.RECORD)
        file = ReceiptFile.from_fields(await self._fields(request, limit_bytes=MAX_RECEIPT_LENGTH_BYTES))
        await self._read(get_device, scope, file.device_id)
        found = await self._parts.link_reader.find(file.device_id)
        if found is None:
            raise NotFoundError("There is no such device", device_id=file.device_id)
        device = found[0]
        try:
            opened = receipts.open_file(file, device, await self._parts.link_reader.identity_key(device))
            about = await self._parts.link_reader.attempt(AttemptId(opened.report.attempt_id))
            attempt, owner = about if about is not None else (None, None)
            device_link.check_report(Session(device, attempt), opened.report, owner_row_id=owner)
            now = self._parts.clock.now()
            is_new = await self._parts.database.submit(
                lambda connection: receipts.take(connection, scope, device, attempt, opened, now)
            )
        except FirmamentError as error:
            await self._note_refusal(device, error)
            raise
        return dict(receipts.answer(opened, is_new=is_new))

    async def _note_refusal(self, device: Device, error: FirmamentError) -> None:
        note = device_link.refusal_note(error, number=None)
        now = self._parts.clock.now()
        who = of_device(device.tenant_id, device.device_id)
        await self._parts.database.submit(lambda connection: attempts.carry_out(connection, who, device, [note], now))


def _payloads(payload: Payload) -> list[dict[str, Any]]:
    """Return what travels for one payload: its bytes, and its chunk list."""
    found = [{"target": payload.target, "sha256": payload.digest.hex, "length_bytes": payload.length_bytes}]
    if payload.chunks is not None:
        target, length = payload.target + CHUNKS_SUFFIX, payload.chunks.list_length_bytes(payload.length_bytes)
        found.append({"target": target, "sha256": payload.chunks.list_digest.hex, "length_bytes": length})
    return found


async def _pieces(reader: Reader, length_bytes: int) -> AsyncIterator[bytes]:
    try:
        offset = 0
        while offset < length_bytes:
            piece = await asyncio.to_thread(reader.read_at, offset, PIECE_BYTES)
            if not piece:
                return
            offset += len(piece)
            yield piece
    finally:
        reader.close()
