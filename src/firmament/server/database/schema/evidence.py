"""Evidence: the chain over events, checkpoints, release log, bills of materials."""

from __future__ import annotations
