"""Make the deltas of a built release: from which images, tried how, kept when they pay.

    alive = wanted(workspace, "thermo", "1.3", versions=["1.2"])
    made = make(workspace, "thermo/1.3", alive, workers=2)

A delta is a payload of its own beside the whole image, listed in the manifest, and so it is made
before the release is signed. Each was applied and compared before it counts. What was tried, kept
or dropped, with sizes and times, stays beside the build in ``deltas.json``; what devices and the
server's release page need is in the payload's facts, signed with the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from firmament.core import manifest as manifests
from firmament.core.manifest import MAX_PAYLOADS, Manifest, Payload
from firmament.durable import PUBLIC_MODE, TEMPORARY_SUFFIX, replace_durably
from firmament.errors import ConflictError, NotFoundError, TooLargeError
from firmament.payload import choose
from firmament.payload.methods import IN_PLACE, METHODS
from firmament.release import sign
from firmament.release.build import RELEASE_FILE, WHOLE, BuiltRelease, load_built
from firmament.release.store import digest_of
from firmament.trust import repository
from firmament.trust.repository import json_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from firmament.core.digest import Digest
    from firmament.payload.choose import Bounds, Trial
    from firmament.payload.inplace.encoder import Shape
    from firmament.release.seal import Sealer
    from firmament.release.workspace import Workspace

RECORD_FILE: Final = "deltas.json"
COMPRESSED: Final = "xz/1"
"""Tried beside the deltas: what they are compared with, and what a device without a precursor gets."""
MAX_AUTOMATIC: Final = 7
"""Versions of the fleet that get deltas; each may need two payloads of the 16 a manifest holds."""


@dataclass(frozen=True, slots=True)
class Precursor:
    """A version that devices run, and its image here."""

    version: str
    image: Path
    manifest: Manifest
    devices: int | None = None
    """How many run it; None if nobody asked the server."""


@dataclass(frozen=True, slots=True)
class Missing:
    """An image of the fleet that gets no delta, and why."""

    version: str
    image_digest: str
    devices: int
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Return the facts for programs."""
        return {
            "version": self.version,
            "image_digest": self.image_digest,
            "devices": self.devices,
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True)
class Made:
    """What came of it."""

    built: BuiltRelease
    whole_bytes: int
    """The smallest payload without a precursor."""
    kept: list[tuple[Precursor | None, Trial]]
    """None is the compressed whole image."""
    dropped: list[tuple[Precursor | None, Trial]]

    def to_json(self) -> dict[str, Any]:
        """Return the facts for programs; also what ``deltas.json`` holds."""
        return {
            "release": self.built.manifest.release_id,
            "whole_bytes": self.whole_bytes,
            "deltas": [_fact(source, trial) for source, trial in self.kept],
            "dropped": [_fact(source, trial) for source, trial in self.dropped],
        }


def _fact(source: Precursor | None, trial: Trial) -> dict[str, Any]:
    value: dict[str, Any] = {
        "from": source.version if source is not None else None,
        "method": trial.method,
        "length_bytes": trial.length_bytes,
        "encode_cpu_ms": round(trial.encode_cpu_s * 1000),
        "apply_cpu_ms": round(trial.apply_cpu_s * 1000),
    }
    if source is not None and source.devices is not None:
        value["devices"] = source.devices
    if trial.problem is not None:
        value["problem"] = trial.problem
    return value


def open_build(workspace: Workspace, release: str) -> BuiltRelease:
    """Return a build that may still get deltas; raises NotFoundError, ConflictError once it is signed."""
    built = sign.find_built(workspace, release)
    if built is None:
        raise NotFoundError("The release is not built here", release=release)
    product = built.manifest.product
    for role in (sign.current_draft(workspace, product), workspace.product(product)):
        if role is not None and release in repository.releases_of(role.signed):
            raise ConflictError("The release is signed already; its deltas are part of what is signed", release=release)
    return built


def named(workspace: Workspace, release: BuiltRelease, versions: Iterable[str]) -> list[Precursor]:
    """Return precursors by version; raises NotFoundError for one whose image is not here, ConflictError for itself."""
    found = []
    for version in dict.fromkeys(versions):
        name = f"{release.manifest.product}/{version}"
        built = sign.find_built(workspace, name)
        if built is None:
            raise NotFoundError("The old release's image is not in this workspace", release=name)
        if built.manifest.image == release.manifest.image:
            raise ConflictError("Both releases have the same image", release=name)
        found.append(Precursor(version, whole_file(built), built.manifest))
    return found


def alive(
    workspace: Workspace, release: BuiltRelease, images: Sequence[Mapping[str, Any]], *, most: int = MAX_AUTOMATIC
) -> tuple[list[Precursor], list[Missing]]:
    """Find the images that the server counted among the builds here, the most common first."""
    builds = {str(built.manifest.image.digest): built for built in _builds(workspace, release.manifest.product)}
    found: list[Precursor] = []
    missing: list[Missing] = []
    for image in images:
        version, digest, devices = str(image["version"]), str(image["image_digest"]), int(image["devices"])
        built = builds.get(digest)
        if built is not None and built.manifest.image == release.manifest.image:
            continue
        if built is None:
            missing.append(Missing(version, digest, devices, "its image is not in this workspace"))
        elif built.manifest.sequence_number >= release.manifest.sequence_number:
            missing.append(Missing(version, digest, devices, "it is not older than this release"))
        elif len(found) == most:
            missing.append(Missing(version, digest, devices, f"only the {most} most common versions get deltas"))
        else:
            found.append(Precursor(built.manifest.version, whole_file(built), built.manifest, devices))
    return found, missing


def _builds(workspace: Workspace, product: str) -> Iterable[BuiltRelease]:
    directory = workspace.directory / "releases"
    for name in workspace.disk.list(directory):
        if name.startswith(f"{product}-") and workspace.disk.exists(directory / name / RELEASE_FILE):
            built = load_built(workspace.disk, directory / name)
            if built.manifest.product == product:
                yield built


def image_file(workspace: Workspace, product: str, digest: Digest) -> Path | None:
    """Return the file of an image that was built here, None for any other."""
    return next((whole_file(one) for one in _builds(workspace, product) if one.manifest.image.digest == digest), None)


def whole_file(built: BuiltRelease) -> Path:
    """Return the file with a release's whole image; raises NotFoundError."""
    for payload in built.unsealed.manifest.payloads:
        if payload.method == WHOLE:
            return built.file_of(payload.target)
    raise NotFoundError("The build has no whole image", release=built.manifest.release_id)


def make(
    workspace: Workspace,
    built: BuiltRelease,
    precursors: Sequence[Precursor],
    *,
    workers: int = 1,
    bounds: Bounds | None = None,
    methods: Sequence[str] = (),
    sealer: Sealer | None = None,
    in_place: Shape | None = None,
    progress: Callable[[Precursor | None, Trial], None] = lambda _source, _trial: None,
) -> Made:
    """Try every method on every precursor, keep what pays, and list it in the build's manifest.

    Deltas that an earlier call made from other precursors stay. Of a sealed release they are made
    from plain image to plain image and sealed afterwards, by `sealer`. `in_place` is the flash of
    devices with one slot: they get a payload of their own. Raises TooLargeError when the manifest would
    hold more payloads than it may, ConflictError for a sealed release without a sealer.
    """
    if built.plain and sealer is None:
        raise ConflictError("The release is sealed; its content keys are needed", release=built.manifest.release_id)
    disk, directory = workspace.disk, built.directory
    scratch = directory / f"deltas{TEMPORARY_SUFFIX}"
    disk.remove_tree(scratch)
    disk.make_directory(scratch, mode=0o755)
    by_path = {source.image: source for source in precursors}
    usual = [key for key, method in METHODS.items() if method.is_delta and key != IN_PLACE]
    wanted = list(dict.fromkeys([*(methods or usual), *([IN_PLACE] if in_place else []), COMPRESSED]))
    image = whole_file(built)
    try:
        found = choose.trials(
            image, [source.image for source in precursors], scratch, methods=wanted, workers=workers, bounds=bounds,
            shape=in_place,
            progress=lambda trial: progress(by_path.get(trial.precursor) if trial.precursor else None, trial),
        )  # fmt: skip
        whole = choose.whole_trial(image)
        kept = [trial for trial in choose.choose([whole, *found]) if trial is not whole]
        rows = [(by_path.get(trial.precursor) if trial.precursor else None, trial) for trial in found]
        made = Made(
            built.unsealed,
            min(trial.length_bytes for trial in (whole, *found) if trial.precursor is None and not trial.problem),
            [row for row in rows if row[1] in kept],
            [row for row in rows if row[1] not in kept],
        )
        return _listed(workspace, made, built, sealer)
    finally:
        disk.remove_tree(scratch)


def _listed(workspace: Workspace, made: Made, before: BuiltRelease, sealer: Sealer | None) -> Made:
    """Put the kept payloads beside the image, then name them in the manifest, then drop what it no longer names."""
    built, disk = made.built, workspace.disk
    again = {source.manifest.image.digest for source, _ in (*made.kept, *made.dropped) if source is not None}
    stays = [
        payload
        for payload in built.manifest.payloads
        if payload.method == WHOLE or (payload.precursor_digest is not None and payload.precursor_digest not in again)
    ]
    files = {payload.target: built.files[payload.target] for payload in stays}
    fresh: list[Payload] = []
    for source, trial in made.kept:
        method = METHODS[trial.method]
        digest = digest_of(disk, trial.payload)
        label = f"from-{source.version}" if source is not None else "whole"
        name = f"{label}.{digest.hex[:8]}.{method.name}-{method.version}"
        disk.replace(trial.payload, built.directory / name)
        facts = {key: value for key, value in _fact(source, trial).items() if key.endswith("_ms")}
        if source is not None:
            facts["from_version"] = source.version
        target = f"{built.manifest.release_id}/{name}"
        files[target] = name
        fresh.append(
            Payload(
                method.name, method.version, target, trial.length_bytes, digest,
                source.manifest.image.digest if source is not None else None, facts,
            )
        )  # fmt: skip
    if len(stays) + len(fresh) > MAX_PAYLOADS:
        raise TooLargeError("The manifest would hold too many payloads", payloads=len(stays) + len(fresh))
    listed = replace(built.manifest, payloads=(*stays, *fresh))
    manifests.decode(listed.to_json())  # what a device would refuse is refused here
    disk.sync_directory(built.directory)
    done = replace(built, manifest=listed, files=files)
    if sealer is not None:
        done = sealer.seal(done, before=before)
    done.write(disk)
    for name in set(before.files.values()) - set(done.files.values()):
        disk.remove(built.directory / name)
    result = replace(made, built=done)
    replace_durably(disk, built.directory / RECORD_FILE, json_text(result.to_json()), mode=PUBLIC_MODE)
    return result
