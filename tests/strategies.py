"""Hypothesis strategies for whole, valid values; tests break one thing at a time."""

from dataclasses import replace
from datetime import UTC, datetime

from hypothesis import strategies as st

from firmament.core.digest import Digest
from firmament.core.ids import HARDWARE, PRODUCT, TARGET_PATH, UUID, VERSION, AttemptId, DeviceId
from firmament.core.manifest import ChunkPin, Image, Inner, Manifest, Payload, Preconditions, Requires, UpdateClass
from firmament.protocol.status import AttemptStatus, ConsentAnswer
from firmament.protocol.v1 import messages
from firmament.protocol.v1.envelope import REPORT_TYPE, Envelope

LARGEST = 2**63 - 1


def like(pattern, max_size=512):
    return st.from_regex(pattern, fullmatch=True).filter(lambda text: len(text) <= max_size)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
counts = st.integers(0, LARGEST)
times = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30)).map(lambda t: t.replace(microsecond=0, tzinfo=UTC))  # noqa: DTZ001
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**18), 10**18) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
digests = st.one_of(
    st.builds(Digest, st.just("sha256"), st.binary(min_size=32, max_size=32)),
    st.builds(Digest, st.just("sha512"), st.binary(min_size=64, max_size=64)),
)
images = st.builds(Image, digest=digests, length_bytes=st.integers(0, 64 * 1024**3))
words = like(r"[a-z][a-z0-9-]{0,31}")
payloads = st.builds(
    Payload,
    method=words,
    method_version=st.integers(1, 255),
    target=like(TARGET_PATH),
    length_bytes=st.integers(0, 64 * 1024**3),
    digest=digests,
    precursor_digest=st.none() | digests,
    facts=st.dictionaries(texts, json_values, max_size=2),
)
chunk_pins = st.builds(ChunkPin, st.integers(4096, 16 * 1024**2), digests)
inners = st.builds(Inner, method=words, method_version=st.integers(1, 255), length_bytes=st.integers(0, 64 * 1024**3))
sealed_payloads = st.builds(
    replace,
    payloads,
    method=st.just("sealed"),
    facts=st.builds(lambda inner, pin: {"inner": inner.to_json(), "chunks": pin.to_json()}, inners, chunk_pins),
)
manifests = st.builds(
    Manifest,
    product=like(PRODUCT),
    version=like(VERSION),
    sequence_number=st.integers(1, LARGEST),
    hardware=st.lists(like(HARDWARE), min_size=1, max_size=3).map(tuple),
    installer=words,
    image=images,
    payloads=st.lists(payloads | sealed_payloads, min_size=1, max_size=3).map(tuple),
    created_at=times,
    update_class=st.sampled_from(UpdateClass),
    requires=st.builds(Requires, min_sequence_number=counts, min_agent=counts),
    preconditions=st.builds(
        Preconditions,
        free_bytes=counts,
        battery_percent=st.integers(0, 100),
        mains_power=st.booleans(),
        unmetered_link=st.booleans(),
    ),
    notes=st.dictionaries(st.sampled_from(["en", "de", "pt-BR", "zh-Hant"]), texts, max_size=3),
    sbom_digest=st.none() | digests,
    provenance_digest=st.none() | digests,
    allow_downgrade=st.booleans(),
    revertible_to=st.none() | st.integers(1, LARGEST),
)
manifests = manifests | st.builds(replace, manifests, confidential=st.just(True), payloads=st.tuples(sealed_payloads))
uuids = like(UUID)
enrol_requests = st.builds(
    messages.EnrolRequest,
    token=texts,
    product=like(PRODUCT),
    hardware=like(HARDWARE),
    csr_pem=texts,
    hpke_public_key=st.binary(min_size=8, max_size=8).map(lambda part: part * 152),
    serial=texts,
)
enrol_replies = st.builds(messages.EnrolReply, device_id=uuids.map(DeviceId), certificate_chain_pem=texts)
poll_requests = st.builds(
    messages.PollRequest,
    nonce=st.binary(min_size=16, max_size=16),
    version=st.just("") | like(VERSION),
    sequence_number=counts,
    image_digest=st.just("") | digests.map(str),
    boot_id=texts,
    attributes=st.dictionaries(texts, texts, max_size=4),
    methods=st.lists(st.sampled_from(["whole/1", "refdelta/1", "sealed/2"]), max_size=3).map(tuple),
    agent_level=st.integers(0, 10_000),
    failed_payloads=st.lists(like(TARGET_PATH), max_size=2).map(tuple),
    director_version=st.integers(0, messages.MAX_DIRECTOR_VERSION),
)
poll_replies = st.builds(
    messages.PollReply,
    timestamp=texts,
    snapshot=texts,
    targets=texts,
    poll_after_s=st.integers(0, 7 * 86_400),
    tag=st.text("09AZaz._-", max_size=64),
)
reports = st.builds(
    messages.Report,
    device_id=uuids.map(DeviceId),
    report_number=st.integers(1, LARGEST),
    attempt_id=uuids.map(AttemptId),
    status=st.sampled_from(AttemptStatus),
    version=texts,
    sequence_number=counts,
    boot_id=texts,
    at=times,
    code=texts,
    message=texts,
    log=st.lists(texts, max_size=3).map(tuple),
)
report_batches = st.builds(
    messages.ReportBatch, st.lists(st.dictionaries(texts, json_values, max_size=2), max_size=3).map(tuple)
)
report_replies = st.builds(messages.ReportReply, st.lists(counts, max_size=8).map(tuple))
consent_events = st.builds(
    messages.ConsentEvent,
    device_id=uuids.map(DeviceId),
    consent_number=st.integers(1, LARGEST),
    answer=st.sampled_from(ConsentAnswer),
    at=times,
    actor=texts,
    via=texts,
    attempt_id=st.none() | uuids.map(AttemptId),
    release_id=texts,
    update_class=st.none() | st.sampled_from(UpdateClass),
    until=st.none() | times,
    text_digest=st.just("") | digests.map(str),
    language=st.sampled_from(["", "de", "pt-BR"]),
)
consent_batches = st.builds(
    messages.ConsentBatch, st.lists(st.dictionaries(texts, json_values, max_size=2), max_size=3).map(tuple)
)
consent_replies = st.builds(messages.ConsentReply, st.lists(counts, max_size=8).map(tuple))
envelopes = st.builds(
    Envelope,
    payload=st.binary(max_size=200),
    payload_type=st.just(REPORT_TYPE),
    keyid=st.binary(min_size=32, max_size=32).map(bytes.hex),
    signature=st.binary(max_size=128),
)
