"""Opens the place for payloads that the settings name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from firmament.server.payloads.store import INCOMING, DirectoryBlobs

if TYPE_CHECKING:
    from firmament.core.clock import Clock
    from firmament.server.layout import Layout
    from firmament.server.payloads.port import BlobStore
    from firmament.server.payloads.store import ServerDisk
    from firmament.server.settings import ServerSettings


def open_blobs(disk: ServerDisk, layout: Layout, settings: ServerSettings, clock: Clock) -> BlobStore:
    """Return the bucket that the settings name, otherwise the server's own directory.

    Asks nobody yet: `check` does. Raises SettingError, DependencyMissingError.
    """
    if settings.s3_bucket:
        from firmament.server.payloads.s3 import S3Blobs
        from firmament.server.payloads.s3_account import read_account

        return S3Blobs(
            disk,
            layout.blobs / INCOMING,
            read_account(disk, layout.directory, settings),
            clock,
            max_length_bytes=settings.max_blob_bytes,
            min_free_bytes=settings.min_free_bytes,
        )
    return directory_blobs(disk, layout, settings)


def directory_blobs(disk: ServerDisk, layout: Layout, settings: ServerSettings) -> DirectoryBlobs:
    """Return the place for payloads in the server's own directory."""
    return DirectoryBlobs(
        disk,
        layout.blobs,
        layout.targets,
        max_length_bytes=settings.max_blob_bytes,
        min_free_bytes=settings.min_free_bytes,
        is_fronted=bool(settings.front_prefix),
    )
