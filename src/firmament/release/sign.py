"""Sign releases: the next version of a product role, as a draft that gathers signatures.

A draft holds every release of the product. Signing the first key of a release makes the draft;
further signers append, here or in their own workspace with the draft carried to them. A draft
that changes loses its signatures: they were for other content.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from firmament.core.fields import format_time
from firmament.core.ids import release_id
from firmament.core.manifest import decode as decode_manifest
from firmament.errors import ConflictError, NotFoundError, RollbackError, SignatureError
from firmament.release.build import BuiltRelease, load_built
from firmament.release.store import digest_of
from firmament.release.verify import check_product
from firmament.trust import repository
from firmament.trust.roles import TARGETS_LIFETIME

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime
    from pathlib import Path

    from tuf.api.metadata import Metadata, TargetFile, Targets

    from firmament.core.manifest import Manifest
    from firmament.release.workspace import Workspace
    from firmament.trust.signers import Secrets


@dataclass(frozen=True, slots=True)
class Signed:
    """Where a draft stands after a signature."""

    product: str
    version: int
    threshold: int
    signed: tuple[str, ...]
    """Keyids."""
    missing: tuple[str, ...]
    """Keyids of keys that have not signed."""

    @property
    def is_complete(self) -> bool:
        """Whether it can be published."""
        return len(self.signed) >= self.threshold

    def to_json(self) -> dict[str, Any]:
        """Return the facts for programs."""
        return {
            "product": self.product,
            "role_version": self.version,
            "threshold": self.threshold,
            "signed": list(self.signed),
            "missing": [] if self.is_complete else list(self.missing),
            "complete": self.is_complete,
        }


def sign_release(workspace: Workspace, release: str, *, keys: Iterable[str], secrets: Secrets, now: datetime) -> Signed:
    """Sign a built release, or add a signature to a draft that holds it.

    The bytes of every payload are read and compared with the manifest before anything is signed.
    Raises NotFoundError, DigestMismatchError, RollbackError (sequence number not above the
    highest ever given), ConflictError (another release of this name).
    """
    product = release.partition("/")[0]
    draft = current_draft(workspace, product)
    if draft is not None and release in repository.releases_of(draft.signed):
        built = find_built(workspace, release)
        if built is not None:
            _require_same(draft.signed, built)
        return sign_draft(workspace, product, draft, keys=keys, secrets=secrets)
    built = find_built(workspace, release)
    if built is None:
        raise NotFoundError("The release is neither built nor in a draft", release=release)
    check_files(workspace, built)
    base = draft if draft is not None else workspace.product(product)
    targets = dict(base.signed.targets) if base is not None else {}
    if base is not None:
        _require_new(base.signed, built.manifest)
    targets.update(repository.release_targets(built.manifest))
    fresh = _next(workspace, product, targets, number=built.manifest.sequence_number, now=now)
    return sign_draft(workspace, product, fresh, keys=keys, secrets=secrets)


def withdraw_release(
    workspace: Workspace, release: str, *, keys: Iterable[str], secrets: Secrets, now: datetime
) -> Signed:
    """Draft and sign the product role without one release; its sequence number stays used."""
    product = release.partition("/")[0]
    draft = current_draft(workspace, product)
    base = draft if draft is not None else workspace.product(product)
    releases = repository.releases_of(base.signed) if base is not None else {}
    if base is None or release not in releases:
        if draft is not None and workspace.product(product) is not None:
            return sign_draft(workspace, product, draft, keys=keys, secrets=secrets)
        raise NotFoundError("The release is not published", release=release)
    gone = set(repository.release_targets(releases[release]))
    targets = {path: target for path, target in base.signed.targets.items() if path not in gone}
    number = repository.highest_sequence_number(base.signed)
    fresh = _next(workspace, product, targets, number=number, now=now)
    return sign_draft(workspace, product, fresh, keys=keys, secrets=secrets)


def renew_product(
    workspace: Workspace, product: str, *, keys: Iterable[str], secrets: Secrets, now: datetime
) -> Signed:
    """Draft and sign the product role as it is, with a new expiry."""
    base = current_draft(workspace, product) or workspace.product(product)
    targets = dict(base.signed.targets) if base is not None else {}
    fresh = _next(workspace, product, targets, number=0, now=now)
    return sign_draft(workspace, product, fresh, keys=keys, secrets=secrets)


def sign_draft(
    workspace: Workspace, product: str, draft: Metadata[Targets], *, keys: Iterable[str], secrets: Secrets
) -> Signed:
    """Append signatures to a draft and keep it; raises KeyFileError or SignatureError."""
    role = workspace.product_keys(product)
    signers = workspace.signers(role, keys, secrets)
    repository.sign(draft, *signers)
    found = standing(workspace, product, draft)
    for signer in signers:
        if signer.public_key.keyid not in found.signed:
            raise SignatureError("A signature does not verify under its own key", keyid=signer.public_key.keyid)
    workspace.save_draft(product, draft)
    return found


@dataclass(frozen=True, slots=True)
class Changes:
    """What signing a draft would change about a product; a signer reads it first."""

    releases: dict[str, Manifest | None]
    """Every release that is new, altered or, without a manifest, gone."""
    lines: tuple[str, ...]
    """The same for people, and the role's version, expiry and highest sequence number."""


def changes(workspace: Workspace, product: str, draft: Metadata[Targets]) -> Changes:
    """Compare a draft with the published role; raises MalformedError for what no draft may hold."""
    published = workspace.product(product)
    old = repository.releases_of(published.signed) if published is not None else {}
    new = repository.releases_of(draft.signed)
    altered = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    lines = [f"{product} role version {draft.signed.version}, expires {format_time(draft.signed.expires)}"]
    lines.append(f"highest sequence number {repository.highest_sequence_number(draft.signed)}")
    for name in altered:
        made = new.get(name)
        if made is None:
            lines.append(f"- {name} (withdrawn)")
            continue
        lines.append(
            f"{'~' if name in old else '+'} {name}, sequence number {made.sequence_number}, {made.update_class}"
        )
        lines.append(f"    for {', '.join(made.hardware)}: {made.installer}, {made.image.digest}")
    return Changes({name: new.get(name) for name in altered}, tuple(lines))


def standing(workspace: Workspace, product: str, draft: Metadata[Targets]) -> Signed:
    """Count the valid signatures of a draft."""
    result = workspace.targets().signed.get_verification_result(product, draft.signed_bytes, draft.signatures)
    return Signed(
        product=product,
        version=draft.signed.version,
        threshold=result.threshold,
        signed=tuple(sorted(result.signed)),
        missing=tuple(sorted(result.unsigned)),
    )


def current_draft(workspace: Workspace, product: str) -> Metadata[Targets] | None:
    """Return the draft that follows the published role; one that was overtaken is ignored."""
    draft = workspace.draft(product)
    published = workspace.product(product)
    if draft is not None and draft.signed.version == (published.signed.version if published else 0) + 1:
        return draft
    return None


def import_draft(workspace: Workspace, product: str, draft: Metadata[Targets]) -> None:
    """Take a draft that was carried here; raises ConflictError unless it follows what is published here.

    Signatures of both are kept when the content is the same.
    """
    published = workspace.product(product)
    expected = (published.signed.version if published is not None else 0) + 1
    if draft.signed.version != expected:
        raise ConflictError("The draft does not follow the published role", expected=expected, got=draft.signed.version)
    check_product(product, draft.signed)
    mine = current_draft(workspace, product)
    if mine is not None and mine.signed_bytes == draft.signed_bytes:
        draft.signatures.update({keyid: sig for keyid, sig in mine.signatures.items() if keyid not in draft.signatures})
    workspace.save_draft(product, draft)


def find_built(workspace: Workspace, release: str) -> BuiltRelease | None:
    """Return a built release of this workspace, None if its files are not here."""
    directory = built_directory(workspace, release)
    return load_built(workspace.disk, directory) if workspace.disk.exists(directory / "release.json") else None


def built_directory(workspace: Workspace, release: str) -> Path:
    """Return where a release is built, ``releases/<product>-<version>``."""
    product, _, version = release.partition("/")
    release_id(product, version)
    return workspace.directory / "releases" / f"{product}-{version}"


def check_files(workspace: Workspace, built: BuiltRelease) -> None:
    """Compare every payload and chunk list with the manifest; raises DigestMismatchError or FileError."""
    for name, target in repository.release_targets(built.manifest).items():
        path = built.file_of(name)
        repository.digest_of(target).require(digest_of(workspace.disk, path), what=str(path))


def _next(
    workspace: Workspace, product: str, targets: dict[str, TargetFile], *, number: int, now: datetime
) -> Metadata[Targets]:
    published = workspace.product(product)
    highest = repository.highest_sequence_number(published.signed) if published is not None else 0
    return repository.make_product(
        version=(published.signed.version if published is not None else 0) + 1,
        expires_at=now + TARGETS_LIFETIME,
        targets=targets,
        highest_sequence_number=max(highest, number),
    )


def _require_new(role: Targets, manifest: Manifest) -> None:
    for other in repository.releases_of(role).values():
        if other.release_id == manifest.release_id:
            raise ConflictError(
                "A release of this name exists; build it under another version", release=other.release_id
            )
    highest = repository.highest_sequence_number(role)
    if manifest.sequence_number <= highest:
        raise RollbackError(
            "The sequence number is not above the highest one given", highest=highest, got=manifest.sequence_number
        )


def _require_same(role: Targets, built: BuiltRelease) -> None:
    primary = built.manifest.payloads[0].target
    signed = decode_manifest(role.targets[primary].custom) if primary in role.targets else None
    if signed != built.manifest:
        raise ConflictError(
            "The draft holds another build of this release; remove the draft or build anew",
            release=built.manifest.release_id,
        )
