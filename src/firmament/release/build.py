"""Build a release: the image as payload files and the manifest that describes it, unsigned.

Input is a directory (becomes a deterministic bundle), an MCUboot image (told by its magic), or
any other file or block device (becomes a raw image). The result lies in
``releases/<product>-<version>/``: ``release.json`` and the payload files it names. Of a sealed release
the plain files lie there too, as the next delta needs them; only what the manifest names is published.
"""

from __future__ import annotations

import stat
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from firmament.core import canonical, manifest
from firmament.core.digest import Digest
from firmament.core.fields import Fields
from firmament.core.ids import HARDWARE, TARGET_PATH, check
from firmament.core.manifest import MAX_IMAGE_LENGTH_BYTES, Image, Manifest, Payload
from firmament.durable import PUBLIC_MODE, TEMPORARY_SUFFIX, Disk, read_file, replace_durably
from firmament.errors import ConflictError, FileError, MalformedError, TooLargeError
from firmament.payload import mcuboot
from firmament.release import bundle
from firmament.release.store import chunks
from firmament.trust.repository import json_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

RELEASE_FILE: Final = "release.json"
MAX_RELEASE_LENGTH_BYTES: Final = 256 * 1024
# The manifest is at most 64 KiB; indentation at most doubles it.
BUILD_VERSION: Final = 1
MAX_FILES: Final = 3 * manifest.MAX_PAYLOADS
"""For each payload itself, sealed, and the list of its pieces."""
WHOLE: Final = "whole"
FILENAMES: Final = {"bundle": "bundle.tar", "mcuboot": "image.bin", "image": "image.img"}


@dataclass(frozen=True, slots=True)
class BuiltRelease:
    """A built release on disk."""

    directory: Path
    manifest: Manifest
    files: dict[str, str]
    """Payload file name in `directory` by TUF target path."""
    plain: tuple[Payload, ...] = ()
    """Of a sealed release: the payloads that are inside, whose files stay on the bench."""

    @property
    def unsealed(self) -> BuiltRelease:
        """The same build before it was sealed; itself when it is not."""
        if not self.plain:
            return self
        return replace(self, manifest=replace(self.manifest, payloads=self.plain, confidential=False), plain=())

    def file_of(self, target: str) -> Path:
        """Return the payload file of a target; raises FileError for one that was not built."""
        if target not in self.files:
            raise FileError("The build does not name a file for this payload", target=target)
        return self.directory / self.files[target]

    def to_json(self) -> dict[str, Any]:
        """Return what ``release.json`` holds."""
        value: dict[str, Any] = {"v": BUILD_VERSION, "manifest": self.manifest.to_json(), "files": self.files}
        if self.plain:
            value["plain"] = [payload.to_json() for payload in self.plain]
        return value

    def write(self, disk: Disk) -> None:
        """Write ``release.json``: from now on the build is what it says."""
        replace_durably(disk, self.directory / RELEASE_FILE, json_text(self.to_json()), mode=PUBLIC_MODE)


def as_it_is(release: BuiltRelease) -> BuiltRelease:
    """Return a build that needs nothing more."""
    return release


def detect_installer(source: Path) -> str:
    """Tell what a source is: ``bundle``, ``mcuboot`` or ``image``; raises FileError."""
    try:
        found = source.stat()
        if stat.S_ISDIR(found.st_mode):
            return "bundle"
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISBLK(found.st_mode)):
            raise FileError("Only files, directories and block devices can be released", path=source)
        with source.open("rb") as file:
            return "mcuboot" if mcuboot.has_magic(file.read(mcuboot.HEADER_LENGTH_BYTES)) else "image"
    except OSError as error:
        raise FileError("The source cannot be read", path=source, reason=error.strerror or error) from error


def build(
    disk: Disk,
    source: Path,
    directory: Path,
    draft: Manifest,
    *,
    finish: Callable[[BuiltRelease], BuiltRelease] = as_it_is,
) -> BuiltRelease:
    """Build `source` into `directory`; `draft` is a manifest without image and payloads.

    `finish` may add to what lies there before it counts, e.g. seal it. Everything is checked and
    written beside, then renamed: `directory` holds a whole build or does not exist. Raises
    ConflictError if it exists, UnsafeArchiveError for a tree that no bundle can hold,
    MalformedError for an image or manifest that is not well formed, TooLargeError.
    """
    if disk.exists(directory):
        raise ConflictError("This release is built already; withdraw the build or use another version", path=directory)
    for name in draft.hardware:
        check(name, HARDWARE, what="The hardware name")
    fresh = directory.with_name(directory.name + TEMPORARY_SUFFIX)
    disk.remove_tree(fresh)
    disk.make_directory(fresh, mode=0o755)
    try:
        release = finish(_write(disk, source, fresh, draft))
        release.write(disk)
    except BaseException:
        disk.remove_tree(fresh)
        raise
    disk.sync_directory(fresh)
    disk.replace(fresh, directory)
    disk.sync_directory(directory.parent)
    return replace(release, directory=directory)


def _write(disk: Disk, source: Path, fresh: Path, draft: Manifest) -> BuiltRelease:
    filename = FILENAMES.get(draft.installer, "payload.bin")
    target = check(f"{draft.release_id}/{filename}", TARGET_PATH, what="The target path")
    pieces = bundle.write(source) if draft.installer == "bundle" and source.is_dir() else _read_source(source)
    path = fresh / filename
    digest, length_bytes = _store(disk, path, pieces)
    if draft.installer == "mcuboot":
        _check_mcuboot(disk, path, length_bytes)
    elif draft.installer == "bundle" and not source.is_dir():
        bundle.check(chunks(disk, path))
    whole = replace(
        draft,
        image=Image(digest, length_bytes),
        payloads=(Payload(WHOLE, 1, target, length_bytes, digest),),
    )
    manifest.decode(whole.to_json())  # what a device would refuse is refused here, before anybody signs it
    return BuiltRelease(fresh, whole, {target: filename})


def _read_source(source: Path) -> Iterator[bytes]:
    try:
        with source.open("rb") as file:
            while piece := file.read(1024 * 1024):
                yield piece
    except OSError as error:
        raise FileError("The source cannot be read", path=source, reason=error.strerror or error) from error


def _store(disk: Disk, path: Path, pieces: Iterator[bytes]) -> tuple[Digest, int]:
    length_bytes = 0
    with closing(disk.open_writer(path, mode=PUBLIC_MODE)) as writer:

        def stored() -> Iterator[bytes]:
            nonlocal length_bytes
            for piece in pieces:
                if length_bytes + len(piece) > MAX_IMAGE_LENGTH_BYTES:
                    raise TooLargeError("The image is longer than allowed", limit_bytes=MAX_IMAGE_LENGTH_BYTES)
                writer.write_at(length_bytes, piece)
                length_bytes += len(piece)
                yield piece

        digest = Digest.of(stored())
        writer.sync()
    if not length_bytes:
        raise MalformedError("The source is empty", path=path.name)
    return digest, length_bytes


def _check_mcuboot(disk: Disk, path: Path, length_bytes: int) -> None:
    with closing(disk.open_reader(path)) as reader:
        mcuboot.read_image(reader, length_bytes)


def load_built(disk: Disk, directory: Path) -> BuiltRelease:
    """Read a built release; raises FileError, MalformedError or UnknownManifestError.

    The payload files are not read here; `sign.check_files` compares them.
    """
    path = directory / RELEASE_FILE
    what = str(path)
    value = canonical.decode_object(
        read_file(disk, path, limit_bytes=MAX_RELEASE_LENGTH_BYTES), limit_bytes=MAX_RELEASE_LENGTH_BYTES, what=what
    )
    fields = Fields(value, what=what)
    fields.integer("v", minimum=BUILD_VERSION, maximum=BUILD_VERSION)
    files = fields.text_map("files", max_items=MAX_FILES, max_length=255)
    for filename in files.values():
        if "/" in check(filename, TARGET_PATH, what="The payload file's name"):
            raise MalformedError(f"{what} names a file outside its directory", file=filename)
    described = fields.object("manifest").value
    plain: tuple[Payload, ...] = ()
    if "plain" in fields:
        inside = [item.value for item in fields.objects("plain", min_items=1, max_items=manifest.MAX_PAYLOADS)]
        plain = manifest.decode({**described, "payloads": inside, "confidential": False}).payloads
    return BuiltRelease(directory, manifest.decode(described), files, plain)
