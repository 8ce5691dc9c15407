"""Publish: from signed drafts to the workspace's repository, a static directory, or a server.

Each target changes all at once (release/store.py; the server promises the same). The workspace's
own repository is committed after the server has answered: a crash in between is repaired by
publishing again, which the server recognises.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from firmament.errors import ConflictError, NotFoundError, NothingToDoError, ThresholdNotMetError
from firmament.release import content_keys, sign
from firmament.release.store import RepositoryStore, digest_of
from firmament.release.verify import verify_repository
from firmament.trust import repository
from firmament.trust.ceremony import Which
from firmament.trust.roles import ROOT, SNAPSHOT, TARGETS, TIMESTAMP

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from datetime import datetime
    from pathlib import Path

    from securesystemslib.signer import Signer
    from tuf.api.metadata import Metadata, Root, TargetFile, Targets

    from firmament.core.manifest import Manifest
    from firmament.release.build import BuiltRelease
    from firmament.release.remote import OperatorApi
    from firmament.release.workspace import Workspace
    from firmament.trust.signers import Secrets

AUTHOR_HELD_LIFETIME: Final = timedelta(days=30)
# An author signs by hand, so trust.md's 3 and 14 days would make a stick useless by the weekend. The
# price is a longer freeze (case 5): a copy of the repository can be served as current for 30 days.


@dataclass(frozen=True, slots=True)
class Plan:
    """What a publish is about to do; also what ``--dry-run`` shows."""

    drafts: Mapping[str, Metadata[Targets]]
    added: tuple[str, ...]
    withdrawn: tuple[str, ...]
    length_bytes: int
    files: Mapping[str, Path] = field(default_factory=dict)
    """Payload file by target path, for the releases that are new."""

    def sealed(self) -> list[Manifest]:
        """Return the new releases that have sealed payloads."""
        releases = {
            name: one for draft in self.drafts.values() for name, one in repository.releases_of(draft.signed).items()
        }
        new = (releases[name] for name in self.added)
        return [one for one in new if any(payload.is_sealed for payload in one.payloads)]

    def to_json(self) -> dict[str, Any]:
        """Return the facts for programs."""
        return {
            "products": {name: draft.signed.version for name, draft in self.drafts.items()},
            "added": list(self.added),
            "withdrawn": list(self.withdrawn),
            "length_bytes": self.length_bytes,
        }


def plan(workspace: Workspace, products: Iterable[str] = ()) -> Plan:
    """Check that drafts are complete and their payloads are here, and say what publishing changes.

    Raises NothingToDoError without drafts, ThresholdNotMetError for one that lacks signatures,
    NotFoundError for a payload that is not here, DigestMismatchError for one that was changed.
    """
    wanted = list(products) or workspace.drafts()
    drafts: dict[str, Metadata[Targets]] = {}
    added: list[str] = []
    withdrawn: list[str] = []
    files: dict[str, Path] = {}
    length_bytes = 0
    for product in wanted:
        draft = sign.current_draft(workspace, product)
        if draft is None:
            continue
        _require_complete(workspace, product, draft)
        published = workspace.product(product)
        old = repository.releases_of(published.signed) if published is not None else {}
        new = repository.releases_of(draft.signed)
        fresh = sorted(set(new) - set(old))
        for release in fresh:
            built = sign.find_built(workspace, release)
            for path in repository.release_targets(new[release]):
                target = draft.signed.targets[path]
                files[path] = _payload_file(workspace, built, target)
                length_bytes += target.length
        drafts[product] = draft
        added += fresh
        withdrawn += sorted(set(old) - set(new))
    if not drafts:
        raise NothingToDoError("No signed draft waits to be published")
    return Plan(drafts, tuple(added), tuple(withdrawn), length_bytes, files)


def publish_local(workspace: Workspace, what: Plan, *, secrets: Secrets, now: datetime) -> None:
    """Take the drafts into the workspace's repository: payloads first, then all metadata at once."""
    online = author_held(workspace, secrets)
    _take(workspace, what, online=online, now=now)


def publish_directory(workspace: Workspace, directory: Path, *, now: datetime) -> int:
    """Make `directory` hold what the workspace's repository holds; return the timestamp's version.

    The whole repository is verified first, from its own first root, so that nothing a client
    would refuse is ever put in place. Raises NotFoundError when the author does not hold the
    timestamp key, ConflictError when `directory` is another repository or a newer one.
    """
    files = workspace.images.files()
    if repository.TIMESTAMP_FILE not in files:
        raise NotFoundError("The timestamp key is the server's; publish there, or rotate it to an author's key")
    view = verify_repository(files, files["1.root.json"], now=now)
    store = RepositoryStore(workspace.disk, directory)
    there = store.files()
    if there.get("1.root.json", files["1.root.json"]) != files["1.root.json"]:
        raise ConflictError("The directory holds a repository of other roots", path=directory)
    if there and _timestamp_version(there) > view.timestamp_version:
        raise ConflictError("The directory holds a newer state than this workspace", path=directory)
    workspace.disk.make_directory(directory, mode=0o755)
    for product in view.products.values():
        for target in product.signed.targets.values():
            _put(store, target, workspace.images.target_path(repository.target_file_name(target)))
    store.commit(files)
    return view.timestamp_version


def publish_server(
    workspace: Workspace,
    what: Plan | None,
    api: OperatorApi,
    *,
    now: datetime,
    keys_from: Secrets | None = None,
    progress: Callable[[str, int], None] = lambda _name, _length: None,
) -> dict[str, Any]:
    """Send payloads, then all metadata the server lacks in one request; then commit locally.

    Without a plan the workspace's published roles are sent as they are (new roots, renewals). The
    content keys of new sealed releases go along, opened with `keys_from`; None withholds them.
    """
    state = api.image_state()
    roles: dict[str, bytes] = {}
    drafts = what.drafts if what is not None else {}
    fresh = what.files if what is not None else {}
    ahead: list[Metadata[Targets]] = []
    for role in (TARGETS, *workspace.products()):
        metadata = drafts.get(role) or (workspace.targets() if role == TARGETS else workspace.product(role))
        if metadata is not None:
            version = metadata.signed.version
            if version < state.roles.get(role, 0):
                raise ConflictError("The server has a newer role", role=role, server=state.roles[role], here=version)
            roles[repository.file_name(role, metadata)] = _stored(workspace, role, metadata)
            if version > state.roles.get(role, 0):
                ahead.append(metadata)
    for metadata in ahead:
        # Also payloads that were published long ago: a server that came back from a backup lacks them.
        for path, target in metadata.signed.targets.items():
            digest = repository.digest_of(target)
            if not api.has_blob(digest):
                progress(path, target.length)
                file = fresh.get(path) or workspace.images.target_path(repository.target_file_name(target))
                api.put_blob(digest, file, target.length)
    # Before the release is there: from then on a poll may ask for them.
    given = _give_keys(workspace, what, api, keys_from) if what is not None and keys_from is not None else 0
    roots = _new_roots(workspace, Which.IMAGE, state.roles.get(ROOT, 0))
    answer = api.publish({**roots, **roles}, director_roots=_new_roots(workspace, Which.DIRECTOR, state.director_root))
    if what is not None:
        _take(workspace, what, online={}, now=now)
    return {**answer, "content_keys": given}


def _give_keys(workspace: Workspace, what: Plan, api: OperatorApi, secrets: Secrets) -> int:
    given = 0
    for manifest in what.sealed():
        given += content_keys.give(api, manifest, content_keys.load(workspace, manifest.release_id, secrets))
    return given


def _take(workspace: Workspace, what: Plan, *, online: Mapping[str, Signer], now: datetime) -> None:
    for draft in what.drafts.values():
        for path, target in draft.signed.targets.items():
            if path in what.files:
                _put(workspace.images, target, what.files[path])
    commit_roles(workspace, dict(what.drafts), online=online, now=now)
    for product in what.drafts:
        workspace.drop_draft(product)


def commit_roles(
    workspace: Workspace, roles: Mapping[str, Metadata[Any]], *, online: Mapping[str, Signer], now: datetime
) -> None:
    """Take signed roles into the workspace's repository, with a new snapshot and timestamp if `online` signs them."""
    changed = {repository.file_name(role, metadata): repository.encode(metadata) for role, metadata in roles.items()}
    if online:
        changed |= _online_files(workspace, roles, online, now)
    workspace.images.commit(changed)


def refresh(workspace: Workspace, *, secrets: Secrets, now: datetime) -> int:
    """Sign a new snapshot and timestamp over what is published; return the timestamp's version."""
    online = author_held(workspace, secrets)
    if not online:
        raise NotFoundError("The snapshot and timestamp keys are the server's; it renews them itself")
    commit_roles(workspace, {}, online=online, now=now)
    timestamp = workspace.timestamp()
    assert timestamp is not None
    return timestamp.signed.version


def author_held(workspace: Workspace, secrets: Secrets, *, root: Metadata[Root] | None = None) -> dict[str, Signer]:
    """Open the snapshot and timestamp keys of `root` (the newest) if both are here, else return nothing."""
    root = root or workspace.root()
    records = {role: workspace.local_keys(repository.role_keys(root.signed, role)) for role in (SNAPSHOT, TIMESTAMP)}
    if not all(records.values()):
        return {}
    return {role: workspace.open_signer(found[0], secrets) for role, found in records.items()}


def _online_files(
    workspace: Workspace, roles: Mapping[str, Metadata[Any]], online: Mapping[str, Signer], now: datetime
) -> dict[str, bytes]:
    snapshot, timestamp = workspace.snapshot(), workspace.timestamp()
    versions = {
        name.removesuffix(".json"): meta.version for name, meta in (snapshot.signed.meta if snapshot else {}).items()
    }
    versions.update({role: metadata.signed.version for role, metadata in roles.items() if role != ROOT})
    next_snapshot = repository.make_snapshot(
        version=snapshot.signed.version + 1 if snapshot else 1,
        expires_at=now + AUTHOR_HELD_LIFETIME,
        versions=versions,
    )
    next_timestamp = repository.make_timestamp(
        version=timestamp.signed.version + 1 if timestamp else 1,
        expires_at=now + AUTHOR_HELD_LIFETIME,
        snapshot_version=next_snapshot.signed.version,
    )
    made: dict[str, Metadata[Any]] = {
        SNAPSHOT: repository.sign(next_snapshot, online[SNAPSHOT]),
        TIMESTAMP: repository.sign(next_timestamp, online[TIMESTAMP]),
    }
    return {repository.file_name(role, metadata): repository.encode(metadata) for role, metadata in made.items()}


def _require_complete(workspace: Workspace, product: str, draft: Metadata[Targets]) -> None:
    found = sign.standing(workspace, product, draft)
    if not found.is_complete:
        raise ThresholdNotMetError(
            "The draft lacks signatures",
            product=product,
            signed=len(found.signed),
            threshold=found.threshold,
            missing=" ".join(keyid[:12] for keyid in found.missing),
        )


def _payload_file(workspace: Workspace, built: BuiltRelease | None, target: TargetFile) -> Path:
    digest = repository.digest_of(target)
    if built is not None:
        path = built.file_of(target.path)
    else:
        path = workspace.images.target_path(repository.target_file_name(target))
        if not workspace.disk.exists(path):
            raise NotFoundError("The payload of a signed release is not in this workspace", target=target.path)
    digest.require(digest_of(workspace.disk, path), what=str(path))
    return path


def _put(store: RepositoryStore, target: TargetFile, source: Path) -> None:
    name = repository.target_file_name(target)
    store.put_target(name, source, length_bytes=target.length, digest=repository.digest_of(target))


def _stored(workspace: Workspace, role: str, metadata: Metadata[Any]) -> bytes:
    name = repository.file_name(role, metadata)
    return workspace.images.files().get(name) or repository.encode(metadata)


def _new_roots(workspace: Workspace, which: Which, known: int) -> dict[str, bytes]:
    chain = workspace.roots(which)
    return {f"{number}.root.json": data for number, (_, data) in enumerate(chain, 1) if number > known}


def _timestamp_version(files: Mapping[str, bytes]) -> int:
    from tuf.api.metadata import Timestamp

    data = files.get(repository.TIMESTAMP_FILE)
    return repository.read(data, Timestamp, what="The directory's timestamp").signed.version if data else 0
