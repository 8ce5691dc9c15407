"""Putting the outgoing side of one server together: senders, courier, notifier, waker, and their loops."""

from __future__ import annotations

import asyncio
import random  # noqa: TID251 - here the generator is made that others take as an argument
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from firmament.durable import RealDisk
from firmament.server.notify import expiry
from firmament.server.notify.decide import Rules
from firmament.server.notify.worker import Notifier
from firmament.server.outbox.model import OutletKind
from firmament.server.outbox.senders import BrokerSender, MailSender, WebhookSender
from firmament.server.outbox.wake import Waker
from firmament.server.outbox.worker import Courier
from firmament.server.scope import FIRST_TENANT

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from firmament.core.clock import Clock
    from firmament.server.database.port import Database
    from firmament.server.layout import Layout
    from firmament.server.people.vault import Vault
    from firmament.server.releases.service import Publisher
    from firmament.server.settings import ServerSettings

DELIVER_S: Final = 1.0
NOTIFY_S: Final = 1.0
WAKE_S: Final = 1.0
EXPIRY_S: Final = 3600.0


@dataclass(slots=True)
class Out:
    """What the edges and the composition root need of it."""

    courier: Courier
    notifier: Notifier
    waker: Waker | None
    public_url: str
    loops: list[tuple[Callable[[], Awaitable[None]], float]]
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the server ends: streams end by it."""


def make_out(
    settings: ServerSettings,
    layout: Layout,
    database: Database,
    clock: Clock,
    publisher: Publisher,
    vault: Vault,
    *,
    port: int,
) -> Out:
    """Build it from the settings; `port` is what was bound, which the setting may leave to the system."""
    rng = random.Random()  # noqa: S311 - it spreads retries, it keeps no secret
    ca = layout.directory / settings.outbox_ca if settings.outbox_ca else None
    broker = BrokerSender(clock, url=settings.mqtt_url, ca=ca)
    courier = Courier(
        database,
        clock,
        {
            OutletKind.WEBHOOK: WebhookSender(clock, vault, networks=settings.outbox_networks, ca=ca),
            OutletKind.SMTP: MailSender(clock, url=settings.smtp_url, sender=settings.smtp_from, ca=ca),
            OutletKind.MQTT: broker,
        },
        rng,
    )
    public_url = settings.public_url or f"https://{settings.names[0]}:{port}"
    quiet_from, quiet_until = settings.quiet_minutes()
    notifier = Notifier(
        database,
        clock,
        courier,
        rng,
        rules=Rules(
            batch_window_s=settings.notify_batch_s,
            repeat_every_s=settings.notify_repeat_s,
            escalate_after_s=settings.notify_escalate_s,
            quiet_from=quiet_from,
            quiet_until=quiet_until,
            zone=settings.quiet_time_zone(),
        ),
        base_url=public_url,
    )

    async def tell_expiries() -> None:
        now = clock.now()
        items = [*expiry.of_repository(publisher.published), *expiry.of_certificates(RealDisk(), layout, settings, now)]
        # Roots and delegations are common to all products (ADR-0016): the first tenant keeps them.
        await database.submit(lambda connection: expiry.tell(connection, FIRST_TENANT, items, now, base_url=public_url))

    loops: list[tuple[Callable[[], Awaitable[None]], float]] = [
        (courier.deliver_due, DELIVER_S),
        (notifier.run_once, NOTIFY_S),
        (tell_expiries, EXPIRY_S),
    ]
    waker = Waker(database, broker, spread_s=settings.mqtt_spread_s) if settings.mqtt_url else None
    if waker is not None:
        loops.append((waker.run_once, WAKE_S))
    return Out(courier, notifier, waker, public_url, loops)
