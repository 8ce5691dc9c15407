"""Shapes of the evidence routes: audit chain, release log (see shapes.py)."""

from __future__ import annotations

from typing import Any

from typing_extensions import TypedDict  # pydantic reads no other before Python 3.12


class AuditKey(TypedDict):
    """The public audit key; keep it where the server cannot change it."""

    keyid: str
    key: str


class AuditEvents(TypedDict):
    """A page of the chain, and the cursor of the next page."""

    events: list[dict[str, Any]]
    next: int | None


class Checkpoints(TypedDict):
    """Signed checkpoints, oldest first."""

    checkpoints: list[dict[str, Any]]
    next: int | None


class ReleaseProof(TypedDict):
    """That a release is in the log, under a signed tree head."""

    release: str
    leaf: str
    index: int
    size: int
    proof: list[str]
    tree_head: dict[str, Any]


class ReleaseLog(TypedDict):
    """The newest signed tree head, and that an earlier log is a beginning of it."""

    tree_head: dict[str, Any] | None
    old_size: int
    size: int
    proof: list[str]


class ReleaseLogLeaves(TypedDict):
    """Leaves in order."""

    leaves: list[dict[str, Any]]
    next: int | None
