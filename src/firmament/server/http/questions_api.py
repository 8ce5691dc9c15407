"""Operator API: the stateless questions of `questions`."""

from __future__ import annotations

from typing import Any

from fastapi import Request, Response

from firmament.server import questions
from firmament.server.http import shapes
from firmament.server.http.operator_base import TEXT, OperatorPart


class QuestionsApi(OperatorPart):
    """For integrators."""

    def add_routes(self) -> None:
        """See the base."""
        router = self.router
        router.get("/api/v1/updates/check", summary="Is there an update for this device type and version?")(
            self.check_for_updates
        )
        router.get("/api/v1/updates/download", summary="Where are the bytes of a release?")(self.get_firmware_download)
        router.post(
            "/api/v1/updates/record",
            status_code=204,
            summary="Write down what happened to a device (unverified)",
            openapi_extra=shapes.takes({"device_id": TEXT, "old_version": TEXT, "new_version": TEXT, "status": TEXT}),
        )(self.record_update)
        router.get("/api/v1/updates/device/{device_id}", summary="What is known about a device")(self.get_device_info)

    async def check_for_updates(self, request: Request, device_type: str, version: str) -> dict[str, Any]:
        """Compare with the stable channel, or the one that is named."""
        channel = request.query_params.get("channel", questions.STABLE)
        scope = await self._readable(request, product=device_type)
        return await self._read(
            questions.check_for_updates, scope, device_type=device_type, version=version, channel=channel
        )

    async def get_firmware_download(self, request: Request, device_type: str) -> dict[str, Any]:
        """Name path, length and digest."""
        scope = await self._readable(request, product=device_type)
        version = request.query_params.get("version")
        return await self._read(questions.get_firmware_download, scope, device_type=device_type, version=version)

    async def record_update(self, request: Request) -> Response:
        """Store somebody's word."""
        scope = await self._scope(request)
        fields = await self._fields(request)
        words = {
            name: fields.text(name, max_length=64) for name in ("device_id", "old_version", "new_version", "status")
        }
        now = self._parts.clock.now()
        await self._change(lambda connection: questions.record_update(connection, scope, now=now, **words))
        return Response(status_code=204)

    async def get_device_info(self, request: Request, device_id: str) -> dict[str, Any]:
        """Describe one device."""
        return await self._read(questions.get_device_info, await self._readable(request), device_id=device_id)
