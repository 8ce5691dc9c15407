"""Evidence: the chain over events, checkpoints, release log, bills of materials."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

from firmament.trust.audit import GENESIS, event_digest, event_value, extend

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

PAGE = 1000


def upgrade() -> None:
    """Make the tables, and seal the events that are there."""
    # Without a rename: names of constraints would stay with the old table on PostgreSQL.
    op.execute("CREATE TABLE event_before AS SELECT * FROM event")
    op.drop_table("event")
    op.create_table(
        "event",
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("facts", sa.LargeBinary(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "number", name=op.f("pk_event")),
    )
    op.create_index("ix_event_subject", "event", ["tenant_id", "subject", "number"])
    op.create_index("ix_event_kind", "event", ["tenant_id", "kind", "number"])
    op.create_table(
        "event_unsealed",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("facts", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_event_unsealed")),
    )
    op.create_table(
        "chain_head",
        sa.Column("tenant_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", name=op.f("pk_chain_head")),
    )
    op.create_table(
        "checkpoint",
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "number", name=op.f("pk_checkpoint")),
    )
    op.create_table(
        "release_log",
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("release", sa.Text(), nullable=False),
        sa.Column("leaf", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "number", name=op.f("pk_release_log")),
    )
    op.create_index("ix_release_log_release", "release_log", ["tenant_id", "release"])
    op.create_table(
        "tree_head",
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "size", name=op.f("pk_tree_head")),
    )
    op.create_table(
        "sbom",
        sa.Column("release_id", sa.Integer(), nullable=False),
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("components", sa.Integer(), nullable=False),
        sa.Column("added_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["release_id"], ["release.id"], name=op.f("fk_sbom_release_id")),
        sa.PrimaryKeyConstraint("release_id", name=op.f("pk_sbom")),
    )
    op.create_table(
        "component",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("release_id", sa.Integer(), nullable=False),
        sa.Column("ecosystem", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("purl", sa.Text(), nullable=False),
        sa.Column("licence", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["release_id"], ["release.id"], name=op.f("fk_component_release_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_component")),
    )
    op.create_index("ix_component_name", "component", ["tenant_id", "name"])
    op.create_index("ix_component_release", "component", ["release_id", "name"])
    op.create_table(
        "vulnerability",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("summary", sa.Text(), nullable=False),
        sa.Column("severity", sa.Text(), nullable=False),
        sa.Column("statement", sa.Text(), nullable=False),
        sa.Column("known_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_vulnerability")),
        sa.UniqueConstraint("tenant_id", "name", name=op.f("uq_vulnerability_tenant_id_name")),
    )
    op.create_table(
        "finding",
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("vulnerability_id", sa.Integer(), nullable=False),
        sa.Column("release_id", sa.Integer(), nullable=False),
        sa.Column("component", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["vulnerability_id"], ["vulnerability.id"], name=op.f("fk_finding_vulnerability_id")),
        sa.ForeignKeyConstraint(["release_id"], ["release.id"], name=op.f("fk_finding_release_id")),
        sa.PrimaryKeyConstraint("vulnerability_id", "release_id", name=op.f("pk_finding")),
    )
    op.create_index("ix_finding_release", "finding", ["release_id"])
    _seal_what_is_there()
    op.drop_table("event_before")
    for table in ("event", "checkpoint", "release_log", "tree_head"):
        refuse_changes(table)


def refuse_changes(table: str) -> None:
    """Make a table append-only."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            f"CREATE FUNCTION {table}_refuses() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION '{table} is append-only' USING ERRCODE = '23514'; END $$"
        )
        op.execute(
            f"CREATE TRIGGER {table}_refuses BEFORE UPDATE OR DELETE ON {table} "
            f"FOR EACH ROW EXECUTE FUNCTION {table}_refuses()"
        )
        return
    for operation in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER {table}_refuses_{operation.lower()} BEFORE {operation} ON {table} "
            f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        )


def _seal_what_is_there() -> None:
    connection = op.get_bind()
    heads: dict[int, tuple[int, bytes]] = {}
    after = 0
    while True:
        rows = connection.execute(
            sa.text(
                "SELECT id, tenant_id, at, kind, actor, subject, facts FROM event_before "
                "WHERE id > :after ORDER BY id LIMIT :page"
            ),
            {"after": after, "page": PAGE},
        ).fetchall()
        if not rows:
            break
        sealed = []
        for row in rows:
            number, previous = heads.get(row.tenant_id, (0, GENESIS))
            facts = row.facts.encode() if isinstance(row.facts, str) else bytes(row.facts)
            value = event_value(
                tenant=row.tenant_id,
                number=number + 1,
                at=row.at,
                kind=row.kind,
                actor=row.actor,
                subject=row.subject,
                facts=json.loads(facts),
            )
            found = extend(previous, event_digest(value))
            heads[row.tenant_id] = (number + 1, found)
            sealed.append(
                {
                    "tenant": row.tenant_id,
                    "number": number + 1,
                    "at": row.at,
                    "kind": row.kind,
                    "actor": row.actor,
                    "subject": row.subject,
                    "facts": facts,
                    "hash": found,
                }
            )
            after = row.id
        connection.execute(
            sa.text(
                "INSERT INTO event(tenant_id, number, at, kind, actor, subject, facts, hash) "
                "VALUES (:tenant, :number, :at, :kind, :actor, :subject, :facts, :hash)"
            ),
            sealed,
        )
    for tenant, (number, found) in heads.items():
        connection.execute(
            sa.text("INSERT INTO chain_head(tenant_id, number, hash) VALUES (:tenant, :number, :hash)"),
            {"tenant": tenant, "number": number, "hash": found},
        )
