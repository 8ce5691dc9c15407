"""Replace keys: the next root, or the next delegations, made from the ones before.

A root key, or one that a root names (targets, snapshot, timestamp), changes by a new root: a
ceremony, which is finished at once when the workspace holds enough keys. A product's key changes
by new top-level targets. Either way the roles the new keys sign are signed anew in the same step,
and everything becomes visible at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from firmament.errors import ConflictError, MalformedError, NotFoundError
from firmament.release.publish import author_held, commit_roles
from firmament.trust import ceremony, repository
from firmament.trust.ceremony import Ceremony, Which
from firmament.trust.roles import ROOT, ROOT_LIFETIME, TARGETS, TARGETS_LIFETIME, TOP_LEVEL, RoleKeys

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from securesystemslib.signer import Key
    from tuf.api.metadata import Metadata, Root, Targets

    from firmament.release.workspace import Workspace
    from firmament.trust.signers import Secrets


@dataclass(frozen=True, slots=True)
class Change:
    """What happens to one role's keys; `threshold` None keeps it."""

    add: tuple[Key, ...] = ()
    remove: tuple[str, ...] = ()
    """Keyids."""
    threshold: int | None = None


def apply(before: RoleKeys, change: Change, *, role: str) -> RoleKeys:
    """Return the role after a change; raises NotFoundError or ConflictError for one that says nothing new."""
    keys = {key.keyid: key for key in before.keys}
    for keyid in change.remove:
        if keyid not in keys:
            raise NotFoundError("The role does not have this key", role=role, keyid=keyid)
        del keys[keyid]
    for key in change.add:
        if key.keyid in keys:
            raise ConflictError("The role has this key already", role=role, keyid=key.keyid)
        keys[key.keyid] = key
    return RoleKeys(tuple(keys.values()), change.threshold or before.threshold)


def start_root(workspace: Workspace, which: Which, changes: Mapping[str, Change], *, expires_at: datetime) -> Ceremony:
    """Draft the root that follows the workspace's newest, with these changes by role."""
    chain = workspace.roots(which)
    if not chain:
        raise NotFoundError("The workspace has no root to start from", repository=which.value)
    previous, data = chain[-1]
    unknown = set(changes) - set(TOP_LEVEL)
    if unknown:
        raise MalformedError("A root names only the four top-level roles", found=" ".join(sorted(unknown)))
    roles = {
        role: apply(repository.role_keys(previous.signed, role), changes.get(role, Change()), role=role)
        for role in TOP_LEVEL
    }
    return ceremony.start(data, which=which, roles=roles, expires_at=expires_at)


def finish_root(workspace: Workspace, held: Ceremony, *, secrets: Secrets, now: datetime) -> None:
    """Take a finished root into the workspace.

    The root is refused unless it follows the workspace's newest and both thresholds are met. Image
    repository: when the targets keys changed, the top-level targets are signed by the new keys in
    the same step, so no state exists that a client refuses; ThresholdNotMetError if that cannot be.
    """
    data = held.finish()
    chain = workspace.roots(held.which)
    if chain:
        held.require_previous(chain[-1][0])
    name = repository.file_name(ROOT, held.draft)
    if held.which is Which.DIRECTOR or not chain:
        workspace.store(held.which).commit({name: data})
        return
    roles: dict[str, Metadata[Any]] = {ROOT: held.draft}
    targets = workspace.targets()
    result = held.draft.signed.get_verification_result(TARGETS, targets.signed_bytes, targets.signatures)
    if not result.verified:
        roles[TARGETS] = _signed_targets(workspace, workspace.products(), held.draft.signed, secrets, now)
    online = author_held(workspace, secrets, root=held.draft)
    commit_roles(workspace, roles, online=online, now=now)


def sign_root(workspace: Workspace, held: Ceremony, *, secrets: Secrets, names: Iterable[str] = ()) -> list[str]:
    """Sign with the named keys, or every key in this workspace that has a say; return their names."""
    wanted = {key.keyid: key for key in repository.role_keys(held.draft.signed, ROOT).keys}
    previous = held.previous
    if previous is not None:
        wanted |= {key.keyid: key for key in repository.role_keys(previous.signed, ROOT).keys}
    role = RoleKeys(tuple(wanted.values()), 1)
    records = [workspace.key_record(name) for name in names] or workspace.local_keys(role)
    for record in records:
        held.sign(workspace.open_signer(record, secrets))
    return [record.name for record in records]


def rotate_product(
    workspace: Workspace, product: str, change: Change, *, secrets: Secrets, now: datetime
) -> dict[str, int]:
    """Change a product's keys: new top-level targets, and the product role signed by the new keys."""
    products = workspace.products()
    role = apply(workspace.product_keys(product), change, role=product)
    targets = _signed_targets(workspace, {**products, product: role}, workspace.root().signed, secrets, now)
    current = workspace.product(product)
    fresh = repository.make_product(
        version=current.signed.version + 1 if current is not None else 1,
        expires_at=now + TARGETS_LIFETIME,
        targets=current.signed.targets if current is not None else {},
        highest_sequence_number=repository.highest_sequence_number(current.signed) if current is not None else 0,
    )
    repository.sign(fresh, *workspace.signers(role, (), secrets))
    repository.verify(targets.signed, product, fresh)
    commit_roles(workspace, {TARGETS: targets, product: fresh}, online=author_held(workspace, secrets), now=now)
    workspace.drop_draft(product)
    return {TARGETS: targets.signed.version, product: fresh.signed.version}


def renew_targets(workspace: Workspace, *, secrets: Secrets, now: datetime) -> int:
    """Sign the top-level targets as they are with a new expiry; return their version."""
    targets = _signed_targets(workspace, workspace.products(), workspace.root().signed, secrets, now)
    commit_roles(workspace, {TARGETS: targets}, online=author_held(workspace, secrets), now=now)
    return targets.signed.version


def root_expiry(now: datetime) -> datetime:
    """Return the expiry of a root signed now."""
    return now + ROOT_LIFETIME


def _signed_targets(
    workspace: Workspace, products: Mapping[str, RoleKeys], root: Root, secrets: Secrets, now: datetime
) -> Metadata[Targets]:
    fresh = repository.make_targets(
        version=workspace.targets().signed.version + 1, expires_at=now + TARGETS_LIFETIME, products=products
    )
    repository.sign(fresh, *workspace.signers(repository.role_keys(root, TARGETS), (), secrets))
    repository.verify(root, TARGETS, fresh)
    return fresh


def keyid_of(workspace: Workspace, which: Which, role: str, name: str) -> str:
    """Return the keyid that a name or the start of a keyid means in a role; raises NotFoundError."""
    known = {record.name: record.key.keyid for record in workspace.key_records().values()}
    keyids = [key.keyid for key in repository.role_keys(workspace.root(which).signed, role).keys]
    wanted = known.get(name, name)
    found = [keyid for keyid in keyids if keyid == wanted or (len(wanted) >= 8 and keyid.startswith(wanted))]  # noqa: PLR2004 - enough to be unique
    if len(found) != 1:
        raise NotFoundError("The role has no such key", role=role, key=name)
    return found[0]
