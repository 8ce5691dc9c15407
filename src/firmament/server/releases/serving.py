"""What is served now, whichever the database: rows that servers share, or this server's directory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from firmament.server.releases import shared
from firmament.server.releases.generations import Generations

if TYPE_CHECKING:
    from collections.abc import Callable

    from firmament.server.database.port import Connection
    from firmament.server.layout import Layout
    from firmament.server.payloads.store import ServerDisk
    from firmament.server.releases.model import Published
    from firmament.server.settings import ServerSettings


def served_by(disk: ServerDisk, layout: Layout, settings: ServerSettings) -> Callable[[Connection], Published]:
    """Return what reads the served repository within a transaction."""

    def load(connection: Connection) -> Published:
        served = shared.load(connection) if settings.database else None
        return served if served is not None else Generations(disk, layout).load()

    return load
