"""Evidence: the chain over events, checkpoints, release log, bills of materials."""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary, Table, Text

from firmament.server.database.schema.base import metadata

event: Final = Table(
    "event",
    metadata,
    Column("tenant_id", Integer, primary_key=True),
    Column("number", BigInteger, primary_key=True),
    Column("at", BigInteger, nullable=False),
    Column("kind", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("facts", LargeBinary, nullable=False),
    Column("hash", LargeBinary, nullable=False),
)
"""The chain: numbers without a gap per tenant; triggers refuse every change (trust/audit.py)."""
Index("ix_event_subject", event.c.tenant_id, event.c.subject, event.c.number)
Index("ix_event_kind", event.c.tenant_id, event.c.kind, event.c.number)

event_unsealed: Final = Table(
    "event_unsealed",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("tenant_id", Integer, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("kind", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("facts", LargeBinary, nullable=False),
)
"""What a transaction has written and not yet sealed; empty whenever nothing is being committed."""

chain_head: Final = Table(
    "chain_head",
    metadata,
    Column("tenant_id", Integer, primary_key=True, autoincrement=False),
    Column("number", BigInteger, nullable=False),
    Column("hash", LargeBinary, nullable=False),
)

checkpoint: Final = Table(
    "checkpoint",
    metadata,
    Column("tenant_id", Integer, primary_key=True),
    Column("number", BigInteger, primary_key=True),
    Column("at", BigInteger, nullable=False),
    Column("envelope", LargeBinary, nullable=False),
)
"""Signed by the signer's audit key; `envelope` is what anybody can verify and keep."""

release_log: Final = Table(
    "release_log",
    metadata,
    Column("tenant_id", Integer, primary_key=True),
    Column("number", BigInteger, primary_key=True),
    Column("release", Text, nullable=False),
    Column("leaf", LargeBinary, nullable=False),
)
"""Leaves of the release log's tree, from 0, in the order of publication (trust/merkle.py)."""
Index("ix_release_log_release", release_log.c.tenant_id, release_log.c.release)

tree_head: Final = Table(
    "tree_head",
    metadata,
    Column("tenant_id", Integer, primary_key=True),
    Column("size", BigInteger, primary_key=True),
    Column("at", BigInteger, nullable=False),
    Column("envelope", LargeBinary, nullable=False),
)
