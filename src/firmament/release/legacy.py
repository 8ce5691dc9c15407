"""The legacy view of a release: ``version.json``, a detached signature and tags beside the payload."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from firmament.durable import PUBLIC_MODE, replace_durably
from firmament.errors import ConflictError
from firmament.release.store import chunks, copy
from firmament.trust import legacy
from firmament.trust.legacy import LegacyScheme, VersionFile

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

    from firmament.core.manifest import Manifest
    from firmament.durable import Disk

SIGNATURE_SUFFIX: Final = ".sig"
VERSION_FILE: Final = "version.json"
TAG_SUFFIX: Final = ".hmac"


def version_file(manifest: Manifest) -> VersionFile:
    """Return ``version.json`` for a release; the payload and its signature lie beside it.

    Raises ConflictError for a sealed release: such a client has no key, and must not get the plain image.
    """
    payload = manifest.payloads[0]
    if payload.is_sealed:
        raise ConflictError(
            "A sealed release cannot be written for clients without an agent", release=manifest.release_id
        )
    stem, _, suffix = payload.target.rpartition("/")[2].partition(".")
    name = f"{manifest.product}-{manifest.version}-{stem}"
    return VersionFile(
        version=manifest.version,
        firmware=f"{name}.{suffix}" if suffix else name,
        signature=f"{name}{SIGNATURE_SUFFIX}",
        sequence_number=manifest.sequence_number,
        length_bytes=payload.length_bytes,
        digest=payload.digest,
    )


def export(
    disk: Disk, payload: Path, directory: Path, view: VersionFile, private_key: PrivateKeyTypes, scheme: LegacyScheme
) -> list[Path]:
    """Write payload, signatures and ``version.json``, in this order; return the files.

    ``version.json`` is replaced last: a client that sees the new version finds what it names.
    Raises DigestMismatchError if `payload` is not the one the release names.
    """
    disk.make_directory(directory, mode=0o755)
    firmware = directory / view.firmware
    copy(disk, payload, firmware, length_bytes=view.length_bytes, digest=view.digest)
    data = view.to_bytes()
    written = {
        directory / view.signature: legacy.sign(chunks(disk, payload), private_key, scheme),
        directory / (VERSION_FILE + SIGNATURE_SUFFIX): legacy.sign([data], private_key, scheme),
        directory / VERSION_FILE: data,
    }
    for path, content in written.items():
        replace_durably(disk, path, content, mode=PUBLIC_MODE)
    return [firmware, *written]


def export_tag(disk: Disk, directory: Path, view: VersionFile, name: str, device_key: bytes) -> Path:
    """Write one device's HMAC tag over ``version.json``, in hexadecimal; return the file."""
    path = directory / f"{VERSION_FILE}.{name}{TAG_SUFFIX}"
    replace_durably(disk, path, legacy.tag(view.to_bytes(), device_key).hex().encode() + b"\n", mode=PUBLIC_MODE)
    return path
