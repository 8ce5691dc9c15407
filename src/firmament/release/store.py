"""A static TUF repository in a directory, changed all at once or not at all.

    DIRECTORY/metadata -> .generations/000007      a symlink, the only thing that ever changes
    DIRECTORY/.generations/000007/*.json           all metadata of one state, never written again
    DIRECTORY/targets/<product>/<version>/<sha256>.<filename>    immutable

`commit` writes a complete new generation beside the old one and then exchanges the symlink in
one rename. A root that replaces the timestamp key takes effect in the same instant as the
timestamp signed by the new key; replacing files one by one would leave a moment, and after a
crash for ever, in which no client can follow (TUF section 5.3 then 5.4). The previous
generation stays for readers that are in the middle of it. Any web server that follows symlinks
serves it.
"""

from __future__ import annotations

import re
from contextlib import closing
from typing import TYPE_CHECKING, Final

from firmament.core.digest import Digest
from firmament.core.ids import TARGET_PATH, check
from firmament.durable import PUBLIC_MODE, TEMPORARY_SUFFIX, Disk, read_file
from firmament.errors import ConflictError, DigestMismatchError, FileError
from firmament.trust.repository import MAX_METADATA_LENGTH_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

DIRECTORY_MODE: Final = 0o755
CHUNK_LENGTH_BYTES: Final = 1024 * 1024
# Large enough that hashing dominates, small enough for the 48 MiB a command may use.
_KEPT_GENERATIONS: Final = 2
_KEPT_VERSIONS: Final = 16
# A client needs only the newest of every role but root; the others are for readers half-way and for people.
_METADATA_NAME: Final = re.compile(r"(?:[1-9][0-9]{0,9}\.[a-z0-9-]{1,63}|timestamp)\.json")


class RepositoryStore:
    """One static repository. Every error is a FileError, DiskFullError, ReadOnlyError or named below."""

    def __init__(self, disk: Disk, directory: Path) -> None:
        self._disk = disk
        self.directory: Final = directory
        self._metadata: Final = directory / "metadata"
        self._generations: Final = directory / ".generations"
        self._targets: Final = directory / "targets"

    # --- metadata --------------------------------------------------------------------------

    def files(self) -> dict[str, bytes]:
        """Return every metadata file of the current state by name; empty for a new repository."""
        limit = MAX_METADATA_LENGTH_BYTES["targets"]
        names = [name for name in self._disk.list(self._metadata) if _METADATA_NAME.fullmatch(name)]
        return {name: read_file(self._disk, self._metadata / name, limit_bytes=limit) for name in names}

    def commit(self, changed: Mapping[str, bytes]) -> None:
        """Add or replace metadata files, all at once.

        Raises ConflictError if a numbered file exists with other bytes: it may be cached for ever.
        """
        current = self.files()
        for name, data in changed.items():
            check(name, _METADATA_NAME, what="The metadata file's name")
            if name != "timestamp.json" and current.get(name, data) != data:
                raise ConflictError("A published metadata file never changes; raise the version", file=name)
        if all(current.get(name) == data for name, data in changed.items()):
            return
        files = _without_history({**current, **changed})
        number = self._current_number() + 1
        fresh = self._generations / f"{number:06}"
        self._disk.make_directory(self._generations, mode=DIRECTORY_MODE)
        self._disk.remove_tree(fresh)  # of a publish that was cut short; nothing points at it
        self._disk.make_directory(fresh, mode=DIRECTORY_MODE)
        for name, data in sorted(files.items()):
            self._write(fresh / name, data)
        self._disk.sync_directory(fresh)
        self._disk.sync_directory(self._generations)
        self._disk.sync_directory(self.directory)
        self._switch(fresh.name)
        self._prune(number)

    def _write(self, path: Path, data: bytes) -> None:
        with closing(self._disk.open_writer(path, mode=PUBLIC_MODE)) as writer:
            writer.write_at(0, data)
            writer.sync()

    def _switch(self, generation: str) -> None:
        # Everything the new link leads to is durable by now: whichever link survives a power cut,
        # it leads to a whole state.
        if self._disk.exists(self._metadata) and self._disk.read_link(self._metadata) is None:
            raise FileError("The repository's metadata is a directory, not a link", path=self._metadata)
        fresh = self._metadata.with_name("metadata" + TEMPORARY_SUFFIX)
        self._disk.remove(fresh)
        self._disk.symlink(f".generations/{generation}", fresh)
        self._disk.replace(fresh, self._metadata)
        self._disk.sync_directory(self.directory)

    def _current_number(self) -> int:
        link = self._disk.read_link(self._metadata)
        name = link.rpartition("/")[2] if link is not None else ""
        return int(name) if name.isdigit() else 0

    def _prune(self, current: int) -> None:
        for name in self._disk.list(self._generations):
            if name.isdigit() and int(name) <= current - _KEPT_GENERATIONS:
                self._disk.remove_tree(self._generations / name)

    # --- targets ---------------------------------------------------------------------------

    def target_path(self, name: str) -> Path:
        """Return where the bytes of a target lie; `name` is `repository.target_file_name`'s."""
        return self._targets / check(name, TARGET_PATH, what="The target file's name")

    def has_target(self, name: str, length_bytes: int) -> bool:
        """Whether a target is there in full: a name only appears once its bytes are durable."""
        return self._disk.length_bytes(self.target_path(name)) == length_bytes

    def put_target(self, name: str, source: Path, *, length_bytes: int, digest: Digest) -> None:
        """Copy a payload in; raises DigestMismatchError if `source` is not what was signed."""
        path = self.target_path(name)
        if self.has_target(name, length_bytes) and digest_of(self._disk, path) == digest:
            return
        self._disk.make_directory(path.parent, mode=DIRECTORY_MODE)
        copy(self._disk, source, path, length_bytes=length_bytes, digest=digest)
        for parent in (path.parent, path.parent.parent, self._targets, self.directory):
            self._disk.sync_directory(parent)


def _without_history(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Drop versions that nothing refers to any more; every root stays, clients walk the whole chain."""
    versions: dict[str, list[int]] = {}
    for name in files:
        number, _, role = name.removesuffix(".json").partition(".")
        if role not in {"", "root"}:
            versions.setdefault(role, []).append(int(number))
    stale = {
        f"{number}.{role}.json" for role, numbers in versions.items() for number in sorted(numbers)[:-_KEPT_VERSIONS]
    }
    return {name: data for name, data in files.items() if name not in stale}


def chunks(disk: Disk, path: Path) -> Iterator[bytes]:
    """Yield a file's bytes."""
    with closing(disk.open_reader(path)) as reader:
        offset = 0
        while piece := reader.read_at(offset, CHUNK_LENGTH_BYTES):
            yield piece
            offset += len(piece)


def digest_of(disk: Disk, path: Path) -> Digest:
    """Return a file's SHA-256."""
    return Digest.of(chunks(disk, path))


def copy(disk: Disk, source: Path, destination: Path, *, length_bytes: int, digest: Digest) -> None:
    """Copy a file durably under a temporary name and give it its name only if it is what was signed.

    Raises DigestMismatchError, and then leaves nothing behind.
    """
    temporary = destination.with_name(destination.name + TEMPORARY_SUFFIX)
    disk.remove(temporary)
    with closing(disk.open_writer(temporary, mode=PUBLIC_MODE)) as writer:

        def copied() -> Iterator[bytes]:
            offset = 0
            for piece in chunks(disk, source):
                writer.write_at(offset, piece)
                offset += len(piece)
                yield piece

        actual = Digest.of(copied())
        writer.sync()
    if actual != digest or disk.length_bytes(temporary) != length_bytes:
        disk.remove(temporary)
        raise DigestMismatchError("The file is not the one that was signed", path=source, expected=digest, got=actual)
    disk.replace(temporary, destination)
    disk.sync_directory(destination.parent)
