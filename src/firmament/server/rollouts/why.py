"""Why a device gets a release now, later or not: the ordered rules, from the same code that decides.

`judge` runs every rule and is what a person is shown; `first_missing` stops at the first that does
not pass and is what the engine asks before it starts a device. Rules are pure functions of
`Question`; which question is asked is the business of `facts.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from firmament.core.fields import format_time
from firmament.server.inventory.attributes import ZONE
from firmament.server.payloads.content_keys import HINTS
from firmament.server.rollouts.machine import MAY_START_DEVICES, WAITS_FOR, RolloutState, TargetStatus
from firmament.server.rollouts.targets import EVERYTHING, OLD_STOCK, Target
from firmament.server.rollouts.windows import is_any_open, next_opening, zone_named, zone_or

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from firmament.core.manifest import Manifest, Payload
    from firmament.server.payloads.content_keys import Openable
    from firmament.server.rollouts.model import Policy


class Verdict(StrEnum):
    """What a rule says."""

    PASS = "pass"  # noqa: S105 - a verdict
    WAIT = "wait"
    """Time or an event will change it; nobody needs to act."""
    BLOCK = "block"
    """Stays so until somebody acts."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One rule's answer about one device and release."""

    rule: str
    verdict: Verdict
    sentence: str
    facts: dict[str, Any] = field(default_factory=dict)
    hint: str = ""


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """The device, as the server last knew it."""

    device_id: str
    product: str
    hardware: str
    sequence_number: int
    version: str
    is_disabled: bool
    attributes: Mapping[str, str]
    last_seen: int | None = None


@dataclass(frozen=True, slots=True)
class PollFacts:
    """What a device can take; known only while it polls."""

    agent_level: int
    methods: tuple[str, ...]
    image_digest: str


@dataclass(frozen=True, slots=True)
class RolloutFacts:
    """The rollout that would bring the release."""

    rollout_id: str
    name: str
    state: RolloutState
    policy: Policy
    open_wave: int
    in_flight: Mapping[str, int]
    """By scope of `rollout_limit`."""
    started_this_minute: int = 0


@dataclass(frozen=True, slots=True)
class Consent:
    """What the owner's policy and answers mean for a start; the consent domain fills it."""

    rule: str
    sentence: str
    is_final: bool = False
    until: int | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """Everything the rules may look at."""

    device: DeviceFacts
    manifest: Manifest
    is_withdrawn: bool
    now: datetime
    failure: tuple[str, int] | None = None
    """Code and time, when this release failed on this device before."""
    quarantine: str | None = None
    pin: str | None = None
    """Why the device stays on what it runs."""
    busy_with: str | None = None
    """Another release whose attempt is open, or another rollout that wants this device."""
    rollout: RolloutFacts | None = None
    target: Target | None = None
    poll: PollFacts | None = None
    consent: Consent | None = None
    openable: Openable | None = None
    """Which sealed payloads the device can be given the key of."""


def judge(question: Question) -> list[Finding]:
    """Return what every rule says, in order."""
    return [finding for rule in RULES if (finding := rule(question)) is not None]


def first_missing(question: Question) -> Finding | None:
    """Return the first rule that does not pass, None when the device may start now."""
    return next((item for item in _judged(question) if item.verdict is not Verdict.PASS), None)


def _judged(question: Question) -> Iterator[Finding]:
    for rule in RULES:
        finding = rule(question)
        if finding is not None:
            yield finding


def is_old_stock(question: Question) -> bool:
    """Whether the device is in the lane of old stock."""
    lane = question.rollout.policy.old_stock if question.rollout is not None else None
    return lane is not None and question.device.sequence_number < lane.sequence_below


# --- the rules, in the order in which they are asked ---------------------------------------


def _enabled(q: Question) -> Finding:
    if q.device.is_disabled:
        return Finding("device-enabled", Verdict.BLOCK, "The device is disabled.", hint="Enable it.")
    return Finding("device-enabled", Verdict.PASS, "The device is enabled.")


def _product(q: Question) -> Finding:
    facts = {"device": q.device.product, "release": q.manifest.product}
    if q.device.product != q.manifest.product:
        return Finding("product", Verdict.BLOCK, "The release is for another product.", facts)
    return Finding("product", Verdict.PASS, "The release is for this product.", facts)


def _hardware(q: Question) -> Finding:
    facts = {"device": q.device.hardware, "release": list(q.manifest.hardware)}
    if q.device.hardware not in q.manifest.hardware:
        return Finding("hardware", Verdict.BLOCK, "The release is not for this hardware.", facts)
    return Finding("hardware", Verdict.PASS, "The release is for this hardware.", facts)


def _published(q: Question) -> Finding:
    if q.is_withdrawn:
        return Finding("release-published", Verdict.BLOCK, "The release was withdrawn.", hint="Publish it again.")
    return Finding("release-published", Verdict.PASS, "The release is published.")


def _newer(q: Question) -> Finding:
    facts = {"installed": q.device.sequence_number, "release": q.manifest.sequence_number}
    if q.device.sequence_number > q.manifest.sequence_number:
        return Finding("newer", Verdict.BLOCK, "The device runs something newer and would refuse.", facts)
    if q.device.sequence_number == q.manifest.sequence_number:
        return Finding("newer", Verdict.BLOCK, "The device runs this release already.", facts)
    return Finding("newer", Verdict.PASS, "The release is newer than what the device runs.", facts)


def _stepping_stone(q: Question) -> Finding:
    needed = q.manifest.requires.min_sequence_number
    facts = {"installed": q.device.sequence_number, "needed": needed}
    if q.device.sequence_number < needed:
        hint = f"Roll out a release with a sequence number of at least {needed} first."
        return Finding("stepping-stone", Verdict.BLOCK, "The device needs another release first.", facts, hint)
    return Finding("stepping-stone", Verdict.PASS, "No release in between is needed.", facts)


def _agent(q: Question) -> Finding | None:
    if q.poll is None:
        return None
    facts = {"level": q.poll.agent_level, "needed": q.manifest.requires.min_agent}
    if q.poll.agent_level < q.manifest.requires.min_agent:
        return Finding(
            "agent", Verdict.BLOCK, "The agent is too old for this release.", facts, "Update the agent first."
        )
    return Finding("agent", Verdict.PASS, "The agent is new enough.", facts)


def _payload(q: Question) -> Finding | None:
    if q.poll is None:
        return None
    for payload in q.manifest.payloads:
        if _fits(q.poll, payload):
            return Finding("payload", Verdict.PASS, "A payload of the release fits.", {"method": payload.method})
    facts = {"known": sorted(q.poll.methods)}
    return Finding("payload", Verdict.BLOCK, "No payload of the release fits the device.", facts)


def _fits(poll: PollFacts, payload: Payload) -> bool:
    is_from_here = payload.precursor_digest is None or str(payload.precursor_digest) == poll.image_digest
    return is_from_here and set(poll.methods).issuperset(payload.needs)


def _content_key(q: Question) -> Finding | None:
    payloads = [one for one in q.manifest.payloads if q.poll is None or _fits(q.poll, one)]
    if q.openable is None or not any(payload.is_sealed for payload in payloads):
        return None
    facts = {"sealed": sum(payload.is_sealed for payload in q.manifest.payloads), "keys": len(q.openable.held)}
    if any(not payload.is_sealed or payload.target in q.openable.held for payload in payloads):
        return Finding("content-key", Verdict.PASS, "The device can be given the content key.", facts)
    sentence = f"The release is sealed, and {q.openable.reason}."
    return Finding("content-key", Verdict.BLOCK, sentence, facts, HINTS[q.openable.reason])


def _not_failed_here(q: Question) -> Finding:
    if q.failure is None:
        return Finding("not-failed-here", Verdict.PASS, "This release has not failed on this device.")
    code, at = q.failure
    return Finding(
        "not-failed-here",
        Verdict.BLOCK,
        "This release failed on this device before.",
        {"code": code, "at": at},
        "Look at the failure, then clear it.",
    )


def _not_quarantined(q: Question) -> Finding:
    if q.quarantine is None:
        return Finding("not-quarantined", Verdict.PASS, "The device is not in quarantine.")
    return Finding(
        "not-quarantined", Verdict.BLOCK, "The device is in quarantine.", {"reason": q.quarantine}, "Release it."
    )


def _not_pinned(q: Question) -> Finding:
    if q.pin is None:
        return Finding("not-pinned", Verdict.PASS, "The device is not pinned.")
    return Finding("not-pinned", Verdict.BLOCK, "The device is pinned to what it runs.", {"reason": q.pin}, "Unpin it.")


def _free(q: Question) -> Finding:
    if q.busy_with is not None:
        return Finding("free", Verdict.WAIT, "The device is busy with something else.", {"with": q.busy_with})
    return Finding("free", Verdict.PASS, "The device has nothing else to do.")


def _targeted(q: Question) -> Finding:
    if q.rollout is None or q.target is None:
        return Finding(
            "in-rollout",
            Verdict.BLOCK,
            "No rollout brings this release to this device.",
            hint="Make one, or assign it.",
        )
    facts = {"rollout_id": q.rollout.rollout_id, "name": q.rollout.name, "status": q.target.status.value}
    return Finding("in-rollout", Verdict.PASS, f"The rollout “{q.rollout.name}” brings it.", facts)


def _status(q: Question) -> Finding | None:
    if q.target is None:
        return None
    status, facts = q.target.status, {"status": q.target.status.value, "code": q.target.code}
    if status in _MAY_START:
        return Finding("status", Verdict.PASS, "The device has not started.", facts)
    verdict, sentence = _SENTENCES[status]
    return Finding("status", verdict, sentence, facts)


_MAY_START: Final = frozenset({TargetStatus.WAITING, TargetStatus.POSTPONED})
_SENTENCES: Final[dict[TargetStatus, tuple[Verdict, str]]] = {
    TargetStatus.OFFERED: (Verdict.WAIT, "The release is offered to the device."),
    TargetStatus.ASKING: (Verdict.WAIT, "The owner was asked and has not answered."),
    TargetStatus.DECLINED: (Verdict.BLOCK, "The owner declined this release."),
    TargetStatus.IN_FLIGHT: (Verdict.WAIT, "The device is installing it."),
    TargetStatus.UPDATED: (Verdict.BLOCK, "The device was updated by this rollout."),
    TargetStatus.FAILED: (Verdict.BLOCK, "The update failed on this device."),
    TargetStatus.SILENT: (Verdict.WAIT, "The device started and has not called back."),
    TargetStatus.SKIPPED: (Verdict.BLOCK, "The release is not applicable to this device any more."),
    TargetStatus.REVERTING: (Verdict.WAIT, "The device is asked to go back."),
    TargetStatus.WENT_BACK: (Verdict.BLOCK, "The device was brought back by the rollout."),
}


def _running(q: Question) -> Finding | None:
    if q.rollout is None:
        return None
    facts = {"state": q.rollout.state.value}
    if q.rollout.state in MAY_START_DEVICES:
        return Finding("rollout-running", Verdict.PASS, "The rollout is running.", facts)
    waits = WAITS_FOR[q.rollout.state]
    if not waits:
        return Finding("rollout-running", Verdict.BLOCK, f"The rollout is {q.rollout.state.value}.", facts)
    sentence = f"The rollout is {q.rollout.state.value}: it waits for {waits}."
    return Finding("rollout-running", Verdict.WAIT, sentence, facts)


def _wave_open(q: Question) -> Finding | None:
    if q.rollout is None or q.target is None:
        return None
    facts = {"wave": q.target.wave, "open": q.rollout.open_wave}
    if q.target.wave == 0:
        return Finding("wave-open", Verdict.WAIT, "The devices are still being dealt into waves.", facts)
    if q.target.wave <= q.rollout.open_wave:
        return Finding("wave-open", Verdict.PASS, f"Wave {q.target.wave} is open.", facts)
    if is_old_stock(q) and q.rollout.open_wave > 1:
        return Finding("wave-open", Verdict.PASS, "Old stock need not wait for its wave.", facts)
    if q.rollout.open_wave == 0:
        return Finding("wave-open", Verdict.WAIT, "No wave is open while the rollout stands still.", facts)
    return Finding("wave-open", Verdict.WAIT, f"Wave {q.target.wave} is not open yet.", facts)


def _not_before(q: Question) -> Finding | None:
    if q.target is None:
        return None
    if q.target.not_before <= q.now.timestamp():
        return Finding("not-before", Verdict.PASS, "No wait was agreed.")
    until = {"until": q.target.not_before}
    return Finding("not-before", Verdict.WAIT, "The next try is later.", until)


def _window(q: Question) -> Finding | None:
    if q.rollout is None:
        return None
    policy = q.rollout.policy
    if not policy.windows:
        return Finding("window", Verdict.PASS, "The rollout has no window.")
    zone = zone_or(q.device.attributes.get(ZONE), zone_named(policy.default_zone))
    facts: dict[str, Any] = {"zone": q.device.attributes.get(ZONE) or policy.default_zone}
    if is_any_open(policy.windows, q.now, zone):
        return Finding("window", Verdict.PASS, "It is a window's time where the device is.", facts)
    opens = next_opening(policy.windows, q.now, zone)
    facts |= {"opens_at": int(opens.timestamp()), "local": f"{opens.astimezone(zone):%a %H:%M}"}
    return Finding("window", Verdict.WAIT, "Outside the window on the device's own clock.", facts)


def _consent(q: Question) -> Finding:
    if q.consent is None:
        return Finding("consent", Verdict.PASS, "Nothing the owner said stands against it.")
    facts: dict[str, Any] = {"policy": q.consent.rule}
    if q.consent.until is not None:
        facts["until"] = q.consent.until
    return Finding("consent", Verdict.BLOCK if q.consent.is_final else Verdict.WAIT, q.consent.sentence, facts)


def _room(q: Question) -> Finding | None:
    if q.rollout is None or q.target is None:
        return None
    caps, lane = q.rollout.policy.caps, q.rollout.policy.old_stock
    limits = [("all", EVERYTHING, caps.total)]
    if lane is not None and is_old_stock(q):
        limits = [("old stock", OLD_STOCK, lane.max_in_flight)]
    if q.target.site_id is not None:
        limits.append(("site", f"site:{q.target.site_id}", caps.per_site))
    if q.target.gateway_id is not None:
        limits.append(("gateway", f"gateway:{q.target.gateway_id}", caps.per_gateway))
    for name, scope, limit in limits:
        used = q.rollout.in_flight.get(scope, 0)
        if limit is not None and used >= limit:
            facts = {"limit": name, "in_flight": used, "most": limit}
            return Finding(
                "room", Verdict.WAIT, f"As many as may be are on the way ({name}: {used} of {limit}).", facts
            )
    rate = caps.starts_per_minute
    if rate is not None and q.rollout.started_this_minute >= rate:
        facts = {"limit": "starts per minute", "most": rate}
        return Finding("room", Verdict.WAIT, f"{rate} devices started in this minute already.", facts)
    return Finding("room", Verdict.PASS, "There is room within the limits.")


def _heard(q: Question) -> Finding | None:
    if q.poll is not None:
        return None
    if q.device.last_seen is None:
        return Finding("has-asked", Verdict.WAIT, "The device has never asked.")
    seen = format_time(datetime.fromtimestamp(q.device.last_seen, UTC))
    facts = {"last_seen": q.device.last_seen}
    return Finding("has-asked", Verdict.PASS, f"The device asked last at {seen}.", facts)


RULES: Final[tuple[Callable[[Question], Finding | None], ...]] = (
    _enabled,
    _product,
    _hardware,
    _published,
    _newer,
    _stepping_stone,
    _agent,
    _payload,
    _content_key,
    _not_failed_here,
    _not_quarantined,
    _not_pinned,
    _targeted,
    _status,
    _free,
    _running,
    _wave_open,
    _not_before,
    _window,
    _consent,
    _room,
    _heard,
)
PERMANENT: Final = frozenset({"product", "hardware", "newer"})
"""A target that one of these blocks is skipped: it will not become applicable."""
