"""The TUF client: python-tuf's verification with this house's storage, clock, network and floors.

`tuf.ngclient.Updater` decides what is authentic; nothing of that is written again here. Replaced
are the seams named in trust.md D3, which are private attributes, so the major version of `tuf` is
pinned and the conformance tests run against this class:

* download: bytes come from a `Source` with ceilings; its errors pass through unchanged;
* persistence: every read and write goes through `durable.Disk`, synced, and only when the content
  differs; nothing goes to a temporary directory;
* clock: expiry is judged at `reference_time`, which the caller chooses (trust/walk.py);
* floors: a version below the floor is refused before it replaces anything (trust/floors.py).

Every exception of python-tuf leaves as one of ours. Metadata is read strictly before python-tuf
sees it: duplicate keys, fractions and deep nesting are refused.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol
from urllib import parse

from tuf.api import exceptions as tuf_errors
from tuf.api.metadata import Root, Snapshot, Targets, Timestamp
from tuf.api.serialization import DeserializationError
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from firmament.core import canonical
from firmament.core.digest import Digest, strongest
from firmament.durable import Disk, read_file, replace_durably
from firmament.errors import (
    AnchorMissingError,
    DigestMismatchError,
    ExpiredError,
    FirmamentError,
    HttpStatusError,
    LengthExceededError,
    MalformedError,
    MalformedMetadataError,
    RangeError,
    RollbackError,
    ThresholdNotMetError,
    TooLargeError,
    TruncatedError,
)
from firmament.log import logger
from firmament.trust.floors import DIRECTOR, IMAGE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from securesystemslib.signer import Key
    from tuf.api.metadata import TargetFile

    from firmament.trust.floors import Floors

log = logger("trust.client")

ROOT_ABSENT: Final = frozenset({403, 404})
"""Answers that mean "there is no later root" (TUF 5.3.3); object stores say 403 for absent files."""
ROOT_HISTORY: Final = "root_history"
PART_SUFFIX: Final = ".part"
MAX_ROOT_LENGTH_BYTES: Final = 512_000
# 8 hybrid keys and signatures are 47 kB (trust.md §5); the value is python-tuf's.
MAX_TIMESTAMP_LENGTH_BYTES: Final = 16_384
MAX_SNAPSHOT_LENGTH_BYTES: Final = 2_000_000
MAX_TARGETS_LENGTH_BYTES: Final = 5_000_000
# About 11 000 releases of one product at 450 B (trust.md §1.4).
TOP_LEVEL: Final = (Root.type, Timestamp.type, Snapshot.type, Targets.type)
_CHUNK_BYTES: Final = 256 * 1024


class Source(Protocol):
    """Where bytes come from. Errors are TransferError; HttpStatusError carries ``status`` in its facts."""

    def fetch(self, url: str, *, limit_bytes: int) -> bytes:
        """Return a whole body; raises LengthExceededError above `limit_bytes`."""
        ...

    def stream(self, url: str, *, offset: int, length_bytes: int) -> Iterator[bytes]:
        """Yield a body of `length_bytes` from `offset` to its end, exactly.

        Raises RangeError when the body cannot be continued there and must be fetched from 0.
        """
        ...


class TrustedClient(Updater):
    """One TUF repository as a device sees it.

    `directory` keeps its metadata cache; `anchor` is the root metadata that was provisioned, the
    only thing believed without proof. An object refreshes once. Raises TrustError, TransferError
    and, from storage, SlotError or LocalError.
    """

    repository: str = IMAGE
    keeps_metadata: bool = True

    def __init__(
        self,
        *,
        disk: Disk,
        directory: Path,
        anchor: bytes,
        source: Source,
        floors: Floors,
        metadata_url: str,
        targets_url: str | None = None,
        targets_directory: Path | None = None,
        reference_time: datetime,
    ) -> None:
        if not anchor:
            raise AnchorMissingError("There is no root metadata to begin with", repository=self.repository)
        self._disk = disk
        self._home = directory
        self._source = source
        self._floors = floors
        self._keyids: dict[str, set[str]] = {}
        with mapped_errors():
            super().__init__(
                str(directory),
                metadata_url,
                None if targets_directory is None else str(targets_directory),
                targets_url,
                _Fetcher(source),
                UpdaterConfig(
                    root_max_length=MAX_ROOT_LENGTH_BYTES,
                    timestamp_max_length=MAX_TIMESTAMP_LENGTH_BYTES,
                    snapshot_max_length=MAX_SNAPSHOT_LENGTH_BYTES,
                    targets_max_length=MAX_TARGETS_LENGTH_BYTES,
                ),
                bootstrap=anchor,
            )
        self._trusted_set.reference_time = reference_time

    # --- what callers use ------------------------------------------------------------------

    def refresh(self) -> None:
        """Fetch and verify the four top-level roles, then raise the floors.

        What was verified before a failure stays cached and counts for the floors: a repository
        that breaks half way cannot make a device forget what it saw.
        """
        try:
            with mapped_errors():
                super().refresh()
        except Exception:
            with contextlib.suppress(FirmamentError):
                self.record_floors()
            raise
        self.record_floors()

    def get_targetinfo(self, target_path: str) -> TargetFile | None:
        """Find a target through the delegations; None when no trusted role names it."""
        with mapped_errors():
            found = super().get_targetinfo(target_path)
        self.record_floors()
        return found

    def record_floors(self, *, time: datetime | None = None) -> None:
        """Store the versions of everything verified so far as floors, with a signed time if given."""
        self._floors.store_roles(self.repository, versions=self.versions(), keyids=self._keyids, time=time)

    def versions(self) -> dict[str, int]:
        """Return the version of each role that is trusted now, delegated ones by their name."""
        return {role: self.signed(role).version for role in (Root.type, *self._keyids) if role in self._roles()}

    def signed(self, role: str) -> Any:
        """Return the verified content of a role (``tuf.api.metadata`` object)."""
        return self._trusted_set[role]

    @property
    def reference_time(self) -> datetime:
        """The moment at which expiry is judged."""
        moment: datetime = self._trusted_set.reference_time
        return moment

    def require_unexpired(self, moment: datetime) -> None:
        """Raise ExpiredError if one of the four top-level roles is expired at `moment`."""
        for role in TOP_LEVEL:
            if self.signed(role).is_expired(moment):
                raise ExpiredError(
                    "The metadata has expired", repository=self.repository, role=role, expired=self.signed(role).expires
                )

    def target_url(self, info: TargetFile) -> str:
        """Return where a target's bytes are; hash-prefixed with consistent snapshots (TUF 6.2.2)."""
        if self._target_base_url is None:
            message = "this client was made without targets_url"
            raise RuntimeError(message)
        directory, slash, name = info.path.rpartition("/")
        if self.signed(Root.type).consistent_snapshot:
            name = f"{next(iter(info.hashes.values()))}.{name}"
        return f"{self._target_base_url}{directory}{slash}{name}"

    # --- targets as files ------------------------------------------------------------------

    def find_cached_target(self, targetinfo: TargetFile, filepath: str | None = None) -> str | None:
        """Return the path of a local copy whose length and digest are right, else None."""
        path = Path(filepath or self._generate_target_file_path(targetinfo))
        expected = _digest_of(targetinfo)
        try:
            if self._disk.length_bytes(path) != targetinfo.length:
                return None
            return str(path) if _digest_of_file(self._disk, path, expected.algorithm) == expected else None
        except FirmamentError:
            return None

    def download_target(
        self, targetinfo: TargetFile, filepath: str | None = None, target_base_url: str | None = None
    ) -> str:
        """Fetch a target into a file, continuing a partial one; whole and verified or not there.

        A partial file that turns out to be of other bytes is thrown away and fetched once more
        from the start (trust.md §10, 34 and 35).
        """
        assert target_base_url is None, "the base is set once, when the client is made"
        path = Path(filepath or self._generate_target_file_path(targetinfo))
        part = path.with_name(path.name + PART_SUFFIX)
        self._disk.make_directory(path.parent)
        resumed = 0 < (self._disk.length_bytes(part) or 0) <= targetinfo.length
        try:
            if not resumed:
                self._disk.remove(part)
            self._complete(part, targetinfo)
        except (DigestMismatchError, RangeError) as error:
            self._disk.remove(part)
            if not resumed:
                raise
            log.warning("target.restarted", path=targetinfo.path, code=error.code)
            try:
                self._complete(part, targetinfo)
            except DigestMismatchError:
                self._disk.remove(part)
                raise
        self._disk.replace(part, path)
        self._disk.sync_directory(path.parent)
        return str(path)

    def _complete(self, part: Path, info: TargetFile) -> None:
        expected = _digest_of(info)
        position = self._disk.length_bytes(part) or 0
        writer = self._disk.open_writer(part)
        try:
            if position < info.length:
                chunks = self._source.stream(self.target_url(info), offset=position, length_bytes=info.length)
                for chunk in chunks:
                    if position + len(chunk) > info.length:
                        raise LengthExceededError("More bytes came than were signed", target=info.path)
                    writer.write_at(position, chunk)
                    position += len(chunk)
            if position < info.length:
                raise TruncatedError("The target ended early", target=info.path, got=position, signed=info.length)
            writer.sync()
        finally:
            writer.close()
        expected.require(_digest_of_file(self._disk, part, expected.algorithm), what=f"The target {info.path}")

    # --- seams of python-tuf ---------------------------------------------------------------

    def _load_root(self) -> None:
        # As in python-tuf (TUF 5.3), with Disk instead of open().
        first = self._trusted_set.root.version + 1
        for version in range(first, first + self.config.max_root_rotations):
            if not self._load_kept_root(version):
                try:
                    data = self._download_metadata(Root.type, self.config.root_max_length, version)
                except HttpStatusError as error:
                    if error.facts.get("status") in ROOT_ABSENT:
                        break
                    raise
                self._take_root(data, version)
                require_distinct_keys(self._trusted_set.root.keys, role=Root.type)
                self._persist_root(version, data)
            self._update_root_symlink()
        root = self._trusted_set.root
        require_distinct_keys(root.keys, role=Root.type)
        self._keyids.update({role: set(root.roles[role].keyids) for role in TOP_LEVEL})
        self._check_floor(Root.type)

    def _take_root(self, data: bytes, version: int) -> None:
        try:
            self._trusted_set.update_root(data)
        except tuf_errors.BadVersionNumberError as error:
            # Not a rollback: a file that says another number than its name (TUF 5.3.5).
            raise MalformedMetadataError("A root follows the one before it without a gap", expected=version) from error

    def _load_kept_root(self, version: int) -> bool:
        try:
            self._trusted_set.update_root(self._read(self._root_path(version), MAX_ROOT_LENGTH_BYTES))
        except (OSError, tuf_errors.RepositoryError):
            return False
        return True

    def _load_timestamp(self) -> None:
        super()._load_timestamp()
        self._check_floor(Timestamp.type)

    def _load_snapshot(self) -> None:
        super()._load_snapshot()
        self._check_floor(Snapshot.type)

    def _load_targets(self, role: str, parent_role: str) -> Targets:
        if role not in TOP_LEVEL:
            self._keyids.setdefault(role, set()).update(_delegated_keyids(self.signed(parent_role), role))
        found: Targets = super()._load_targets(role, parent_role)
        if found.delegations is not None:
            require_distinct_keys(found.delegations.keys, role=role)
        self._check_floor(role)
        return found

    def _check_floor(self, role: str) -> None:
        known = self._floors.load().of(self.repository)
        known.check(role, self.signed(role).version, self._keyids)

    def _roles(self) -> set[str]:
        return set(self._trusted_set._trusted_set)  # noqa: SLF001 - iterating the set itself yields values

    def _load_local_metadata(self, rolename: str) -> bytes:
        if not self.keeps_metadata:
            raise FileNotFoundError(rolename)
        return self._read(self._metadata_path(rolename), MAX_TARGETS_LENGTH_BYTES)

    def _persist_metadata(self, rolename: str, data: bytes) -> None:
        self._check_floor(rolename)  # before the old file is gone
        if self.keeps_metadata:
            self._replace(self._metadata_path(rolename), data)

    def _persist_root(self, version: int, data: bytes) -> None:
        history = self._home / ROOT_HISTORY
        if not self._disk.exists(history):
            self._disk.make_directory(history)
            self._disk.sync_directory(self._home)
        self._replace(self._root_path(version), data)

    def _update_root_symlink(self) -> None:
        link = self._home / "root.json"
        target = f"{ROOT_HISTORY}/{self._trusted_set.root.version}.root.json"
        if self._disk.read_link(link) == target:
            return
        temporary = self._home / "root.link"
        self._disk.remove(temporary)
        self._disk.symlink(target, temporary)
        self._disk.replace(temporary, link)
        self._disk.sync_directory(self._home)

    def _replace(self, path: Path, data: bytes) -> None:
        with contextlib.suppress(OSError):
            if self._read(path, len(data)) == data:
                return  # flash wears out
        replace_durably(self._disk, path, data)

    def _read(self, path: Path, limit_bytes: int) -> bytes:
        # python-tuf takes OSError for "not in the cache" and fetches instead.
        try:
            return read_file(self._disk, path, limit_bytes=limit_bytes)
        except FirmamentError as error:
            raise FileNotFoundError(str(path)) from error

    def _metadata_path(self, rolename: str) -> Path:
        return self._home / f"{parse.quote(rolename, '')}.json"

    def _root_path(self, version: int) -> Path:
        return self._home / ROOT_HISTORY / f"{version}.root.json"


class CarriedClient(TrustedClient):
    """The image repository of a parcel: the metadata is all there, and what is cached of the net stays apart.

    A parcel's timestamp has the version of the served one and lives longer (ADR-0028): mixed with
    the cache, the one that came first would count. The floors are the same.
    """

    keeps_metadata = False


class DirectorClient(TrustedClient):
    """The director's repository: one answer per object, judged fresh by its nonce.

    Nothing but the root chain is cached: an answer is of no use for a second question. Floors
    are not raised by `refresh` but by the trust walk once nonce and device are known to be right;
    otherwise an answer for another device could push this one's floors up. Expiry is judged there
    too, at the signed time: make it with a `reference_time` before any metadata.
    """

    repository = DIRECTOR
    keeps_metadata = False

    def refresh(self) -> None:
        """Verify the answer; see `record_floors`."""
        with mapped_errors():
            Updater.refresh(self)

    def time_floor(self) -> datetime | None:
        """Return the time floor, or None when the key that set it was revoked since."""
        floors = self._floors.load()
        return None if floors.of(DIRECTOR).is_revoked(Timestamp.type, self._keyids) else floors.time


class _Fetcher(FetcherInterface):
    """python-tuf's view of a `Source`: whole small bodies in memory, errors untouched."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def download_bytes(self, url: str, max_length: int) -> bytes:
        data = self._source.fetch(url, limit_bytes=max_length)
        try:
            canonical.decode_object(data, limit_bytes=max_length, what="Metadata")
        except (MalformedError, TooLargeError) as error:
            raise MalformedMetadataError(error.problem, **{**error.facts, "url": url}) from error
        return data

    def _fetch(self, url: str) -> NoReturn:
        message = f"payloads do not go through python-tuf's own download: {url}"
        raise RuntimeError(message)


@contextlib.contextmanager
def mapped_errors() -> Iterator[None]:
    """Turn every exception of python-tuf and securesystemslib into one of the TrustError branch."""
    try:
        yield
    except FirmamentError:
        raise
    except tuf_errors.UnsignedMetadataError as error:
        raise ThresholdNotMetError("Too few signatures by keys that are trusted", reason=error) from error
    except tuf_errors.BadVersionNumberError as error:
        raise RollbackError("Metadata has another version than it must have", reason=error) from error
    except tuf_errors.ExpiredMetadataError as error:
        raise ExpiredError("The metadata has expired", reason=error) from error
    except tuf_errors.LengthOrHashMismatchError as error:
        raise DigestMismatchError("Metadata is not what the role above it names", reason=error) from error
    except DeserializationError as error:
        raise MalformedMetadataError("The metadata cannot be read", reason=error.__cause__ or error) from error
    except (tuf_errors.RepositoryError, tuf_errors.DownloadError, OSError, ValueError, TypeError, LookupError) as error:
        raise MalformedMetadataError("The metadata cannot be used", reason=repr(error)) from error


def require_distinct_keys(keys: Mapping[str, Key], *, role: str) -> None:
    """Raise MalformedMetadataError when one key is listed under two keyids.

    python-tuf takes a keyid as a name, so such a key would count twice for a threshold (TUF 4.2:
    keyids are unique; trust.md §10, case 15).
    """
    values = [(key.keytype, key.keyval.get("public")) for key in keys.values()]
    if len(set(values)) != len(values):
        raise MalformedMetadataError("The metadata lists one key under two keyids", role=role)


def _delegated_keyids(delegator: Any, role: str) -> set[str]:
    delegations = delegator.delegations
    if delegations.succinct_roles is not None:
        return set(delegations.succinct_roles.keyids)
    return set(delegations.roles[role].keyids)


def _digest_of(info: TargetFile) -> Digest:
    return _strongest(info.hashes, info.path)


def _strongest(hashes: Mapping[str, str], path: str) -> Digest:
    try:
        return strongest(hashes, what=f"The target {path}")
    except MalformedError as error:
        raise MalformedMetadataError(error.problem, **error.facts) from error


def _digest_of_file(disk: Disk, path: Path, algorithm: str) -> Digest:
    def chunks() -> Iterator[bytes]:
        position = 0
        while chunk := reader.read_at(position, _CHUNK_BYTES):
            yield chunk
            position += len(chunk)

    reader = disk.open_reader(path)
    try:
        return Digest.of(chunks(), algorithm)
    finally:
        reader.close()
