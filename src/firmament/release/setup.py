"""The first keys and files of a workspace, and further product lines.

`quick_start` is the path for one person: a hybrid pair (Ed25519 and ML-DSA-65) each for root,
targets and the product, threshold 2, all in one place under one passphrase. GIVEN_UP says what
that gives up compared with the ceremony.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from firmament.core import canonical
from firmament.core.fields import Fields
from firmament.errors import ConflictError
from firmament.release.publish import author_held, commit_roles
from firmament.release.workspace import Workspace, read_public_keys
from firmament.trust import keys, repository
from firmament.trust.ceremony import Which
from firmament.trust.keys import KeyKind
from firmament.trust.roles import (
    ROOT,
    ROOT_LIFETIME,
    SNAPSHOT,
    TARGETS,
    TARGETS_LIFETIME,
    TIMESTAMP,
    RoleKeys,
    check_product_role,
    hybrid_threshold,
    require_hybrid,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from securesystemslib.signer import CryptoSigner, Key, Signer

    from firmament.durable import Disk
    from firmament.trust.signers import Secrets

MAX_ONLINE_LENGTH_BYTES: Final = 64 * 1024
GIVEN_UP: Final = (
    "one person holds every offline key: nobody has to agree to a new root or a release",
    "all keys lie on one machine under one passphrase: whoever has both can sign releases",
    "no spare: lose keys/ or the passphrase and devices can never be updated again; make a copy now",
)
NEW: Final = ".new"


@dataclass(frozen=True, slots=True)
class OnlineKeys:
    """The server's public keys, from `firmament server init`."""

    image: Mapping[str, Key]
    director: Mapping[str, Key]


def read_online(data: bytes) -> OnlineKeys:
    """Read online-public.json; raises MalformedError."""
    what = "online-public.json"
    fields = Fields(canonical.decode_object(data, limit_bytes=MAX_ONLINE_LENGTH_BYTES, what=what), what=what)
    fields.integer("v", minimum=1, maximum=1)

    def section(name: str, roles: tuple[str, ...]) -> dict[str, Key]:
        inner = fields.object(name)
        entries = {role: inner.object(role).value for role in roles}
        return read_public_keys(entries, what=inner.what)

    return OnlineKeys(
        image=section("image", (SNAPSHOT, TIMESTAMP)), director=section("director", (TARGETS, SNAPSHOT, TIMESTAMP))
    )


def quick_start(
    disk: Disk, directory: Path, *, product: str, online: OnlineKeys | None, passphrase: bytes, now: datetime
) -> Workspace:
    """Make a whole workspace and return it; all of it or nothing appears under `directory`.

    Without `online` the author holds the snapshot and timestamp keys as well, for a repository on
    a stick or a static web server, and there is no director. Raises ConflictError if `directory`
    is in use, PassphraseError for a passphrase that is too short.
    """
    check_product_role(product)
    if disk.list(directory):
        raise ConflictError("The directory is not empty", path=directory)
    fresh = directory.with_name(directory.name + NEW)
    disk.remove_tree(fresh)
    _fill(Workspace.create(disk, fresh), product=product, online=online, passphrase=passphrase, now=now)
    disk.sync_directory(fresh)
    disk.replace(fresh, directory)
    disk.sync_directory(directory.parent)
    return Workspace(disk, directory)


def _fill(workspace: Workspace, *, product: str, online: OnlineKeys | None, passphrase: bytes, now: datetime) -> None:
    root = _hybrid_pair(workspace, ROOT, passphrase, now)
    targets = _hybrid_pair(workspace, TARGETS, passphrase, now)
    author_held: dict[str, CryptoSigner] = {}
    if online is None:
        for role in (SNAPSHOT, TIMESTAMP):
            author_held[role] = keys.generate(KeyKind.ED25519)
            workspace.add_key(role, author_held[role], passphrase, now=now)
        online_keys: Mapping[str, Key] = {role: signer.public_key for role, signer in author_held.items()}
    else:
        online_keys = online.image
    first_root(
        workspace,
        Which.IMAGE,
        {ROOT: _role(root), TARGETS: _role(targets), **{role: _one(key) for role, key in online_keys.items()}},
        signers=root,
        now=now,
    )
    if online is not None:
        roles = {ROOT: _role(root), **{role: _one(key) for role, key in online.director.items()}}
        first_root(workspace, Which.DIRECTOR, roles, signers=root, now=now)
    product_signers = _hybrid_pair(workspace, product, passphrase, now)
    roles_metadata = {
        TARGETS: repository.sign(
            repository.make_targets(
                version=1, expires_at=now + TARGETS_LIFETIME, products={product: _role(product_signers)}
            ),
            *targets,
        ),
        product: repository.sign(
            repository.make_product(version=1, expires_at=now + TARGETS_LIFETIME, targets={}), *product_signers
        ),
    }
    commit_roles(workspace, roles_metadata, online=author_held, now=now)


def first_root(
    workspace: Workspace, which: Which, roles: Mapping[str, RoleKeys], *, signers: Sequence[Signer], now: datetime
) -> None:
    """Sign and store the first root of a chain."""
    root = repository.make_root(version=1, expires_at=now + ROOT_LIFETIME, roles=roles)
    repository.verify_root(repository.sign(root, *signers), None)
    workspace.store(which).commit({repository.file_name(ROOT, root): repository.encode(root)})


def add_product(
    workspace: Workspace, product: str, *, passphrase: bytes, secrets: Secrets, now: datetime
) -> dict[str, Any]:
    """Make a hybrid pair for a new product line and delegate to it.

    Needs all targets keys it takes to meet their threshold in this workspace. Raises
    ConflictError for a product that exists, ThresholdNotMetError when keys are missing.
    """
    check_product_role(product)
    existing = workspace.products()
    if product in existing:
        raise ConflictError("The workspace has this product already", product=product)
    root = workspace.root()
    role = repository.role_keys(root.signed, TARGETS)
    signers = workspace.signers(role, (), secrets)
    made = [keys.generate(kind) for kind in _PAIR.values()]
    targets = repository.make_targets(
        version=workspace.targets().signed.version + 1,
        expires_at=now + TARGETS_LIFETIME,
        products={**existing, product: _role(made)},
    )
    repository.verify(root.signed, TARGETS, repository.sign(targets, *signers))
    for suffix, signer in zip(_PAIR, made, strict=True):
        workspace.add_key(f"{product}-{suffix}", signer, passphrase, now=now)
    first = repository.make_product(version=1, expires_at=now + TARGETS_LIFETIME, targets={})
    repository.sign(first, *made)
    commit_roles(workspace, {TARGETS: targets, product: first}, online=author_held(workspace, secrets), now=now)
    return {"product": product, "targets_version": targets.signed.version}


_PAIR: Final = {"ed25519": KeyKind.ED25519, "ml-dsa": KeyKind.ML_DSA_65}


def _hybrid_pair(workspace: Workspace, role: str, passphrase: bytes, now: datetime) -> list[CryptoSigner]:
    found = []
    for suffix, kind in _PAIR.items():
        signer = keys.generate(kind)
        workspace.add_key(f"{role}-{suffix}", signer, passphrase, now=now)
        found.append(signer)
    return found


def _role(signers: list[CryptoSigner]) -> RoleKeys:
    role = RoleKeys(tuple(signer.public_key for signer in signers), hybrid_threshold(len(signers) // 2))
    require_hybrid("the role", role)
    return role


def _one(key: Key) -> RoleKeys:
    return RoleKeys((key,), 1)
