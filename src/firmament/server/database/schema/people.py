"""People: tenants, sessions, second factors, outside identities, consent rules and answers."""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, LargeBinary, Table, Text, UniqueConstraint

from firmament.server.database.schema.base import metadata
from firmament.server.database.schema.foundation import product

tenant: Final = Table(
    "tenant",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("disabled", Integer, nullable=False, server_default="0"),
    Column("created_by", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
)
"""Row 1 is made by the migration: the tenant of whoever runs the server."""

Index("uq_product_everywhere", product.c.name, unique=True)
"""A product is a role in the one repository: its name is unique on the whole server (ADR-0016)."""

tenant_blob: Final = Table(
    "tenant_blob",
    metadata,
    Column("tenant_id", Integer, ForeignKey("tenant.id"), primary_key=True),
    Column("digest", Text, primary_key=True),
    Column("length_bytes", BigInteger, nullable=False),
    Column("at", BigInteger, nullable=False),
)
"""Who sent which bytes: blobs are kept once, but nobody is told of what others sent."""

person_session: Final = Table(
    "person_session",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("tenant_id", Integer, nullable=False),
    Column("person_id", Integer, ForeignKey("person.id"), nullable=False),
    Column("hash", LargeBinary, nullable=False, unique=True),
    Column("kind", Text, nullable=False),
    Column("address", Text, nullable=False),
    Column("client", Text, nullable=False),
    Column("proofs", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("used_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("revoked_at", BigInteger),
)
Index("ix_person_session_person", person_session.c.person_id, person_session.c.id)

token_use: Final = Table(
    "token_use",
    metadata,
    Column("token_id", Integer, ForeignKey("token.id"), primary_key=True),
    Column("used_at", BigInteger, nullable=False),
    Column("address", Text, nullable=False),
)

second_factor: Final = Table(
    "second_factor",
    metadata,
    Column("person_id", Integer, ForeignKey("person.id"), primary_key=True),
    Column("tenant_id", Integer, nullable=False),
    Column("sealed_secret", LargeBinary, nullable=False),
    Column("confirmed_at", BigInteger),
    Column("last_step", BigInteger, nullable=False, server_default="-1"),
    Column("created_at", BigInteger, nullable=False),
)
"""TOTP: a code of a step that is not above `last_step` was used before."""

recovery_code: Final = Table(
    "recovery_code",
    metadata,
    Column("person_id", Integer, ForeignKey("person.id"), primary_key=True),
    Column("hash", LargeBinary, primary_key=True),
    Column("tenant_id", Integer, nullable=False),
    Column("used_at", BigInteger),
)

outside_identity: Final = Table(
    "outside_identity",
    metadata,
    Column("issuer", Text, primary_key=True),
    Column("subject", Text, primary_key=True),
    Column("tenant_id", Integer, nullable=False),
    Column("person_id", Integer, ForeignKey("person.id"), nullable=False),
    Column("created_at", BigInteger, nullable=False),
)
Index("ix_outside_identity_person", outside_identity.c.person_id)

outside_sign_in: Final = Table(
    "outside_sign_in",
    metadata,
    Column("state_hash", LargeBinary, primary_key=True),
    Column("sealed", LargeBinary, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
)
"""A sign-in that went to the provider and has not come back; deleted when it does."""

consent_rule: Final = Table(
    "consent_rule",
    metadata,
    Column("tenant_id", Integer, primary_key=True),
    Column("level", Text, primary_key=True),
    Column("subject", Text, primary_key=True),
    Column("update_class", Text, primary_key=True),
    Column("mode", Text, nullable=False),
    Column("span", Text, nullable=False),
    Column("set_by", Text, nullable=False),
    Column("set_at", BigInteger, nullable=False),
)

consent_event: Final = Table(
    "consent_event",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("tenant_id", Integer, nullable=False),
    Column("device_id", Integer, ForeignKey("device.id"), nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("release_id", Integer, ForeignKey("release.id")),
    Column("attempt_uid", Text, nullable=False),
    Column("answer", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("via", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("until", BigInteger),
    Column("update_class", Text, nullable=False),
    Column("text_digest", Text, nullable=False),
    Column("language", Text, nullable=False),
    Column("received_at", BigInteger, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("signature", LargeBinary, nullable=False),
    UniqueConstraint("device_id", "number"),
)
Index("ix_consent_event_release", consent_event.c.release_id, consent_event.c.id)
"""Evidence: what was said, with the exact bytes and the device's signature over them."""

consent_answer: Final = Table(
    "consent_answer",
    metadata,
    Column("device_id", Integer, ForeignKey("device.id"), primary_key=True),
    Column("release_id", Integer, ForeignKey("release.id"), primary_key=True),
    Column("tenant_id", Integer, nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("latest", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("until", BigInteger),
    Column("first_asked_at", BigInteger, nullable=False),
    Column("postponements", Integer, nullable=False),
)
Index("ix_consent_answer_release", consent_answer.c.release_id, consent_answer.c.latest)
"""The newest answer to one release: the sum of its events, for counting and deciding."""

owner_choice: Final = Table(
    "owner_choice",
    metadata,
    Column("device_id", Integer, ForeignKey("device.id"), primary_key=True),
    Column("tenant_id", Integer, nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("opted_out_at", BigInteger),
)
"""Whether an owner switched updates off, by the newest opt-out or opt-in."""

repeat: Final = Table(
    "repeat",
    metadata,
    Column("tenant_id", Integer, primary_key=True),
    Column("actor", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("digest", LargeBinary, nullable=False),
    Column("nonce", LargeBinary, nullable=False),
    Column("begun_at", BigInteger, nullable=False),
    Column("is_done", Integer, nullable=False, server_default="0"),
    Column("status", Integer),
    Column("sealed_answer", LargeBinary),
    Column("expires_at", BigInteger, nullable=False),
)
Index("ix_repeat_expires_at", repeat.c.expires_at)
"""Idempotency keys (repeats.py): what was asked under a name, whether it was done, and the first answer."""
