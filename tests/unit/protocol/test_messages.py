"""Messages of the device API, field by field."""

import json
from datetime import UTC, datetime

import pytest

from firmament.errors import MalformedError
from firmament.protocol.status import FINAL_STATUSES, AttemptStatus, Outcome
from firmament.protocol.v1 import messages, paths

ID = "01234567-89ab-4def-8123-456789abcdef"
POLL = messages.PollRequest(nonce=bytes(16), version="1.0", sequence_number=1)
REPORT = messages.Report(
    device_id=messages.DeviceId(ID),
    report_number=1,
    attempt_id=messages.AttemptId(ID),
    status=AttemptStatus.CONFIRMED,
    version="1.1",
    sequence_number=2,
    boot_id="",
    at=datetime(2026, 11, 20, 12, tzinfo=UTC),
)
ENROL = messages.EnrolRequest(token="t", product="thermo", hardware="rpi4", csr_pem="pem", hpke_public_key=bytes(1216))


def read(decode, whole, **changes):
    return decode(json.dumps(whole.to_json() | changes).encode())


@pytest.mark.parametrize(
    "changes",
    [
        {"nonce": "00" * 15}, {"nonce": "00" * 17}, {"nonce": "0G" * 16}, {"nonce": "AB" * 16}, {"nonce": None},
        {"version": "../1"}, {"version": "v" * 65}, {"sequence_number": -1}, {"sequence_number": "1"},
        {"image_digest": "x" * 141}, {"boot_id": "b" * 65},
        {"attributes": {str(n): "" for n in range(65)}}, {"attributes": {"a": "x" * 257}}, {"attributes": {"a" * 257: ""}}, {"attributes": {"a": 1}}, {"attributes": []},
        {"methods": ["m"] * 33}, {"methods": [1]}, {"methods": ["m" * 41]}, {"agent_level": 10_001},
    ],
)  # fmt: skip
def test_a_wrong_poll_is_refused(changes):
    with pytest.raises(MalformedError):
        read(messages.decode_poll_request, POLL, **changes)


def test_a_device_before_its_first_release_has_no_version():
    assert read(messages.decode_poll_request, POLL, version="").version == ""
    assert messages.decode_poll_request(json.dumps({"nonce": "00" * 16, "sequence_number": 0}).encode()).methods == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"device_id": "me"}, {"device_id": ID.upper()}, {"attempt_id": ""}, {"report_number": 0}, {"status": "success"}, {"status": None},
        {"at": "now"}, {"code": "c" * 65}, {"message": "m" * 1025}, {"log": ["l"] * 21}, {"log": ["l" * 513]}, {"sequence_number": None},
    ],
)  # fmt: skip
def test_a_wrong_report_is_refused(changes):
    with pytest.raises(MalformedError):
        read(messages.decode_report, REPORT, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"token": "t" * 129}, {"token": None}, {"product": "Thermo"}, {"hardware": "*"}, {"csr_pem": "p" * 8193},
        {"hpke_public_key": "00" * 1215}, {"hpke_public_key": "00" * 1217}, {"serial": "s" * 129},
    ],
)  # fmt: skip
def test_a_wrong_enrolment_is_refused(changes):
    with pytest.raises(MalformedError):
        read(messages.decode_enrol_request, ENROL, **changes)


def test_a_batch_has_at_most_32_reports():
    assert len(messages.decode_report_batch(json.dumps({"reports": [{}] * 32}).encode()).envelopes) == 32
    with pytest.raises(MalformedError, match="too many items"):
        messages.decode_report_batch(json.dumps({"reports": [{}] * 33}).encode())


def test_the_largest_messages_stay_below_their_ceilings():
    poll = messages.PollRequest(
        nonce=bytes(16),
        version="v" * 64,
        sequence_number=2**63 - 1,
        image_digest="sha512:" + "0" * 128,
        boot_id="b" * 64,
        attributes={f"{n:0256}": "x" * 256 for n in range(64)},
        methods=("m" * 40,) * 32,
    )
    assert len(json.dumps(poll.to_json())) < messages.MAX_REQUEST_LENGTH_BYTES
    reply = messages.PollReply("t" * 16_384, "s" * 65_536, "x" * 512 * 1024, 1)
    assert messages.decode_poll_reply(json.dumps(reply.to_json()).encode()) == reply


def test_every_outcome_is_a_final_status_under_the_same_word():
    assert {outcome.value for outcome in Outcome} - {"open"} == {status.value for status in FINAL_STATUSES}


def test_paths_are_versioned():
    found = [value for name, value in vars(paths).items() if name.isupper()]
    assert len(found) == len(set(found)) == 7
    assert all(path.startswith("/v1/") for path in found)
