"""Which images are alive in the fleet: what a new release wants deltas from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from firmament.server.scope import Action

if TYPE_CHECKING:
    from firmament.server.database.port import Connection
    from firmament.server.scope import Scope

MAX_IMAGES: Final = 200
"""The most common ones; more versions than this alive at once have no deltas worth making."""


@dataclass(frozen=True, slots=True)
class AliveImage:
    """An image that enabled devices report to run."""

    digest: str
    version: str
    sequence_number: int
    devices: int

    def to_json(self) -> dict[str, Any]:
        """Return the facts for programs."""
        return {
            "image_digest": self.digest,
            "version": self.version,
            "sequence_number": self.sequence_number,
            "devices": self.devices,
        }


def list_alive(connection: Connection, scope: Scope, product: str) -> list[AliveImage]:
    """Count the enabled devices of a product by the image they run, most common first; raises ForbiddenError.

    Devices that have not reported yet have no image and are left out.
    """
    scope.require(Action.READ, product=product)
    rows = connection.execute(
        "SELECT d.image_digest, MAX(d.version) AS version, MAX(d.sequence_number) AS sequence_number, COUNT(*) AS n "
        "FROM device d JOIN product p ON p.id = d.product_id "
        "WHERE d.tenant_id = ? AND p.tenant_id = ? AND p.name = ? AND d.disabled = 0 AND d.image_digest <> '' "
        "GROUP BY d.image_digest ORDER BY COUNT(*) DESC, d.image_digest LIMIT ?",
        (scope.tenant_id, scope.tenant_id, product, MAX_IMAGES),
    )
    return [AliveImage(row["image_digest"], row["version"], int(row["sequence_number"]), int(row["n"])) for row in rows]
