"""Inventory: attributes, tags, groups, sites, gateways, saved filters."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "device_group",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("query", sa.Text(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_device_group")),
        sa.UniqueConstraint("tenant_id", "name", name=op.f("uq_device_group_tenant_id_name")),
    )
    op.create_table(
        "saved_filter",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("query", sa.Text(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_saved_filter")),
        sa.UniqueConstraint("tenant_id", "name", name=op.f("uq_saved_filter_tenant_id_name")),
    )
    op.create_table(
        "site",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_site")),
        sa.UniqueConstraint("tenant_id", "name", name=op.f("uq_site_tenant_id_name")),
    )
    op.create_table(
        "device_attribute",
        sa.Column("device_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["device_id"], ["device.id"], name=op.f("fk_device_attribute_device_id")),
        sa.PrimaryKeyConstraint("device_id", "name", name=op.f("pk_device_attribute")),
    )
    op.create_index(
        "ix_device_attribute_value", "device_attribute", ["tenant_id", "name", "value", "device_id"], unique=False
    )
    op.create_table(
        "device_failure",
        sa.Column("device_id", sa.Integer(), nullable=False),
        sa.Column("release_id", sa.Integer(), nullable=False),
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["device_id"], ["device.id"], name=op.f("fk_device_failure_device_id")),
        sa.ForeignKeyConstraint(["release_id"], ["release.id"], name=op.f("fk_device_failure_release_id")),
        sa.PrimaryKeyConstraint("device_id", "release_id", name=op.f("pk_device_failure")),
    )
    op.create_table(
        "device_group_member",
        sa.Column("group_id", sa.Integer(), nullable=False),
        sa.Column("device_id", sa.Integer(), nullable=False),
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["device_id"], ["device.id"], name=op.f("fk_device_group_member_device_id")),
        sa.ForeignKeyConstraint(["group_id"], ["device_group.id"], name=op.f("fk_device_group_member_group_id")),
        sa.PrimaryKeyConstraint("group_id", "device_id", name=op.f("pk_device_group_member")),
    )
    op.create_index("ix_device_group_member_device", "device_group_member", ["device_id"], unique=False)
    op.create_table(
        "device_place",
        sa.Column("device_id", sa.Integer(), nullable=False),
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("site_id", sa.Integer(), nullable=True),
        sa.Column("gateway_id", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(["device_id"], ["device.id"], name=op.f("fk_device_place_device_id")),
        sa.ForeignKeyConstraint(["gateway_id"], ["device.id"], name=op.f("fk_device_place_gateway_id")),
        sa.ForeignKeyConstraint(["site_id"], ["site.id"], name=op.f("fk_device_place_site_id")),
        sa.PrimaryKeyConstraint("device_id", name=op.f("pk_device_place")),
    )
    op.create_index("ix_device_place_gateway", "device_place", ["gateway_id", "device_id"], unique=False)
    op.create_index("ix_device_place_site", "device_place", ["site_id", "device_id"], unique=False)
    op.create_table(
        "device_quarantine",
        sa.Column("device_id", sa.Integer(), nullable=False),
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["device_id"], ["device.id"], name=op.f("fk_device_quarantine_device_id")),
        sa.PrimaryKeyConstraint("device_id", name=op.f("pk_device_quarantine")),
    )
    op.add_column("device_seen", sa.Column("last_poll", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("device_seen", sa.Column("interval_s", sa.Integer(), server_default="0", nullable=False))
    op.create_table(
        "device_tag",
        sa.Column("device_id", sa.Integer(), nullable=False),
        sa.Column("tag", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["device_id"], ["device.id"], name=op.f("fk_device_tag_device_id")),
        sa.PrimaryKeyConstraint("device_id", "tag", name=op.f("pk_device_tag")),
    )
    op.create_index("ix_device_tag_tag", "device_tag", ["tenant_id", "tag", "device_id"], unique=False)
    _explode()


def _explode() -> None:
    """Write what devices reported before as one row a fact."""
    connection = op.get_bind()
    devices = connection.execute(sa.text("SELECT id, tenant_id, attributes FROM device WHERE attributes <> '{}'"))
    for row_id, tenant_id, text in devices.fetchall():
        for name, value in json.loads(text).items():
            if "\0" not in name + value:
                connection.execute(
                    sa.text(
                        "INSERT INTO device_attribute(device_id, name, tenant_id, value) "
                        "VALUES (:row_id, :name, :tenant_id, :value)"
                    ),
                    {"row_id": row_id, "name": name, "tenant_id": tenant_id, "value": value},
                )
