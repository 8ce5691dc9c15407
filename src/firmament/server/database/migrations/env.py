"""Alembic's entry: run the migrations on the connection that `migrate` gives."""

from __future__ import annotations

from alembic import context

from firmament.server.database.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transaction_per_migration=True,
    transactional_ddl=True,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
