"""Signed reports, consent events and new wrapping keys: DSSE-like, over the exact bytes that travel.

``{"payload": base64, "payload_type": "application/vnd.firmament.report+json;v=1",
"keyid": hex sha256 of the DER public key, "signature": base64}``

What is signed is the DSSE pre-authentication encoding (PAE v1), so that a report can never be
read as another kind of message, e.g. as a consent event. This file only splits and joins; signing
and verifying is in trust/ (device keys) because protocol/ knows no cryptography.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any, Final

from firmament.core.fields import Fields
from firmament.errors import MalformedError

REPORT_TYPE: Final = "application/vnd.firmament.report+json;v=1"
CONSENT_TYPE: Final = "application/vnd.firmament.consent+json;v=1"
WRAPPING_KEY_TYPE: Final = "application/vnd.firmament.wrapping-key+json;v=1"
MAX_PAYLOAD_LENGTH_BYTES: Final = 16 * 1024
MAX_SIGNATURE_LENGTH_BYTES: Final = 128


@dataclass(frozen=True, slots=True)
class Envelope:
    """Bytes, what they are, who signed them and the signature."""

    payload: bytes
    payload_type: str
    keyid: str
    signature: bytes

    def to_json(self) -> dict[str, Any]:  # noqa: D102
        return {
            "payload": base64.b64encode(self.payload).decode(),
            "payload_type": self.payload_type,
            "keyid": self.keyid,
            "signature": base64.b64encode(self.signature).decode(),
        }


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """Return what is signed (DSSE protocol v1.0, PAE)."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def open_envelope(value: object, *, expected_type: str) -> Envelope:
    """Read an envelope of the expected type; its signature is *not* verified here."""
    fields = Fields(value, what="envelope")
    envelope = Envelope(
        payload=fields.base64_bytes("payload", max_length=MAX_PAYLOAD_LENGTH_BYTES),
        payload_type=fields.text("payload_type"),
        keyid=fields.hex_bytes("keyid", length=32).hex(),
        signature=fields.base64_bytes("signature", max_length=MAX_SIGNATURE_LENGTH_BYTES),
    )
    if envelope.payload_type != expected_type:
        raise MalformedError("The envelope holds another kind of message", found=envelope.payload_type)
    return envelope
