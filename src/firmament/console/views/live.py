"""The one stream of a browser."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from firmament.console.views.base import get

if TYPE_CHECKING:
    from starlette.responses import Response

    from firmament.console.visit import Visit


async def events(visit: Visit) -> Response:
    """Stream the regions of the topics ``t``."""
    assert visit.live is not None
    return visit.live.respond(visit)


VIEWS: Final = (get("/events", events),)
