"""What several servers on one database share: the served metadata, and who is there."""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, Column, Integer, LargeBinary, Table, Text

from firmament.server.database.schema.base import metadata

repository_file: Final = Table(
    "repository_file",
    metadata,
    Column("repository", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("generation", BigInteger, nullable=False),
    Column("data", LargeBinary, nullable=False),
)
"""Signed metadata of the served generation; empty on SQLite, where the directory is the truth."""

replica: Final = Table(
    "replica",
    metadata,
    Column("id", Text, primary_key=True),
    Column("host", Text, nullable=False),
    Column("port", Integer, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("version", Text, nullable=False),
    Column("started_at", BigInteger, nullable=False),
    Column("seen_at", BigInteger, nullable=False),
    Column("leads_since", BigInteger),
)
"""Servers that run; times are the database's own clock. A row nobody renews is removed after a day."""
