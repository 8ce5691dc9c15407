"""Alembic migrations; each is applied once, in order."""
