"""Whether a publish may happen: the whole verification, pure, before anything is written.

The server's checks protect operators from mistakes and the repository from nonsense; devices do
not rely on them and verify everything again. The steps are numbered, and the first that fails
names its error (trust.md §10, cases 10 to 28, 60, 61).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from tuf.api.metadata import Root, Targets

from firmament.core import canonical
from firmament.core import manifest as manifests
from firmament.errors import (
    ConflictError,
    ExpiredError,
    ForbiddenError,
    MalformedError,
    MalformedMetadataError,
    RollbackError,
    TooLargeError,
)
from firmament.server.releases.model import MAX_FILES, Admitted, AdmittedRelease, History, Published
from firmament.server.scope import Action
from firmament.trust import repository
from firmament.trust.roles import ROOT, SNAPSHOT, TARGETS, TIMESTAMP, check_product_role

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from tuf.api.metadata import Metadata

    from firmament.server.releases.model import Submission
    from firmament.server.scope import Scope

T = TypeVar("T", Root, Targets)

MAX_VERSION_STEP: Final = 1000
"""A role's version may not jump further: a stolen key must not use up the numbers (case 28)."""
_FILE_NAME: Final = re.compile(r"([1-9][0-9]{0,18})\.([a-z0-9-]{1,63})\.json")
ONLINE_ROLES: Final = {"image": (SNAPSHOT, TIMESTAMP), "director": (TARGETS, SNAPSHOT, TIMESTAMP)}


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What a publish is judged against."""

    online_keyids: Mapping[str, Mapping[str, str]]
    """Repository to role to the keyid of this server's online key."""
    history: Mapping[str, History]
    now: datetime


def admit(current: Published, submission: Submission, scope: Scope, circumstances: Circumstances) -> Admitted:
    """Check a submission against what is published; return what the repository becomes.

    Raises TrustError, ForbiddenError, ConflictError, MalformedError or TooLargeError; nothing
    was changed then.
    """
    scope.require(Action.PUBLISH)
    if len(submission.metadata) + len(submission.director_roots) > MAX_FILES:
        raise TooLargeError("Too many metadata files in one publish", limit=MAX_FILES)
    # 1. Every file has a name of this grammar; snapshot and timestamp are the server's to make.
    named = _by_role(submission.metadata)
    # 2. Root chains: each follows the one before, both thresholds met, online keys are ours.
    root, root_files = _chain(current.root, named.pop(ROOT, {}), current.image_files, scope, what="image")
    _check_root(root, circumstances, "image")
    director_named = _by_role(submission.director_roots)
    if set(director_named) - {ROOT}:
        raise MalformedError("director_roots holds roots only", found=" ".join(sorted(director_named)))
    director_root, director_files = _chain(
        current.director_root, director_named.pop(ROOT, {}), current.director_files, scope, what="director"
    )
    _check_root(director_root, circumstances, "director")
    # 3. Top-level targets: signed by the root's keys, delegations only, version up.
    targets, targets_files = _targets(current, named.pop(TARGETS, {}), root, scope, circumstances.now)
    # 4. Product roles: all that are delegated, old and new, under the new delegations.
    products, product_files = _products(current, named, targets, scope, circumstances.now)
    # 5. What the products say: manifests, payloads, sequence numbers.
    releases = [
        release
        for name, metadata in products.items()
        for release in _releases(name, metadata.signed, circumstances.history.get(name, History()))
    ]
    changed = {**root_files, **targets_files, **product_files}
    versions = {**current.versions, TARGETS: targets.signed.version}
    versions.update({name: metadata.signed.version for name, metadata in products.items()})
    known = {path for metadata in current.products.values() for path in metadata.signed.targets}
    everything = {path: target for metadata in products.values() for path, target in metadata.signed.targets.items()}
    return Admitted(
        next=Published(
            generation=current.generation + 1,
            image_files={**current.image_files, **changed},
            director_files={**current.director_files, **director_files},
            root=root,
            director_root=director_root,
            targets=targets,
            products=products,
            versions=versions,
            snapshot_version=current.snapshot_version,
            timestamp_version=current.timestamp_version,
        ),
        releases=tuple(releases),
        targets=everything,
        new_targets=tuple(sorted(set(everything) - known)),
        is_changed=bool(changed or director_files or not current.timestamp_version),
    )


def trust_roots(current: Published, submission: Submission, scope: Scope, circumstances: Circumstances) -> Published:
    """Import root chains alone, offline (`firmament server trust`); raises as `admit`."""
    scope.require(Action.TRUST_FIRST_ROOT)
    named = _by_role(submission.metadata)
    root, root_files = _chain(current.root, named.pop(ROOT, {}), current.image_files, scope, what="image")
    _check_root(root, circumstances, "image")
    director_named = _by_role(submission.director_roots)
    director_root, director_files = _chain(
        current.director_root, director_named.pop(ROOT, {}), current.director_files, scope, what="director"
    )
    _check_root(director_root, circumstances, "director")
    if named or director_named:
        raise MalformedError("Only root files can be trusted", found=" ".join(sorted({*named, *director_named})))
    return Published(
        generation=current.generation + 1,
        image_files={**current.image_files, **root_files},
        director_files={**current.director_files, **director_files},
        root=root,
        director_root=director_root,
        targets=current.targets,
        products=current.products,
        versions=current.versions,
        snapshot_version=current.snapshot_version,
        timestamp_version=current.timestamp_version,
    )


def _by_role(files: Mapping[str, bytes]) -> dict[str, dict[int, bytes]]:
    found: dict[str, dict[int, bytes]] = {}
    for name, data in files.items():
        match = _FILE_NAME.fullmatch(name)
        if match is None or match[2] in {SNAPSHOT, TIMESTAMP}:
            raise MalformedError("This file cannot be published", name=name[:80], expected="<version>.<role>.json")
        if match[2] not in {ROOT, TARGETS}:
            check_product_role(match[2])
        found.setdefault(match[2], {})[int(match[1])] = data
    return found


# --- 2. roots ------------------------------------------------------------------------------


def _chain(
    trusted: Metadata[Root] | None,
    submitted: Mapping[int, bytes],
    known_files: Mapping[str, bytes],
    scope: Scope,
    *,
    what: str,
) -> tuple[Metadata[Root], dict[str, bytes]]:
    new: dict[str, bytes] = {}
    newest = trusted
    for version, data in sorted(submitted.items()):
        name = f"{version}.{ROOT}.json"
        if name in known_files:
            if known_files[name] != data:
                raise ConflictError("Another root of this version is trusted already", repository=what, version=version)
            continue
        root = _read(data, Root, version, what=f"{what} {name}")
        if newest is None:
            # Trust on first publish: whoever sends it decides whom this server believes.
            scope.require(Action.TRUST_FIRST_ROOT)
        scope.require(Action.PUBLISH_ROOT)
        scope.require_unlimited("A new root")
        repository.verify_root(root, newest)
        newest = root
        new[name] = data
    if newest is None:
        raise ConflictError("The server trusts no root yet; publish the first one as an administrator", repository=what)
    return newest, new


def _check_root(root: Metadata[Root], circumstances: Circumstances, what: str) -> None:
    _require_fresh(root, circumstances.now, f"{what} root")
    for role in ONLINE_ROLES[what]:
        keys = repository.role_keys(root.signed, role)
        ours = circumstances.online_keyids[what][role]
        if ours not in {key.keyid for key in keys.keys} or keys.threshold != 1:
            raise ConflictError(
                "The root does not name this server's online key; use its online-public.json",
                repository=what,
                role=role,
                server_keyid=ours[:16],
            )


# --- 3. top-level targets ------------------------------------------------------------------


def _targets(
    current: Published, submitted: Mapping[int, bytes], root: Metadata[Root], scope: Scope, now: datetime
) -> tuple[Metadata[Targets], dict[str, bytes]]:
    targets, files = _newest(current.targets, submitted, current.image_files, role=TARGETS)
    if targets is None:
        raise ConflictError("The first publish needs the top-level targets")
    if files:
        scope.require(Action.PUBLISH_ROOT)
        scope.require_unlimited("New delegations")
    repository.verify(root.signed, TARGETS, targets)
    _require_fresh(targets, now, TARGETS)
    if targets.signed.targets:
        raise MalformedMetadataError("Top-level targets hold delegations only", found=len(targets.signed.targets))
    return targets, files


# --- 4. product roles ----------------------------------------------------------------------


def _products(
    current: Published,
    submitted: Mapping[str, Mapping[int, bytes]],
    targets: Metadata[Targets],
    scope: Scope,
    now: datetime,
) -> tuple[dict[str, Metadata[Targets]], dict[str, bytes]]:
    delegations = targets.signed.delegations
    delegated = set(delegations.roles) if delegations is not None and delegations.roles else set()
    strangers = set(submitted) - delegated
    if strangers:
        raise MalformedMetadataError("A role is not delegated by the targets", roles=" ".join(sorted(strangers)))
    found: dict[str, Metadata[Targets]] = {}
    files: dict[str, bytes] = {}
    for name in sorted(delegated):
        product, new = _newest(current.products.get(name), submitted.get(name, {}), current.image_files, role=name)
        if product is None:
            raise MalformedMetadataError("A delegated role has no metadata; sign an empty one", role=name)
        if new:
            scope.require_product(name)
        repository.verify(targets.signed, name, product)
        _require_fresh(product, now, name)
        if product.signed.delegations is not None:
            raise MalformedMetadataError("A product role does not delegate further", role=name)
        found[name] = product
        files.update(new)
    return found, files


def _newest(
    current: Metadata[Targets] | None, submitted: Mapping[int, bytes], known_files: Mapping[str, bytes], *, role: str
) -> tuple[Metadata[Targets] | None, dict[str, bytes]]:
    if len(submitted) > 1:
        raise MalformedError("Only the newest version of a role is published", role=role)
    for version, data in submitted.items():
        name = f"{version}.{role}.json"
        if known_files.get(name) == data:
            return current, {}
        trusted = current.signed.version if current is not None else 0
        if version <= trusted:
            raise RollbackError("A role's version must go up", role=role, published=trusted, got=version)
        if version > trusted + MAX_VERSION_STEP:
            raise MalformedMetadataError(
                "A role's version jumps too far", role=role, published=trusted, got=version, step=MAX_VERSION_STEP
            )
        return _read(data, Targets, version, what=name), {name: data}
    return current, {}


# --- 5. releases ---------------------------------------------------------------------------


def read_releases(product: str, signed: Targets) -> list[AdmittedRelease]:
    """Return the releases a product role names, in the order of their sequence numbers.

    Raises MalformedMetadataError when a manifest is not about its own target, or a payload is
    not a target of the same role with the same length and digest.
    """
    found: list[AdmittedRelease] = []
    for path, target in signed.targets.items():
        if not path.startswith(f"{product}/"):
            raise ForbiddenError("A product role signs paths of another product", role=product, target=path)
        if target.custom is None:
            continue
        manifest = manifests.decode(target.custom)
        custom = canonical.encode(target.custom)
        if len(custom) > manifests.MAX_MANIFEST_LENGTH_BYTES:
            raise TooLargeError("A manifest is longer than allowed", target=path, length_bytes=len(custom))
        expected = repository.release_targets(manifest)
        if not manifest.payloads or manifest.payloads[0].target != path or manifest.product != product:
            raise MalformedMetadataError("A manifest is not about its own target", target=path)
        for payload_path, payload in expected.items():
            listed = signed.targets.get(payload_path)
            if listed is None or listed.length != payload.length or listed.hashes != payload.hashes:
                raise MalformedMetadataError(
                    "A payload is not a target with this length and digest", target=payload_path
                )
        found.append(AdmittedRelease(manifest, path, custom))
    found.sort(key=lambda release: release.manifest.sequence_number)
    return found


def _releases(product: str, signed: Targets, history: History) -> list[AdmittedRelease]:
    found = read_releases(product, signed)
    _require_distinct(product, (release.manifest.version for release in found), "version")
    _require_distinct(product, (release.manifest.sequence_number for release in found), "sequence_number")
    for release in found:
        manifest = release.manifest
        before = history.manifests.get(manifest.version)
        if before is not None:
            if before != release.custom:
                raise ConflictError(
                    "A published release never changes; publish a new version", release=manifest.release_id
                )
        elif manifest.sequence_number <= history.highest_sequence_number:
            raise RollbackError(
                "The sequence number is not above all published before",
                release=manifest.release_id,
                highest=history.highest_sequence_number,
                got=manifest.sequence_number,
            )
    return found


def _require_distinct(product: str, values: Iterable[object], what: str) -> None:
    seen: set[object] = set()
    for value in values:
        if value in seen:
            raise MalformedMetadataError(f"Two releases have the same {what}", role=product, **{what: value})
        seen.add(value)


def _read(data: bytes, kind: type[T], version: int, *, what: str) -> Metadata[T]:
    metadata = repository.read(data, kind, what=what)
    if metadata.signed.version != version:
        raise MalformedMetadataError(
            "A file's name and content disagree on the version", file=what, found=metadata.signed.version
        )
    return metadata


def _require_fresh(metadata: Metadata[Root] | Metadata[Targets], now: datetime, what: str) -> None:
    if metadata.signed.expires <= now:
        raise ExpiredError(f"The {what} metadata has expired", expired_at=metadata.signed.expires)
