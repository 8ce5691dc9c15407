"""Audit: who did what, when, in which order; a chain that cannot be rewritten unseen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from starlette.responses import Response

from firmament.console.views.base import get
from firmament.console.views.overview import person

if TYPE_CHECKING:
    from firmament.console.visit import Visit

PAGE: Final = 50


async def shown(visit: Visit) -> Response:
    """Show one page, newest first."""
    subject, before = visit.query("subject").strip(), visit.query("before")
    found = await visit.card(
        visit.api.get("/audit/events", subject=subject or None, cursor=before or None, newest=1, limit=PAGE)
    )
    events = sorted(found.value["events"], key=lambda event: -event["id"]) if found.value else []
    return visit.page(
        "audit.html",
        found=found,
        events=events,
        subject=subject,
        older=events[-1]["id"] if len(events) == PAGE else None,
        person=person,
    )


async def export(visit: Visit) -> Response:
    """Hand the whole chain out as JSON lines, as `firmament audit verify` reads it."""
    body = await visit.api.text("/audit/export")
    return Response(
        body,
        media_type="application/x-ndjson",
        headers={"content-disposition": 'attachment; filename="audit.jsonl"'},
    )


VIEWS: Final = (get("/audit", shown), get("/audit.jsonl", export))
