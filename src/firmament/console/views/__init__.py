"""The views, one module per screen; `VIEWS` is the table of addresses."""

from __future__ import annotations

from typing import Final

from firmament.console.views import (
    account,
    audit,
    consent,
    device,
    devices,
    keys,
    live,
    overview,
    people,
    releases,
    rollouts,
    session,
    settings,
)

VIEWS: Final = (
    *session.VIEWS,
    *live.VIEWS,
    *overview.VIEWS,
    *devices.VIEWS,
    *device.VIEWS,
    *rollouts.VIEWS,
    *releases.VIEWS,
    *keys.VIEWS,
    *audit.VIEWS,
    *account.VIEWS,
    *people.VIEWS,
    *consent.VIEWS,
    *settings.VIEWS,
)
