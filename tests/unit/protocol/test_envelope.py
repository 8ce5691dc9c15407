"""Signed reports: DSSE's pre-authentication encoding, and envelopes of one kind only."""

import pytest

from firmament.errors import MalformedError
from firmament.protocol.v1.envelope import REPORT_TYPE, Envelope, open_envelope, pre_authentication_encoding

ENVELOPE = Envelope(b"{}", REPORT_TYPE, "0a" * 32, b"signature")


def test_the_encoding_is_dsses():
    # The example of the DSSE specification (protocol.md, "PAE").
    assert pre_authentication_encoding("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )
    assert pre_authentication_encoding("é", b"") == "DSSEv1 2 é 0 ".encode()  # lengths are in bytes


@pytest.mark.parametrize(
    "changes",
    [
        {"payload": "e30"}, {"payload": "e3\n0="}, {"payload": "A" * 4 * 5463}, {"payload": 1},
        {"payload_type": "application/json"}, {"payload_type": ""}, {"payload_type": None},
        {"keyid": ""}, {"keyid": "0A" * 32}, {"keyid": "0a" * 31}, {"keyid": "0a" * 33},
        {"signature": "A" * 4 * 44}, {"signature": None},
    ],
)  # fmt: skip
def test_a_wrong_envelope_is_refused(changes):
    with pytest.raises(MalformedError):
        open_envelope(ENVELOPE.to_json() | changes, expected_type=REPORT_TYPE)


def test_one_kind_is_never_taken_for_another():
    assert open_envelope(ENVELOPE.to_json(), expected_type=REPORT_TYPE) == ENVELOPE
    with pytest.raises(MalformedError, match="another kind of message"):
        open_envelope(ENVELOPE.to_json(), expected_type="application/vnd.firmament.order+json;v=1")
