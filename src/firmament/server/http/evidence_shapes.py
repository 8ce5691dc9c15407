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


class SbomAdded(TypedDict):
    """What was read, and how many known vulnerabilities it has."""

    release: str
    digest: str
    components: int
    findings: int


class Sbom(TypedDict):
    """The components of a release."""

    release: str
    digest: str
    added_at: int
    components: list[dict[str, Any]]


class SbomDiff(TypedDict):
    """What changed between two releases."""

    old: str
    new: str
    changes: list[dict[str, Any]]


class VulnerabilitiesStated(TypedDict):
    """What was imported, and how many releases have it."""

    vulnerabilities: list[str]
    findings: int


class Vulnerabilities(TypedDict):
    """What is known, with the devices that still run an affected release."""

    vulnerabilities: list[dict[str, Any]]
    next: int | None


class Vulnerability(TypedDict):
    """Who still runs it, where it is fixed, how long that took."""

    name: str
    summary: str
    severity: str
    known_at: int
    affected: list[dict[str, Any]]
    releases: list[dict[str, Any]]
    devices: int
    devices_unknown: int
    fixed_in: list[str]
    time_to_patch: dict[str, Any]


class Compliance(TypedDict):
    """Who got which fix when, from the audit chain."""

    generated_at: int
    since: int
    until: int
    chain: dict[str, Any]
    events: int
    releases: list[dict[str, Any]]
    running: list[dict[str, Any]]
    vulnerabilities: list[dict[str, Any]]
    consent: dict[str, int]
    opt_outs: int
    refusals: int
