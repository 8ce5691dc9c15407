"""Which release goes to which devices by hand: the attempts are opened as if they were assigned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from firmament.core.ids import DeviceId
from firmament.errors import ConflictError, MalformedError, TooLargeError
from firmament.protocol.v1.messages import NONCE_LENGTH_BYTES, PollRequest
from firmament.server import events
from firmament.server.attempts import service as attempts
from firmament.server.consent.rules import asked_at_least
from firmament.server.device_link import choose_payload
from firmament.server.events import Event
from firmament.server.inventory.search import find_devices
from firmament.server.inventory.store import decode_manifest, get_device
from firmament.server.payloads import content_keys
from firmament.server.releases.find import find_served
from firmament.server.scope import Action
from firmament.trust.director import Assignment

if TYPE_CHECKING:
    from collections.abc import Container, Sequence
    from datetime import datetime

    from firmament.core.manifest import Manifest, Payload
    from firmament.server.database.port import Connection
    from firmament.server.payloads.custody import Custodian
    from firmament.server.scope import Scope

MAX_DEVICES: Final = 500
# Per parcel: their metadata travels in one answer, 1.5 KiB each, 5 KiB with wrapped keys.
WHOLE: Final = "whole/1"
SEALED: Final = "sealed/1"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A published release, as a parcel needs it."""

    product: str
    manifest: Manifest
    target: str


@dataclass(frozen=True, slots=True)
class Addressee:
    """One device and what it shall do."""

    device_id: DeviceId
    assignment: Assignment
    payload: Payload


def wanted_release(connection: Connection, scope: Scope, *, product: str, version: str) -> Wanted:
    """Return a release; raises NotFoundError, ConflictError for one that was withdrawn."""
    row = find_served(connection, scope, product, version)
    return Wanted(product, decode_manifest(bytes(row["manifest"])), row["target"])


def choose_carried(manifest: Manifest, *, openable: Container[str] = (), why_closed: str = "") -> Payload:
    """Return the payload that a parcel takes: the whole image, which needs nothing of the device.

    What the device runs when the parcel reaches it, nobody knows, and a stick has room. A sealed
    one only if its key can be wrapped (`openable`, as in `device_link.on_poll`). Raises
    NoInstallerError.
    """
    known = PollRequest(
        nonce=bytes(NONCE_LENGTH_BYTES),
        version="",
        sequence_number=0,
        image_digest="",
        boot_id="",
        attributes={},
        methods=(WHOLE, SEALED),
        agent_level=manifest.requires.min_agent,
    )
    return choose_payload(manifest, known, openable=openable, why_closed=why_closed)


def address(
    connection: Connection,
    scope: Scope,
    wanted: Wanted,
    custodian: Custodian,
    *,
    ids: Sequence[str],
    query: str | None,
    parcel_id: str,
    now: datetime,
) -> list[Addressee]:
    """Open an attempt for each device that is named or that a query selects, all or none.

    The key of a sealed payload goes along, wrapped for each. Raises as `attempts.assign`;
    MalformedError when it would be nobody, TooLargeError for too many, NoInstallerError when one
    of them can be given nothing.
    """
    scope.require(Action.ASSIGN, product=wanted.product)
    if query is not None:
        narrowed = f"product={wanted.product} and ({query})" if query.strip() else f"product={wanted.product}"
        found = find_devices(connection, scope, query=narrowed, after=0, limit=MAX_DEVICES + 1, now=now)
        ids = [device.device_id for device in found if not device.disabled]
        if len(found) >= MAX_DEVICES:
            raise TooLargeError("Too many devices for one parcel", limit=MAX_DEVICES - 1)
    if not ids:
        raise MalformedError("A parcel is for at least one device", query=query or "")
    primary = wanted.manifest.payloads[0]
    made = []
    for device_id in dict.fromkeys(ids):
        device = get_device(connection, scope, device_id)
        if device.disabled:
            raise ConflictError("A device is disabled", device_id=device_id)
        openable = content_keys.openable(connection, scope.tenant_id, device.row_id, wanted.manifest)
        payload = choose_carried(wanted.manifest, openable=openable.held, why_closed=openable.reason)
        attempt_id = attempts.assign(
            connection,
            scope,
            device_id=device_id,
            product=wanted.product,
            version=wanted.manifest.version,
            now=now,
        )
        assignment = Assignment(
            attempt_id=attempt_id,
            target=wanted.target,
            length_bytes=primary.length_bytes,
            digest=primary.digest,
            payload=payload.target,
            key_wrap=openable.wrap_for(custodian, payload, device_id=device_id),
            consent=asked_at_least(connection, scope, device.row_id, wanted.manifest.update_class, now),
        )
        made.append(Addressee(DeviceId(device_id), assignment, payload))
    events.append(
        connection,
        scope,
        Event.PARCEL_EXPORTED,
        now,
        subject=wanted.manifest.release_id,
        parcel_id=parcel_id,
        devices=len(made),
    )
    return made
