"""A TUF repository in memory that is whole and valid until a test breaks one thing.

Made with `tuf.api` alone, not with the house's own writer, so that reader and writer cannot agree
on the same mistake. Everything is served by name, as over HTTP; `requests` is what was asked.
"""

import copy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from urllib import parse

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from firmament.errors import HttpStatusError, LengthExceededError, TruncatedError

TOP = ("root", "timestamp", "snapshot", "targets")


def now():
    return datetime.now(UTC).replace(microsecond=0)


@dataclass
class TufRepository:
    made_at: datetime = field(default_factory=now)
    requests: list[tuple[str, int | None]] = field(default_factory=list)
    """(role, version) as asked; version None for timestamp."""
    fetched: list[str] = field(default_factory=list)
    """Target paths as asked, hash-prefixed."""
    broken: dict[str, bytes | None] = field(default_factory=dict)
    """File name -> what is served instead; None is 404."""

    def __post_init__(self):
        self.signers = {role: [CryptoSigner.generate_ed25519()] for role in TOP}
        expires = self.made_at + timedelta(days=30)
        self.root = Metadata(Root(expires=expires, consistent_snapshot=True))
        for role, signers in self.signers.items():
            for signer in signers:
                self.root.signed.add_key(signer.public_key, role)
        self.targets = Metadata(Targets(expires=expires))
        self.snapshot = Metadata(Snapshot(expires=expires, meta={"targets.json": MetaFile(1)}))
        self.timestamp = Metadata(Timestamp(expires=expires, snapshot_meta=MetaFile(1)))
        self.delegated: dict[str, Metadata] = {}
        self.roots: list[bytes] = []
        self.files: dict[str, bytes] = {}
        self.kept: dict[str, bytes] = {}
        self.publish_root(bump=False)
        self.publish(bump=False)

    # --- changes ---------------------------------------------------------------------------

    def sign(self, role, metadata):
        metadata.signatures.clear()
        for signer in self.signers[role]:
            metadata.sign(signer, append=True)
        return metadata.to_bytes()

    def publish_root(self, *, bump=True, extra_signers=()):
        if bump:
            self.root.signed.version += 1
        self.root.signatures.clear()
        for signer in [*self.signers["root"], *extra_signers]:
            self.root.sign(signer, append=True)
        self.roots.append(self.root.to_bytes())
        self.kept[f"{self.root.signed.version}.root.json"] = self.roots[-1]

    def rotate(self, role, *, count=1):
        """Replace all keys of a top-level role and publish the root that says so."""
        old = self.signers[role]
        for signer in old:
            self.root.signed.revoke_key(signer.public_key.keyid, role)
        self.signers[role] = [CryptoSigner.generate_ed25519() for _ in range(count)]
        for signer in self.signers[role]:
            self.root.signed.add_key(signer.public_key, role)
        self.publish_root(extra_signers=old if role == "root" else ())

    def publish(self, *, bump=True, targets=True):
        """Publish a new state: the targets (unless told not to), then snapshot and timestamp."""
        if bump and targets:
            self.targets.signed.version += 1
        self.kept[f"{self.targets.signed.version}.targets.json"] = self.sign("targets", self.targets)
        self.snapshot.signed.meta["targets.json"] = MetaFile(self.targets.signed.version)
        for role, metadata in self.delegated.items():
            self.kept[f"{metadata.signed.version}.{role}.json"] = self.sign(role, metadata)
            self.snapshot.signed.meta[f"{role}.json"] = MetaFile(metadata.signed.version)
        self.publish_snapshot(bump=bump)

    def publish_snapshot(self, *, bump=True):
        if bump:
            self.snapshot.signed.version += 1
        self.kept[f"{self.snapshot.signed.version}.snapshot.json"] = self.sign("snapshot", self.snapshot)
        self.timestamp.signed.snapshot_meta = MetaFile(self.snapshot.signed.version)
        self.publish_timestamp(bump=bump)

    def publish_timestamp(self, *, bump=True):
        if bump:
            self.timestamp.signed.version += 1
        self.kept["timestamp.json"] = self.sign("timestamp", self.timestamp)

    def add_target(self, path, data, *, role="targets", algorithm="sha256", custom=None):
        target = TargetFile.from_data(path, data, [algorithm])
        if custom is not None:
            target.unrecognized_fields["custom"] = custom
        metadata = self.targets if role == "targets" else self.delegated[role]
        metadata.signed.targets[path] = target
        prefix, slash, name = path.rpartition("/")
        self.files[f"{prefix}{slash}{target.hashes[algorithm]}.{name}"] = data
        return target

    def delegate(self, role, paths, *, parent="targets", terminating=False, signers=None):
        parent_md = self.targets if parent == "targets" else self.delegated[parent]
        if parent_md.signed.delegations is None:
            parent_md.signed.delegations = Delegations({}, {})
        parent_md.signed.delegations.roles[role] = DelegatedRole(role, [], 1, terminating, paths)
        self.signers[role] = signers or [CryptoSigner.generate_ed25519()]
        for signer in self.signers[role]:
            parent_md.signed.add_key(signer.public_key, role)
        self.delegated.setdefault(role, Metadata(Targets(expires=self.targets.signed.expires)))

    def save(self):
        """Remember what is served now, to serve it again later as an attacker would."""
        return copy.deepcopy(self.kept)

    # --- serving ---------------------------------------------------------------------------

    def metadata(self, name):
        """Return a metadata file by its name, as URL-quoted; None if there is none."""
        role = parse.unquote(name.removesuffix(".json"))
        number, _, rest = role.partition(".")
        version = int(number) if number.isdigit() and rest else None
        self.requests.append((rest if version is not None else role, version))
        plain = parse.unquote(name)
        if plain in self.broken:
            return self.broken[plain]
        return self.kept.get(plain)

    def target(self, path):
        self.fetched.append(path)
        return self.files.get(path)


def root_of(repository):
    return repository.roots[0]


class MemorySource:
    """`trust.client.Source` that serves a repository from memory."""

    def __init__(self, repository):
        self.repository = repository
        self.cut_after = None

    def fetch(self, url, *, limit_bytes):
        data = self.repository.metadata(url.rpartition("/metadata/")[2])
        if data is None:
            raise HttpStatusError("no such file", status=404)
        if len(data) > limit_bytes:
            raise LengthExceededError("too long")
        return data

    def stream(self, url, *, offset, length_bytes):
        data = self.repository.target(url.rpartition("/targets/")[2])
        if data is None:
            raise HttpStatusError("no such file", status=404)
        for start in range(offset, len(data), 1000):
            if self.cut_after is not None and start >= self.cut_after:
                raise TruncatedError("cut")
            yield data[start : start + 1000]
