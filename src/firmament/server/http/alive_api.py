"""Operator API: which images are alive, for making deltas."""

from __future__ import annotations

from typing import Any

from fastapi import Request  # noqa: TC002 - FastAPI reads the annotation

from firmament.core.ids import product_name
from firmament.server.http import shapes
from firmament.server.http.operator_base import OperatorPart
from firmament.server.inventory import alive


class AliveApi(OperatorPart):
    """For the author's bench."""

    def add_routes(self) -> None:
        """See the base."""
        self.router.get(
            "/api/v1/products/{product}/images",
            response_model=shapes.AliveImages,
            summary="Count the enabled devices of a product by the image they run",
        )(self.list_images)

    async def list_images(self, request: Request, product: str) -> dict[str, Any]:
        """Count by image."""
        scope = await self._readable(request, product=product_name(product))
        return {"images": [image.to_json() for image in await self._read(alive.list_alive, scope, product)]}
