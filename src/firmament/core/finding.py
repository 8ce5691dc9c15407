"""What a doctor finds: one line about one thing, how serious it is, and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """How serious a finding is."""

    GOOD = "good"
    WARNING = "warning"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of a doctor."""

    check: str
    verdict: Verdict
    seen: str
    action: str = ""
    """What to do; empty when all is well."""
