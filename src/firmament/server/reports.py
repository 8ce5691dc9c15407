"""Opening signed envelopes, reports and consent events: who signed is checked before what was said is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from firmament.errors import SignatureError
from firmament.protocol.v1.envelope import (
    CONSENT_TYPE,
    REPORT_TYPE,
    WRAPPING_KEY_TYPE,
    Envelope,
    open_envelope,
    pre_authentication_encoding,
)
from firmament.protocol.v1.messages import ConsentEvent, Report, decode_consent_event, decode_report
from firmament.protocol.v1.wrapping_key import WrappingKey, decode_wrapping_key

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


def open_report(value: Mapping[str, Any], *, identity_key: bytes, keyid: str) -> tuple[Report, bytes]:
    """Return a report and the exact bytes that were signed.

    Raises SignatureError unless the key registered for this device signed it, MalformedError for
    anything that is not a report.
    """
    envelope = open_signed(value, REPORT_TYPE, identity_key=identity_key, keyid=keyid)
    return decode_report(envelope.payload), envelope.payload


def open_consent_event(value: Mapping[str, Any], *, identity_key: bytes, keyid: str) -> tuple[ConsentEvent, Envelope]:
    """Return what an owner said and the envelope, which is the evidence; raises as `open_report`."""
    envelope = open_signed(value, CONSENT_TYPE, identity_key=identity_key, keyid=keyid)
    return decode_consent_event(envelope.payload), envelope


def open_wrapping_key(value: Mapping[str, Any], *, identity_key: bytes, keyid: str) -> WrappingKey:
    """Return a device's new wrapping key; raises as `open_report`."""
    envelope = open_signed(value, WRAPPING_KEY_TYPE, identity_key=identity_key, keyid=keyid)
    return decode_wrapping_key(envelope.payload)


def open_signed(value: Mapping[str, Any], expected_type: str, *, identity_key: bytes, keyid: str) -> Envelope:
    """Return an envelope of one type that this key signed; raises as `open_report`."""
    envelope = open_envelope(dict(value), expected_type=expected_type)
    if envelope.keyid != keyid:
        raise SignatureError("A message is signed by another key than this device's", keyid=envelope.keyid[:16])
    verify_envelope(envelope, identity_key=identity_key)
    return envelope


def verify_envelope(envelope: Envelope, *, identity_key: bytes) -> None:
    """Check an ECDSA P-256 signature over the envelope; raises SignatureError."""
    key = serialization.load_der_public_key(identity_key)
    assert isinstance(key, ec.EllipticCurvePublicKey)  # checked at enrolment
    try:
        key.verify(
            envelope.signature,
            pre_authentication_encoding(envelope.payload_type, envelope.payload),
            ec.ECDSA(hashes.SHA256()),
        )
    except InvalidSignature as error:
        raise SignatureError("A report's signature is wrong", keyid=envelope.keyid[:16]) from error
