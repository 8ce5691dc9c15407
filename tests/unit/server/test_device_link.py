"""The device link without a socket or a database: what each message leads to."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from firmament.core.consent import Mode
from firmament.core.digest import Digest
from firmament.core.ids import AttemptId, DeviceId
from firmament.core.manifest import Image, Manifest, Payload, Requires
from firmament.errors import ForbiddenError, NoContentKeyError, NoInstallerError
from firmament.protocol.status import AttemptStatus
from firmament.protocol.v1.messages import PollRequest, Report
from firmament.server.attempts.machine import AttemptState
from firmament.server.attempts.model import OpenAttempt
from firmament.server.device_link import (
    AcceptReport,
    BlockAttempt,
    Intervals,
    MoveAttempt,
    Note,
    Reply,
    Session,
    UpdateInventory,
    check_report,
    choose_fallback,
    choose_payload,
    on_poll,
    on_report,
    replies,
)
from firmament.server.inventory.model import Device

DEVICE = Device(
    row_id=1, tenant_id=1, device_id=DeviceId("11111111-1111-4111-8111-111111111111"), product="thermo",
    hardware="rpi4", identity_keyid="k", is_disabled=False, version="1.0", sequence_number=1,
    image_digest=f"sha256:{Digest.of(b'1').hex}", boot_id="a", attributes="{}",
)  # fmt: skip
DELTA = Payload("refdelta", 1, "thermo/2.0/delta", 1, Digest.of(b"d"), precursor_digest=Digest.of(b"1"))
WHOLE = Payload("whole", 1, "thermo/2.0/whole", 3, Digest.of(b"two"))
MANIFEST = Manifest(
    product="thermo", version="2.0", sequence_number=2, hardware=("rpi4",), installer="image",
    image=Image(Digest.of(b"two"), 3), payloads=(WHOLE, DELTA), created_at=datetime(2026, 1, 1, tzinfo=UTC),
)  # fmt: skip
ATTEMPT = OpenAttempt(
    7, AttemptId("22222222-2222-4222-8222-222222222222"), AttemptState.ASSIGNED, "", "", WHOLE.target, MANIFEST
)
INTERVALS = Intervals(1800, 60)
POLL = PollRequest(bytes(16), "1.0", 1, DEVICE.image_digest, "a")


def poll(session, **changes):
    after, effects = on_poll(session, replace(POLL, **changes), intervals=INTERVALS)
    return after, {type(effect): effect for effect in effects}


def test_nothing_to_do_is_nothing_to_write():
    _, effects = poll(Session(DEVICE, None))
    assert effects == {Reply: Reply(None, 1800)}


def test_a_change_is_learnt_once():
    after, effects = poll(Session(DEVICE, None), version="1.1", attributes={"os": "debian"})
    assert effects[UpdateInventory].version == "1.1"
    _, again = poll(after, version="1.1", attributes={"os": "debian"})
    assert set(again) == {Reply}


def test_the_first_poll_offers_and_remembers_the_boot_the_second_writes_nothing():
    after, effects = poll(Session(DEVICE, ATTEMPT))
    assert effects[MoveAttempt] == MoveAttempt(7, AttemptState.OFFERED, boot_id_before="a")
    assert effects[Reply].assignment.payload == WHOLE.target
    assert effects[Reply].poll_after_s == 60
    _, again = poll(after)
    assert set(again) == {Reply}


def test_the_smallest_payload_that_the_device_can_apply():
    delta_last = replace(ATTEMPT, manifest=replace(MANIFEST, payloads=(WHOLE, DELTA)))

    def chosen(**changes):
        return poll(Session(DEVICE, delta_last), **changes)[1][Reply].assignment.payload

    both = ("whole/1", "refdelta/1")
    assert chosen(methods=both) == DELTA.target
    assert chosen(methods=("whole/1",)) == WHOLE.target
    assert chosen(methods=both, image_digest=f"sha256:{Digest.of(b'other').hex}") == WHOLE.target
    assert chosen(methods=both, failed_payloads=(DELTA.target,)) == WHOLE.target, "never one that it said failed"


def test_a_sealed_payload_needs_both_methods_and_a_key_for_this_device():
    inner = {"method": "refdelta", "method_version": 1, "length_bytes": 1}
    sealed = replace(DELTA, method="sealed", target=DELTA.target + ".sealed", facts={"inner": inner})
    manifest = replace(MANIFEST, payloads=(WHOLE, sealed))
    asks = {"nonce": bytes(16), "version": "1.0", "sequence_number": 1, "image_digest": str(DELTA.precursor_digest)}
    able = PollRequest(**asks, methods=("whole/1", "refdelta/1", "sealed/1"))
    unable = PollRequest(**asks, methods=("whole/1", "sealed/1"))
    assert choose_payload(manifest, able, openable={sealed.target}) == sealed
    assert choose_payload(manifest, able) == WHOLE
    assert choose_payload(manifest, unable, openable={sealed.target}) == WHOLE
    assert choose_fallback(manifest, able, sealed, openable={sealed.target}) is None, "the whole one needs no key"
    facts = {"inner": {"method": "whole", "method_version": 1, "length_bytes": 1}}
    shut = replace(WHOLE, method="sealed", target=WHOLE.target + ".sealed", facts=facts)
    both = replace(MANIFEST, payloads=(shut, sealed))
    keys = {sealed.target, shut.target}
    assert choose_fallback(both, able, sealed, openable=keys) == shut
    assert choose_fallback(both, able, shut, openable=keys) is None


def test_a_release_that_only_others_may_open_waits_and_says_why():
    facts = {"inner": {"method": "whole", "method_version": 1, "length_bytes": 1}}
    shut = replace(WHOLE, method="sealed", target=WHOLE.target + ".sealed", facts=facts)
    attempt = replace(ATTEMPT, manifest=replace(MANIFEST, payloads=(shut,)))
    asks = PollRequest(bytes(16), "1.0", 1, methods=("whole/1", "sealed/1"))
    with pytest.raises(NoContentKeyError):
        choose_payload(attempt.manifest, asks)
    _, effects = on_poll(
        Session(DEVICE, attempt), asks, intervals=Intervals(600, 60), why_closed="the device's wrapping key was revoked"
    )
    blocked = next(effect for effect in effects if isinstance(effect, BlockAttempt))
    assert blocked.code == "policy/no-content-key"
    assert blocked.message == "The release is sealed, and the device's wrapping key was revoked"
    assert replies(effects).assignment is None
    with pytest.raises(NoInstallerError):
        choose_payload(attempt.manifest, replace(asks, methods=("whole/1",)))


@pytest.mark.parametrize(
    ("attempt", "changes", "code"),
    [
        (ATTEMPT, {"methods": ("whole/2",)}, "applicability/no-installer"),
        (
            replace(ATTEMPT, manifest=replace(MANIFEST, requires=Requires(min_agent=9))),
            {},
            "applicability/requirement",
        ),
    ],
)
def test_a_device_that_cannot_take_it_is_not_asked_and_the_reason_is_written_once(attempt, changes, code):
    after, effects = poll(Session(DEVICE, attempt), **changes)
    assert (effects[BlockAttempt].code, effects[Reply].assignment) == (code, None)
    _, again = poll(after, **changes)
    assert set(again) == {Reply}


def test_disabled_devices_hear_nothing():
    session = Session(replace(DEVICE, is_disabled=True), ATTEMPT)
    with pytest.raises(ForbiddenError):
        poll(session)
    with pytest.raises(ForbiddenError):
        check_report(session, report(), owner_row_id=1)


def report(status="fetching", **changes):
    given = {
        "device_id": DEVICE.device_id, "report_number": 5, "attempt_id": ATTEMPT.attempt_id,
        "status": AttemptStatus(status), "version": "1.0", "sequence_number": 1, "boot_id": "a",
        "at": datetime(2026, 1, 1, tzinfo=UTC),
    }  # fmt: skip
    return Report(**{**given, **changes})


def tell(attempt, **changes):
    after, effects = on_report(Session(DEVICE, attempt), report(**changes), b"payload")
    return after, {type(effect): effect for effect in effects}


def test_every_report_uses_up_its_number():
    for attempt, status in (
        (ATTEMPT, "fetching"),
        (None, "failed"),
        (replace(ATTEMPT, state=AttemptState.REVERTED), "trial"),
    ):
        _, effects = tell(attempt, status=status)
        assert effects[AcceptReport] == AcceptReport(5, Digest.of(b"payload").value)


def test_fetching_remembers_the_boot_later_reports_do_not():
    _, effects = tell(ATTEMPT, boot_id="b")
    assert effects[MoveAttempt].boot_id_before == "b"
    # After a power cut the queued report may be signed by the boot that runs the new image.
    _, effects = tell(replace(ATTEMPT, state=AttemptState.VERIFIED), status="staged", boot_id="c")
    assert effects[MoveAttempt].boot_id_before is None


def test_what_the_table_forbids_changes_nothing_but_is_noted():
    _, effects = tell(replace(ATTEMPT, state=AttemptState.CONFIRMED), status="trial")
    assert set(effects) == {AcceptReport, Note}
    _, effects = tell(replace(ATTEMPT, state=AttemptState.FETCHING), status="fetching")
    assert set(effects) == {AcceptReport}  # progress, said again


def test_other_devices_are_refused():
    with pytest.raises(ForbiddenError):
        check_report(Session(DEVICE, ATTEMPT), report(device_id=DeviceId("other")), owner_row_id=1)
    with pytest.raises(ForbiddenError):
        check_report(Session(DEVICE, ATTEMPT), report(), owner_row_id=2)
    check_report(Session(DEVICE, None), report(), owner_row_id=None)


def test_what_operators_ask_at_least_goes_along():
    _, effects = on_poll(Session(DEVICE, ATTEMPT), POLL, intervals=INTERVALS, consent=Mode.ASK)
    assert replies(effects).assignment.custom(DEVICE.device_id)["consent"] == "ask"
    _, effects = on_poll(Session(DEVICE, ATTEMPT), POLL, intervals=INTERVALS)
    assert "consent" not in replies(effects).assignment.custom(DEVICE.device_id)
