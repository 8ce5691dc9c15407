"""The port for one health check, and what it finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

MAX_DETAIL_LINES: Final = 20
# What a person reads in a report before asking for the whole log.
MAX_DETAIL_CHARACTERS: Final = 4096
# Twenty lines of 200 characters; bounds what a failing program can put into a report.


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check saw at one moment."""

    check: str
    """The check's name, e.g. ``http http://127.0.0.1:8080/health``."""
    is_healthy: bool
    detail: str
    """For people: the last lines of output, or what was wrong. At most MAX_DETAIL_CHARACTERS."""


class HealthCheck(Protocol):
    """One question to the running image; it answers, it does not raise."""

    @property
    def name(self) -> str:
        """How findings and settings name it."""
        ...

    def check(self) -> Finding:
        """Ask once, within the check's own timeout; everything it started has ended on return."""
        ...


def tail(text: str) -> str:
    """Return the last lines of `text` within the limits, without control characters."""
    lines = [
        "".join(c if c.isprintable() or c == "\t" else "\N{REPLACEMENT CHARACTER}" for c in line)
        for line in text.splitlines()
    ]
    return "\n".join(lines[-MAX_DETAIL_LINES:])[-MAX_DETAIL_CHARACTERS:]


def finding(check: str, *, is_healthy: bool, detail: str) -> Finding:
    """Return a finding whose detail is within the limits."""
    return Finding(check=check, is_healthy=is_healthy, detail=tail(detail))
