"""The author's workspace: one directory with keys, repository, built releases and drafts.

firmament.toml            [workspace] version = 1; [server] url, ca
keys/NAME.pem             private keys, encrypted, 0600; NAME.pub.json beside each
keys/content/             content keys of sealed releases, encrypted, 0600 (content_keys.py)
repository/               the image repository as published (release/store.py)
director/                 the director's root chain, same layout
releases/<product>-<version>/   built and not yet signed: release.json and payload files
drafts/<product>.json     the next version of a product role, with the signatures so far
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from firmament.core import toml
from firmament.durable import PUBLIC_MODE, Disk, read_file, replace_durably
from firmament.errors import ConflictError, FileError, KeyFileError, MalformedError, NotFoundError, SettingError
from firmament.release.store import RepositoryStore
from firmament.trust import key_files, keys, repository
from firmament.trust.ceremony import Which
from firmament.trust.roles import SNAPSHOT, TARGETS, TIMESTAMP
from firmament.trust.signers import load_signer

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime
    from pathlib import Path

    from securesystemslib.signer import CryptoSigner, Key, Signer

    from firmament.trust.keys import KeyRecord
    from firmament.trust.roles import RoleKeys
    from firmament.trust.signers import Secrets

T = TypeVar("T", Root, Targets, Snapshot, Timestamp)

WORKSPACE_VERSION: Final = 1
SETTINGS_FILE: Final = "firmament.toml"
MAX_SETTINGS_LENGTH_BYTES: Final = 64 * 1024
PRIVATE_DIRECTORY_MODE: Final = 0o700
_SETTINGS: Final = """\
# An author's workspace. Keep keys/ and releases/ to yourself; everything else may be copied and published.
[workspace]
version = 1

[server]
# Where `firmament release publish` sends releases, e.g. "https://updates.example:4443".
url = ""
# CA certificate of the server, if it is its own; a path from this directory.
ca = ""
"""


@dataclass(frozen=True, slots=True)
class ServerSetting:
    """Section ``[server]``."""

    url: str = ""
    ca: Path | None = None


class Workspace:
    """An opened workspace; raises FileError or SettingError if `directory` is none."""

    def __init__(self, disk: Disk, directory: Path) -> None:
        self.disk: Final = disk
        self.directory: Final = directory
        self.images: Final = RepositoryStore(disk, directory / "repository")
        self.directors: Final = RepositoryStore(disk, directory / "director")
        self.server: Final = self._read_settings()

    @classmethod
    def create(cls, disk: Disk, directory: Path) -> Workspace:
        """Make an empty workspace; raises ConflictError if there is one."""
        if disk.exists(directory / SETTINGS_FILE):
            raise ConflictError("There is a workspace already", path=directory)
        for name in ("keys", "releases", "drafts"):
            disk.make_directory(directory / name, mode=PRIVATE_DIRECTORY_MODE)
        for name in ("repository", "director"):
            disk.make_directory(directory / name, mode=0o755)
        replace_durably(disk, directory / SETTINGS_FILE, _SETTINGS.encode(), mode=PUBLIC_MODE)
        return cls(disk, directory)

    def _read_settings(self) -> ServerSetting:
        path = self.directory / SETTINGS_FILE
        if not self.disk.exists(path):
            raise FileError("This directory is not an author's workspace; `firmament init` makes one", path=path)
        data = read_file(self.disk, path, limit_bytes=MAX_SETTINGS_LENGTH_BYTES)
        try:
            value = toml.decode(data, limit_bytes=MAX_SETTINGS_LENGTH_BYTES, what="firmament.toml")
            version = value["workspace"]["version"]
            server = value.get("server", {})
            url, authority = server.get("url", ""), server.get("ca", "")
        except (MalformedError, KeyError, TypeError, AttributeError) as error:
            raise SettingError("The workspace's settings cannot be read", path=path, reason=error) from error
        if version != WORKSPACE_VERSION or not isinstance(url, str) or not isinstance(authority, str):
            raise SettingError("The workspace's settings are not of this version", path=path, version=version)
        return ServerSetting(url, self.directory / authority if authority else None)

    # --- keys ------------------------------------------------------------------------------

    @property
    def keys_directory(self) -> Path:
        """Where keys lie."""
        return self.directory / "keys"

    def key_records(self) -> dict[str, KeyRecord]:
        """Return every public record by name; raises for one that is damaged."""
        found = {}
        for name in self.disk.list(self.keys_directory):
            if name.endswith(".pub.json"):
                path = self.keys_directory / name
                data = read_file(self.disk, path, limit_bytes=keys.MAX_RECORD_LENGTH_BYTES)
                record = keys.read_record(data, what=str(path))
                found[record.name] = record
        return found

    def key_record(self, name: str) -> KeyRecord:
        """Return a record by name or by the start of its keyid; raises NotFoundError."""
        records = self.key_records()
        if name in records:
            return records[name]
        starting = [record for record in records.values() if len(name) >= 8 and record.key.keyid.startswith(name)]  # noqa: PLR2004 - enough to be unique
        if len(starting) != 1:
            raise NotFoundError("There is no such key in this workspace", name=name, known=" ".join(sorted(records)))
        return starting[0]

    def add_key(
        self, name: str, signer: CryptoSigner, passphrase: bytes, *, now: datetime, expires_at: datetime | None = None
    ) -> KeyRecord:
        """Store a key pair: the private file first, so that a public record never promises what is not there.

        Raises ConflictError when the name is taken.
        """
        record = keys.KeyRecord(keys.check_name(name), signer.public_key, f"file:{name}.pem", now, expires_at)
        self._require_free(record)
        pem = key_files.encrypt(signer._private_key, passphrase)  # noqa: SLF001 - it has no public way to encrypt
        key_files.store(self.disk, self.keys_directory / f"{name}.pem", pem)
        self.add_record(record)
        return record

    def add_record(self, record: KeyRecord) -> None:
        """Store the public record of a key that is elsewhere, e.g. on a token."""
        self._require_free(record)
        text = repository.json_text(record.to_json())
        path = self.keys_directory / f"{record.name}.pub.json"
        replace_durably(self.disk, path, text, mode=PUBLIC_MODE)

    def _require_free(self, record: KeyRecord) -> None:
        for known in self.key_records().values():
            if known.name == record.name or known.key.keyid == record.key.keyid:
                raise ConflictError("This key or name is in the workspace already", name=known.name)

    def open_signer(self, record: KeyRecord, secrets: Secrets) -> Signer:
        """Open the private half of a key of this workspace."""
        return load_signer(record, secrets, base=self.keys_directory)

    def local_keys(self, wanted: RoleKeys) -> list[KeyRecord]:
        """Return the records of a role's keys whose private half can be used from here."""
        by_keyid = {record.key.keyid: record for record in self.key_records().values()}
        found = (by_keyid.get(key.keyid) for key in wanted.keys)
        return [record for record in found if record is not None and self._has_private(record)]

    def _has_private(self, record: KeyRecord) -> bool:
        scheme, _, rest = record.uri.partition(":")
        return scheme != "file" or self.disk.exists(self.keys_directory / rest)

    def signers(self, role: RoleKeys, names: Iterable[str], secrets: Secrets) -> list[Signer]:
        """Open the named keys of a role, or all its keys that are here.

        Raises KeyFileError when a named key has no say in the role, or none is here.
        """
        allowed = {key.keyid for key in role.keys}
        records = [self.key_record(name) for name in names] or self.local_keys(role)
        for record in records:
            if record.key.keyid not in allowed:
                raise KeyFileError("This key does not belong to the role", key=record.name)
        if not records:
            raise KeyFileError(
                "No key of this role is in the workspace", keyids=" ".join(key.keyid[:12] for key in role.keys)
            )
        return [self.open_signer(record, secrets) for record in records]

    # --- repository ------------------------------------------------------------------------

    def store(self, which: Which) -> RepositoryStore:
        """Return the image repository or the director's root chain."""
        return self.images if which is Which.IMAGE else self.directors

    def roots(self, which: Which) -> list[tuple[Metadata[Root], bytes]]:
        """Return the root chain, oldest first, verified link by link; empty before the first ceremony."""
        files = self.store(which).files()
        chain: list[tuple[Metadata[Root], bytes]] = []
        while (name := f"{len(chain) + 1}.root.json") in files:
            root = repository.read(files[name], Root, what=name)
            repository.verify_root(root, chain[-1][0] if chain else None)
            chain.append((root, files[name]))
        return chain

    def root(self, which: Which = Which.IMAGE) -> Metadata[Root]:
        """Return the newest root; raises NotFoundError before the first ceremony."""
        chain = self.roots(which)
        if not chain:
            raise NotFoundError("The workspace has no root yet", repository=which.value)
        return chain[-1][0]

    def targets(self) -> Metadata[Targets]:
        """Return the newest top-level targets; raises NotFoundError if there is none."""
        found = self._newest(TARGETS, Targets)
        if found is None:
            raise NotFoundError("The workspace has no targets metadata yet")
        return found

    def product(self, name: str) -> Metadata[Targets] | None:
        """Return the newest published role of a product; None before its first."""
        return self._newest(name, Targets)

    def products(self) -> dict[str, RoleKeys]:
        """Return the delegations of the newest top-level targets by product."""
        signed = self.targets().signed
        delegated = (signed.delegations.roles or {}) if signed.delegations is not None else {}
        return {name: repository.role_keys(signed, name) for name in delegated}

    def product_keys(self, name: str) -> RoleKeys:
        """Return a product's keys; raises NotFoundError for a product that is not delegated."""
        found = self.products()
        if name not in found:
            raise NotFoundError("The workspace has no such product", product=name, known=" ".join(found))
        return found[name]

    def snapshot(self) -> Metadata[Snapshot] | None:
        """Return the newest snapshot, if the author holds that key."""
        return self._newest(SNAPSHOT, Snapshot)

    def timestamp(self) -> Metadata[Timestamp] | None:
        """Return the timestamp, if the author holds that key."""
        data = self.images.files().get(repository.TIMESTAMP_FILE)
        return repository.read(data, Timestamp, what=TIMESTAMP) if data is not None else None

    def _newest(self, role: str, kind: type[T]) -> Metadata[T] | None:
        files = self.images.files()
        versions = [int(name.partition(".")[0]) for name in files if name.endswith(f".{role}.json") and name[0] != "t"]
        if not versions:
            return None
        name = f"{max(versions)}.{role}.json"
        return repository.read(files[name], kind, what=name)

    # --- drafts ----------------------------------------------------------------------------

    def draft_path(self, product: str) -> Path:
        """Return where the next version of a product role waits for signatures."""
        return self.directory / "drafts" / f"{product}.json"

    def draft(self, product: str) -> Metadata[Targets] | None:
        """Return the draft of a product role, if there is one."""
        path = self.draft_path(product)
        if not self.disk.exists(path):
            return None
        data = read_file(self.disk, path, limit_bytes=repository.MAX_METADATA_LENGTH_BYTES[TARGETS])
        return repository.read(data, Targets, what=str(path))

    def save_draft(self, product: str, draft: Metadata[Targets]) -> None:
        """Keep a draft with its signatures so far."""
        replace_durably(self.disk, self.draft_path(product), repository.encode(draft), mode=PUBLIC_MODE)

    def drop_draft(self, product: str) -> None:
        """Forget a draft, after it was published."""
        self.disk.remove(self.draft_path(product))
        self.disk.sync_directory(self.draft_path(product).parent)

    def drafts(self) -> list[str]:
        """Return the products that have a draft."""
        names = self.disk.list(self.directory / "drafts")
        return [name.removesuffix(".json") for name in names if name.endswith(".json")]


def key_names(records: Mapping[str, KeyRecord]) -> dict[str, str]:
    """Return names by keyid, to show to people."""
    return {record.key.keyid: record.name for record in records.values()}


def read_public_keys(value: Mapping[str, Mapping[str, object]], *, what: str) -> dict[str, Key]:
    """Read ``{"snapshot": {"keyid", "key"}, ...}`` of an online-public.json section."""
    found: dict[str, Key] = {}
    for role, entry in value.items():
        keyid, key = entry.get("keyid"), entry.get("key")
        if not isinstance(keyid, str) or not isinstance(key, dict):
            raise MalformedError(f"{what}.{role} is not a public key")
        found[role] = keys.read_key(key, keyid=keyid, what=f"{what}.{role}")
    return found
