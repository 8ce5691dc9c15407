"""Content keys on the author's bench: one encrypted file for each sealed release (ADR-0023).

``keys/content/<product>-<version>.json``, mode 0600, holds the key of every sealed payload of the
release under a passphrase (trust/secret_file.py). Whoever has the file and the passphrase can read
the release; without them nobody here can, the published payloads included.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from firmament.core import canonical
from firmament.core.digest import Digest
from firmament.core.fields import Fields
from firmament.core.ids import TARGET_PATH, ReleaseId, check
from firmament.core.manifest import MAX_PAYLOADS
from firmament.durable import PRIVATE_MODE, replace_durably
from firmament.errors import KeyFileError, MalformedError, NotFoundError
from firmament.payload import wrap
from firmament.payload.sealed import KEY_LENGTH_BYTES
from firmament.trust import secret_file
from firmament.trust.key_files import read_private_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from firmament.core.manifest import Manifest, Payload
    from firmament.release.remote import OperatorApi
    from firmament.release.workspace import Workspace
    from firmament.trust.signers import Secrets

DIRECTORY: Final = "content"
"""Below the workspace's ``keys/``."""
RECIPIENT_PATH: Final = "/api/v1/content-keys/recipient"


@dataclass(frozen=True, slots=True)
class ContentKey:
    """The key of one container, which is named by its digest: another container has another key."""

    digest: Digest
    key: bytes

    def __repr__(self) -> str:
        """Name the container and keep the key to itself."""
        return f"ContentKey({self.digest})"


def path_of(workspace: Workspace, release: ReleaseId) -> Path:
    """Return where the keys of a release lie."""
    return workspace.keys_directory / DIRECTORY / f"{release.replace('/', '-')}.json"


def have(workspace: Workspace, release: ReleaseId) -> bool:
    """Whether the content keys of a release are in this workspace."""
    return workspace.disk.exists(path_of(workspace, release))


def save(workspace: Workspace, release: ReleaseId, keys: Mapping[str, ContentKey], passphrase: bytes) -> None:
    """Write the keys by target path; raises PassphraseError for a passphrase that is too short."""
    path = path_of(workspace, release)
    workspace.disk.make_directory(path.parent, mode=0o700)
    value = {target: {"digest": one.digest.to_json(), "key": one.key.hex()} for target, one in keys.items()}
    data = secret_file.seal(canonical.encode(value), passphrase, purpose=_purpose(release))
    replace_durably(workspace.disk, path, data, mode=PRIVATE_MODE)


def load(workspace: Workspace, release: ReleaseId, secrets: Secrets) -> dict[str, ContentKey]:
    """Read the keys by target path; raises NotFoundError, KeyFileError or PassphraseError."""
    if not have(workspace, release):
        raise NotFoundError("The content keys of this release are not in this workspace", release=release)
    data = read_private_file(path_of(workspace, release))
    found = secret_file.open_file(data, secrets, purpose=_purpose(release))
    try:
        value = canonical.decode_object(found, limit_bytes=len(found), what="content keys")
        return {target: _read(value, target) for target in value}
    except MalformedError as error:
        raise KeyFileError("The content keys cannot be read", release=release, reason=error.problem) from error


def of_payload(keys: Mapping[str, ContentKey], payload: Payload) -> bytes:
    """Return the key of a payload; raises NotFoundError when another container was sealed under this name."""
    found = keys.get(payload.target)
    if found is None or found.digest != payload.digest:
        raise NotFoundError("The content key of this payload is not in this workspace", target=payload.target)
    return found.key


def give(api: OperatorApi, manifest: Manifest, keys: Mapping[str, ContentKey]) -> int:
    """Give a server the keys of a release, each wrapped for that server and this container; return how many.

    The server must have the containers already: it opens the first chunk before it takes a key.
    """
    recipient = Fields(api.call("GET", RECIPIENT_PATH), what="recipient")
    public = recipient.hex_bytes("public_key", length=wrap.PUBLIC_KEY_LENGTH_BYTES)
    sealed = [payload for payload in manifest.payloads if payload.is_sealed]
    for payload in sealed:
        custody = wrap.Custody(manifest.release_id, payload.digest.value)
        body = {
            "release": manifest.release_id,
            "keyid": recipient.text("keyid", max_length=64),
            "wrap": base64.b64encode(wrap.wrap(of_payload(keys, payload), public, custody)).decode(),
        }
        api.call("PUT", f"/api/v1/content-keys/{payload.digest.hex}", body)
    return len(sealed)


def _read(value: dict[str, Any], target: str) -> ContentKey:
    if len(value) > MAX_PAYLOADS:
        raise MalformedError("More content keys than a release has payloads", keys=len(value))
    entry = Fields(value, what="content keys").object(check(target, TARGET_PATH, what="The target path"))
    digest = Digest.from_json(entry.object("digest").value, what=f"{entry.what}.digest")
    return ContentKey(digest, entry.hex_bytes("key", length=KEY_LENGTH_BYTES))


def _purpose(release: ReleaseId) -> str:
    return f"content keys of {release}"
