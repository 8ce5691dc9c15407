"""What the published repositories are signed with and when each part of that ends: for people.

Pure: reads one `Published` and says it in plain values. Nothing here decides about trust.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tuf.api.metadata import Snapshot, Timestamp

from firmament.trust import repository
from firmament.trust.keys import is_post_quantum
from firmament.trust.repository import TIMESTAMP_FILE, role_keys
from firmament.trust.roles import (
    ROOT,
    ROOT_LIFETIME,
    SNAPSHOT,
    SNAPSHOT_LIFETIME,
    TARGETS,
    TARGETS_LIFETIME,
    TIMESTAMP,
    TIMESTAMP_LIFETIME,
)

if TYPE_CHECKING:
    from datetime import datetime

    from tuf.api.metadata import Metadata, Root, Targets

    from firmament.server.releases.model import Published
    from firmament.trust.roles import RoleKeys

IMAGE: Final = "image"
DIRECTOR: Final = "director"
LIFETIMES: Final = {
    ROOT: ROOT_LIFETIME,
    TARGETS: TARGETS_LIFETIME,
    SNAPSHOT: SNAPSHOT_LIFETIME,
    TIMESTAMP: TIMESTAMP_LIFETIME,
}


def describe(published: Published) -> list[dict[str, Any]]:
    """Return every role of both repositories: keys, threshold, who signed, when it ends."""
    found: list[dict[str, Any]] = []
    root, director_root = published.root, published.director_root
    if root is not None:
        found.append(_role(IMAGE, ROOT, role_keys(root.signed, ROOT), root, is_online=False))
        if published.targets is not None:
            found.append(_role(IMAGE, TARGETS, role_keys(root.signed, TARGETS), published.targets, is_online=False))
            found.extend(
                _role(IMAGE, name, role_keys(published.targets.signed, name), metadata, is_online=False)
                for name, metadata in sorted(published.products.items())
            )
        found.extend(_online(published, root))
    if director_root is not None:
        found.append(_role(DIRECTOR, ROOT, role_keys(director_root.signed, ROOT), director_root, is_online=False))
        # The director answers each poll with metadata of its own; only its root is a file with an end.
        found.extend(
            _role(DIRECTOR, role, role_keys(director_root.signed, role), None, is_online=True)
            for role in (TARGETS, SNAPSHOT, TIMESTAMP)
        )
    return found


def _online(published: Published, root: Metadata[Root]) -> list[dict[str, Any]]:
    data = published.image_files.get(TIMESTAMP_FILE)
    if data is None:
        return []
    timestamp = repository.read(data, Timestamp, what=TIMESTAMP)
    snapshot = repository.read(
        published.image_files[f"{timestamp.signed.snapshot_meta.version}.{SNAPSHOT}.json"], Snapshot, what=SNAPSHOT
    )
    return [
        _role(IMAGE, SNAPSHOT, role_keys(root.signed, SNAPSHOT), snapshot, is_online=True),
        _role(IMAGE, TIMESTAMP, role_keys(root.signed, TIMESTAMP), timestamp, is_online=True),
    ]


def _role(
    name: str,
    role: str,
    keys: RoleKeys,
    metadata: Metadata[Root] | Metadata[Targets] | Metadata[Snapshot] | Metadata[Timestamp] | None,
    *,
    is_online: bool,
) -> dict[str, Any]:
    signed = set(metadata.signatures) if metadata is not None else set()
    return {
        "repository": name,
        "role": role,
        "version": metadata.signed.version if metadata is not None else None,
        "expires_at": _seconds(metadata.signed.expires) if metadata is not None else None,
        "lifetime_s": int(LIFETIMES.get(role, TARGETS_LIFETIME).total_seconds()),
        "threshold": keys.threshold,
        "hybrid_minimum": keys.hybrid_minimum,
        "is_online": is_online,
        "keys": [
            {
                "keyid": key.keyid,
                "kind": key.scheme,
                "is_post_quantum": is_post_quantum(key),
                "has_signed": key.keyid in signed,
            }
            for key in keys.keys
        ],
    }


def _seconds(moment: datetime) -> int:
    return int(moment.timestamp())
