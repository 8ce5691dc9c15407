"""Names of constraints, and the collection that every table is in."""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, Integer, MetaData

metadata: Final = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

BigId: Final = BigInteger().with_variant(Integer, "sqlite")
"""A row id that may pass two thousand million. SQLite counts up only in a column that is called INTEGER."""
