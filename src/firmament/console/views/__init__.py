"""The views, one module per screen; `VIEWS` is the table of addresses."""

from __future__ import annotations

from typing import Final

from firmament.console.views import audit, devices, keys, live, overview, releases, rollouts, session, settings

VIEWS: Final = (
    *session.VIEWS,
    *live.VIEWS,
    *overview.VIEWS,
    *devices.VIEWS,
    *rollouts.VIEWS,
    *releases.VIEWS,
    *keys.VIEWS,
    *audit.VIEWS,
    *settings.VIEWS,
)
