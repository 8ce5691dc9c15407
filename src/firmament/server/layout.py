"""Where a server keeps its things, below one directory.

``firmament.toml``                     settings, section ``[server]``
``online-public.json``                 public halves of the online keys, for the author's root
``tls/``                               CA and certificate of the server itself
``device-ca/``                         CA that certifies device identities; nothing else trusts it
``director/``                          the director's three online keys (0600)
``signer/``                            snapshot and timestamp keys; only the signer process reads them
``people/sealing.key``                 seals second factors at rest (0600)
``content/<number>.key``               opens the content keys of sealed payloads (0600)
``database/firmament.db``              everything that is not a file
``blobs/<2 hex>/<64 hex>``             uploaded bytes by SHA-256
``repository/current``                 symlink to the generation that is served
``repository/generations/N/image/``    TUF metadata of the image repository
``repository/generations/N/director/`` root chain of the director repository
``repository/targets/``                published payloads by hash-prefixed TUF target path
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths below the server's directory."""

    directory: Path

    @property
    def settings(self) -> Path:
        """The settings file."""
        return self.directory / "firmament.toml"

    @property
    def online_public(self) -> Path:
        """What an author needs to name this server in a root."""
        return self.directory / "online-public.json"

    @property
    def tls(self) -> Path:
        """CA and certificate of the server."""
        return self.directory / "tls"

    @property
    def ca(self) -> Path:
        """The CA certificate that devices and operators pin."""
        return self.tls / "ca.pem"

    @property
    def device_ca(self) -> Path:
        """Certificate and key of the device CA."""
        return self.directory / "device-ca"

    @property
    def director(self) -> Path:
        """Online keys of the director."""
        return self.directory / "director"

    @property
    def signer(self) -> Path:
        """The signer's own directory; only that process opens files in it."""
        return self.directory / "signer"

    @property
    def people_key(self) -> Path:
        """Seals second factors at rest."""
        return self.directory / "people" / "sealing.key"

    @property
    def content(self) -> Path:
        """Keys that the content keys of sealed payloads are wrapped for."""
        return self.directory / "content"

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.directory / "database" / "firmament.db"

    @property
    def blobs(self) -> Path:
        """Uploaded bytes."""
        return self.directory / "blobs"

    @property
    def repository(self) -> Path:
        """What is published."""
        return self.directory / "repository"

    @property
    def current(self) -> Path:
        """Symlink to the generation that is served."""
        return self.repository / "current"

    @property
    def image_metadata(self) -> Path:
        """TUF metadata of the image repository, as served."""
        return self.current / "image"

    @property
    def director_metadata(self) -> Path:
        """Root chain of the director, as served."""
        return self.current / "director"

    @property
    def targets(self) -> Path:
        """Published payloads, as served."""
        return self.repository / "targets"

    @property
    def lock(self) -> Path:
        """Held by the one process that serves or changes this directory."""
        return self.directory / "server.lock"
