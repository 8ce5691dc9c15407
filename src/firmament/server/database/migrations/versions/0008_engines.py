"""What two engines and several replicas need beside the tables."""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Leave room on the pages of the one table that changes with every poll (stack.md §1.4)."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER TABLE device_seen SET (fillfactor = 70)")
