"""The compliance report: who got which fix when, folded from the audit chain; pure.

It is computed from the events themselves, so that the same report comes out of an export that
was taken away and verified (Regulation (EU) 2024/2847, Annex I part I 2 (c) and part II).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_RELEASES: Final = 100_000
CONFIRMED: Final = "confirmed"
ENDED_BADLY: Final = frozenset({"reverted", "failed", "refused"})


@dataclass(slots=True)
class OfRelease:
    """What the chain says about one release."""

    release: str
    published_at: int | None = None
    withdrawn_at: int | None = None
    sbom_components: int | None = None
    confirmed: int = 0
    first_confirmed_at: int | None = None
    last_confirmed_at: int | None = None
    not_kept: int = 0
    """Attempts that ended with the old image: reverted, failed or refused."""


@dataclass(slots=True)
class Fold:
    """Takes events in order; `result` is the part of the report that the chain proves."""

    since: int = 0
    until: int = 2**62
    events: int = 0
    releases: dict[str, OfRelease] = field(default_factory=dict)
    consent: dict[str, int] = field(default_factory=dict)
    opt_outs: set[str] = field(default_factory=set)
    vulnerabilities: dict[str, int] = field(default_factory=dict)
    refusals: int = 0

    def add(self, event: Mapping[str, Any]) -> None:
        """Take one event, as the export or the database gives it."""
        at, kind, subject, facts = int(event["at"]), str(event["kind"]), str(event["subject"]), event["facts"]
        if not self.since <= at < self.until:
            return
        self.events += 1
        match kind:
            case "release.published":
                self._release(subject).published_at = at
            case "release.withdrawn":
                self._release(subject).withdrawn_at = at
            case "sbom.added":
                self._release(subject).sbom_components = int(facts.get("components", 0))
            case "attempt.moved" if facts.get("release"):
                self._moved(self._release(str(facts["release"])), str(facts.get("state")), at)
            case "vulnerability.stated":
                self.vulnerabilities.setdefault(subject, at)
            case "report.refused" | "publish.refused" | "enrolment.refused" | "audit.refused":
                self.refusals += 1
            case _:
                if kind.startswith("consent."):
                    self._consent(kind, subject, facts)

    def _release(self, name: str) -> OfRelease:
        if name not in self.releases and len(self.releases) >= MAX_RELEASES:
            return OfRelease(name)
        return self.releases.setdefault(name, OfRelease(name))

    @staticmethod
    def _moved(release: OfRelease, state: str, at: int) -> None:
        if state == CONFIRMED:
            release.confirmed += 1
            release.first_confirmed_at = at if release.first_confirmed_at is None else release.first_confirmed_at
            release.last_confirmed_at = at
        elif state in ENDED_BADLY:
            release.not_kept += 1

    def _consent(self, kind: str, subject: str, facts: Mapping[str, Any]) -> None:
        answer = str(facts.get("answer") or facts.get("kind") or kind.partition(".")[2])[:40]
        if answer in self.consent or len(self.consent) < 50:  # noqa: PLR2004 - words of an enum, bounded all the same
            self.consent[answer] = self.consent.get(answer, 0) + 1
        if answer == "opt-out":
            self.opt_outs.add(subject)
        elif answer == "opt-in":
            self.opt_outs.discard(subject)

    def result(self) -> dict[str, Any]:
        """Return what was found."""
        return {
            "events": self.events,
            "releases": [
                {
                    "release": each.release,
                    "published_at": each.published_at,
                    "withdrawn_at": each.withdrawn_at,
                    "sbom_components": each.sbom_components,
                    "confirmed": each.confirmed,
                    "first_confirmed_at": each.first_confirmed_at,
                    "last_confirmed_at": each.last_confirmed_at,
                    "not_kept": each.not_kept,
                }
                for each in self.releases.values()
            ],
            "consent": dict(sorted(self.consent.items())),
            "opt_outs": len(self.opt_outs),
            "vulnerabilities": [{"name": name, "known_at": at} for name, at in self.vulnerabilities.items()],
            "refusals": self.refusals,
        }
