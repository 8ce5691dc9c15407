"""``/metrics`` for Prometheus."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import Request, Response

from firmament import __version__
from firmament.server import metrics
from firmament.server.http.operator_base import OperatorPart

if TYPE_CHECKING:
    from firmament.server.metrics import Sample


class MetricsApi(OperatorPart):
    """Numbers for a monitoring system; no operator token, see `metrics.require_reader`."""

    def add_routes(self) -> None:
        """See the base."""
        self._counted: list[Sample] = []
        self._counted_s = float("-inf")
        self.router.get("/metrics", response_class=Response, summary="Read metrics (Prometheus text)")(self.read)

    async def read(self, request: Request) -> Response:
        """Answer with the newest numbers; the database is asked at most every `FRESH_S`."""
        metrics.require_reader(
            token=self._parts.settings.metrics_token,
            address=request.client.host if request.client else "",
            authorization=request.headers.get("authorization", ""),
        )
        now_s = self._parts.clock.monotonic_s()
        if now_s - self._counted_s >= metrics.FRESH_S:
            self._counted = await self._read(metrics.count, int(self._parts.clock.now().timestamp()))
            self._counted_s = now_s
        return Response(metrics.write([*self._own(), *self._counted]), headers={"content-type": metrics.CONTENT_TYPE})

    def _own(self) -> list[Sample]:
        courier, published = self._parts.out.courier, self._parts.publisher.published
        leadership = self._parts.leadership
        samples: list[Sample] = [
            ("firmament_info", {"version": __version__}, 1),
            ("firmament_leader", {}, int(leadership.epoch is not None)),
            ("firmament_leader_seconds", {}, int(leadership.led_s)),
            ("firmament_deliveries_total", {"outcome": "delivered"}, courier.delivered),
            ("firmament_deliveries_total", {"outcome": "failed"}, courier.failed),
        ]
        for role, metadata in (("root", published.root), ("targets", published.targets)):
            if metadata is not None:
                expires = metadata.signed.expires.timestamp()
                samples.append(("firmament_metadata_expires_seconds", {"role": role}, expires))
        return samples
