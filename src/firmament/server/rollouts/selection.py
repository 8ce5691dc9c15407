"""Which devices a rollout would reach, and which it leaves out: the per-device rules once more, as SQL.

Each rule here has a twin in `why.RULES`; a property test compares the two on random fleets. A
device that several rules leave out counts under the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from firmament.server.inventory.model import Mark
from firmament.server.inventory.query_sql import FROM, Sql
from firmament.server.inventory.search import condition

if TYPE_CHECKING:
    from datetime import datetime

    from firmament.core.manifest import Manifest
    from firmament.server.database.port import Connection
    from firmament.server.scope import Scope

SENTENCES: Final[dict[str, tuple[str, str]]] = {
    "device-enabled": ("disabled", "Enable them."),
    "product": ("of another product", "Narrow the selector to the release's product."),
    "hardware": ("of hardware that the release is not for", "Publish a release for it."),
    "newer": ("run this release or something newer", ""),
    "stepping-stone": ("need another release first", "Roll that one out first."),
    "not-failed-here": ("failed with this release before", "Look at the failures, then clear them."),
    "not-quarantined": ("in quarantine", "Release them."),
    "not-pinned": ("pinned to what they run", "Unpin them."),
    "free": ("busy with another update", "Wait, or choose late joiners (dynamic)."),
    "payload": ("run a version that no payload fits", "Publish a whole payload."),
}


_WANTED: Final = (
    "EXISTS (SELECT 1 FROM rollout_target t WHERE t.device_id = d.id AND t.active = 1 AND t.rollout_id <> ?)"
)
_UPDATING: Final = "EXISTS (SELECT 1 FROM attempt a WHERE a.device_id = d.id AND a.active = 1)"


FREE_AT: Final = 8
"""Which of the rules asks whether something else wants the device."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The matching devices, and a CASE that names the first rule that leaves one out ('' for a target)."""

    matching: Sql
    excluded_by: Sql
    writable: Sql
    """The devices that would be reached, but for those another rollout wants: a unique index knows those."""

    def targets(self) -> Sql:
        """Return the condition for the devices that would be reached."""
        return Sql(
            f"{self.matching.text} AND {self.excluded_by.text} = ''",
            (*self.matching.parameters, *self.excluded_by.parameters),
        )


def select(
    connection: Connection,
    scope: Scope,
    *,
    selector: str,
    manifest: Manifest,
    release_row: int,
    now: datetime,
    rollout_row: int | None = None,
) -> Selection:
    """Return the selection of a selector for a release; raises MalformedError or NotFoundError."""
    rules: list[tuple[str, str, tuple[Any, ...]]] = [
        ("device-enabled", "d.disabled = 1", ()),
        ("product", "p.name <> ?", (manifest.product,)),
        ("hardware", f"d.hardware NOT IN ({', '.join('?' * len(manifest.hardware))})", manifest.hardware),
        ("newer", "d.sequence_number >= ?", (manifest.sequence_number,)),
        ("stepping-stone", "d.sequence_number < ?", (manifest.requires.min_sequence_number,)),
        (
            "not-failed-here",
            "EXISTS (SELECT 1 FROM device_failure f WHERE f.device_id = d.id AND f.release_id = ?)",
            (release_row,),
        ),
        ("not-quarantined", "EXISTS (SELECT 1 FROM device_quarantine q WHERE q.device_id = d.id)", ()),
        (
            "not-pinned",
            "EXISTS (SELECT 1 FROM device_mark m WHERE m.device_id = d.id AND m.mark = ?)",
            (Mark.PINNED.value,),
        ),
    ]
    precursors = [str(payload.precursor_digest) for payload in manifest.payloads if payload.precursor_digest]
    if all(payload.precursor_digest for payload in manifest.payloads):
        rules.append(("payload", f"d.image_digest NOT IN ({', '.join('?' * len(precursors))})", tuple(precursors)))
    writable = " AND ".join(f"NOT ({text})" for text in (*(text for _, text, _ in rules), _UPDATING))
    written = tuple(value for _, _, values in rules for value in values)
    # The order is that of `why.RULES`: a device counts under the first.
    rules.insert(FREE_AT, ("free", f"{_WANTED} OR {_UPDATING}", (rollout_row or 0,)))
    case = "CASE " + " ".join(f"WHEN {text} THEN '{name}'" for name, text, _ in rules) + " ELSE '' END"
    parameters = tuple(value for _, _, values in rules for value in values)
    matching = condition(connection, scope, selector, now)
    return Selection(
        matching,
        Sql(case, parameters),
        Sql(f"{matching.text} AND {writable}", (*matching.parameters, *written)),
    )


def count_by_rule(connection: Connection, chosen: Selection) -> dict[str, int]:
    """Return how many matching devices each rule leaves out, and under '' how many are targets."""
    rows = connection.execute(
        f"SELECT rule, COUNT(*) AS n FROM (SELECT {chosen.excluded_by.text} AS rule FROM {FROM} "
        f"WHERE {chosen.matching.text}) AS judged GROUP BY rule",
        (*chosen.excluded_by.parameters, *chosen.matching.parameters),
    )
    return {row["rule"]: int(row["n"]) for row in rows}


def sample_by_rule(connection: Connection, chosen: Selection, rule: str, limit: int = 5) -> list[str]:
    """Return the names of a few devices under one rule ('' for targets)."""
    rows = connection.execute(
        f"SELECT uid FROM (SELECT d.id, d.uid, {chosen.excluded_by.text} AS rule FROM {FROM} "
        f"WHERE {chosen.matching.text}) AS judged WHERE rule = ? ORDER BY id LIMIT ?",
        (*chosen.excluded_by.parameters, *chosen.matching.parameters, rule, limit),
    )
    return [row["uid"] for row in rows]
