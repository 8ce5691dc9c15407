"""Operator API: whether this process lives, and whether it can work. No token, nothing secret."""

from __future__ import annotations

from typing import Any

from firmament import __version__
from firmament.errors import OverloadedError
from firmament.server import leader
from firmament.server.http import shapes
from firmament.server.http.operator_base import OperatorPart


class HealthApi(OperatorPart):
    """For load balancers, supervisors and people who wonder."""

    def add_routes(self) -> None:
        """See the base."""
        router = self.router
        router.get("/health", response_model=shapes.Health, summary="Say that the server answers")(self.health)
        router.get("/healthz", response_model=shapes.Health, summary="Say that the process lives")(self.health)
        router.get("/readyz", response_model=shapes.Ready, summary="Say whether requests may be sent here")(self.ready)

    async def health(self) -> dict[str, Any]:
        """Answer while the process can: a database that is away is no reason to start it again."""
        return {"status": "ok", "version": __version__}

    async def ready(self) -> dict[str, Any]:
        """Answer 200 while this server can work: its database answers, it does not end. Else 503 (OverloadedError)."""
        parts = self._parts
        if parts.is_draining:
            raise OverloadedError("This server is about to end", retry_after_s=1)
        await parts.publisher.catch_up()
        await self._read(leader.peers)
        return {"status": "ready", "role": parts.leadership.role}
