"""What an event means to people: sentences with rate, limit, sample, groups, common factor and next actions. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from firmament.server.events import Event
from firmament.server.notify.decide import News, Severity
from firmament.server.rollouts.decide import Code, may_fail

if TYPE_CHECKING:
    from collections.abc import Mapping

ROLLOUT_STATES: Final[dict[str, tuple[Severity, str]]] = {
    "awaiting-approval": (Severity.WARNING, "waits for a second person's approval"),
    "denied": (Severity.INFO, "was denied"),
    "running": (Severity.INFO, "is running"),
    "paused": (Severity.WARNING, "was paused; no new device starts"),
    "reverting": (Severity.WARNING, "brings its updated devices back"),
    "reverted": (Severity.WARNING, "has brought its updated devices back"),
    "aborted": (Severity.WARNING, "was aborted"),
    "finished": (Severity.INFO, "is finished"),
}
"""States worth telling; `halted` has an event of its own with the numbers of that moment."""


def news_of(event: Mapping[str, Any], rollout: Mapping[str, Any] | None, *, base_url: str) -> News | None:
    """Return what to tell about an event, None for what nobody needs to be told."""
    facts, number, at = event["facts"], int(event["id"]), int(event["at"])
    match event["kind"]:
        case Event.ROLLOUT_HALTED.value:
            title, body = halted(event["subject"], facts, rollout, at=at, base_url=base_url)
            link = _link(base_url, "rollouts", event["subject"])
            return News(f"rollout:{event['subject']}", number, Severity.CRITICAL, title, body, link, at)
        case Event.ROLLOUT_MOVED.value:
            return _moved(event, base_url=base_url)
        case Event.AUDIT_REFUSED.value:
            body = (
                f"The signer refuses to vouch for the record of events ({facts.get('code')}): {facts.get('problem')}."
            )
            return News("audit", number, Severity.CRITICAL, "the audit chain is broken", body, base_url, at)
        case Event.OUTLET_DISABLED.value:
            name = event["subject"]
            body = f"The outlet {name} was switched off after {facts.get('failures')} failures: {facts.get('answer')}."
            return News(f"outlet:{name}", number, Severity.WARNING, f"outlet {name} is off", body, base_url, at)
        case _:
            return None


def _moved(event: Mapping[str, Any], *, base_url: str) -> News | None:
    facts, rollout_id = event["facts"], event["subject"]
    state = str(facts.get("state", ""))
    if state not in ROLLOUT_STATES:
        return None
    if state == "running" and facts.get("was") == "holding":
        return None  # the next wave, not a change that anybody waits for
    severity, says = ROLLOUT_STATES[state]
    what = f"rollout {_short(rollout_id)} {facts.get('release', '')}".strip()
    link = _link(base_url, "rollouts", rollout_id)
    reason = f" Reason: {facts['reason']}." if facts.get("reason") else ""
    body = f"{what} {says} ({event['actor']}).{reason} {link}".strip()
    return News(f"rollout:{rollout_id}", int(event["id"]), severity, f"{what} {says}", body, link, int(event["at"]))


def halted(
    rollout_id: str, facts: Mapping[str, Any], rollout: Mapping[str, Any] | None, *, at: int, base_url: str
) -> tuple[str, str]:
    """Return title and text of a stop: enough to decide on a phone whether to get up."""
    halt: Mapping[str, Any] = {**facts, **((rollout or {}).get("halt") or {})}
    release = str(facts.get("release", "")).replace("/", "→", 1)
    title = f"HALTED rollout {_short(rollout_id)} {release}"
    parts = [
        f"{title} at {datetime.fromtimestamp(at, UTC):%H:%M} UTC.",
        f"Wave {halt.get('wave', '?')}: {_failures(halt)}",
    ]
    common = halt.get("common")
    if common:
        parts.append(f"{round(100 * common['share'])} % are {common['attribute']}={common['value']}.")
    parts.append(f"{_number(halt.get('not_started', 0))} not started (safe).")
    in_flight = f"{_number(halt.get('in_flight', 0))} in flight"
    if halt.get("in_flight_done_by"):
        in_flight += f", done by {datetime.fromtimestamp(int(halt['in_flight_done_by']), UTC):%H:%M} UTC"
    parts.append(f"{in_flight}.")
    parts.append(f"{_number(halt.get('updated', 0))} updated.")
    if halt.get("went_back_online") is not None:
        parts.append(f"{_number(halt['went_back_online'])} went back and are online.")
    parts.append(f"{_number(halt.get('silent', 0))} not called back.")
    parts.append(f"Nothing more happens until you act: {_link(base_url, 'rollouts', rollout_id)}")
    actions = [action for action in halt.get("next_actions") or () if action.get("is_possible", True)]
    text = " ".join(parts)
    if actions:
        text += "\n\nYou can:" + "".join(f"\n- {action['action']}: {action['sentence']}" for action in actions)
    return title, text


def _failures(halt: Mapping[str, Any]) -> str:
    failed, finished = int(halt.get("failed", 0)), int(halt.get("finished", 0))
    ratio = float(halt.get("limit_ratio", 0))
    limit = f"limit {100 * ratio:g} %"
    if halt.get("code") == Code.CANNOT_PASS and halt.get("possible"):
        possible = int(halt["possible"])
        return (
            f"{failed} failed of {possible}, {may_fail(ratio, possible)} may ({limit}): "
            f"it cannot pass whatever the others do; {finished} had finished."
        )
    rate = f"{100 * failed / finished:.1f} %" if finished else "no sample"
    return f"{failed}/{finished} failed ({rate}, {limit})."


def _number(value: Any) -> str:
    return f"{int(value):,}".replace(",", " ")


def _short(rollout_id: str) -> str:
    return rollout_id[:8]


def _link(base_url: str, *parts: str) -> str:
    return "/".join([base_url.rstrip("/"), *parts])
