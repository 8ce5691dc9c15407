"""Seal a built release: every payload encrypted under a key of its own, opened again and compared.

    sealer = Sealer(workspace, passphrase, suite=Suite.AES_256_GCM)
    done = sealer.seal(built)

A delta is made first and sealed afterwards. The manifest then names sealed payloads only and is
marked confidential; the plain files stay on the bench, as the next delta starts from them, and are
never published. The keys go into the workspace (`content_keys`).
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from firmament.core import manifest as manifests
from firmament.core.digest import Digest
from firmament.core.manifest import CHUNKS_SUFFIX
from firmament.durable import PUBLIC_MODE, TEMPORARY_SUFFIX, replace_durably
from firmament.payload.methods import METHODS, Job
from firmament.payload.readers import FileReader
from firmament.payload.sealed import Opener, Suite, new_key
from firmament.payload.sealing import SUFFIX, SUITES, seal_payload
from firmament.release import content_keys
from firmament.release.content_keys import ContentKey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from firmament.core.manifest import Manifest, Payload
    from firmament.payload.methods import Method
    from firmament.payload.readers import Reader
    from firmament.release.build import BuiltRelease
    from firmament.release.workspace import Workspace


@dataclass
class Sealer:
    """Seals builds of one workspace; `keys` are those that earlier payloads of the release have."""

    workspace: Workspace
    passphrase: bytes = field(repr=False)
    suite: Suite = Suite.AES_256_GCM
    keys: dict[str, ContentKey] = field(default_factory=dict)

    def seal(self, built: BuiltRelease, *, before: BuiltRelease | None = None) -> BuiltRelease:
        """Return the sealed build, its containers and keys written, its ``release.json`` not yet.

        What `before` (default: the build itself) holds sealed under the same suite stays as it is.
        Raises DigestMismatchError when a container does not open to what went in.
        """
        plain, release = built.unsealed, built.manifest.release_id
        done = {payload.target: payload for payload in (before or built).manifest.payloads if payload.is_sealed}
        files, payloads, keys = dict(plain.files), [], {}
        for inside in plain.manifest.payloads:
            target = inside.target + SUFFIX
            known = self.keys.get(target)
            if target in done and known is not None and self._is_same(done[target], known):
                sealed, key = done[target], known
            else:
                sealed, key = self._one(plain, inside)
            name = files[inside.target] + SUFFIX
            files |= {target: name, target + CHUNKS_SUFFIX: name + CHUNKS_SUFFIX}
            payloads.append(sealed)
            keys[target] = key
        listed = replace(plain.manifest, payloads=tuple(payloads), confidential=True)
        manifests.decode(listed.to_json())  # what a device would refuse is refused here
        self.workspace.disk.sync_directory(built.directory)
        content_keys.save(self.workspace, release, keys, self.passphrase)
        self.keys = keys
        return replace(plain, manifest=listed, files=files, plain=plain.manifest.payloads)

    def _is_same(self, sealed: Payload, known: ContentKey) -> bool:
        return sealed.digest == known.digest and sealed.facts.get("suite") == self.suite

    def _one(self, built: BuiltRelease, inside: Payload) -> tuple[Payload, ContentKey]:
        disk, path = self.workspace.disk, built.file_of(inside.target)
        container = path.with_name(path.name + SUFFIX)
        temporary, key = container.with_name(container.name + TEMPORARY_SUFFIX), new_key()
        disk.remove(temporary)
        with (
            closing(disk.open_reader(path)) as reader,
            closing(disk.open_writer(temporary, mode=PUBLIC_MODE)) as writer,
        ):
            offset = 0

            def write(piece: bytes) -> None:
                nonlocal offset
                writer.write_at(offset, piece)
                offset += len(piece)

            sealed, chunk_list = seal_payload(reader, inside, key, write, suite=self.suite)
            writer.sync()
        with closing(FileReader(temporary)) as source:
            inside.digest.require(Digest.of(_opened(source, sealed, key).chunks()), what=sealed.target)
        disk.replace(temporary, container)
        replace_durably(disk, container.with_name(container.name + CHUNKS_SUFFIX), chunk_list, mode=PUBLIC_MODE)
        return sealed, ContentKey(sealed.digest, key)


@dataclass(frozen=True, slots=True)
class OpenedPayload:
    """What came of opening one sealed payload on the bench."""

    payload: Payload
    problem: str = ""
    """Why it was opened and not applied; empty when it gives the signed image."""

    def to_json(self) -> dict[str, Any]:
        """Return the facts for programs."""
        inner = self.payload.inner
        return {
            "target": self.payload.target,
            "suite": suite_name(self.payload),
            "method": f"{inner.method}/{inner.method_version}",
            "gives_the_image": not self.problem,
            **({"problem": self.problem} if self.problem else {}),
        }


def suite_name(payload: Payload) -> str:
    """Return the name of the suite that a sealed payload says it is under."""
    return next((name for name, suite in SUITES.items() if suite == payload.facts.get("suite")), "unknown")


def describe(payload: Payload) -> str:
    """Say in a line what a payload is: of a sealed one the suite and what is inside."""
    inner = payload.inner
    text = f"{inner.method}/{inner.method_version}"
    if payload.precursor_digest is not None:
        text += f" from {payload.facts.get('from_version', payload.precursor_digest)}"
    return f"{text}, sealed under {suite_name(payload)}" if payload.is_sealed else text


def open_release(
    manifest: Manifest,
    keys: Mapping[str, ContentKey],
    *,
    file_of: Callable[[Payload], Path],
    precursor_of: Callable[[Digest], Path | None],
) -> list[OpenedPayload]:
    """Open every sealed payload with its key, apply it as a device would, and compare with the signed image.

    A delta whose precursor is not here is opened to its end and not applied. Raises SealedError,
    DigestMismatchError, MalformedPayloadError, or NotFoundError for a payload without a key here.
    """
    found = []
    for payload in manifest.payloads:
        if not payload.is_sealed:
            continue
        with closing(FileReader(file_of(payload))) as source:
            opener = _opened(source, payload, content_keys.of_payload(keys, payload))
            old = precursor_of(payload.precursor_digest) if payload.precursor_digest is not None else None
            found.append(OpenedPayload(payload, _compare(manifest, payload, opener, old)))
    return found


def _compare(manifest: Manifest, payload: Payload, opener: Opener, old: Path | None) -> str:
    if payload.precursor_digest is not None and old is None:
        for _ in opener.chunks():
            pass  # every chunk is authenticated
        return "its precursor is not in this workspace"
    method = METHODS.get(f"{payload.inner.method}/{payload.inner.method_version}")
    if method is None or not method.is_available():
        return "its method is not to be had on this machine"
    manifest.image.digest.require(Digest.of(_applied(method, manifest, opener, old)), what=payload.target)
    return ""


def _applied(method: Method, manifest: Manifest, opener: Opener, old: Path | None) -> Iterator[bytes]:
    if old is None:
        job = Job(opener, opener.length_bytes, manifest.image.length_bytes)
        yield from (piece for _, piece in method.apply(job))
        return
    with closing(FileReader(old)) as precursor:
        job = Job(opener, opener.length_bytes, manifest.image.length_bytes, precursor, precursor.length_bytes)
        yield from (piece for _, piece in method.apply(job))


def _opened(source: Reader, payload: Payload, key: bytes) -> Opener:
    return Opener(source, payload.length_bytes, key, max_plain_length_bytes=payload.inner.length_bytes)
