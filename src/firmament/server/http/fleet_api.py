"""Operator API: devices, attempts, enrolment."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from fastapi import Request, Response

from firmament.core.ids import HARDWARE, PRODUCT, VERSION, check
from firmament.protocol.v1.messages import HPKE_PUBLIC_KEY_LENGTH_BYTES, EnrolReply
from firmament.server.attempts import service as attempts
from firmament.server.http import shapes
from firmament.server.http.operator_base import DAY_S, INTEGER, TEXT, OperatorPart, query_integer, selection
from firmament.server.inventory import places, search
from firmament.server.inventory import service as inventory
from firmament.server.inventory import store as inventory_store
from firmament.server.scope import Action

if TYPE_CHECKING:
    from firmament.server.attempts.model import AttemptRecord
    from firmament.server.inventory.model import DeviceRecord
    from firmament.server.scope import Scope


class FleetApi(OperatorPart):
    """Devices and what they are to install."""

    def add_routes(self) -> None:
        """See the base."""
        router = self.router
        device = "/api/v1/devices/{device_id}"
        router.get("/api/v1/devices", response_model=shapes.Devices, summary="List devices")(self.list_devices)
        router.get(device, response_model=shapes.Device, summary="Show a device")(self.get_device)
        router.get(device + "/attempts", response_model=shapes.Attempts, summary="List a device's attempts")(
            self.list_attempts
        )
        router.post(
            device + "/assign",
            response_model=shapes.Assigned,
            summary="Assign a release to a device",
            openapi_extra=shapes.takes({"release": TEXT}),
        )(self.assign)
        router.delete(device + "/assign", response_model=shapes.Assigned, summary="Take the assignment back")(
            self.unassign
        )
        router.post(device + "/disable", status_code=204, summary="Refuse a device from now on")(self.disable_device)
        router.post(device + "/enable", status_code=204, summary="Take a disabled device back")(self.enable_device)
        router.post(
            "/api/v1/enrolment-tokens",
            response_model=shapes.EnrolmentToken,
            status_code=201,
            summary="Make a one-time enrolment token",
            openapi_extra=shapes.takes({"product": TEXT, "expires_in_s": INTEGER}, {"hardware": TEXT, "uses": INTEGER}),
        )(self.make_enrolment_token)
        router.post(
            "/api/v1/enrolments/csr",
            response_model=shapes.Enrolment,
            status_code=201,
            summary="Enrol a device by its certificate request (factory)",
            openapi_extra=shapes.takes(
                {"csr_pem": TEXT, "product": TEXT, "hardware": TEXT, "hpke_public_key": TEXT}, {"serial": TEXT}
            ),
        )(self.enrol_by_request)

    async def list_devices(self, request: Request) -> dict[str, Any]:
        """Return one page of the devices a query selects."""
        scope = await self._readable(request, product=request.query_params.get("product"))
        limit = max(1, min(query_integer(request, "limit", 100), search.MAX_PAGE))
        found = await self._read(
            search.find_devices,
            scope,
            query=selection(request),
            after=query_integer(request, "cursor", 0),
            limit=limit,
            now=self._parts.clock.now(),
        )
        return {
            "devices": await self._describe(scope, found),
            "next": str(found[-1].row_id) if len(found) == limit else None,
        }

    async def get_device(self, request: Request, device_id: str) -> dict[str, Any]:
        """Show one device."""
        scope = await self._readable(request)
        found = await self._read(inventory_store.get_device, scope, device_id)
        return (await self._describe(scope, [found]))[0]

    async def _describe(self, scope: Scope, records: list[DeviceRecord]) -> list[dict[str, Any]]:
        more = await self._read(places.describe, scope, [record.row_id for record in records])
        return [{**_device(record), **more[record.row_id]} for record in records]

    async def list_attempts(self, request: Request, device_id: str) -> dict[str, Any]:
        """List one device's attempts."""
        found = await self._read(attempts.list_attempts, await self._readable(request), device_id)
        return {"attempts": [_attempt(record) for record in found]}

    async def assign(self, request: Request, device_id: str) -> dict[str, Any]:
        """Open an attempt."""
        scope = await self._scope(request)
        product, _, version = (await self._fields(request)).text("release", max_length=128).partition("/")
        check(product, PRODUCT, what="The product name")
        check(version, VERSION, what="The version")
        now = self._parts.clock.now()
        attempt_id = await self._change(
            lambda connection: attempts.assign(
                connection, scope, device_id=device_id, product=product, version=version, now=now
            )
        )
        return {"attempt_id": attempt_id}

    async def unassign(self, request: Request, device_id: str) -> dict[str, Any]:
        """Cancel the open attempt."""
        scope, now = await self._scope(request), self._parts.clock.now()
        attempt_id = await self._change(
            lambda connection: attempts.unassign(connection, scope, device_id=device_id, now=now)
        )
        return {"attempt_id": attempt_id}

    async def disable_device(self, request: Request, device_id: str) -> Response:
        """Refuse a device."""
        return await self._set_disabled(request, device_id, disabled=True)

    async def enable_device(self, request: Request, device_id: str) -> Response:
        """Accept a device again."""
        return await self._set_disabled(request, device_id, disabled=False)

    async def _set_disabled(self, request: Request, device_id: str, *, disabled: bool) -> Response:
        scope, now = await self._scope(request), self._parts.clock.now()
        await self._change(
            lambda connection: inventory.set_disabled(connection, scope, device_id, disabled=disabled, now=now)
        )
        return Response(status_code=204)

    async def make_enrolment_token(self, request: Request) -> dict[str, Any]:
        """Issue a token for one or more devices of one kind."""
        scope = await self._scope(request)
        fields = await self._fields(request)
        product = fields.text("product", pattern=PRODUCT)
        hardware = fields.text("hardware", pattern=HARDWARE) if "hardware" in fields else None
        lifetime = timedelta(seconds=fields.integer("expires_in_s", minimum=1, maximum=366 * DAY_S))
        uses = fields.integer("uses", minimum=1, default=1)
        now = self._parts.clock.now()
        token = await self._change(
            lambda connection: inventory.issue_enrolment_token(
                connection, scope, product=product, hardware=hardware, lifetime=lifetime, uses=uses, now=now
            )
        )
        return {"token": token}

    async def enrol_by_request(self, request: Request) -> dict[str, Any]:
        """Certify a device that an operator vouches for."""
        scope = await self._scope(request)
        scope.require(Action.ENROL)
        fields = await self._fields(request)
        applicant = inventory.applicant(
            product=fields.text("product", pattern=PRODUCT),
            hardware=fields.text("hardware", pattern=HARDWARE),
            serial=fields.text("serial", max_length=128, default=""),
            csr_pem=fields.text("csr_pem", max_length=8192),
            hpke_public_key=fields.hex_bytes("hpke_public_key", length=HPKE_PUBLIC_KEY_LENGTH_BYTES),
        )
        now = self._parts.clock.now()
        enrolled = await self._change(
            lambda connection: inventory.enrol_with_request(connection, scope, self._parts.registrar, applicant, now)
        )
        return EnrolReply(enrolled.device_id, enrolled.certificate_chain_pem).to_json()


def _device(record: DeviceRecord) -> dict[str, Any]:
    value = asdict(record)
    del value["row_id"]
    return {**value, "attributes": json.loads(record.attributes)}


def _attempt(record: AttemptRecord) -> dict[str, Any]:
    value = asdict(record)
    value["status"] = value.pop("state").value
    return {**value, "log": json.loads(record.log)}
