"""What a rollout would do, said before anything is changed: who, who not and why, how many bytes, what blocks it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from firmament.server.consent.answers import missing_notes
from firmament.server.consent.rules import count_modes
from firmament.server.inventory.query_sql import FROM
from firmament.server.inventory.store import decode_manifest
from firmament.server.payloads.content_keys import count_held
from firmament.server.releases.find import find_named
from firmament.server.rollouts.model import OnStop, propose_waves, wave_sizes
from firmament.server.rollouts.selection import SENTENCES, count_by_rule, sample_by_rule, select
from firmament.server.scope import Action

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from firmament.core.manifest import Manifest
    from firmament.server.database.port import Connection
    from firmament.server.rollouts.model import Policy
    from firmament.server.rollouts.selection import Selection
    from firmament.server.scope import Scope

MAX_SOURCES: Final = 200
SAMPLE: Final = 5


def make_plan(
    connection: Connection, scope: Scope, *, release: str, selector: str, policy: Policy, now: datetime
) -> dict[str, Any]:
    """Return the plan; raises NotFoundError for the release, MalformedError for the selector."""
    scope.require(Action.READ)
    row = find_named(connection, scope, release)
    manifest = decode_manifest(bytes(row["manifest"]))
    chosen = select(connection, scope, selector=selector, manifest=manifest, release_row=row["id"], now=now)
    by_rule = count_by_rule(connection, chosen)
    total = by_rule.pop("", 0)
    sources = _sources(connection, chosen, manifest)
    waves = _waves(connection, scope, policy, total)
    whole = manifest.payloads[0].length_bytes
    modes = count_modes(connection, scope, chosen.targets(), manifest.update_class, now)
    no_notes = missing_notes(manifest, asking=modes["ask"])
    return {
        "release": release,
        "selector": selector,
        "matching": total + sum(by_rule.values()),
        "count": total,
        "sample": sample_by_rule(connection, chosen, "", SAMPLE),
        "excluded": [
            {
                "rule": rule,
                "count": n,
                "sentence": f"{n} {SENTENCES[rule][0]}",
                "hint": SENTENCES[rule][1],
                "sample": sample_by_rule(connection, chosen, rule, SAMPLE),
            }
            for rule, n in sorted(by_rule.items(), key=lambda item: -item[1])
        ],
        "waves": waves,
        "sources": sources,
        "bytes_with_deltas": sum(item["count"] * item["payload_bytes"] for item in sources),
        "bytes_whole": total * whole,
        "consent": modes,
        "blockers": [
            *blockers(is_withdrawn=row["withdrawn_at"] is not None, total=total, release=release),
            *([no_notes] if no_notes is not None else []),
        ],
        "warnings": [*_warnings(manifest, policy, waves, total), *_missing_keys(connection, scope, manifest)],
        "needs_approval": needs_approval(policy, total),
        "policy": policy.to_json(),
    }


@dataclass(frozen=True, slots=True)
class Reach:
    """What is asked before a rollout is made, on a fleet of any size by one look at each device."""

    count: int
    """How many devices it would reach."""
    no_notes: dict[str, str] | None
    """The blocker where owners are asked and the release has no notes for them."""


def find_reach(connection: Connection, scope: Scope, *, release: str, selector: str, now: datetime) -> Reach:
    """Return whom a rollout would reach; raises NotFoundError for the release, MalformedError for the selector."""
    row = find_named(connection, scope, release)
    manifest = decode_manifest(bytes(row["manifest"]))
    chosen = select(connection, scope, selector=selector, manifest=manifest, release_row=row["id"], now=now)
    targets = chosen.targets()
    if missing_notes(manifest, asking=1) is None:
        n = connection.execute(f"SELECT COUNT(*) AS n FROM {FROM} WHERE {targets.text}", targets.parameters).fetchone()
        return Reach(int(n["n"]), None)
    # Each target has one mode.
    modes = count_modes(connection, scope, targets, manifest.update_class, now)
    return Reach(sum(modes.values()), missing_notes(manifest, asking=modes["ask"]))


def needs_approval(policy: Policy, total: int) -> bool:
    """Whether a second person must agree."""
    return policy.approval_above is not None and total > policy.approval_above


def blockers(*, is_withdrawn: bool, total: int, release: str) -> list[dict[str, str]]:
    """Return what stands against a start."""
    found = []
    if is_withdrawn:
        found.append(_remark("release-withdrawn", f"{release} was withdrawn.", "Publish it again."))
    if total == 0:
        found.append(_remark("no-targets", "No device would get it.", "Look at who is left out and why."))
    return found


def _warnings(manifest: Manifest, policy: Policy, waves: Sequence[dict[str, Any]], total: int) -> list[dict[str, str]]:
    found = []
    if policy.on_stop is OnStop.REVERT and manifest.revertible_to is None:
        found.append(
            _remark(
                "no-way-back",
                "The author did not allow going back from this release; on a stop, devices will stay on it.",
                "Build it with --revertible-to, or choose to hold on a stop.",
            )
        )
    if waves and waves[0]["count"] == total and total > 1:
        found.append(_remark("one-wave", f"All {total} devices start at once.", "Begin with a small wave."))
    return found


def _missing_keys(connection: Connection, scope: Scope, manifest: Manifest) -> list[dict[str, str]]:
    missing = sum(payload.is_sealed for payload in manifest.payloads) - count_held(connection, scope, manifest)
    if not missing:
        return []
    sentence = f"The server was not given {missing} content keys of this release; devices wait until it is."
    return [_remark("keys-withheld", sentence, f"Run `firmament release give-keys {manifest.release_id}`.")]


def _remark(code: str, message: str, hint: str) -> dict[str, str]:
    return {"code": code, "message": message, "hint": hint}


def _sources(connection: Connection, chosen: Selection, manifest: Manifest) -> list[dict[str, Any]]:
    """Return what targets run now, and the payload that each of them would fetch."""
    rows = connection.execute(
        "SELECT version, image_digest, COUNT(*) AS n FROM (SELECT d.version, d.image_digest, "
        f"{chosen.excluded_by.text} AS rule FROM {FROM} WHERE {chosen.matching.text}) AS judged WHERE rule = '' "
        "GROUP BY version, image_digest ORDER BY n DESC LIMIT ?",
        (*chosen.excluded_by.parameters, *chosen.matching.parameters, MAX_SOURCES),
    )
    found = []
    for row in rows:
        fitting = [
            payload
            for payload in manifest.payloads
            if payload.precursor_digest is None or str(payload.precursor_digest) == row["image_digest"]
        ]
        best = min(fitting, key=lambda payload: payload.length_bytes, default=manifest.payloads[0])
        found.append(
            {
                "version": row["version"],
                "count": int(row["n"]),
                "payload_bytes": best.length_bytes,
                "is_delta": best.precursor_digest is not None,
            }
        )
    return found


def _waves(connection: Connection, scope: Scope, policy: Policy, total: int) -> list[dict[str, Any]]:
    specs = policy.waves or propose_waves(total)
    named = [_known(connection, scope, wave.devices) for wave in specs]
    return [
        {"number": number, "name": wave.name, "count": size}
        for number, (wave, size) in enumerate(zip(specs, wave_sizes(specs, total, named), strict=True), 1)
    ]


def _known(connection: Connection, scope: Scope, names: Sequence[str]) -> int:
    if not names:
        return 0
    marks = ", ".join("?" * len(names))
    row = connection.execute(
        f"SELECT COUNT(*) AS n FROM device d WHERE d.tenant_id = ? AND d.uid IN ({marks})", (scope.tenant_id, *names)
    ).fetchone()
    return int(row["n"])
