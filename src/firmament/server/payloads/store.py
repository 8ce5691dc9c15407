"""Bytes by their SHA-256 below a directory: received in chunks, durable before they are acknowledged.

A blob is written beside its place, synced, and renamed once its digest is known to be right: a
cut-short upload leaves a file that `sweep` removes, never a blob with wrong bytes. A published
target is a hard link to its blob; a link that no metadata names is harmless.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import stat
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from firmament.core.digest import Digest
from firmament.durable import Disk, RealDisk, mapped_errors
from firmament.errors import DiskFullError, MalformedError, NotFoundError, TooLargeError
from firmament.log import logger
from firmament.payload.readers import FileReader
from firmament.server.payloads.port import StoredBlob, StoredTarget, digest_of_hex, digest_of_name

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from firmament.durable import Writer

log = logger("server.payloads")

INCOMING: Final = "incoming"
CHUNK_BYTES: Final = 64 * 1024
FRONT_FILE_MODE: Final = 0o640
FRONT_DIRECTORY_MODE: Final = 0o750
_READ_BYTES: Final = 1024 * 1024


class ServerDisk(RealDisk):
    """`RealDisk` and what more the server asks of a file system: hard links, and times."""

    def link(self, source: Path, destination: Path) -> None:
        """Give a file a second name; `destination` must not exist."""
        with mapped_errors(destination):
            destination.hardlink_to(source)

    def set_mode(self, path: Path, mode: int) -> None:
        """Let a file or directory be used by whom `mode` says, whatever the process's umask."""
        with mapped_errors(path):
            path.chmod(mode)

    def written_at(self, path: Path) -> datetime | None:
        """Return when a regular file was written last, None if there is none."""
        try:
            found = path.lstat()
        except FileNotFoundError:
            return None
        return datetime.fromtimestamp(found.st_mtime, UTC) if stat.S_ISREG(found.st_mode) else None

    def changed_at(self, path: Path) -> datetime | None:
        """Return when a file or its names changed last, None if there is none."""
        try:
            return datetime.fromtimestamp(path.lstat().st_ctime, UTC)
        except FileNotFoundError:
            return None


class DirectoryBlobs:
    """Uploaded bytes below one directory, published ones linked below another; see `port.BlobStore`."""

    def __init__(
        self,
        disk: ServerDisk,
        directory: Path,
        targets: Path,
        *,
        max_length_bytes: int,
        min_free_bytes: int,
        is_fronted: bool = False,
    ) -> None:
        self._disk = disk
        self._is_fronted = is_fronted
        self._directory = directory
        self._targets = targets
        self._max_length_bytes = max_length_bytes
        self._min_free_bytes = min_free_bytes

    def path(self, digest: Digest) -> Path:
        """Return where these bytes lie, or would."""
        return self._directory / digest.hex[:2] / digest.hex

    def length_bytes(self, digest: Digest) -> int | None:
        """See the port."""
        return self._disk.length_bytes(self.path(digest))

    def is_intact(self, digest: Digest) -> bool:
        """See the port."""
        if self.length_bytes(digest) is None:
            return False
        return file_digest(self._disk, self.path(digest)) == digest

    def open_blob(self, digest: Digest) -> FileReader:
        """See the port."""
        if self.length_bytes(digest) is None:
            raise NotFoundError("There are no such bytes", digest=digest)
        return FileReader(self.path(digest))

    def receive(self, digest: Digest, *, expected_bytes: int | None) -> Spool:
        """See the port."""
        return spool(
            self._disk,
            self._directory / INCOMING,
            digest,
            expected_bytes=expected_bytes,
            max_length_bytes=self._max_length_bytes,
            min_free_bytes=self._min_free_bytes,
            place=lambda path: self._place(path, digest),
        )

    def _place(self, path: Path, digest: Digest) -> None:
        final = self.path(digest)
        self._disk.make_directory(final.parent)
        self._disk.replace(path, final)
        self._disk.sync_directory(final.parent)
        self._disk.sync_directory(final.parent.parent)

    def publish(self, name: str, digest: Digest) -> None:
        """See the port."""
        path = self._targets / name
        if self._disk.exists(path):
            return
        self._disk.make_directory(path.parent, mode=0o755)
        self._disk.link(self.path(digest), path)
        self._show(path)
        self._disk.sync_directory(path.parent)
        self._disk.sync_directory(path.parent.parent)
        self._disk.sync_directory(path.parent.parent.parent)

    def target_length_bytes(self, name: str) -> int | None:
        """See the port."""
        return self._disk.length_bytes(self._targets / name)

    async def open_target(self, name: str) -> FileSource:
        """See the port."""
        return FileSource(self._targets / name)

    def redirect(self, name: str) -> str:
        """See the port: the path below the directory of targets."""
        return f"targets/{name}"

    def blobs(self) -> Iterator[StoredBlob]:
        """See the port."""
        for shard in sorted(self._disk.list(self._directory)):
            if shard == INCOMING:
                continue
            for name in sorted(self._disk.list(self._directory / shard)):
                try:
                    digest = digest_of_hex(name)
                except MalformedError:
                    log.warning("blob.foreign-file", path=str(self._directory / shard / name))
                    continue
                length, at = self.length_bytes(digest), self.stored_at(digest)
                if length is not None and at is not None:
                    yield StoredBlob(digest, length, at)

    def targets(self) -> Iterator[StoredTarget]:
        """See the port."""
        for path in sorted(self._targets.rglob("*")):
            at = self._disk.changed_at(path) if path.is_file() else None
            if at is None:
                continue
            name = str(path.relative_to(self._targets))
            try:
                yield StoredTarget(name, digest_of_name(name), at)
            except MalformedError:
                log.warning("target.foreign-file", path=str(path))

    def remove(self, digest: Digest, names: tuple[str, ...]) -> None:
        """See the port."""
        self.unpublish(names)
        self._disk.remove(self.path(digest))

    def unpublish(self, names: tuple[str, ...]) -> None:
        """See the port."""
        for name in names:
            self._disk.remove(self._targets / name)

    def stored_at(self, digest: Digest) -> datetime | None:
        """See the port."""
        return self._disk.written_at(self.path(digest))

    def clean(self, before: datetime, *, pretend: bool) -> int:
        """See the port: files of uploads that a server, since stopped, had begun."""
        count = 0
        for name in self._disk.list(self._directory / INCOMING):
            path = self._directory / INCOMING / name
            at = self._disk.written_at(path)
            if at is not None and at < before:
                count += 1
                if not pretend:
                    self._disk.remove(path)
        return count

    def sweep(self) -> None:
        """See the port."""
        sweep(self._disk, self._directory / INCOMING)
        if self._is_fronted:
            for target in self.targets():
                self._show(self._targets / target.name)

    def _show(self, path: Path) -> None:
        """Let the front server's group read a published file."""
        if not self._is_fronted:
            return
        self._disk.set_mode(path, FRONT_FILE_MODE)
        for parent in path.relative_to(self._targets).parents:
            self._disk.set_mode(self._targets / parent, FRONT_DIRECTORY_MODE)
        self._disk.set_mode(self._targets.parent, FRONT_DIRECTORY_MODE)

    def check(self) -> None:
        """See the port: `min_free_bytes` is looked at with each upload."""


class FileSource:
    """A file that is open for one answer; raises NotFoundError when there is none."""

    def __init__(self, path: Path) -> None:
        try:
            self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise NotFoundError("There is no such file in the repository") from error
        found = os.fstat(self.descriptor)
        if not stat.S_ISREG(found.st_mode):
            self.close()
            raise NotFoundError("There is no such file in the repository")
        self.length_bytes = found.st_size
        self.etag = f'"{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_size:x}"'

    async def read(self, offset: int, end: int) -> AsyncIterator[bytes]:
        """See the port: cached pages at once, others in a thread; ends early when the file shrank."""
        while offset < end:
            chunk = await read_chunk(self.descriptor, offset, min(CHUNK_BYTES, end - offset))
            if not chunk:
                return
            offset += len(chunk)
            yield chunk

    def close(self) -> None:
        """See the port."""
        os.close(self.descriptor)


async def read_chunk(descriptor: int, offset: int, length_bytes: int) -> bytes:
    """Read cached pages at once, others in a thread; fewer bytes only at the end of the file."""
    buffer = bytearray(length_bytes)
    try:
        count = os.preadv(descriptor, [buffer], offset, os.RWF_NOWAIT)
    except (BlockingIOError, OSError, AttributeError):
        count = -1
    if count < length_bytes:
        # Not all of it is in the page cache (or this system cannot tell): let a thread wait for the disk.
        return await asyncio.to_thread(os.pread, descriptor, length_bytes, offset)
    return bytes(buffer)


def spool(
    disk: Disk,
    incoming: Path,
    digest: Digest,
    *,
    expected_bytes: int | None,
    max_length_bytes: int,
    min_free_bytes: int,
    place: Callable[[Path], None],
) -> Spool:
    """Begin to receive bytes on this machine; raises TooLargeError or DiskFullError before a byte is taken."""
    if expected_bytes is not None and expected_bytes > max_length_bytes:
        raise TooLargeError(
            "The payload is longer than allowed", length_bytes=expected_bytes, limit_bytes=max_length_bytes
        )
    disk.make_directory(incoming)
    free = disk.free_bytes(incoming)
    if free - (expected_bytes or 0) < min_free_bytes:
        raise DiskFullError("Too little space would stay free", free_bytes=free, length_bytes=expected_bytes)
    return Spool(disk, digest, incoming, max_length_bytes, place)


def sweep(disk: Disk, incoming: Path) -> None:
    """Remove what cut-short uploads left below `incoming`."""
    for name in disk.list(incoming):
        disk.remove(incoming / name)


class Spool:
    """An upload that is first written to a file of its own, then placed; see `port.Upload`."""

    def __init__(
        self, disk: Disk, digest: Digest, incoming: Path, limit_bytes: int, place: Callable[[Path], None]
    ) -> None:
        self._disk = disk
        self._digest = digest
        self._limit_bytes = limit_bytes
        self._place = place
        self._path = incoming / f"{digest.hex}.{secrets.token_hex(8)}"
        self._hasher = hashlib.sha256()
        self._length = 0
        self._writer: Writer | None = disk.open_writer(self._path)

    def write(self, data: bytes) -> None:
        """See the port."""
        assert self._writer is not None
        if self._length + len(data) > self._limit_bytes:
            raise TooLargeError("The payload is longer than allowed", limit_bytes=self._limit_bytes)
        self._writer.write_at(self._length, data)
        self._hasher.update(data)
        self._length += len(data)

    def finish(self) -> int:
        """See the port."""
        assert self._writer is not None
        self._digest.require(Digest("sha256", self._hasher.digest()), what="The payload")
        self._writer.sync()
        self._close()
        self._place(self._path)
        return self._length

    def abandon(self) -> None:
        """See the port."""
        self._close()
        self._disk.remove(self._path)

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def file_digest(disk: Disk, path: Path) -> Digest:
    """Digest a file in chunks."""
    hasher = hashlib.sha256()
    reader = disk.open_reader(path)
    try:
        offset = 0
        while chunk := reader.read_at(offset, _READ_BYTES):
            hasher.update(chunk)
            offset += len(chunk)
    finally:
        reader.close()
    return Digest("sha256", hasher.digest())
