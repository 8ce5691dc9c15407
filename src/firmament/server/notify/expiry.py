"""Telling early that something expires, and what happens if nobody does anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from firmament.server.authority import RENEW_BEFORE, load_certificate
from firmament.server.notify.decide import expiry_news, expiry_step
from firmament.server.notify.store import take_news

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime
    from pathlib import Path

    from firmament.durable import Disk
    from firmament.server.database.port import Connection
    from firmament.server.layout import Layout
    from firmament.server.releases.model import Published
    from firmament.server.settings import ServerSettings

DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class Expiry:
    """Something that ends at a time."""

    name: str
    expires: datetime
    consequence: str


def of_repository(published: Published) -> list[Expiry]:
    """Return what authors must renew: roots, targets and product roles. The server renews the rest itself."""
    found: list[Expiry] = []
    for name, root in (("image root", published.root), ("director root", published.director_root)):
        if root is not None:
            consequence = "devices refuse every update until a new root is signed and published."
            found.append(Expiry(name, root.signed.expires, consequence))
    if published.targets is not None:
        consequence = "devices refuse releases of every product until the targets are signed again."
        found.append(Expiry("role targets", published.targets.signed.expires, consequence))
    for product, metadata in published.products.items():
        consequence = f"devices refuse releases of {product} until its role is signed again."
        found.append(Expiry(f"role {product}", metadata.signed.expires, consequence))
    return found


def of_certificates(disk: Disk, layout: Layout, settings: ServerSettings, now: datetime) -> list[Expiry]:
    """Return what the server's operators must renew; its own certificate it renews itself, at a start."""

    def expiry(name: str, path: Path, consequence: str) -> Expiry:
        return Expiry(name, load_certificate(disk, path).not_valid_after_utc, consequence)

    refused = "devices and people no longer believe this server"
    found = [expiry("device CA", layout.device_ca / "ca.pem", "no device can enrol or renew its certificate.")]
    if settings.certificate:
        given = layout.directory / settings.certificate
        return [*found, expiry("server certificate", given, f"{refused} until the certificate is replaced.")]
    found.append(expiry("server CA", layout.ca, f"{refused} until they get a new CA."))
    own = expiry("server certificate", layout.tls / "server.pem", f"{refused} until the server is started again.")
    return [*found, own] if own.expires - now <= RENEW_BEFORE else found


def tell(connection: Connection, tenant_id: int, items: Iterable[Expiry], now: datetime, *, base_url: str) -> int:
    """Open a notification for each that reached its next step; end those that were renewed. Returns how many."""
    moment = int(now.timestamp())
    count = 0
    for item in items:
        days_left = int((item.expires - now).total_seconds() // DAY_S)
        step = expiry_step(days_left)
        key = f"expiry-step:{tenant_id}:{item.name}"
        row = connection.execute("SELECT value FROM number WHERE name = ?", (key,)).fetchone()
        if step is None:
            if row is not None:
                connection.execute("DELETE FROM number WHERE name = ?", (key,))
                connection.execute(
                    "UPDATE notification SET closed_at = ? WHERE tenant_id = ? AND subject = ? AND closed_at IS NULL",
                    (moment, tenant_id, f"expiry:{item.name}"),
                )
            continue
        if row is not None and int(row["value"]) == step:
            continue
        link = f"{base_url.rstrip('/')}/keys"
        news = expiry_news(
            item.name, days_left=days_left, step=step, consequence=item.consequence, link=link, at=moment
        )
        take_news(connection, tenant_id, [news], upto=None)
        connection.execute(
            "INSERT INTO number(name, value) VALUES (?, ?) ON CONFLICT(name) DO UPDATE SET value = excluded.value",
            (key, step),
        )
        count += 1
    return count
