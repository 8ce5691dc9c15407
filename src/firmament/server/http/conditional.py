"""Polls that only ask whether anything changed: 304 while a poll would say "nothing to do" again (ADR-0037).

Nothing is remembered of anybody. Whether there is anything is asked of the same rows that a poll
goes by, and the tag says under which keys and wishes the last answer was given. What the device
itself tells in a poll has not changed: else it does not ask this way.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

from firmament import __version__
from firmament.core import canonical
from firmament.errors import FirmamentError, UnauthenticatedError
from firmament.log import logger
from firmament.protocol.v1 import paths
from firmament.protocol.v1.messages import PROTOCOL_VERSION
from firmament.server.device_link import require_identity
from firmament.server.http.messages import JSON, NO_STORE, header, new_request_id, problem, unexpected
from firmament.server.inventory.store import GLANCE_QUERY
from firmament.server.rollouts.board import PendingTarget
from firmament.server.rollouts.machine import TargetStatus

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from firmament.server.authority import PeerIdentity
    from firmament.server.http.front import Front
    from firmament.server.http.messages import AsgiScope
    from firmament.server.http.short import Answer
    from firmament.server.parts import Parts
    from firmament.server.rollouts.board import Board

log = logger("server.device-api")

TAG_LENGTH: Final = 32
_UNCHANGED: Final = (304, (NO_STORE,), b"")
_CHANGED: Final = (200, (JSON, NO_STORE), b'{"v":%d}' % PROTOCOL_VERSION)


class ConditionalPolls:
    """Says whether a device that was told "nothing to do" would be told so again (`short.Short`)."""

    def __init__(self, parts: Parts, front: Front | None = None) -> None:
        self._parts = parts
        self._front = front
        self.tag = make_tag(parts)
        self._quoted = f'"{self.tag}"'.encode()
        # An embedded database answers in the event loop; one that is shared is asked over a connection.
        self.answers_at_once = not parts.database.is_shared

    async def answer(self, scope: AsgiScope) -> Answer:
        """Return status, headers and body; raises nothing."""
        parts = self._parts
        try:
            peer, address = self._admit(scope)
            row = await parts.database.look_up(GLANCE_QUERY, peer.device_id)
            found = self._judge(scope, peer, address, row)
        except FirmamentError as error:
            return self._refusal(scope, error)
        except Exception as error:  # noqa: BLE001 - a defect of ours: logged with its trace, answered with a 500
            return self._refusal(scope, unexpected(error, ""))
        if log.is_debugging:
            self._log(log.debug, scope, status=found[0])
        return found

    def _admit(self, scope: AsgiScope) -> tuple[PeerIdentity, str]:
        """Return whose certificate was verified, and from where they ask."""
        if self._front is not None:
            self._front.admit(scope)
        parts, client = self._parts, scope["client"]
        address = client[0] if client else ""
        now_s = parts.clock.monotonic_s()
        parts.address_limit.require(address, now_s, what="requests from this address")
        peer: PeerIdentity | None = scope["state"]["peer"]
        if peer is None:
            raise UnauthenticatedError("This needs a device certificate")
        parts.device_limit.require(peer.device_id, now_s, what="requests of this device")
        return peer, address

    def _judge(self, scope: AsgiScope, peer: PeerIdentity, address: str, row: Any) -> Answer:
        if row is None:
            raise UnauthenticatedError("This device is not enrolled here", device_id=peer.device_id)
        _, row_id, keyid, is_disabled, attempt, *rest = row
        require_identity(peer.device_id, is_disabled=bool(is_disabled), enrolled=keyid, shown=peer.keyid)
        parts = self._parts
        now = parts.clock.now()
        parts.last_seen.note(row_id, int(now.timestamp()), address, is_idle_poll=attempt is None)
        is_same = header(scope, b"if-none-match") == self._quoted
        return _UNCHANGED if is_same and has_nothing_to_do(attempt, *rest, board=parts.board, now=now) else _CHANGED

    def _refusal(self, scope: AsgiScope, error: FirmamentError) -> Answer:
        request_id = new_request_id()
        status, headers, body = problem(error, request_id)
        self._log(log.info, scope, status=status, code=error.code, request_id=request_id)
        return status, headers, body

    def _log(self, say: Callable[..., None], scope: AsgiScope, **facts: object) -> None:
        peer: PeerIdentity | None = scope["state"]["peer"]
        device_id = peer.device_id if peer is not None else ""
        address = scope["client"][0] if scope["client"] else ""
        say("request.done", method="GET", path=paths.POLL, device_id=device_id, address=address, **facts)


def has_nothing_to_do(  # the columns of the query, in its order
    attempt: int | None,
    sequence_number: int,
    attributes: str,
    rollout: int | None,
    wave: int,
    status: str,
    not_before: int,
    *,
    board: Board,
    now: datetime,
) -> bool:
    """Whether a poll of a device with this row of `GLANCE_QUERY` would be told "nothing to do", by the board."""
    if attempt is not None:
        return False
    return rollout is None or not board.may_begin(
        PendingTarget(rollout, wave, TargetStatus(status), not_before),
        sequence_number=sequence_number,
        attributes=attributes,
        now=now,
    )


def make_tag(parts: Parts) -> str:
    """Return what "nothing to do" depends on beside the device's own rows; all servers of one fleet make the same."""
    keys, settings = parts.director_keys, parts.settings
    value = {
        "version": __version__,
        "keyids": [signer.public_key.keyid for signer in (keys.targets, keys.snapshot, keys.timestamp)],
        "poll_interval_s": settings.poll_interval_s,
    }
    return hashlib.sha256(canonical.encode(value)).hexdigest()[:TAG_LENGTH]
