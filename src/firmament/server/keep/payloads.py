"""Copying payloads from a server's directory into the bucket that its settings name; can be run again.

What is there with the right length is not sent again: an object appears whole or not at all, and
only after its digest was compared. The directory keeps everything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from firmament.durable import Disk
    from firmament.server.payloads.port import BlobStore
    from firmament.server.payloads.store import DirectoryBlobs

_CHUNK_BYTES: Final = 1024 * 1024


def copy_payloads(disk: Disk, source: DirectoryBlobs, destination: BlobStore) -> dict[str, int]:
    """Copy every blob and published name; return counts. Raises DigestMismatchError for a damaged blob."""
    counts = {"copied": 0, "length_bytes": 0, "there_already": 0, "published": 0}
    for blob in source.blobs():
        if destination.length_bytes(blob.digest) == blob.length_bytes:
            counts["there_already"] += 1
            continue
        upload = destination.receive(blob.digest, expected_bytes=blob.length_bytes)
        reader = disk.open_reader(source.path(blob.digest))
        try:
            offset = 0
            while chunk := reader.read_at(offset, _CHUNK_BYTES):
                upload.write(chunk)
                offset += len(chunk)
            counts["length_bytes"] += upload.finish()
        finally:
            reader.close()
            upload.abandon()
        counts["copied"] += 1
    for target in source.targets():
        destination.publish(target.name, target.digest)
        counts["published"] += 1
    return counts
