"""Bytes by their SHA-256 in a bucket of an S3-compatible store (ADR-0029).

An upload is first received on this machine and digested; only right bytes are sent on, in parts,
and the store shows an object whole or not at all. Downloads are read in blocks, each a request of
its own: a slow device holds no connection to the store, and a store that was away for a moment is
not noticed. Below the prefix lie ``blobs/<2 hex>/<64 hex>`` and, empty, ``targets/<name>`` for each
published name: so that every replica answers the same without asking another.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from firmament.core.digest import Digest
from firmament.errors import DependencyMissingError, MalformedError, NotFoundError, OverloadedError, SettingError
from firmament.log import logger
from firmament.server.payloads.port import StoredBlob, StoredTarget, digest_of_hex, digest_of_name
from firmament.server.payloads.s3_multipart import Multiparts
from firmament.server.payloads.store import CHUNK_BYTES, spool, sweep

try:
    import obstore
    from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
    from obstore.store import S3Store
except ModuleNotFoundError as missing:  # pragma: no cover - the extra is installed where tests run
    raise DependencyMissingError("An object store needs an extra package", install="firmament[s3]") from missing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from datetime import datetime
    from pathlib import Path

    from firmament.core.clock import Clock
    from firmament.durable import Disk
    from firmament.server.payloads.s3_account import S3Account
    from firmament.server.payloads.store import Spool

log = logger("server.payloads")

PART_BYTES: Final = 8 * 1024 * 1024
# S3 takes 10,000 parts of at least 5 MiB: the longest payload is 80 GiB, above the setting's 64 GiB.
MAX_PARTS_AT_ONCE: Final = 2
BLOCK_BYTES: Final = 512 * 1024
"""What a download holds in memory: 256 downloads, the setting's number, are 128 MiB."""
CONNECT_S: Final = 3
REQUEST_S: Final = 60
# One part over a line of 1.2 Mbit/s.
RETRIES: Final = 2
RETRY_S: Final = 10
AWAY_RETRY_S: Final = 5
REDIRECT_LIFE: Final = timedelta(hours=1)
# Longer than nginx waits for a slow peer to fetch a part; the address is only ever told to nginx.
MAX_REMEMBERED: Final = 10_000
"""Published names whose length is known; a name never changes what it names."""


class S3Blobs:
    """Payloads in a bucket; see `port.BlobStore`."""

    def __init__(
        self,
        disk: Disk,
        incoming: Path,
        account: S3Account,
        clock: Clock,
        *,
        max_length_bytes: int,
        min_free_bytes: int,
    ) -> None:
        self._clock = clock
        self._disk = disk
        self._incoming = incoming
        self._account = account
        self._prefix = account.prefix
        self._max_length_bytes = max_length_bytes
        self._min_free_bytes = min_free_bytes
        self._store = _open(account)
        self._known: dict[str, int] = {}
        self._published: set[str] = set()

    def key(self, digest: Digest) -> str:
        """Return a blob's key in the bucket."""
        return f"{self._prefix}blobs/{digest.hex[:2]}/{digest.hex}"

    def length_bytes(self, digest: Digest) -> int | None:
        """See the port."""
        found = self._head(self.key(digest))
        return None if found is None else int(found["size"])

    def is_intact(self, digest: Digest) -> bool:
        """See the port: reads the whole object."""
        hasher = hashlib.sha256()
        with _mapped(self._account):
            try:
                for block in obstore.get(self._store, self.key(digest)):
                    hasher.update(block)
            except FileNotFoundError:
                return False
        return Digest("sha256", hasher.digest()) == digest

    def open_blob(self, digest: Digest) -> S3Reader:
        """See the port."""
        length = self.length_bytes(digest)
        if length is None:
            raise NotFoundError("There are no such bytes", digest=digest)
        return S3Reader(self._store, self._account, self.key(digest), length)

    def receive(self, digest: Digest, *, expected_bytes: int | None) -> Spool:
        """See the port; a store that is away is noticed before a byte is taken."""
        self._head(self.key(digest))
        return spool(
            self._disk,
            self._incoming,
            digest,
            expected_bytes=expected_bytes,
            max_length_bytes=self._max_length_bytes,
            min_free_bytes=self._min_free_bytes,
            place=lambda path: self._place(path, digest),
        )

    def _place(self, path: Path, digest: Digest) -> None:
        with _mapped(self._account), path.open("rb") as file:
            obstore.put(self._store, self.key(digest), file, chunk_size=PART_BYTES, max_concurrency=MAX_PARTS_AT_ONCE)

    def publish(self, name: str, digest: Digest) -> None:
        """See the port: writes an empty object of the target's name."""
        if name in self._published:
            return
        if self._head(self._target_key(name)) is None:
            if self.length_bytes(digest) is None:
                raise NotFoundError("There are no such bytes to publish", digest=digest)
            with _mapped(self._account):
                obstore.put(self._store, self._target_key(name), b"")
        self._published.add(name)

    def target_length_bytes(self, name: str) -> int | None:
        """See the port."""
        if self._head(self._target_key(name)) is None:
            return None
        return self.length_bytes(digest_of_name(name))

    async def open_target(self, name: str) -> S3Source:
        """See the port."""
        digest = digest_of_name(name)
        length = self._known.get(name)
        if length is None:
            length = await asyncio.to_thread(self.target_length_bytes, name)
            if length is None:
                raise NotFoundError("There is no such file in the repository")
            if len(self._known) >= MAX_REMEMBERED:
                self._known.clear()
            self._known[name] = length
        return S3Source(self._store, self._account, self.key(digest), digest, length)

    def redirect(self, name: str) -> str:
        """See the port: bucket, key and a signature, for nginx to ask the store with."""
        url = obstore.sign(self._store, "GET", self.key(digest_of_name(name)), REDIRECT_LIFE)
        return "store/" + url.removeprefix(self._account.base_url).lstrip("/")

    def blobs(self) -> Iterator[StoredBlob]:
        """See the port."""
        for meta in self._list("blobs/"):
            try:
                digest = digest_of_hex(meta["path"].rpartition("/")[2])
            except MalformedError:
                log.warning("blob.foreign-object", key=meta["path"])
                continue
            yield StoredBlob(digest, int(meta["size"]), meta["last_modified"])

    def targets(self) -> Iterator[StoredTarget]:
        """See the port."""
        for meta in self._list("targets/"):
            name = meta["path"].removeprefix(f"{self._prefix}targets/")
            try:
                yield StoredTarget(name, digest_of_name(name), meta["last_modified"])
            except MalformedError:
                log.warning("target.foreign-object", key=meta["path"])

    def remove(self, digest: Digest, names: tuple[str, ...]) -> None:
        """See the port."""
        self.unpublish(names)
        self._delete(self.key(digest))

    def unpublish(self, names: tuple[str, ...]) -> None:
        """See the port."""
        for name in names:
            self._known.pop(name, None)
            self._published.discard(name)
            self._delete(self._target_key(name))

    def stored_at(self, digest: Digest) -> datetime | None:
        """See the port."""
        found = self._head(self.key(digest))
        return None if found is None else found["last_modified"]

    def clean(self, before: datetime, *, pretend: bool) -> int:
        """See the port: aborts multipart uploads that were begun before, and never finished."""
        count = 0
        multiparts = Multiparts(self._account, self._clock)
        for upload in multiparts.list(f"{self._prefix}blobs/"):
            if upload.begun_at < before:
                count += 1
                if not pretend:
                    multiparts.abort(upload)
        return count

    def sweep(self) -> None:
        """See the port."""
        sweep(self._disk, self._incoming)

    def check(self) -> None:
        """See the port."""
        with _mapped(self._account):
            next(iter(obstore.list(self._store, prefix=f"{self._prefix}blobs/", chunk_size=1)), None)

    def _target_key(self, name: str) -> str:
        return f"{self._prefix}targets/{name}"

    def _head(self, key: str) -> Any:
        with _mapped(self._account):
            try:
                return obstore.head(self._store, key)
            except FileNotFoundError:
                return None

    def _list(self, below: str) -> Iterator[Any]:
        with _mapped(self._account):
            for page in obstore.list(self._store, prefix=f"{self._prefix}{below}", chunk_size=1000):
                yield from page

    def _delete(self, key: str) -> None:
        with _mapped(self._account), contextlib.suppress(FileNotFoundError):
            obstore.delete(self._store, key)


class S3Source:
    """A published object for one answer; see `port.Source`."""

    descriptor = None

    def __init__(self, store: S3Store, account: S3Account, key: str, digest: Digest, length_bytes: int) -> None:
        self._store = store
        self._account = account
        self._key = key
        self.length_bytes = length_bytes
        self.etag = f'"{digest.hex}"'

    async def read(self, offset: int, end: int) -> AsyncIterator[bytes]:
        """See the port: a block in memory at a time."""
        while offset < end:
            with _mapped(self._account):
                try:
                    block = memoryview(
                        await obstore.get_range_async(
                            self._store, self._key, start=offset, end=min(end, offset + BLOCK_BYTES)
                        )
                    )
                except FileNotFoundError:
                    return
            offset += len(block)
            for at in range(0, len(block), CHUNK_BYTES):
                yield bytes(block[at : at + CHUNK_BYTES])

    def close(self) -> None:
        """See the port: nothing is held."""


class S3Reader:
    """An object that is read here and there; see `port.BlobReader`."""

    def __init__(self, store: S3Store, account: S3Account, key: str, length_bytes: int) -> None:
        self._store = store
        self._account = account
        self._key = key
        self.length_bytes = length_bytes

    def read_at(self, offset: int, length_bytes: int) -> bytes:
        """Ask the store for a range."""
        end = min(offset + length_bytes, self.length_bytes)
        if offset >= end:
            return b""
        with _mapped(self._account):
            return bytes(obstore.get_range(self._store, self._key, start=offset, end=end))

    def close(self) -> None:
        """See the port: nothing is held."""


def _open(account: S3Account) -> S3Store:
    client: dict[str, Any] = {
        "allow_http": account.endpoint.startswith("http://"),
        "connect_timeout": timedelta(seconds=CONNECT_S),
        "timeout": timedelta(seconds=REQUEST_S),
    }
    if account.ca_pem:
        client["root_certificate"] = account.ca_pem
    return S3Store(
        account.bucket,
        endpoint=account.base_url if account.is_virtual else account.endpoint,
        region=account.region,
        access_key_id=account.access_key,
        secret_access_key=account.secret_key,
        virtual_hosted_style_request=account.is_virtual,
        client_options=client,  # type: ignore[arg-type]  # built step by step
        retry_config={"max_retries": RETRIES, "retry_timeout": timedelta(seconds=RETRY_S)},
    )


_REFUSED: Final = re.compile("returned non-2xx status code: 40[13]")
# The library has no class of its own for a listing that is refused.


@contextlib.contextmanager
def _mapped(account: S3Account) -> Iterator[None]:
    """Turn the library's errors into ours; what the store said goes to the log, not to the caller."""
    try:
        yield
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise SettingError("The object store refuses the given keys", bucket=account.bucket) from error
    except BaseError as error:
        text = str(error)
        reason = text.partition("\n")[0][:300]
        if _REFUSED.search(text):
            raise SettingError("The object store refuses the given keys", bucket=account.bucket) from error
        if "NoSuchBucket" in text:
            raise SettingError("The object store has no such bucket", bucket=account.bucket) from error
        log.warning("store.failed", bucket=account.bucket, reason=reason)
        raise OverloadedError("The object store does not answer as it should", retry_after_s=AWAY_RETRY_S) from error
