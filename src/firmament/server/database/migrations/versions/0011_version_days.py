"""What the field ran, day by day."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table of counts."""
    op.create_table(
        "version_day",
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("product_id", sa.Integer(), nullable=False),
        sa.Column("day", sa.Integer(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("devices", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["product_id"], ["product.id"], name=op.f("fk_version_day_product_id")),
        sa.PrimaryKeyConstraint("tenant_id", "product_id", "day", "version", name=op.f("pk_version_day")),
    )
    op.create_index("ix_version_day_tenant_day", "version_day", ["tenant_id", "day"])
