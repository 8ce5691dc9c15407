"""Hypothesis strategies for everything the agent's journal may hold."""

import string
from datetime import UTC, datetime

from hypothesis import strategies as st

from firmament.agent.machine import State
from firmament.agent.outcome import POSSIBLE
from firmament.agent.owner import MAX_CONSENTS, MAX_SKIPPED, Owner, Said
from firmament.agent.policy import Answer, Consent
from firmament.agent.record import (
    MAX_HISTORY,
    MAX_LOG_LINE_LENGTH,
    MAX_LOG_LINES,
    MAX_MESSAGE_LENGTH,
    MAX_OUTBOX,
    MAX_PARCEL_PATH_LENGTH,
    Attempt,
    Ended,
    FailedPayload,
    Reason,
    Record,
    Release,
)
from firmament.agent.slots.port import Label
from firmament.core.consent import Mode
from firmament.core.digest import Digest
from firmament.core.ids import AttemptId, DeviceId
from firmament.core.manifest import Image, Manifest, Payload, UpdateClass
from firmament.protocol.status import AttemptStatus, ConsentAnswer, Outcome
from firmament.protocol.v1.messages import ConsentEvent, Report

BIG = st.integers(0, 2**63 - 1)
uuids = st.uuids().map(str)
attempt_ids = uuids.map(AttemptId)
device_ids = uuids.map(DeviceId)
printable = st.text(st.characters(exclude_categories=("C", "Z"), include_characters=" "), max_size=20)
times = st.integers(0, 4_000_000_000).map(lambda seconds: datetime.fromtimestamp(seconds, UTC))
digests = st.binary(min_size=32, max_size=32).map(lambda value: Digest("sha256", value))
labels = st.sampled_from(Label)
versions = st.from_regex(r"[0-9]{1,3}(\.[0-9]{1,3}){0,3}", fullmatch=True)
codes = st.sampled_from(["", "slot/health", "trust/digest-mismatch", "state/loop"])
images = st.builds(Image, digests, st.integers(1, 2**30))


@st.composite
def manifests(draw):
    version, image = draw(versions), draw(images)
    payload = Payload("whole", 1, f"thermo/{version}/image", image.length_bytes, image.digest)
    return Manifest(
        product="thermo",
        version=version,
        sequence_number=draw(st.integers(1, 2**63 - 1)),
        hardware=("sim1",),
        installer="image",
        image=image,
        payloads=(payload,),
        created_at=draw(times),
        update_class=draw(st.sampled_from(UpdateClass)),
        notes=draw(st.dictionaries(st.sampled_from(["en", "de", "pt-BR"]), printable, max_size=3)),
    )


reasons = st.builds(Reason, codes, printable, st.lists(printable, max_size=5).map(tuple))
releases = st.builds(Release, versions, BIG, images, labels)


@st.composite
def attempts(draw):
    manifest = draw(st.none() | manifests())
    return Attempt(
        attempt_id=draw(attempt_ids),
        manifest=manifest,
        payload=manifest.payloads[0].target if manifest else "",
        key_wrap=draw(st.none() | st.binary(max_size=64)),
        issued_at=draw(st.none() | times),
        slot=draw(st.none() | labels),
        offset=draw(BIG),
        stored=draw(BIG),
        failed=draw(st.lists(st.builds(FailedPayload, codes, codes), max_size=2).map(tuple)),
        fallback=draw(codes),
        fallback_wrap=draw(st.none() | st.binary(max_size=64)),
        parcel=draw(codes),
        is_local=draw(st.booleans()),
        starts_over=draw(st.integers(0, 5)),
        tries=draw(st.integers(0, 50)),
        restarts=draw(st.integers(0, 10)),
        armed_boot_id=draw(uuids),
        trial_boot_id=draw(uuids),
        deadline_s=draw(BIG),
        lives=draw(st.integers(0, 20)),
        stores=draw(st.integers(0, 100)),
        consent=draw(st.none() | st.builds(Consent, st.sampled_from(Answer), times)),
        reason=draw(reasons),
    )


ended = st.builds(Ended, attempt_ids, st.just("thermo/1.0"), st.sampled_from(AttemptStatus), times, codes, printable)
reports = st.builds(
    Report,
    device_id=device_ids,
    report_number=st.integers(1, 2**63 - 1),
    attempt_id=attempt_ids,
    status=st.sampled_from(AttemptStatus),
    version=versions,
    sequence_number=BIG,
    boot_id=uuids,
    at=times,
    code=codes,
    message=printable,
    log=st.lists(printable, max_size=5).map(tuple),
)


owners = st.builds(
    Owner,
    is_opted_out=st.booleans(),
    security=st.none() | st.sampled_from(Mode),
    feature=st.none() | st.sampled_from(Mode),
    skipped=st.lists(versions.map("thermo/{}".format), max_size=3).map(tuple),
)
saids = st.builds(
    Said,
    st.builds(
        ConsentEvent,
        device_id=device_ids,
        consent_number=st.integers(1, 2**63 - 1),
        answer=st.sampled_from(ConsentAnswer),
        at=times,
        actor=printable,
        via=printable,
        attempt_id=st.none() | attempt_ids,
        update_class=st.none() | st.sampled_from(UpdateClass),
        until=st.none() | times,
    ),
    st.booleans(),
)


@st.composite
def records(draw):
    state = draw(st.sampled_from(State))
    return Record(
        state=state,
        outcome=draw(st.sampled_from(sorted(POSSIBLE[state]))),
        attempt=None if state is State.IDLE else draw(attempts()),
        running=draw(st.none() | releases),
        previous=draw(st.none() | releases),
        history=tuple(draw(st.lists(ended, max_size=4))),
        outbox=tuple(draw(st.lists(reports, max_size=4))),
        report_number=draw(BIG),
        owner=draw(owners),
        consents=tuple(draw(st.lists(saids, max_size=4))),
        consent_number=draw(BIG),
        unknown=draw(st.dictionaries(st.sampled_from(["later", "even_later"]), BIG | printable, max_size=2)),
    )


def largest_record():
    """Every bound of the record reached at once, with the longest characters there are."""
    wide = "\U0001d11e"  # four bytes in UTF-8
    reason = Reason("x" * 64, wide * MAX_MESSAGE_LENGTH, (wide * MAX_LOG_LINE_LENGTH,) * MAX_LOG_LINES)
    now, identity = datetime(2026, 11, 20, tzinfo=UTC), "0f1e2d3c-4b5a-4968-8776-655443322110"
    image = Image(Digest.of(b""), 1)
    languages = [f"{a}{b}" for a in string.ascii_lowercase for b in "ab"][:12]
    manifest = Manifest(
        product="p" * 63,
        version="1" * 64,
        sequence_number=2**63 - 1,
        hardware=("h" * 64,) * 64,
        installer="image",
        image=image,
        payloads=(Payload("whole", 1, "t" * 511, 1, Digest.of(b"")),) * 16,
        created_at=now,
        notes=dict.fromkeys(languages, wide * 1024),
    )
    report = Report(
        device_id=DeviceId(identity),
        report_number=2**63 - 1,
        attempt_id=AttemptId(identity),
        status=AttemptStatus.CONFIRMED,
        version="1" * 64,
        sequence_number=2**63 - 1,
        boot_id="b" * 64,
        at=now,
        code=reason.code,
        message=reason.message,
        log=reason.log,
    )
    consent = ConsentEvent(
        device_id=DeviceId(identity),
        consent_number=2**63 - 1,
        answer=ConsentAnswer.WITHDRAWN,
        at=now,
        actor="uid:4294967295",
        via="command",
        attempt_id=AttemptId(identity),
        release_id="p" * 128,
        update_class=UpdateClass.SECURITY,
        until=now,
        text_digest=str(Digest.of(b"")),
        language="pt-BR",
    )
    over = Ended(AttemptId(identity), "p" * 128, AttemptStatus.CONFIRMED, now, reason.code, reason.message)
    release = Release("1" * 64, 2**63 - 1, image, Label.A)
    return Record(
        state=State.TRIAL,
        outcome=Outcome.REVERTED,
        attempt=Attempt(
            AttemptId(identity),
            manifest,
            "t" * 511,
            key_wrap=b"k" * 1716,
            issued_at=now,
            slot=Label.A,
            offset=2**60,
            stored=2**60,
            failed=(FailedPayload("t" * 511, "c" * 40),) * 2,
            fallback="t" * 511,
            fallback_wrap=b"k" * 1716,
            takes_back=AttemptId(identity),
            parcel=wide * MAX_PARCEL_PATH_LENGTH,
            is_local=True,
            armed_boot_id="b" * 64,
            trial_boot_id="b" * 64,
            deadline_s=2**60,
            consent=Consent(Answer.LATER, now, now),
            asked_at=now,
            postponed=1_000_000,
            reason=reason,
        ),
        running=release,
        previous=release,
        history=(over,) * MAX_HISTORY,
        outbox=(report,) * MAX_OUTBOX,
        report_number=2**63 - 1,
        owner=Owner(
            is_opted_out=True, security=Mode.AUTOMATIC, feature=Mode.AUTOMATIC, skipped=("p" * 128,) * MAX_SKIPPED
        ),
        consents=(Said(consent),) * MAX_CONSENTS,
        consent_number=2**63 - 1,
    )
