"""Payload keys: content keys of sealed payloads, wrapped for this server; wrapping keys that were revoked."""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, Column, ForeignKey, Integer, LargeBinary, Table, Text

from firmament.server.database.schema.base import metadata

content_key: Final = Table(
    "content_key",
    metadata,
    Column("tenant_id", Integer, primary_key=True),
    Column("digest", Text, primary_key=True),
    Column("release", Text, nullable=False),
    Column("keyid", Text, nullable=False),
    Column("wrapped", LargeBinary, nullable=False),
    Column("added_at", BigInteger, nullable=False),
)
"""The key of a sealed container, named by its digest: HPKE for the server's own key `keyid` (payloads/custody.py)."""

revoked_wrapping_key: Final = Table(
    "revoked_wrapping_key",
    metadata,
    Column("device_id", Integer, ForeignKey("device.id"), primary_key=True),
    Column("tenant_id", Integer, nullable=False),
    Column("reason", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
)
"""Devices for whose present wrapping key nothing is wrapped any more; a new key removes the row."""
