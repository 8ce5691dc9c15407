"""Starting a device: at its own poll, in one transaction, if every rule passes and there is room."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from firmament.server.attempts.opening import Origin, cancel_attempt, open_attempt
from firmament.server.rollouts.book import rhythm
from firmament.server.rollouts.decide import Code, deadline
from firmament.server.rollouts.facts import ask_about_start
from firmament.server.rollouts.machine import ENDED, TargetStatus
from firmament.server.rollouts.stop import engine_scope
from firmament.server.rollouts.store import RolloutRecord, by_row
from firmament.server.rollouts.targets import (
    Room,
    Target,
    active_target,
    give_slot,
    move_target,
    set_code,
    take_slot,
)
from firmament.server.rollouts.why import (
    PERMANENT,
    DeviceFacts,
    PollFacts,
    Question,
    Verdict,
    first_missing,
    is_old_stock,
)

if TYPE_CHECKING:
    from datetime import datetime

    from firmament.protocol.v1.messages import PollRequest
    from firmament.server.database.port import Connection
    from firmament.server.inventory.model import Device


def describe(device: Device, poll: PollRequest) -> DeviceFacts:
    """Return a device as the rules see it: what it says now, not what was stored."""
    return DeviceFacts(
        device_id=device.device_id,
        product=device.product,
        hardware=device.hardware,
        sequence_number=poll.sequence_number,
        version=poll.version,
        is_disabled=device.is_disabled,
        attributes=poll.attributes,
    )


def polled(poll: PollRequest) -> PollFacts:
    """Return what a device that polls can take."""
    return PollFacts(poll.agent_level, poll.methods, poll.image_digest)


def begin(connection: Connection, device_row: int, device: DeviceFacts, poll: PollFacts, now: datetime) -> bool:
    """Open the attempt that a rollout wants for a device that polls; return whether there is one now.

    Decides everything again inside the transaction: between the poll's look and this one the
    wave may have closed, or the last place may have gone.
    """
    target = active_target(connection, device_row)
    if target is None:
        return False
    if target.status is TargetStatus.REVERTING:
        return _begin_way_back(connection, target, device, now)
    if target.status is TargetStatus.SILENT:
        # It calls again, and its attempt was taken back meanwhile: from the start.
        is_over = by_row(connection, target.rollout_id).state in ENDED
        moved = move_target(
            connection, target, TargetStatus.WAITING, now_s=int(now.timestamp()), stays_active=not is_over
        )
        if moved is None or is_over:
            return False
        target = moved
    question, rollout = ask_about_start(connection, target, now=now, poll=poll, device=device)
    missing = first_missing(question)
    if missing is not None:
        if missing.verdict is Verdict.BLOCK and missing.rule in PERMANENT:
            move_target(
                connection, target, TargetStatus.SKIPPED, now_s=int(now.timestamp()), code=Code.NOT_APPLICABLE.value
            )
        elif missing.verdict is Verdict.BLOCK:
            set_code(connection, target, missing.rule)
        return False
    return _start(connection, target, rollout, question, now)


def _start(connection: Connection, target: Target, rollout: RolloutRecord, question: Question, now: datetime) -> bool:
    now_s, policy, device = int(now.timestamp()), rollout.policy, question.device
    room = _room(question, target)
    slot = take_slot(connection, target, room, now_s=now_s)
    if not slot:
        return False
    attempt_row, _ = open_attempt(
        connection,
        engine_scope(target.tenant_id),
        device_row=target.device_id,
        device_id=device.device_id,
        release_row=rollout.release_id,
        release=rollout.release,
        now=now,
        origin=Origin(rollout.row_id, rollout.rollout_id),
    )
    moved = move_target(
        connection,
        target,
        TargetStatus.OFFERED,
        now_s=now_s,
        deadline=deadline(policy, TargetStatus.OFFERED, now_s=now_s, interval_s=rhythm(connection, target.device_id)),
        attempt_id=attempt_row,
        counts_a_try=True,
        source=device.version,
        takes_slot=slot,
    )
    if moved is None:
        # Somebody moved the target between our look and now; the attempt is not the device's.
        give_slot(connection, replace(target, slot=slot))
        cancel_attempt(connection, engine_scope(target.tenant_id), attempt_row, now, reason="the target moved")
        return False
    if policy.site_commit_s is not None and target.site_id is not None:
        connection.execute(
            "INSERT INTO rollout_site(rollout_id, site_id, tenant_id, state, deadline) VALUES (?, ?, ?, 'open', ?) "
            "ON CONFLICT(rollout_id, site_id) DO NOTHING",
            (rollout.row_id, target.site_id, target.tenant_id, now_s + policy.site_commit_s),
        )
    return True


def _room(question: Question, target: Target) -> Room:
    assert question.rollout is not None  # a start is always some rollout's
    caps, lane = question.rollout.policy.caps, question.rollout.policy.old_stock
    in_lane = lane is not None and is_old_stock(question)
    # In the lane a device need not wait for its wave once the first one is through.
    wave = min(target.wave, 2) if in_lane else target.wave
    return Room(
        wave=wave,
        total=lane.max_in_flight if lane is not None and in_lane else caps.total,
        per_site=caps.per_site,
        per_gateway=caps.per_gateway,
        starts_per_minute=caps.starts_per_minute,
        is_old_stock=in_lane,
    )


def _begin_way_back(connection: Connection, target: Target, device: DeviceFacts, now: datetime) -> bool:
    """Open the attempt to go back to the release that ran before; keep the device as it is when there is none."""
    rollout = by_row(connection, target.rollout_id)
    now_s = int(now.timestamp())
    before = connection.execute(
        "SELECT id FROM release WHERE tenant_id = ? AND product_id = ? AND version = ? AND withdrawn_at IS NULL",
        (target.tenant_id, rollout.product_id, target.source),
    ).fetchone()
    if before is None or target.attempt_id is None:
        move_target(connection, target, TargetStatus.UPDATED, now_s=now_s, code=Code.NO_WAY_BACK.value)
        return False
    attempt_row, _ = open_attempt(
        connection,
        engine_scope(target.tenant_id),
        device_row=target.device_id,
        device_id=device.device_id,
        release_row=before["id"],
        release=f"{rollout.product}/{target.source}",
        now=now,
        origin=Origin(rollout.row_id, rollout.rollout_id, takes_back=_install_of(connection, target.attempt_id)),
    )
    connection.execute(
        "UPDATE rollout_target SET attempt_id = ?, updated_at = ? WHERE rollout_id = ? AND device_id = ?",
        (attempt_row, now_s, target.rollout_id, target.device_id),
    )
    return True


def _install_of(connection: Connection, attempt_row: int) -> str:
    """Return the attempt that installed the release; a way back that was tried before names it."""
    row = connection.execute("SELECT uid, takes_back FROM attempt WHERE id = ?", (attempt_row,)).fetchone()
    return str(row["takes_back"] or row["uid"])
