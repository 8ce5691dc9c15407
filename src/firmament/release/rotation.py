"""`key rotate` and `key revoke`: which roots or delegations a replaced key asks for, and doing it at once.

What this workspace has too few keys for becomes a ceremony file in ``drafts/``, to be carried to
the other custodians.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from firmament.durable import PUBLIC_MODE, replace_durably
from firmament.errors import KeyFileError, MalformedError, NotFoundError
from firmament.release import rotate
from firmament.release.rotate import Change
from firmament.release.setup import first_root, read_online
from firmament.trust import keys, repository
from firmament.trust.ceremony import Which
from firmament.trust.roles import ROOT, SNAPSHOT, TARGETS, TIMESTAMP, TOP_LEVEL, RoleKeys

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from securesystemslib.signer import Key

    from firmament.release.workspace import Workspace
    from firmament.trust.ceremony import Ceremony
    from firmament.trust.keys import KeyRecord
    from firmament.trust.signers import Secrets


@dataclass
class Rotation:
    """What was done and what is left to others."""

    role: str
    added: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    """Keyids."""
    versions: dict[str, int] = field(default_factory=dict)
    """``image root``, ``targets``, ... and their new version."""
    pending: list[str] = field(default_factory=list)
    """Ceremony files that still need signatures."""

    def to_json(self) -> dict[str, Any]:
        """Return the facts for programs."""
        return {
            "role": self.role,
            "added": self.added,
            "removed": self.removed,
            "versions": self.versions,
            "pending": self.pending,
        }

    def lines(self) -> list[str]:
        """Return the facts for people."""
        lines = [f"{self.role}: + {name}" for name in self.added]
        lines += [f"{self.role}: - {keyid[:12]}" for keyid in self.removed]
        lines += [f"{name} is now version {version}" for name, version in self.versions.items()]
        lines += [f"Not enough keys here: carry {path} to the other custodians." for path in self.pending]
        return lines


def replace(
    workspace: Workspace,
    role: str,
    *,
    old: str | None,
    new: str | None,
    passphrase: bytes,
    secrets: Secrets,
    now: datetime,
) -> Rotation:
    """Replace one key of a role, or all of its keys that are here, by new ones of the same kind.

    Raises KeyFileError when no key of the role is here and none is named.
    """
    holders = _role(workspace, role)
    records = workspace.local_keys(holders)
    removed = [_find(workspace, holders, old)] if old is not None else [record.key for record in records]
    if not removed:
        raise KeyFileError("No key of this role is in the workspace; name one with --old", role=role)
    if new is not None:
        if len(removed) != 1:
            raise MalformedError("One new key replaces one old key; name it with --old", keys=len(removed))
        added = [workspace.key_record(new)]
    else:
        added = [_successor(workspace, role, key, passphrase, now) for key in removed]
    change = Change(add=tuple(record.key for record in added), remove=tuple(key.keyid for key in removed))
    result = Rotation(role, [record.name for record in added], [key.keyid for key in removed])
    return _carry_out(workspace, role, change, result, secrets=secrets, now=now)


def revoke(
    workspace: Workspace, role: str, name: str, *, threshold: int | None, secrets: Secrets, now: datetime
) -> Rotation:
    """Take a key out of a role; raises MalformedError when the threshold would be out of reach."""
    key = _find(workspace, _role(workspace, role), name)
    change = Change(remove=(key.keyid,), threshold=threshold)
    return _carry_out(workspace, role, change, Rotation(role, removed=[key.keyid]), secrets=secrets, now=now)


def use_online(workspace: Workspace, online_public: bytes, *, secrets: Secrets, now: datetime) -> Rotation:
    """Put the server's online keys into both roots, replacing whoever held those roles.

    A workspace made without a server gets its director root here. Raises MalformedError.
    """
    online = read_online(online_public)
    result = Rotation("online")
    changes = _replacing(repository_roles(workspace, Which.IMAGE), online.image)
    if changes:
        _root(workspace, Which.IMAGE, changes, result, secrets=secrets, now=now)
    if workspace.roots(Which.DIRECTOR):
        changes = _replacing(repository_roles(workspace, Which.DIRECTOR), online.director)
        if changes:
            _root(workspace, Which.DIRECTOR, changes, result, secrets=secrets, now=now)
    else:
        root = repository_roles(workspace, Which.IMAGE)[ROOT]
        roles = {ROOT: root, **{role: RoleKeys((key,), 1) for role, key in online.director.items()}}
        first_root(workspace, Which.DIRECTOR, roles, signers=workspace.signers(root, (), secrets), now=now)
        result.versions["director root"] = 1
    return result


def repository_roles(workspace: Workspace, which: Which) -> dict[str, RoleKeys]:
    """Return the four top-level roles of a repository's newest root."""
    signed = workspace.root(which).signed
    return {role: repository.role_keys(signed, role) for role in TOP_LEVEL}


def _carry_out(
    workspace: Workspace, role: str, change: Change, result: Rotation, *, secrets: Secrets, now: datetime
) -> Rotation:
    if role not in TOP_LEVEL:
        result.versions |= rotate.rotate_product(workspace, role, change, secrets=secrets, now=now)
        return result
    # The image repository last: its root says who holds the role, so after a crash in between the same
    # command names the same keys again, and the director is found done.
    if role == ROOT and workspace.roots(Which.DIRECTOR):
        _root(workspace, Which.DIRECTOR, {role: change}, result, secrets=secrets, now=now)
    _root(workspace, Which.IMAGE, {role: change}, result, secrets=secrets, now=now)
    return result


def _root(
    workspace: Workspace,
    which: Which,
    changes: Mapping[str, Change],
    result: Rotation,
    *,
    secrets: Secrets,
    now: datetime,
) -> None:
    roles = repository_roles(workspace, which)
    if all(_is_done(roles[role], change) for role, change in changes.items()):
        return
    held = rotate.start_root(workspace, which, changes, expires_at=rotate.root_expiry(now))
    rotate.sign_root(workspace, held, secrets=secrets)
    if held.progress().is_complete:
        rotate.finish_root(workspace, held, secrets=secrets, now=now)
        result.versions[f"{which} root"] = held.draft.signed.version
    else:
        result.pending.append(_leave(workspace, held))


def _is_done(role: RoleKeys, change: Change) -> bool:
    keyids = {key.keyid for key in role.keys}
    added = all(key.keyid in keyids for key in change.add)
    return added and keyids.isdisjoint(change.remove) and change.threshold in {None, role.threshold}


def _leave(workspace: Workspace, held: Ceremony) -> str:
    path = workspace.directory / "drafts" / f"{held.which}-root-{held.draft.signed.version}.ceremony"
    replace_durably(workspace.disk, path, held.to_bytes(), mode=PUBLIC_MODE)
    return str(path)


def _replacing(roles: Mapping[str, RoleKeys], wanted: Mapping[str, Key]) -> dict[str, Change]:
    found: dict[str, Change] = {}
    for role, key in wanted.items():
        current = [holder.keyid for holder in roles[role].keys]
        if current != [key.keyid] or roles[role].threshold != 1:
            remove = tuple(keyid for keyid in current if keyid != key.keyid)
            add = () if key.keyid in current else (key,)
            found[role] = Change(add=add, remove=remove, threshold=1)
    return found


def _role(workspace: Workspace, role: str) -> RoleKeys:
    if role in {ROOT, TARGETS, SNAPSHOT, TIMESTAMP}:
        return repository_roles(workspace, Which.IMAGE)[role]
    return workspace.product_keys(role)


def _find(workspace: Workspace, holders: RoleKeys, name: str) -> Key:
    known = {record.name: record.key.keyid for record in workspace.key_records().values()}
    wanted = known.get(name, name)
    found = [key for key in holders.keys if key.keyid == wanted or (len(wanted) >= 8 and key.keyid.startswith(wanted))]  # noqa: PLR2004 - enough to be unique
    if len(found) != 1:
        raise NotFoundError("The role has no such key", key=name)
    return found[0]


def _successor(workspace: Workspace, role: str, key: Key, passphrase: bytes, now: datetime) -> KeyRecord:
    # A private file without a record is what a cut left of an earlier try; it is never overwritten.
    taken = {name.partition(".")[0] for name in workspace.disk.list(workspace.keys_directory)}
    stem = f"{role}-{key.keytype}"
    name = next(name for number in range(2, 10_000) if (name := f"{stem}-{number}") not in taken)
    return workspace.add_key(name, keys.generate(keys.kind_of(key)), passphrase, now=now)
