"""Make, sign, read and name the metadata files of a TUF repository (architecture.md decision 3).

Pure: keys, versions and times come in, bytes go out. The release tool, the server's signer and
the simulators all build with these functions, so that there is one idea of what a repository is:

    root = make_root(version=1, expires_at=..., roles={"root": ..., "targets": ..., ...})
    targets = make_targets(version=1, expires_at=..., products={"thermo": role_keys})
    product = make_product(version=1, expires_at=..., targets=release_targets(manifest))
    files = {file_name("root", root): encode(sign(root, signer)), ...}

Layout: ``metadata/N.root.json N.targets.json N.<product>.json N.snapshot.json timestamp.json``,
``targets/<product>/<version>/<sha256>.<filename>`` (consistent snapshots, TUF section 6.2).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, TypeVar

from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Role,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from firmament.core import canonical
from firmament.core.digest import Digest
from firmament.core.ids import TARGET_PATH, check
from firmament.core.manifest import CHUNKS_SUFFIX, MAX_CHUNK_LIST_LENGTH_BYTES
from firmament.core.manifest import decode as decode_manifest
from firmament.errors import MalformedError, MalformedMetadataError, ThresholdNotMetError, TooLargeError
from firmament.trust.keys import read_key
from firmament.trust.roles import ROOT, SNAPSHOT, TARGETS, TIMESTAMP, TOP_LEVEL, RoleKeys, check_product_role

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from securesystemslib.signer import Key, Signer

    from firmament.core.manifest import Manifest

T = TypeVar("T", Root, Targets, Snapshot, Timestamp)

MAX_METADATA_LENGTH_BYTES: Final = {
    # As ngclient/config.py bounds them, so that what we accept a device accepts too.
    ROOT: 512_000,
    TIMESTAMP: 16_384,
    SNAPSHOT: 2_000_000,
    TARGETS: 5_000_000,
}
TIMESTAMP_FILE: Final = "timestamp.json"
HIGHEST_SEQUENCE_NUMBER: Final = "x-highest-sequence-number"


# --- make ----------------------------------------------------------------------------------


def make_root(*, version: int, expires_at: datetime, roles: Mapping[str, RoleKeys]) -> Metadata[Root]:
    """Return an unsigned root; `roles` names keys and threshold of each of the four top-level roles."""
    if set(roles) != set(TOP_LEVEL):
        raise MalformedError("A root names exactly the four top-level roles", found=" ".join(sorted(roles)))
    root = Root(
        version=version,
        expires=_whole_second(expires_at),
        keys={key.keyid: key for role in roles.values() for key in role.keys},
        roles={name: Role([key.keyid for key in roles[name].keys], roles[name].threshold) for name in TOP_LEVEL},
        consistent_snapshot=True,
    )
    return Metadata(root)


def make_targets(*, version: int, expires_at: datetime, products: Mapping[str, RoleKeys]) -> Metadata[Targets]:
    """Return unsigned top-level targets: one terminating delegation per product, no target of its own."""
    roles = {
        name: DelegatedRole(
            name=check_product_role(name),
            keyids=[key.keyid for key in role.keys],
            threshold=role.threshold,
            terminating=True,
            paths=[product_paths(name)],
        )
        for name, role in sorted(products.items())
    }
    keys = {key.keyid: key for role in products.values() for key in role.keys}
    return Metadata(
        Targets(version=version, expires=_whole_second(expires_at), delegations=Delegations(keys=keys, roles=roles))
    )


def make_product(
    *, version: int, expires_at: datetime, targets: Mapping[str, TargetFile], highest_sequence_number: int = 0
) -> Metadata[Targets]:
    """Return an unsigned product role with all its releases' targets.

    `highest_sequence_number` is the highest ever given, withdrawn releases included; it is signed
    with the rest, so that nobody re-uses a number that devices may have confirmed.
    """
    return Metadata(
        Targets(
            version=version,
            expires=_whole_second(expires_at),
            targets=dict(sorted(targets.items())),
            unrecognized_fields={HIGHEST_SEQUENCE_NUMBER: highest_sequence_number} if highest_sequence_number else {},
        )
    )


def releases_of(product: Targets) -> dict[str, Manifest]:
    """Return the manifests of a product role by release id; raises MalformedError or UnknownManifestError.

    Targets without a manifest are the further payloads of some release.
    """
    found = (decode_manifest(target.custom) for target in product.targets.values() if target.custom is not None)
    return {manifest.release_id: manifest for manifest in found}


def highest_sequence_number(product: Targets) -> int:
    """Return the highest sequence number this product ever gave out."""
    stated = product.unrecognized_fields.get(HIGHEST_SEQUENCE_NUMBER, 0)
    numbers = [manifest.sequence_number for manifest in releases_of(product).values()]
    return max([stated if isinstance(stated, int) else 0, *numbers])


def make_snapshot(*, version: int, expires_at: datetime, versions: Mapping[str, int]) -> Metadata[Snapshot]:
    """Return an unsigned snapshot; `versions` maps ``targets`` and every product to its version."""
    meta = {f"{name}.json": MetaFile(number) for name, number in sorted(versions.items())}
    return Metadata(Snapshot(version=version, expires=_whole_second(expires_at), meta=meta))


def make_timestamp(*, version: int, expires_at: datetime, snapshot_version: int) -> Metadata[Timestamp]:
    """Return an unsigned timestamp."""
    return Metadata(
        Timestamp(version=version, expires=_whole_second(expires_at), snapshot_meta=MetaFile(snapshot_version))
    )


def release_targets(manifest: Manifest) -> dict[str, TargetFile]:
    """Return the TUF targets of one release: a file per payload and chunk list, the manifest on the primary one.

    Raises MalformedError when a payload lies outside ``<product>/<version>/`` or appears twice.
    """
    found: dict[str, TargetFile] = {}
    for index, payload in enumerate(manifest.payloads):
        prefix, _, filename = check(payload.target, TARGET_PATH, what="The target path").rpartition("/")
        if prefix != manifest.release_id or not filename:
            raise MalformedError("A payload lies outside its release", target=payload.target, release=prefix)
        if payload.target in found:
            raise MalformedError("A payload appears twice", target=payload.target)
        if payload.digest.algorithm != "sha256":
            raise MalformedError("Targets are named by sha256", target=payload.target, digest=payload.digest)
        extra = {"custom": manifest.to_json()} if index == 0 else None
        found[payload.target] = TargetFile(payload.length_bytes, payload.digest.to_json(), payload.target, extra)
    for payload in manifest.payloads:
        pin = payload.chunks
        if pin is not None:
            path = check(payload.target + CHUNKS_SUFFIX, TARGET_PATH, what="The target path")
            if path in found or pin.list_digest.algorithm != "sha256":
                raise MalformedError("A chunk list is not a target of its own, named by sha256", target=path)
            length = pin.list_length_bytes(payload.length_bytes)
            if length > MAX_CHUNK_LIST_LENGTH_BYTES:
                raise MalformedError("A chunk list is longer than allowed", target=path, length_bytes=length)
            found[path] = TargetFile(length, pin.list_digest.to_json(), path)
    return found


def product_paths(product: str) -> str:
    """Return the path pattern that a product role may sign."""
    return f"{product}/*/*"


def target_file_name(target: TargetFile) -> str:
    """Return where the bytes of a target lie below ``targets/``, with the digest before the file name."""
    prefix, _, filename = target.path.rpartition("/")
    return f"{prefix}/{digest_of(target).hex}.{filename}"


def digest_of(target: TargetFile) -> Digest:
    """Return the one sha256 digest of a target; raises MalformedMetadataError for none or several."""
    if set(target.hashes) != {"sha256"}:
        raise MalformedMetadataError(
            "A target has exactly one digest, sha256", target=target.path, found=" ".join(sorted(target.hashes))
        )
    return Digest.from_json(dict(target.hashes), what=f"target {target.path}")


# --- sign and name -------------------------------------------------------------------------


def sign(metadata: Metadata[T], *signers: Signer) -> Metadata[T]:
    """Add signatures, keeping those of others, and return the same metadata.

    Errors of the signer pass unchanged; tuf's own `sign` would hide them, and by default drops
    every other signature (trust.md §9, pitfall 1).
    """
    for signer in signers:
        signature = signer.sign(metadata.signed_bytes)
        metadata.signatures[signature.keyid] = signature
    return metadata


def encode(metadata: Metadata[Any]) -> bytes:
    """Return the bytes of a metadata file."""
    return metadata.to_bytes()


def json_text(value: dict[str, Any]) -> bytes:
    """Return readable JSON for a file beside the metadata, e.g. a key's public record."""
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"


def file_name(role: str, metadata: Metadata[Any]) -> str:
    """Return a metadata file's name: ``3.targets.json``, ``7.thermo.json``, ``timestamp.json``."""
    return TIMESTAMP_FILE if role == TIMESTAMP else f"{metadata.signed.version}.{role}.json"


# --- read ----------------------------------------------------------------------------------


def read(data: bytes, kind: type[T], *, what: str) -> Metadata[T]:
    """Read a metadata file of one kind; signatures are not checked here.

    Raises MalformedMetadataError for anything else: too long, ambiguous JSON, another type,
    unknown key kinds, a key under a keyid that is not its own, thresholds out of reach, or a
    target path outside the grammar (trust.md §10, cases 15, 16, 19, 20, 24, 25, 27).
    """
    limit = MAX_METADATA_LENGTH_BYTES[kind.type]
    try:
        value = canonical.decode_object(data, limit_bytes=limit, what=what)
        metadata: Metadata[Any] = Metadata.from_dict(value)
        if not isinstance(metadata.signed, kind):
            raise MalformedMetadataError(f"{what} has another type", expected=kind.type, found=metadata.signed.type)
        _check(metadata.signed, what)
    except (MalformedError, TooLargeError) as error:
        raise MalformedMetadataError(error.problem, **error.facts) from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise MalformedMetadataError(f"{what} is not TUF metadata", reason=repr(error)[:200]) from error
    return metadata


def _check(signed: Root | Targets | Snapshot | Timestamp, what: str) -> None:
    match signed:
        case Root():
            if not signed.consistent_snapshot:
                raise MalformedMetadataError(f"{what} does not use consistent snapshots")
            for keyid, key in signed.keys.items():
                read_key(key.to_dict(), keyid=keyid, what=what)
            for role in TOP_LEVEL:
                role_keys(signed, role)
        case Targets():
            for path, target in signed.targets.items():
                check(path, TARGET_PATH, what="The target path")
                digest_of(target)
            if signed.delegations is not None:
                _check_delegations(signed, what)
        case Snapshot() | Timestamp():
            pass


def _check_delegations(signed: Targets, what: str) -> None:
    assert signed.delegations is not None
    if signed.delegations.succinct_roles is not None or signed.delegations.roles is None:
        raise MalformedMetadataError(f"{what} delegates in a way that is not used here")
    for keyid, key in signed.delegations.keys.items():
        read_key(key.to_dict(), keyid=keyid, what=what)
    for name, role in signed.delegations.roles.items():
        check_product_role(name)
        role_keys(signed, name)
        if role.paths != [product_paths(name)] or role.path_hash_prefixes is not None or not role.terminating:
            raise MalformedMetadataError(f"{what} delegates paths that are not the product's", role=name)


def role_keys(delegator: Root | Targets, role: str) -> RoleKeys:
    """Return keys and threshold that a root or targets file names for a role.

    Raises MalformedMetadataError if it names none, or keys it does not hold.
    """
    try:
        found = delegator.get_delegated_role(role)
        keys: tuple[Key, ...] = tuple(delegator.get_key(keyid) for keyid in found.keyids)
        return RoleKeys(keys, found.threshold)
    except (ValueError, MalformedError) as error:
        raise MalformedMetadataError("A role is not delegated as it should be", role=role, reason=error) from error


# --- verify --------------------------------------------------------------------------------


def verify(delegator: Root | Targets, role: str, metadata: Metadata[Any]) -> None:
    """Raise ThresholdNotMetError unless enough distinct keys of `role` signed `metadata`."""
    role_keys(delegator, role)
    result = delegator.get_verification_result(role, metadata.signed_bytes, metadata.signatures)
    if not result.verified:
        raise ThresholdNotMetError(
            f"Not enough keys of {role} signed",
            threshold=result.threshold,
            signed=len(result.signed),
            missing=" ".join(sorted(keyid[:12] for keyid in result.unsigned)),
        )


def verify_root(new: Metadata[Root], previous: Metadata[Root] | None) -> None:
    """Raise unless `new` follows `previous` (TUF section 5.3): version + 1, both thresholds met.

    Without a previous root, `new` must meet its own threshold. Raises ThresholdNotMetError or
    MalformedMetadataError.
    """
    if previous is not None and new.signed.version != previous.signed.version + 1:
        raise MalformedMetadataError(
            "A root follows the one before it without a gap",
            expected=previous.signed.version + 1,
            got=new.signed.version,
        )
    if previous is not None:
        verify(previous.signed, ROOT, new)
    verify(new.signed, ROOT, new)


def _whole_second(moment: datetime) -> datetime:
    return moment.replace(microsecond=0)
