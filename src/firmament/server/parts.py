"""Everything the edges share, put together once by the composition root (http/app.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from firmament.core.clock import Clock
    from firmament.server.audit.checkpoints import Checkpoints
    from firmament.server.database.port import Database
    from firmament.server.inventory.service import Registrar
    from firmament.server.inventory.store import LinkReader
    from firmament.server.layout import Layout
    from firmament.server.leader import Leadership
    from firmament.server.limits import TokenBuckets
    from firmament.server.outbox.compose import Out
    from firmament.server.payloads.custody import Custodian
    from firmament.server.payloads.port import BlobStore
    from firmament.server.payloads.upkeep import Upkeep
    from firmament.server.people.vault import Vault
    from firmament.server.releases.service import Publisher
    from firmament.server.rollouts.board import Board
    from firmament.server.seen import LastSeen
    from firmament.server.settings import ServerSettings
    from firmament.server.versions import ReplyVersions
    from firmament.trust.director import DirectorKeys


@dataclass(slots=True)
class Parts:
    """One running server's collaborators."""

    settings: ServerSettings
    layout: Layout
    clock: Clock
    database: Database
    leadership: Leadership
    link_reader: LinkReader
    director_keys: DirectorKeys
    reply_versions: ReplyVersions
    registrar: Registrar
    blobs: BlobStore
    publisher: Publisher
    checkpoints: Checkpoints
    out: Out
    upkeep: Upkeep
    last_seen: LastSeen
    board: Board
    address_limit: TokenBuckets
    device_limit: TokenBuckets
    enrolment_limit: TokenBuckets
    login_limit: TokenBuckets
    name_limit: TokenBuckets
    """Sign-in attempts for one name, from wherever."""
    vault: Vault
    custodian: Custodian
    is_draining: bool = False
    """Set by SIGTERM: load balancers shall send new requests elsewhere."""
