"""Targets are dealt out while they are written: no order of places is kept (ADR-0038).

Rollouts that were being filled begin anew: none of their devices has started.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

BEING_FILLED = "(SELECT id FROM rollout WHERE fill_step IN ('select', 'deal'))"


def upgrade() -> None:
    """Drop the index over places, and index who was updated last."""
    op.drop_index("ix_rollout_target_place", table_name="rollout_target")
    op.create_index(
        "ix_rollout_target_newest",
        "rollout_target",
        ["rollout_id", "updated_at"],
        unique=False,
        sqlite_where=sa.text("status = 'updated'"),
        postgresql_where=sa.text("status = 'updated'"),
    )
    for table in ("rollout_target", "rollout_counter", "rollout_excluded", "rollout_wave"):
        op.execute(f"DELETE FROM {table} WHERE rollout_id IN {BEING_FILLED}")  # noqa: S608 - constants above
    op.execute(
        "UPDATE rollout SET fill_step = 'select', fill_cursor = 0, fill_position = 0 "
        "WHERE fill_step IN ('select', 'deal')"
    )
