"""Verify a whole repository from a root you trust, as a device would, without a network.

Steps in the order of TUF section 5: root chain, timestamp, snapshot, targets, and here every
product role with its manifests. Where the author does not hold the online keys, timestamp and
snapshot are not there and the walk starts at targets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from firmament.core.fields import format_time
from firmament.errors import (
    ExpiredError,
    MalformedError,
    MalformedMetadataError,
    NotFoundError,
    UnknownTargetError,
)
from firmament.release.store import digest_of
from firmament.trust import repository
from firmament.trust.roles import ROOT, SNAPSHOT, TARGETS, TIMESTAMP

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from pathlib import Path

    from firmament.core.manifest import Manifest
    from firmament.durable import Disk
    from firmament.release.store import RepositoryStore

T = TypeVar("T", Root, Targets, Snapshot, Timestamp)


@dataclass(frozen=True, slots=True)
class View:
    """A repository whose every signature, version and expiry was checked."""

    root: Metadata[Root]
    targets: Metadata[Targets]
    products: Mapping[str, Metadata[Targets]]
    snapshot_version: int
    timestamp_version: int
    """0 when the repository has no timestamp (its online keys are the server's)."""

    @property
    def releases(self) -> dict[str, Manifest]:
        """Every release by id."""
        found: dict[str, Manifest] = {}
        for product in self.products.values():
            found.update(repository.releases_of(product.signed))
        return found

    def release(self, release: str) -> Manifest:
        """Return one release; raises UnknownTargetError."""
        found = self.releases
        if release not in found:
            raise UnknownTargetError("No product role names this release", release=release)
        return found[release]


def verify_repository(files: Mapping[str, bytes], trusted_root: bytes, *, now: datetime) -> View:
    """Walk the metadata files from `trusted_root`; raises TrustError naming the step that failed."""
    root = _walk_roots(files, repository.read(trusted_root, Root, what="The trusted root"), now)
    timestamp_version = snapshot_version = 0
    versions: dict[str, int] | None = None
    if repository.TIMESTAMP_FILE in files:
        timestamp = _role(files, repository.TIMESTAMP_FILE, Timestamp, root.signed, TIMESTAMP, now)
        timestamp_version, snapshot_version = timestamp.signed.version, timestamp.signed.snapshot_meta.version
        snapshot = _role(files, f"{snapshot_version}.{SNAPSHOT}.json", Snapshot, root.signed, SNAPSHOT, now)
        _require_version(snapshot, snapshot_version, SNAPSHOT)
        versions = {name.removesuffix(".json"): meta.version for name, meta in snapshot.signed.meta.items()}
    targets = _pinned(files, root.signed, TARGETS, versions, now)
    if targets.signed.targets:
        raise MalformedMetadataError("The top-level targets name targets of their own")
    delegations = targets.signed.delegations
    names = sorted((delegations.roles or {}) if delegations is not None else {})
    products = {name: _pinned(files, targets.signed, name, versions, now) for name in names}
    for name, product in products.items():
        check_product(name, product.signed)
    return View(root, targets, products, snapshot_version, timestamp_version)


def verify_release(view: View, store: RepositoryStore, disk: Disk, release: str) -> Manifest:
    """Compare the payload bytes of a release with what is signed; raises DigestMismatchError or NotFoundError."""
    manifest = view.release(release)
    for target in repository.release_targets(manifest).values():
        path = store.target_path(repository.target_file_name(target))
        if not disk.exists(path):
            raise NotFoundError("The payload is not in the repository", target=target.path)
        repository.digest_of(target).require(digest_of(disk, path), what=target.path)
    return manifest


def find_file(view: View, disk: Disk, path: Path) -> tuple[Manifest, str]:
    """Tell which signed release a file is a payload of; raises UnknownTargetError for none."""
    digest = digest_of(disk, path)
    for manifest in view.releases.values():
        for payload in manifest.payloads:
            if payload.digest == digest:
                return manifest, payload.target
    raise UnknownTargetError("No signed release has this file as a payload", path=path, digest=digest)


def _walk_roots(files: Mapping[str, bytes], trusted: Metadata[Root], now: datetime) -> Metadata[Root]:
    repository.verify_root(trusted, None)
    root = trusted
    while (name := f"{root.signed.version + 1}.{ROOT}.json") in files:
        following = repository.read(files[name], Root, what=name)
        repository.verify_root(following, root)
        root = following
    _require_fresh(root, ROOT, now)
    return root


def _pinned(
    files: Mapping[str, bytes], delegator: Root | Targets, role: str, versions: Mapping[str, int] | None, now: datetime
) -> Metadata[Targets]:
    """Read the version that the snapshot names, or the newest without a snapshot."""
    if versions is not None and role not in versions:
        raise MalformedMetadataError("The snapshot does not name a role", role=role)
    present = [int(name.partition(".")[0]) for name in files if name.partition(".")[2] == f"{role}.json"]
    version = versions[role] if versions is not None else max(present, default=0)
    metadata = _role(files, f"{version}.{role}.json", Targets, delegator, role, now)
    _require_version(metadata, version, role)
    return metadata


def _role(
    files: Mapping[str, bytes], name: str, kind: type[T], delegator: Root | Targets, role: str, now: datetime
) -> Metadata[T]:
    if name not in files:
        raise MalformedMetadataError("The repository lacks a file", file=name)
    metadata = repository.read(files[name], kind, what=name)
    repository.verify(delegator, role, metadata)
    _require_fresh(metadata, role, now)
    return metadata


def _require_version(metadata: Metadata[Any], version: int, role: str) -> None:
    if metadata.signed.version != version:
        raise MalformedMetadataError(
            "A file holds another version", role=role, expected=version, got=metadata.signed.version
        )


def _require_fresh(metadata: Metadata[Any], role: str, now: datetime) -> None:
    if metadata.signed.is_expired(now):
        raise ExpiredError("A role has expired", role=role, expired_at=format_time(metadata.signed.expires))


def check_product(product: str, signed: Targets) -> None:
    """Check that a product role holds its own releases and nothing else; raises MalformedMetadataError."""
    if signed.delegations is not None:
        raise MalformedMetadataError("A product role does not delegate further", role=product)
    described: set[str] = set()
    try:
        for manifest in repository.releases_of(signed).values():
            for path, target in repository.release_targets(manifest).items():
                if signed.targets.get(path) is None or signed.targets[path].hashes != target.hashes:
                    raise MalformedMetadataError("A manifest names a payload that is not signed", target=path)
                described.add(path)
    except MalformedError as error:
        raise MalformedMetadataError(error.problem, **error.facts) from error
    strays = set(signed.targets) - described
    if strays or any(not path.startswith(f"{product}/") for path in described):
        raise MalformedMetadataError("A product role signs something that is no payload of its releases", role=product)
