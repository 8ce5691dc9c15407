"""Shapes of the rollout and inventory routes for the OpenAPI description (see `shapes`).

Times are whole seconds since 1970 (UTC), ratios are between 0 and 1, lists go on at `next`.
"""

from __future__ import annotations

from typing import (
    Any,
    NotRequired,  # pydantic reads no other before Python 3.12
)

from typing_extensions import TypedDict

# --- what a person sends -------------------------------------------------------------------


class WaveRequest(TypedDict):
    """One wave: exactly one of `count`, `percent` (of all targets, counted from the first) or `devices`."""

    name: NotRequired[str]
    count: NotRequired[int]
    percent: NotRequired[float]
    devices: NotRequired[list[str]]


class Gate(TypedDict):
    """When the stop rule fires."""

    limit_ratio: float
    min_finished: int
    silence_floor_s: int
    health: bool


class Caps(TypedDict):
    """How many devices may be on the way at once; null is no limit."""

    total: int | None
    per_site: int | None
    per_gateway: int | None
    starts_per_minute: int | None


class OldStock(TypedDict):
    """Devices below a sequence number, in a lane of their own."""

    sequence_below: int
    max_in_flight: int


class Window(TypedDict):
    """When devices may start, on their own clock; an `end` before `start` goes past midnight."""

    start: str
    end: str
    days: list[str]


class Policy(TypedDict):
    """How carefully."""

    waves: list[WaveRequest]
    hold_s: int
    wait_for: str
    advance: str
    gate: Gate
    caps: Caps
    windows: list[Window]
    default_zone: str
    old_stock: OldStock | None
    dynamic: bool
    on_stop: str
    retry_budget: int
    answer_s: int
    finish_s: int
    patience_s: int
    lifetime_s: int
    site_commit_s: int | None
    approval_above: int | None


# --- plan ----------------------------------------------------------------------------------


class Excluded(TypedDict):
    """Devices that match and are left out, by the first rule that says so."""

    rule: str
    count: int
    sentence: str
    hint: str
    sample: list[str]


class PlannedWave(TypedDict):
    """A wave and how many devices it will have."""

    number: int
    name: str
    count: int


class ConsentCounts(TypedDict):
    """How many targets will ask whom."""

    automatic: int
    ask: int
    window: int
    manual: int


class Remark(TypedDict):
    """Something that blocks a start, or that one should know before it."""

    code: str
    message: str
    hint: str


class SourceVersion(TypedDict):
    """What targets run now and what they will download."""

    version: str
    count: int
    payload_bytes: int
    is_delta: bool


class Plan(TypedDict):
    """What a rollout would do; nothing was changed."""

    release: str
    selector: str
    matching: int
    count: int
    sample: list[str]
    excluded: list[Excluded]
    waves: list[PlannedWave]
    sources: list[SourceVersion]
    bytes_with_deltas: int
    bytes_whole: int
    consent: ConsentCounts
    blockers: list[Remark]
    warnings: list[Remark]
    needs_approval: bool
    policy: Policy


# --- rollouts ------------------------------------------------------------------------------


class Reason(TypedDict):
    """Why a rollout is in its state."""

    code: str
    message: str
    facts: dict[str, Any]


class Wave(TypedDict):
    """One wave, with how many of its targets are where."""

    number: int
    name: str
    state: str
    size: int
    counts: dict[str, int]
    finished: int
    failed: int
    failure_ratio: float | None
    opened_at: int | None
    closed_at: int | None
    hold_until: int | None


class GateState(TypedDict):
    """The stop rule's numbers in the wave that counts; `rate` is null under the minimum sample."""

    wave: int
    limit_ratio: float
    min_finished: int
    failed: int
    finished: int
    rate: float | None


class Common(TypedDict):
    """What failed devices have in common more than the finished ones."""

    attribute: str
    value: str
    share: float
    lift: float
    p: float
    failed: int


class ActionPreview(TypedDict):
    """What an action would do, said before it is done."""

    action: str
    sentence: str
    count: int
    counts: dict[str, int]
    needs_reason: bool
    needs_second_person: bool
    is_possible: bool
    why_not: str


class Halt(TypedDict):
    """The stop, as somebody reads it at three in the morning."""

    at: int
    wave: int
    code: str
    sentence: str
    failed: int
    finished: int
    limit_ratio: float
    min_finished: int
    went_back_online: int
    silent: int
    not_started: int
    in_flight: int
    in_flight_done_by: int | None
    updated: int
    common: Common | None
    next_actions: list[ActionPreview]
    acknowledged_by: str | None


class Rollout(TypedDict):
    """One rollout."""

    rollout_id: str
    name: str
    release: str
    product: str
    version: str
    selector: str
    note: str
    state: str
    state_since: int
    state_reason: Reason
    created_by: str
    created_at: int
    decided_by: str | None
    start_at: int
    ended_at: int | None
    policy: Policy
    waves: list[Wave]
    counts: dict[str, int]
    total: int
    is_filled: bool
    gate: GateState
    halt: Halt | None
    excluded: list[Excluded]
    sources: list[str]
    revision: int


class Rollouts(TypedDict):
    """Rollouts, newest first."""

    rollouts: list[Rollout]
    next: str | None


class FailureReason(TypedDict):
    """Failures of one kind."""

    code: str
    message: str
    count: int
    share: float
    common: Common | None
    sample: list[str]


class FailureReasons(TypedDict):
    """Why devices failed, the most frequent first."""

    reasons: list[FailureReason]


class Target(TypedDict):
    """One device in one rollout."""

    device_id: str
    serial: str
    hardware: str
    version: str
    wave: int
    status: str
    code: str
    message: str
    attempt_id: str | None
    tries: int
    deadline: int | None
    not_before: int
    updated_at: int


class Targets(TypedDict):
    """One page of targets."""

    targets: list[Target]
    next: str | None


class SeriesPoint(TypedDict):
    """The gate's numbers at one time."""

    at: int
    wave: int
    finished: int
    failed: int
    updated: int
    failure_ratio: float


class Series(TypedDict):
    """The failure rate over time."""

    limit_ratio: float
    points: list[SeriesPoint]


class Forecast(TypedDict):
    """What the real engine did with virtual devices on a virtual clock."""

    devices: int
    duration_s: int
    state: str
    halted_at_updated: int | None
    halted_at_touched: int | None
    halted_after_s: int | None
    sentence: str
    waves: list[dict[str, Any]]


# --- why -----------------------------------------------------------------------------------


class Rule(TypedDict):
    """One rule and what it says about one device."""

    rule: str
    verdict: str
    sentence: str
    facts: dict[str, Any]
    hint: str


class Why(TypedDict):
    """Why a device has or has not a release."""

    device_id: str
    release: str
    rollout_id: str | None
    rules: list[Rule]
    first_blocking: str | None
    sentence: str


class TimelineEntry(TypedDict):
    """One thing that happened to a device."""

    at: int
    kind: str
    attempt_id: str
    release: str
    rollout_id: str | None
    status: str
    code: str
    message: str
    facts: dict[str, Any]


class Timeline(TypedDict):
    """What happened to a device, newest first."""

    entries: list[TimelineEntry]
    next: str | None


# --- inventory -----------------------------------------------------------------------------


class DeviceCount(TypedDict):
    """How many devices match; counting stops at `limit`."""

    count: int
    is_capped: bool
    limit: int


class Tagged(TypedDict):
    """How many devices changed."""

    changed: int


class Group(TypedDict):
    """A name for devices."""

    name: str
    query: str
    count: int | None
    """None when nobody asked for it."""
    is_capped: bool
    created_by: str
    created_at: int


class Groups(TypedDict):
    """All groups."""

    groups: list[Group]


class Filter(TypedDict):
    """A saved query."""

    name: str
    query: str
    created_by: str
    created_at: int


class Filters(TypedDict):
    """All saved filters."""

    filters: list[Filter]


class Site(TypedDict):
    """A place with devices."""

    name: str
    count: int
    created_at: int


class Sites(TypedDict):
    """One page of sites, by name."""

    sites: list[Site]
    next: str | None


class Tag(TypedDict):
    """A tag and how many devices have it."""

    tag: str
    count: int


class Tags(TypedDict):
    """All tags."""

    tags: list[Tag]


class AttributeValues(TypedDict):
    """What devices report under one name."""

    name: str
    values: list[str]


class Attributes(TypedDict):
    """Names that devices report, with values for choosing from."""

    attributes: list[AttributeValues]
