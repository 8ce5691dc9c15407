"""The tables, in SQLAlchemy Core: for migrations and their check, never on the hot path.

Types that SQLite and PostgreSQL share: times are whole seconds since 1970 (UTC), identifiers on
the wire are text, digests and tokens are bytes. `tenant_id` is in every table that a person can
ask about. One module a domain; all of them together are `metadata`.
"""

from __future__ import annotations

from firmament.server.database.schema import (
    evidence,
    foundation,
    inventory,
    outbox,
    payloads,
    people,
    replicas,
    rollouts,
)
from firmament.server.database.schema.base import metadata

__all__ = ("evidence", "foundation", "inventory", "metadata", "outbox", "payloads", "people", "replicas", "rollouts")
