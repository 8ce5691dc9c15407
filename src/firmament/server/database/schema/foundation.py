"""Foundation: products, releases, devices, attempts, reports, people, tokens.

The partial unique index on `attempt` is the rule "one open attempt per device", and the poll's
only look-up (stack.md §3).
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from firmament.server.database.schema.base import BigId, metadata

number: Final = Table(
    "number",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", BigInteger, nullable=False),
)
"""Single durable numbers, e.g. the director's version horizon."""

product: Final = Table(
    "product",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("tenant_id", Integer, nullable=False),
    Column("name", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    UniqueConstraint("tenant_id", "name"),
)

release: Final = Table(
    "release",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("tenant_id", Integer, nullable=False),
    Column("product_id", Integer, ForeignKey("product.id"), nullable=False),
    Column("version", Text, nullable=False),
    Column("sequence_number", BigInteger, nullable=False),
    Column("target", Text, nullable=False),
    Column("length_bytes", BigInteger, nullable=False),
    Column("digest", Text, nullable=False),
    Column("manifest", LargeBinary, nullable=False),
    Column("published_at", BigInteger, nullable=False),
    Column("withdrawn_at", BigInteger),
    UniqueConstraint("tenant_id", "product_id", "version"),
)
"""An index over the signed repository, which is the truth: it can be rebuilt from it."""

channel: Final = Table(
    "channel",
    metadata,
    Column("tenant_id", Integer, primary_key=True),
    Column("product_id", Integer, ForeignKey("product.id"), primary_key=True),
    Column("name", Text, primary_key=True),
    Column("release_id", Integer, ForeignKey("release.id"), nullable=False),
    Column("promoted_at", BigInteger, nullable=False),
)

device: Final = Table(
    "device",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("tenant_id", Integer, nullable=False),
    Column("uid", Text, nullable=False, unique=True),
    Column("product_id", Integer, ForeignKey("product.id"), nullable=False),
    Column("hardware", Text, nullable=False),
    Column("serial", Text, nullable=False),
    Column("identity_keyid", Text, nullable=False, unique=True),
    Column("identity_key", LargeBinary, nullable=False),
    Column("hpke_public_key", LargeBinary, nullable=False, unique=True),
    Column("enrolment_token_id", Integer),
    Column("bucket", Integer, nullable=False),
    Column("disabled", Integer, nullable=False, server_default="0"),
    Column("enrolled_at", BigInteger, nullable=False),
    Column("version", Text, nullable=False, server_default=""),
    Column("sequence_number", BigInteger, nullable=False, server_default="0"),
    Column("image_digest", Text, nullable=False, server_default=""),
    Column("boot_id", Text, nullable=False, server_default=""),
    Column("attributes", Text, nullable=False, server_default="{}"),
)
Index("ix_device_match", device.c.tenant_id, device.c.product_id, device.c.id)

device_seen: Final = Table(
    "device_seen",
    metadata,
    Column("device_id", Integer, ForeignKey("device.id"), primary_key=True),
    Column("last_seen", BigInteger, nullable=False),
    Column("address", Text, nullable=False),
    Column("last_poll", BigInteger, nullable=False, server_default="0"),
    Column("interval_s", Integer, nullable=False, server_default="0"),
)
"""Narrow and write-behind: the only row that a usual poll changes.

`interval_s` is how often the device asks when it has nothing to do, a running mean; 0 until it
was heard twice.
"""

attempt: Final = Table(
    "attempt",
    metadata,
    Column("id", BigId, primary_key=True),
    Column("tenant_id", Integer, nullable=False),
    Column("uid", Text, nullable=False, unique=True),
    Column("device_id", Integer, ForeignKey("device.id"), nullable=False),
    Column("release_id", Integer, ForeignKey("release.id"), nullable=False),
    Column("state", Text, nullable=False),
    Column("active", Integer, nullable=False, server_default="1"),
    Column("code", Text, nullable=False, server_default=""),
    Column("message", Text, nullable=False, server_default=""),
    Column("log", Text, nullable=False, server_default="[]"),
    Column("boot_id_before", Text, nullable=False, server_default=""),
    Column("boot_id", Text, nullable=False, server_default=""),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("rollout_id", Integer),
    Column("takes_back", Text),
)
Index("ix_attempt_device", attempt.c.device_id, attempt.c.id)
Index(
    "uq_attempt_active",
    attempt.c.device_id,
    unique=True,
    sqlite_where=text("active = 1"),
    postgresql_where=text("active = 1"),
)

report: Final = Table(
    "report",
    metadata,
    Column("device_id", Integer, ForeignKey("device.id"), primary_key=True),
    Column("number", BigInteger, primary_key=True),
    Column("digest", LargeBinary, nullable=False),
    Column("received_at", BigInteger, nullable=False),
)
"""Which report numbers were accepted, and the digest of what they said (case 49)."""

person: Final = Table(
    "person",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("tenant_id", Integer, nullable=False),
    Column("name", Text, nullable=False),
    Column("password_hash", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("disabled", Integer, nullable=False, server_default="0"),
    Column("failures", Integer, nullable=False, server_default="0"),
    Column("locked_until", BigInteger, nullable=False, server_default="0"),
    Column("created_at", BigInteger, nullable=False),
    UniqueConstraint("tenant_id", "name"),
)

token: Final = Table(
    "token",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("tenant_id", Integer, nullable=False),
    Column("hash", LargeBinary, nullable=False, unique=True),
    Column("person_id", Integer, ForeignKey("person.id"), nullable=False),
    Column("label", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("product", Text),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("revoked_at", BigInteger),
)

enrolment_token: Final = Table(
    "enrolment_token",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("tenant_id", Integer, nullable=False),
    Column("hash", LargeBinary, nullable=False, unique=True),
    Column("product_id", Integer, ForeignKey("product.id"), nullable=False),
    Column("hardware", Text),
    Column("uses_left", Integer, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
)
