"""Rollouts: targets are written once, waves open by one row, counters change with their targets.

(stack.md §3, design S.) `rollout_target.active` is 1 while a target still wants something of its
device; the partial unique index is the poll's look-up and the rule "one update at a time".
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, Table, Text, text

from firmament.server.database.schema.base import metadata

rollout: Final = Table(
    "rollout",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("tenant_id", Integer, nullable=False),
    Column("uid", Text, nullable=False, unique=True),
    Column("name", Text, nullable=False),
    Column("product_id", Integer, ForeignKey("product.id"), nullable=False),
    Column("release_id", Integer, ForeignKey("release.id"), nullable=False),
    Column("selector", Text, nullable=False),
    Column("policy", Text, nullable=False),
    Column("note", Text, nullable=False, server_default=""),
    Column("state", Text, nullable=False),
    Column("state_since", BigInteger, nullable=False),
    Column("state_code", Text, nullable=False, server_default=""),
    Column("state_facts", Text, nullable=False, server_default="{}"),
    Column("halt", Text, nullable=False, server_default=""),
    Column("created_by", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("decided_by", Text, nullable=False, server_default=""),
    Column("acknowledged_by", Text, nullable=False, server_default=""),
    Column("start_at", BigInteger, nullable=False),
    Column("ended_at", BigInteger),
    Column("fill_step", Text, nullable=False, server_default="select"),
    Column("fill_cursor", BigInteger, nullable=False, server_default="0"),
    Column("fill_position", BigInteger, nullable=False, server_default="0"),
    Column("total", BigInteger, nullable=False, server_default="0"),
    Column("checked_at", BigInteger, nullable=False, server_default="0"),
    Column("revision", Integer, nullable=False, server_default="1"),
)
Index("ix_rollout_state", rollout.c.tenant_id, rollout.c.state, rollout.c.id)

rollout_wave: Final = Table(
    "rollout_wave",
    metadata,
    Column("rollout_id", Integer, ForeignKey("rollout.id"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("tenant_id", Integer, nullable=False),
    Column("name", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("opened_at", BigInteger),
    Column("closed_at", BigInteger),
    Column("hold_until", BigInteger),
    Column("forgiven_failed", BigInteger, nullable=False, server_default="0"),
    Column("forgiven_finished", BigInteger, nullable=False, server_default="0"),
)
"""What is forgiven when a stopped rollout is resumed: the stop rule counts from there."""

rollout_limit: Final = Table(
    "rollout_limit",
    metadata,
    Column("rollout_id", Integer, ForeignKey("rollout.id"), primary_key=True),
    Column("scope", Text, primary_key=True),
    Column("tenant_id", Integer, nullable=False),
    Column("open_wave", Integer, nullable=False, server_default="0"),
    Column("in_flight", Integer, nullable=False, server_default="0"),
    Column("minute", BigInteger, nullable=False, server_default="0"),
    Column("started", Integer, nullable=False, server_default="0"),
)
"""What bounds a start, in rows that every start changes: scope "" for all, "site:7", "gateway:9".

A start and a stop change the same row, so no start can commit after the stop it did not see.
"""

rollout_target: Final = Table(
    "rollout_target",
    metadata,
    Column("rollout_id", Integer, ForeignKey("rollout.id"), primary_key=True),
    Column("device_id", Integer, ForeignKey("device.id"), primary_key=True),
    Column("tenant_id", Integer, nullable=False),
    Column("wave", Integer, nullable=False),
    Column("place", Integer, nullable=False),
    Column("status", Text, nullable=False),
    Column("active", Integer, nullable=False, server_default="1"),
    Column("holds_slot", Integer, nullable=False, server_default="0"),
    Column("tries", Integer, nullable=False, server_default="0"),
    Column("attempt_id", Integer),
    Column("deadline", BigInteger),
    Column("not_before", BigInteger, nullable=False, server_default="0"),
    Column("code", Text, nullable=False, server_default=""),
    Column("source", Text, nullable=False, server_default=""),
    Column("site_id", Integer),
    Column("gateway_id", Integer),
    Column("updated_at", BigInteger, nullable=False),
)
Index(
    "uq_rollout_target_active",
    rollout_target.c.device_id,
    unique=True,
    sqlite_where=text("active = 1"),
    postgresql_where=text("active = 1"),
)
Index("ix_rollout_target_updated", rollout_target.c.rollout_id, rollout_target.c.updated_at)
Index(
    "ix_rollout_target_deadline",
    rollout_target.c.deadline,
    sqlite_where=text("deadline IS NOT NULL"),
    postgresql_where=text("deadline IS NOT NULL"),
)
Index(
    "ix_rollout_target_site",
    rollout_target.c.rollout_id,
    rollout_target.c.site_id,
    sqlite_where=text("site_id IS NOT NULL"),
    postgresql_where=text("site_id IS NOT NULL"),
)
Index(
    "ix_rollout_target_newest",
    rollout_target.c.rollout_id,
    rollout_target.c.updated_at,
    sqlite_where=text("status = 'updated'"),
    postgresql_where=text("status = 'updated'"),
)
"""Who was updated last: what a release does to devices shows there first."""
Index(
    "ix_rollout_target_failed",
    rollout_target.c.rollout_id,
    rollout_target.c.device_id,
    sqlite_where=text("status IN ('failed', 'silent')"),
    postgresql_where=text("status IN ('failed', 'silent')"),
)

rollout_counter: Final = Table(
    "rollout_counter",
    metadata,
    Column("rollout_id", Integer, ForeignKey("rollout.id"), primary_key=True),
    Column("wave", Integer, primary_key=True),
    Column("status", Text, primary_key=True),
    Column("tenant_id", Integer, nullable=False),
    Column("n", BigInteger, nullable=False),
)
"""How many targets of a wave are where; changed in the transaction that moves the target."""

rollout_reason: Final = Table(
    "rollout_reason",
    metadata,
    Column("rollout_id", Integer, ForeignKey("rollout.id"), primary_key=True),
    Column("code", Text, primary_key=True),
    Column("tenant_id", Integer, nullable=False),
    Column("n", BigInteger, nullable=False),
)
"""How many targets failed for which reason, now."""

rollout_sample: Final = Table(
    "rollout_sample",
    metadata,
    Column("rollout_id", Integer, ForeignKey("rollout.id"), primary_key=True),
    Column("at", BigInteger, primary_key=True),
    Column("tenant_id", Integer, nullable=False),
    Column("wave", Integer, nullable=False),
    Column("finished", BigInteger, nullable=False),
    Column("failed", BigInteger, nullable=False),
    Column("updated", BigInteger, nullable=False),
)
"""The failure rate over time, for the chart."""

rollout_excluded: Final = Table(
    "rollout_excluded",
    metadata,
    Column("rollout_id", Integer, ForeignKey("rollout.id"), primary_key=True),
    Column("rule", Text, primary_key=True),
    Column("tenant_id", Integer, nullable=False),
    Column("n", BigInteger, nullable=False),
)
"""How many matching devices were left out when the targets were written, by the first rule that said so."""

rollout_site: Final = Table(
    "rollout_site",
    metadata,
    Column("rollout_id", Integer, ForeignKey("rollout.id"), primary_key=True),
    Column("site_id", Integer, ForeignKey("site.id"), primary_key=True),
    Column("tenant_id", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("deadline", BigInteger, nullable=False),
)
"""Sites that commit as a whole: from the first start there until all confirmed, or all go back."""
