"""A device's new wrapping key, signed by its identity key and carried to an operator by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from firmament.core import canonical
from firmament.core.fields import Fields
from firmament.core.ids import UUID, DeviceId
from firmament.protocol.v1.messages import HPKE_PUBLIC_KEY_LENGTH_BYTES, PROTOCOL_VERSION

if TYPE_CHECKING:
    from typing import Final

MAX_LENGTH_BYTES: Final = 8 * 1024


@dataclass(frozen=True, slots=True)
class WrappingKey:
    """Wrap for this key from now on."""

    device_id: DeviceId
    hpke_public_key: bytes
    """1216 bytes, as at enrolment."""

    def to_json(self) -> dict[str, Any]:
        """Return what is signed, in an envelope of `envelope.WRAPPING_KEY_TYPE`."""
        return {
            "v": PROTOCOL_VERSION,
            "device_id": self.device_id,
            "hpke_public_key": self.hpke_public_key.hex(),
        }


def decode_wrapping_key(data: bytes) -> WrappingKey:
    """Read the payload of an envelope whose signature was verified; raises MalformedError or TooLargeError."""
    fields = Fields(
        canonical.decode_object(data, limit_bytes=MAX_LENGTH_BYTES, what="wrapping key"), what="wrapping key"
    )
    fields.integer("v", minimum=PROTOCOL_VERSION, maximum=PROTOCOL_VERSION)
    return WrappingKey(
        device_id=DeviceId(fields.text("device_id", pattern=UUID)),
        hpke_public_key=fields.hex_bytes("hpke_public_key", length=HPKE_PUBLIC_KEY_LENGTH_BYTES),
    )
