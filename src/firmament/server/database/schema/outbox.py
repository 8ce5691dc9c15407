"""Out: outlets (webhooks, mail, brokers), notifications, and every delivery that was tried."""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, Table, Text, UniqueConstraint

from firmament.server.database.schema.base import metadata

outlet: Final = Table(
    "outlet",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("tenant_id", Integer, nullable=False),
    Column("name", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("takes", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("secret", Text, nullable=False, server_default=""),
    Column("filter", Text, nullable=False, server_default=""),
    Column("is_escalation", Integer, nullable=False, server_default="0"),
    Column("cursor", BigInteger, nullable=False),
    Column("failures", Integer, nullable=False, server_default="0"),
    Column("next_at", BigInteger, nullable=False, server_default="0"),
    Column("disabled_at", BigInteger),
    Column("muted_until", BigInteger, nullable=False, server_default="0"),
    Column("created_at", BigInteger, nullable=False),
    UniqueConstraint("tenant_id", "name"),
)
"""`takes`: events (by `cursor`, the number of the last one delivered) or notifications (from `message`)."""

notification: Final = Table(
    "notification",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("tenant_id", Integer, nullable=False),
    Column("subject", Text, nullable=False),
    Column("event_number", BigInteger, nullable=False),
    Column("severity", Text, nullable=False),
    Column("title", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("link", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("sent_at", BigInteger),
    Column("repeats", Integer, nullable=False, server_default="0"),
    Column("escalated_at", BigInteger),
    Column("acknowledged_at", BigInteger),
    Column("acknowledged_by", Text, nullable=False, server_default=""),
    Column("closed_at", BigInteger),
)
Index("ix_notification_open", notification.c.tenant_id, notification.c.closed_at, notification.c.id)

message: Final = Table(
    "message",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("tenant_id", Integer, nullable=False),
    Column("outlet_id", Integer, ForeignKey("outlet.id"), nullable=False),
    Column("notification_id", Integer),
    Column("title", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("severity", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("next_at", BigInteger, nullable=False),
    Column("done_at", BigInteger),
)
"""The outbox of notifications: written with the decision, kept until it is delivered or given up."""
Index("ix_message_due", message.c.done_at, message.c.next_at)

delivery: Final = Table(
    "delivery",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("tenant_id", Integer, nullable=False),
    Column("outlet_id", Integer, ForeignKey("outlet.id"), nullable=False),
    Column("event_number", BigInteger),
    Column("message_id", Integer),
    Column("at", BigInteger, nullable=False),
    Column("ok", Integer, nullable=False),
    Column("answer", Text, nullable=False),
    Column("duration_ms", Integer, nullable=False),
)
"""What was tried and what came back; the newest of each outlet are kept."""
Index("ix_delivery_outlet", delivery.c.outlet_id, delivery.c.id)
