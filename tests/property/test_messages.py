"""Messages and envelopes: written and read back; any bytes give a message or one of our errors."""

import copy

import pytest
import strategies
from hypothesis import given
from hypothesis import strategies as st

from firmament.core import canonical
from firmament.errors import MalformedError, TooLargeError
from firmament.protocol.v1 import messages
from firmament.protocol.v1.envelope import REPORT_TYPE, open_envelope, pre_authentication_encoding

MESSAGES = {
    "enrol_request": (strategies.enrol_requests, messages.decode_enrol_request),
    "enrol_reply": (strategies.enrol_replies, messages.decode_enrol_reply),
    "poll_request": (strategies.poll_requests, messages.decode_poll_request),
    "poll_reply": (strategies.poll_replies, messages.decode_poll_reply),
    "report": (strategies.reports, messages.decode_report),
    "report_batch": (strategies.report_batches, messages.decode_report_batch),
    "consent_event": (strategies.consent_events, messages.decode_consent_event),
    "consent_batch": (strategies.consent_batches, messages.decode_consent_batch),
    "consent_reply": (strategies.consent_replies, messages.decode_consent_reply),
    "report_reply": (strategies.report_replies, messages.decode_report_reply),
}
kinds = pytest.mark.parametrize("kind", sorted(MESSAGES))


def test_every_decoder_is_listed_here():
    assert {f"decode_{kind}" for kind in MESSAGES} == {name for name in dir(messages) if name.startswith("decode_")}


@kinds
@given(data=st.data())
def test_a_message_survives_the_wire(kind, data):
    values, decode = MESSAGES[kind]
    message = data.draw(values)
    assert decode(canonical.encode(message.to_json())) == message


@kinds
@given(data=st.data())
def test_unknown_fields_are_ignored(kind, data):
    values, decode = MESSAGES[kind]
    message = data.draw(values)
    later = {"x-later": data.draw(strategies.json_values)} | message.to_json()
    assert decode(canonical.encode(later)) == message


@kinds
@given(data=st.data())
def test_one_wrong_field_gives_a_message_or_our_error(kind, data):
    values, decode = MESSAGES[kind]
    value = copy.deepcopy(data.draw(values).to_json())
    name = data.draw(st.sampled_from(sorted(value)))
    value[name] = data.draw(strategies.json_values)
    try:
        decode(canonical.encode(value))
    except MalformedError as error:
        refusal = str(error)
    else:
        return
    assert name in refusal or kind.startswith(("report_", "consent_"))


@kinds
@given(data=st.binary(max_size=300) | strategies.json_values.map(canonical.encode))
def test_any_bytes_give_a_message_or_our_error(kind, data):
    try:
        MESSAGES[kind][1](data)
    except MalformedError as error:
        assert error.problem  # noqa: PT017 - most inputs end here, some are messages


@kinds
def test_every_message_has_a_ceiling(kind):
    with pytest.raises(TooLargeError):
        MESSAGES[kind][1](b" " * (1024 * 1024 + 1))


@given(strategies.envelopes)
def test_an_envelope_survives_the_wire(envelope):
    assert open_envelope(envelope.to_json(), expected_type=REPORT_TYPE) == envelope


@given(strategies.envelopes, st.sampled_from(["payload", "payload_type", "keyid", "signature"]), strategies.json_values)
def test_an_envelope_with_a_wrong_field_is_read_or_refused(envelope, name, value):
    try:
        found = open_envelope(envelope.to_json() | {name: value}, expected_type=REPORT_TYPE)
    except MalformedError:
        return
    assert found.payload_type == REPORT_TYPE
    assert len(found.keyid) == 64


@given(st.tuples(strategies.texts, st.binary(max_size=40)), st.tuples(strategies.texts, st.binary(max_size=40)))
def test_two_different_things_never_have_the_same_bytes_to_sign(one, other):
    assert (pre_authentication_encoding(*one) == pre_authentication_encoding(*other)) == (one == other)
