"""Reading what the rules look at: one device, one release, one rollout."""

from __future__ import annotations

from typing import TYPE_CHECKING

from firmament.errors import NotFoundError
from firmament.server.consent import answers
from firmament.server.inventory.attributes import decode_attributes
from firmament.server.inventory.marks import reason_of
from firmament.server.inventory.model import Mark
from firmament.server.inventory.store import decode_manifest, get_device
from firmament.server.payloads.content_keys import openable
from firmament.server.releases.find import find_named
from firmament.server.rollouts.machine import RolloutState
from firmament.server.rollouts.store import RolloutRecord, by_row
from firmament.server.rollouts.targets import EVERYTHING, OLD_STOCK, Target, active_target, find_target
from firmament.server.rollouts.why import Consent, DeviceFacts, PollFacts, Question, RolloutFacts
from firmament.server.scope import Scope

if TYPE_CHECKING:
    from datetime import datetime

    from firmament.core.manifest import Manifest
    from firmament.server.database.port import Connection


def ask_about_start(
    connection: Connection, target: Target, *, now: datetime, poll: PollFacts, device: DeviceFacts
) -> tuple[Question, RolloutRecord]:
    """Return the question whether a target may start now, for a device that polls."""
    rollout = by_row(connection, target.rollout_id)
    manifest = decode_manifest(rollout.manifest)
    question = Question(
        device=device,
        manifest=manifest,
        is_withdrawn=rollout.is_withdrawn,
        now=now,
        failure=_failure(connection, target.device_id, rollout.release_id),
        quarantine=_quarantine(connection, target.device_id),
        pin=reason_of(connection, target.device_id, Mark.PINNED),
        rollout=_rollout_facts(connection, rollout, target, now),
        target=target,
        poll=poll,
        consent=_consent(connection, rollout.tenant_id, target.device_id, rollout.release_id, manifest, now),
        openable=openable(connection, rollout.tenant_id, target.device_id, manifest),
    )
    return question, rollout


def ask_why(connection: Connection, scope: Scope, device_id: str, release: str | None, now: datetime) -> Question:
    """Return the question a person asks about a device; without a release, about its active rollout's.

    Raises NotFoundError for a device or release that is not in the scope, or when there is no rollout to ask about.
    """
    record = get_device(connection, scope, device_id)
    active = active_target(connection, record.row_id)
    if release is None:
        if active is None:
            raise NotFoundError("No rollout wants this device; name a release", device_id=device_id)
        rollout: RolloutRecord | None = by_row(connection, active.rollout_id)
        assert rollout is not None  # a target has one
        manifest, is_withdrawn, release_row = (
            decode_manifest(rollout.manifest),
            rollout.is_withdrawn,
            rollout.release_id,
        )
        target: Target | None = active
    else:
        manifest, is_withdrawn, release_row = _release(connection, scope, release)
        rollout, target = _newest_rollout(connection, record.row_id, release_row)
    device = DeviceFacts(
        device_id=record.device_id,
        product=record.product,
        hardware=record.hardware,
        sequence_number=record.sequence_number,
        version=record.version,
        is_disabled=record.disabled,
        attributes=decode_attributes(record.attributes),
        last_seen=record.last_seen,
    )
    return Question(
        device=device,
        manifest=manifest,
        is_withdrawn=is_withdrawn,
        now=now,
        failure=_failure(connection, record.row_id, release_row),
        quarantine=_quarantine(connection, record.row_id),
        pin=reason_of(connection, record.row_id, Mark.PINNED),
        busy_with=_busy_with(connection, record.row_id, release_row, target, active),
        rollout=None if rollout is None else _rollout_facts(connection, rollout, target, now),
        target=target,
        consent=_consent(connection, scope.tenant_id, record.row_id, release_row, manifest, now),
        openable=openable(connection, scope.tenant_id, record.row_id, manifest),
    )


def _consent(
    connection: Connection, tenant_id: int, device_row: int, release_row: int, manifest: Manifest, now: datetime
) -> Consent | None:
    """Return what the owner's rule or answer holds against a start; asking itself is the device's business."""
    found = answers.verdicts(
        connection,
        Scope(tenant_id, "server"),
        [device_row],
        release_row=release_row,
        update_class=manifest.update_class,
        now=now,
    ).get(device_row)
    if found is None or found.may_install:
        return None
    if found.may_offer and found.until is None:
        return None  # an owner who is to be asked needs the offer
    until = int(found.until.timestamp()) if found.until is not None else None
    return Consent(found.standing.value, f"{found.sentence}.", not found.may_offer and until is None, until)


def _release(connection: Connection, scope: Scope, release: str) -> tuple[Manifest, bool, int]:
    row = find_named(connection, scope, release)
    return decode_manifest(bytes(row["manifest"])), row["withdrawn_at"] is not None, int(row["id"])


def _newest_rollout(
    connection: Connection, device_row: int, release_row: int
) -> tuple[RolloutRecord | None, Target | None]:
    rows = connection.execute(
        "SELECT id FROM rollout WHERE release_id = ? ORDER BY id DESC LIMIT 50", (release_row,)
    ).fetchall()
    for row in rows:
        target = find_target(connection, row["id"], device_row)
        if target is not None:
            return by_row(connection, row["id"]), target
    return None, None


def _busy_with(
    connection: Connection, device_row: int, release_row: int, target: Target | None, active: Target | None
) -> str | None:
    attempt = connection.execute(
        "SELECT a.id, p.name AS product, r.version FROM attempt a JOIN release r ON r.id = a.release_id "
        "JOIN product p ON p.id = r.product_id WHERE a.device_id = ? AND a.active = 1 AND a.release_id <> ?",
        (device_row, release_row),
    ).fetchone()
    if attempt is not None:
        return f"{attempt['product']}/{attempt['version']}"
    if active is not None and (target is None or active.rollout_id != target.rollout_id):
        return by_row(connection, active.rollout_id).release
    return None


def _rollout_facts(
    connection: Connection, rollout: RolloutRecord, target: Target | None, now: datetime
) -> RolloutFacts:
    site = f"site:{target.site_id}" if target is not None else EVERYTHING
    gateway = f"gateway:{target.gateway_id}" if target is not None else EVERYTHING
    rows = connection.execute(
        "SELECT scope, open_wave, in_flight, minute, started FROM rollout_limit "
        "WHERE rollout_id = ? AND scope IN (?, ?, ?, ?)",
        (rollout.row_id, EVERYTHING, OLD_STOCK, site, gateway),
    ).fetchall()
    everything = next(row for row in rows if row["scope"] == EVERYTHING)
    is_this_minute = everything["minute"] == int(now.timestamp()) // 60
    return RolloutFacts(
        rollout_id=rollout.rollout_id,
        name=rollout.name,
        state=RolloutState(rollout.state),
        policy=rollout.policy,
        open_wave=everything["open_wave"],
        in_flight={row["scope"]: row["in_flight"] for row in rows},
        started_this_minute=everything["started"] if is_this_minute else 0,
    )


def _failure(connection: Connection, device_row: int, release_row: int) -> tuple[str, int] | None:
    row = connection.execute(
        "SELECT code, at FROM device_failure WHERE device_id = ? AND release_id = ?", (device_row, release_row)
    ).fetchone()
    return None if row is None else (row["code"], row["at"])


def _quarantine(connection: Connection, device_row: int) -> str | None:
    row = connection.execute("SELECT reason FROM device_quarantine WHERE device_id = ?", (device_row,)).fetchone()
    return None if row is None else str(row["reason"])
