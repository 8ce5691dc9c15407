"""Inventory: what devices report, and how operators sort them: tags, groups, sites, gateways, filters."""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, Table, Text, UniqueConstraint

from firmament.server.database.schema.base import metadata

device_attribute: Final = Table(
    "device_attribute",
    metadata,
    Column("device_id", Integer, ForeignKey("device.id"), primary_key=True),
    Column("name", Text, primary_key=True),
    Column("tenant_id", Integer, nullable=False),
    Column("value", Text, nullable=False),
)
Index(
    "ix_device_attribute_value",
    device_attribute.c.tenant_id,
    device_attribute.c.name,
    device_attribute.c.value,
    device_attribute.c.device_id,
)
"""What a device reported, one row a fact; written together with `device.attributes`."""

device_tag: Final = Table(
    "device_tag",
    metadata,
    Column("device_id", Integer, ForeignKey("device.id"), primary_key=True),
    Column("tag", Text, primary_key=True),
    Column("tenant_id", Integer, nullable=False),
)
Index("ix_device_tag_tag", device_tag.c.tenant_id, device_tag.c.tag, device_tag.c.device_id)

site: Final = Table(
    "site",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("tenant_id", Integer, nullable=False),
    Column("name", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    UniqueConstraint("tenant_id", "name"),
)

device_place: Final = Table(
    "device_place",
    metadata,
    Column("device_id", Integer, ForeignKey("device.id"), primary_key=True),
    Column("tenant_id", Integer, nullable=False),
    Column("site_id", Integer, ForeignKey("site.id")),
    Column("gateway_id", Integer, ForeignKey("device.id")),
)
Index("ix_device_place_site", device_place.c.site_id, device_place.c.device_id)
Index("ix_device_place_gateway", device_place.c.gateway_id, device_place.c.device_id)
"""Where a device is: its site, and the device that speaks for it."""

device_group: Final = Table(
    "device_group",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("tenant_id", Integer, nullable=False),
    Column("name", Text, nullable=False),
    Column("query", Text, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    UniqueConstraint("tenant_id", "name"),
)
"""A name for devices: those a query selects, or, with an empty query, those that were put in."""

device_group_member: Final = Table(
    "device_group_member",
    metadata,
    Column("group_id", Integer, ForeignKey("device_group.id"), primary_key=True),
    Column("device_id", Integer, ForeignKey("device.id"), primary_key=True),
    Column("tenant_id", Integer, nullable=False),
)
Index("ix_device_group_member_device", device_group_member.c.device_id)

saved_filter: Final = Table(
    "saved_filter",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("tenant_id", Integer, nullable=False),
    Column("name", Text, nullable=False),
    Column("query", Text, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    UniqueConstraint("tenant_id", "name"),
)

device_failure: Final = Table(
    "device_failure",
    metadata,
    Column("device_id", Integer, ForeignKey("device.id"), primary_key=True),
    Column("release_id", Integer, ForeignKey("release.id"), primary_key=True),
    Column("tenant_id", Integer, nullable=False),
    Column("code", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("tries", Integer, nullable=False),
)
"""A release that failed on a device is not offered to it again until somebody removes the row."""

device_quarantine: Final = Table(
    "device_quarantine",
    metadata,
    Column("device_id", Integer, ForeignKey("device.id"), primary_key=True),
    Column("tenant_id", Integer, nullable=False),
    Column("reason", Text, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
)
"""Devices that no rollout touches until somebody takes them out."""

device_mark: Final = Table(
    "device_mark",
    metadata,
    Column("device_id", Integer, ForeignKey("device.id"), primary_key=True),
    Column("mark", Text, primary_key=True),
    Column("tenant_id", Integer, nullable=False),
    Column("reason", Text, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
)
"""Devices that were pinned (they stay on what they run) or muted (their alarms wake nobody)."""

version_day: Final = Table(
    "version_day",
    metadata,
    Column("tenant_id", Integer, primary_key=True),
    Column("product_id", Integer, ForeignKey("product.id"), primary_key=True),
    Column("day", Integer, primary_key=True),
    Column("version", Text, primary_key=True),
    Column("devices", Integer, nullable=False),
)
"""How many devices ran what on a day (days since 1970, UTC): the chart of versions over time."""
Index("ix_version_day_tenant_day", version_day.c.tenant_id, version_day.c.day)
