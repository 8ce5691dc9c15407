"""The repository on disk: one directory per generation, one symlink that says which is served.

A publish writes a whole new generation beside the old one, makes it durable, and then renames a
symlink over ``current``. That rename is the only commit point: a crash before it leaves the old
repository, after it the new one, whole, roots and timestamp together. What a crash leaves behind
is removed by the next publish. Payloads are published before the commit; one that no metadata
names is harmless.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from tuf.api.metadata import Root, Snapshot, Targets, Timestamp

from firmament.durable import PUBLIC_MODE, read_file
from firmament.errors import CorruptStateError, MalformedMetadataError, RollbackError, TrustError
from firmament.server.releases.model import Published
from firmament.trust import repository
from firmament.trust.repository import MAX_METADATA_LENGTH_BYTES, TIMESTAMP_FILE
from firmament.trust.roles import ROOT, TARGETS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from firmament.durable import Disk
    from firmament.server.layout import Layout
    from firmament.server.payloads.store import ServerDisk

_GENERATION: Final = re.compile(r"generations/([0-9]{8,19})")
_VERSIONED: Final = re.compile(r"([1-9][0-9]*)\.(.+)\.json")
_MAX_FILE_LENGTH_BYTES: Final = max(MAX_METADATA_LENGTH_BYTES.values())
KEPT_VERSIONS: Final = 2
"""Of each role but root: devices in the middle of a refresh still ask for the one before."""


class Generations:
    """Reads the served generation and installs the next."""

    def __init__(self, disk: ServerDisk, layout: Layout) -> None:
        self._disk = disk
        self._layout = layout

    def load(self) -> Published:
        """Read the generation that is served; an empty one before the first publish.

        Raises CorruptStateError when files are missing or damaged: the server must not publish
        on top of a repository it cannot read.
        """
        number = self._current_number()
        if number is None:
            return Published()
        directory = self._directory(number)
        image = _read_all(self._disk, directory / "image")
        director = _read_all(self._disk, directory / "director")
        return parse(number, image, director)

    def install(self, published: Published) -> None:
        """Write a generation and switch to it. Atomic: see the head of this file."""
        number = published.generation
        directory = self._directory(number)
        self._disk.remove_tree(directory)
        for name, files in (("image", pruned(published)), ("director", published.director_files)):
            self._disk.make_directory(directory / name, mode=0o755)
            for file_name, data in files.items():
                _write(self._disk, directory / name / file_name, data)
            self._disk.sync_directory(directory / name)
        self._disk.sync_directory(directory)
        self._disk.sync_directory(directory.parent)
        pointer = self._layout.current.with_name("current.new")
        self._disk.remove(pointer)
        self._disk.symlink(f"generations/{number:08}", pointer)
        self._disk.replace(pointer, self._layout.current)
        self._disk.sync_directory(self._layout.repository)
        self._forget(keep={number, number - 1})

    def _directory(self, number: int) -> Path:
        return self._layout.repository / "generations" / f"{number:08}"

    def _current_number(self) -> int | None:
        link = self._disk.read_link(self._layout.current)
        if link is None:
            if self._disk.exists(self._layout.current):
                raise CorruptStateError("`current` is not a symlink", path=self._layout.current)
            return None
        match = _GENERATION.fullmatch(link)
        if match is None:
            raise CorruptStateError("`current` points to something else", path=self._layout.current, found=link)
        return int(match[1])

    def _forget(self, *, keep: set[int]) -> None:
        parent = self._layout.repository / "generations"
        for name in self._disk.list(parent):
            if name not in {f"{number:08}" for number in keep}:
                self._disk.remove_tree(parent / name)


def pruned(published: Published) -> dict[str, bytes]:
    """Return the image files worth keeping: all roots, and the newest versions of every other role."""
    by_role: dict[str, list[int]] = {}
    for name in published.image_files:
        match = _VERSIONED.fullmatch(name)
        if match is not None and match[2] != ROOT:
            by_role.setdefault(match[2], []).append(int(match[1]))
    dropped = {
        f"{version}.{role}.json" for role, versions in by_role.items() for version in sorted(versions)[:-KEPT_VERSIONS]
    }
    return {name: data for name, data in published.image_files.items() if name not in dropped}


def parse(number: int, image: dict[str, bytes], director: dict[str, bytes]) -> Published:
    """Read the files of one generation; raises CorruptStateError."""
    try:
        return _parse(number, image, director)
    except (TrustError, KeyError) as error:
        raise CorruptStateError("The published repository cannot be read", generation=number, reason=error) from error


def _parse(number: int, image: dict[str, bytes], director: dict[str, bytes]) -> Published:
    roots = [int(name.partition(".")[0]) for name in image if name.endswith(f".{ROOT}.json")]
    director_roots = [int(name.partition(".")[0]) for name in director]
    root = repository.read(image[f"{max(roots)}.{ROOT}.json"], Root, what="image root") if roots else None
    director_root = (
        repository.read(director[f"{max(director_roots)}.{ROOT}.json"], Root, what="director root")
        if director_roots
        else None
    )
    if TIMESTAMP_FILE not in image:  # roots were trusted, nothing was published
        return Published(number, image, director, root=root, director_root=director_root)
    timestamp = repository.read(image[TIMESTAMP_FILE], Timestamp, what="timestamp").signed
    snapshot_version = timestamp.snapshot_meta.version
    snapshot = repository.read(image[f"{snapshot_version}.snapshot.json"], Snapshot, what="snapshot").signed
    versions = {name.removesuffix(".json"): meta.version for name, meta in snapshot.meta.items()}
    targets = repository.read(image[f"{versions[TARGETS]}.{TARGETS}.json"], Targets, what=TARGETS)
    delegations = targets.signed.delegations
    delegated = delegations.roles if delegations is not None and delegations.roles else {}
    products = {name: repository.read(image[f"{versions[name]}.{name}.json"], Targets, what=name) for name in delegated}
    return Published(
        generation=number,
        image_files=image,
        director_files=director,
        root=root,
        director_root=director_root,
        targets=targets,
        products=products,
        versions=versions,
        snapshot_version=snapshot_version,
        timestamp_version=timestamp.version,
    )


def _read_all(disk: Disk, directory: Path) -> dict[str, bytes]:
    return {
        name: read_file(disk, directory / name, limit_bytes=_MAX_FILE_LENGTH_BYTES) for name in disk.list(directory)
    }


def _write(disk: Disk, path: Path, data: bytes) -> None:
    # No rename dance: nobody looks into a generation before it is whole and durable.
    writer = disk.open_writer(path, mode=PUBLIC_MODE)
    try:
        writer.write_at(0, data)
        writer.sync()
    finally:
        writer.close()


def require_signed(published: Published, files: Mapping[str, bytes]) -> Published:
    """Check what the signer made against the root, and return the generation with it.

    Raises TrustError: an answer of the signer is verified like anybody's.
    """
    assert published.root is not None
    timestamp = repository.read(files[TIMESTAMP_FILE], Timestamp, what="timestamp")
    repository.verify(published.root.signed, "timestamp", timestamp)
    version = timestamp.signed.snapshot_meta.version
    if timestamp.signed.version <= published.timestamp_version or version < published.snapshot_version:
        raise RollbackError(
            "The signer went back; was its directory restored from an old backup?",
            served=published.timestamp_version,
            signed=timestamp.signed.version,
        )
    image = {**published.image_files, **files}
    snapshot = repository.read(image[f"{version}.snapshot.json"], Snapshot, what="snapshot")
    repository.verify(published.root.signed, "snapshot", snapshot)
    named = {name.removesuffix(".json"): meta.version for name, meta in snapshot.signed.meta.items()}
    if named != dict(published.versions):
        raise MalformedMetadataError("The signer's snapshot names other versions than were asked")
    return Published(
        generation=published.generation,
        image_files=image,
        director_files=published.director_files,
        root=published.root,
        director_root=published.director_root,
        targets=published.targets,
        products=published.products,
        versions=published.versions,
        snapshot_version=version,
        timestamp_version=timestamp.signed.version,
    )
