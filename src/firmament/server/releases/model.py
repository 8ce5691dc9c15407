"""Values of the releases domain."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from firmament.trust.roles import ROOT, TARGETS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from tuf.api.metadata import Metadata, Root, TargetFile, Targets

    from firmament.core.manifest import Manifest

MAX_FILES: Final = 600
"""Metadata files in one publish: 256 roots of each repository and the roles of some products."""


@dataclass(frozen=True, slots=True)
class Submission:
    """What a publish brought: file name to bytes, nothing checked yet."""

    metadata: Mapping[str, bytes]
    director_roots: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Published:
    """One repository generation, read and parsed; empty before the first publish."""

    generation: int = 0
    image_files: Mapping[str, bytes] = field(default_factory=dict)
    director_files: Mapping[str, bytes] = field(default_factory=dict)
    root: Metadata[Root] | None = None
    director_root: Metadata[Root] | None = None
    targets: Metadata[Targets] | None = None
    products: Mapping[str, Metadata[Targets]] = field(default_factory=dict)
    versions: Mapping[str, int] = field(default_factory=dict)
    """Entries of the snapshot: role to version, delegated no longer or still."""
    snapshot_version: int = 0
    timestamp_version: int = 0

    def state(self) -> dict[str, Any]:
        """Return what the release tool needs to make the next versions."""
        return {
            "roles": {
                **({ROOT: self.root.signed.version} if self.root else {}),
                **({TARGETS: self.targets.signed.version} if self.targets else {}),
                **{name: metadata.signed.version for name, metadata in sorted(self.products.items())},
            },
            "director_root": self.director_root.signed.version if self.director_root else 0,
            "snapshot_version": self.snapshot_version,
            "timestamp_version": self.timestamp_version,
        }


@dataclass(frozen=True, slots=True)
class AdmittedRelease:
    """One release that a product role names, checked against its targets."""

    manifest: Manifest
    target: str
    custom: bytes
    """The manifest's canonical bytes, as signed."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """A submission that passed every check, and what the repository becomes with it."""

    next: Published
    """Without snapshot and timestamp, which the signer makes."""
    releases: tuple[AdmittedRelease, ...]
    targets: Mapping[str, TargetFile]
    """Every target of every product."""
    new_targets: tuple[str, ...]
    """Target paths that were not published before; their bytes are read again."""
    is_changed: bool


@dataclass(frozen=True, slots=True)
class Carried:
    """What a parcel takes along of both repositories."""

    image: Mapping[str, bytes]
    """Every root, and the newest of the other roles and of one product."""
    director: Mapping[str, bytes]
    expires_at: datetime
    """When the first of what the authors signed expires."""


@dataclass(frozen=True, slots=True)
class History:
    """What was ever published of a product: the highest sequence number, and each release's manifest."""

    highest_sequence_number: int = 0
    manifests: Mapping[str, bytes] = field(default_factory=dict)
    """Version label to canonical manifest."""
