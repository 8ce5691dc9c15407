"""Evidence: the chain over events, checkpoints, release log, bills of materials."""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, LargeBinary, Table, Text, UniqueConstraint

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

sbom: Final = Table(
    "sbom",
    metadata,
    Column("release_id", Integer, ForeignKey("release.id"), primary_key=True),
    Column("tenant_id", Integer, nullable=False),
    Column("digest", Text, nullable=False),
    Column("components", Integer, nullable=False),
    Column("added_at", BigInteger, nullable=False),
)
"""That a release's bill of materials was read; the bytes are a blob, named by the signed manifest."""

component: Final = Table(
    "component",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("tenant_id", Integer, nullable=False),
    Column("release_id", Integer, ForeignKey("release.id"), nullable=False),
    Column("ecosystem", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("purl", Text, nullable=False),
    Column("licence", Text, nullable=False),
)
Index("ix_component_release", component.c.release_id, component.c.name)
Index("ix_component_name", component.c.tenant_id, component.c.name)

vulnerability: Final = Table(
    "vulnerability",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("tenant_id", Integer, nullable=False),
    Column("name", Text, nullable=False),
    Column("summary", Text, nullable=False),
    Column("severity", Text, nullable=False),
    Column("statement", Text, nullable=False),
    Column("known_at", BigInteger, nullable=False),
    UniqueConstraint("tenant_id", "name"),
)
"""What an operator imported about a CVE: affected components with version ranges, as canonical JSON."""

finding: Final = Table(
    "finding",
    metadata,
    Column("tenant_id", Integer, nullable=False),
    Column("vulnerability_id", Integer, ForeignKey("vulnerability.id"), primary_key=True),
    Column("release_id", Integer, ForeignKey("release.id"), primary_key=True),
    Column("component", Text, nullable=False),
    Column("status", Text, nullable=False),
)
"""Which release has it, computed when a statement or a bill of materials comes in."""
Index("ix_finding_release", finding.c.release_id)
