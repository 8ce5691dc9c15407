"""The hint that wakes devices by MQTT: topic and payload, in one place for server and agent.

A device listens on the topic of its bucket, which follows from its name. The payload decides
nothing: whoever believes it polls, at a random moment within the spread.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from firmament.core import canonical
from firmament.core.fields import Fields
from firmament.protocol.v1.messages import PROTOCOL_VERSION

if TYPE_CHECKING:
    from firmament.core.ids import DeviceId

BUCKETS: Final = 10_000
"""A device's bucket is fixed at enrolment; waves are ranges of it."""
WAKE_TOPICS: Final = 256
"""Several buckets share a topic: a wave needs so many messages at most, whatever the size of the fleet."""
MAX_WAKE_LENGTH_BYTES: Final = 256
MAX_SPREAD_S: Final = 86_400
MAX_REVISION: Final = 2**53 - 1


@dataclass(frozen=True, slots=True)
class Wake:
    """Something happened on the server that may concern the devices of a topic."""

    rev: int
    """Number of the event; another number is another hint."""
    spread_s: int
    """Within how many seconds the devices poll, each at its own moment."""

    def to_json(self) -> dict[str, Any]:
        """Return the payload; `decode_wake` reads it."""
        return {"v": PROTOCOL_VERSION, "rev": self.rev, "spread_s": self.spread_s}


def bucket_of(device_id: DeviceId) -> int:
    """Return the bucket of a device, 0..9999."""
    return uuid.UUID(device_id).int % BUCKETS


def wake_topic(tenant_id: int, bucket: int) -> str:
    """Return where the devices of a bucket listen."""
    return f"firmament/v1/{tenant_id}/b/{bucket % WAKE_TOPICS}"


def decode_wake(data: bytes) -> Wake:
    """Read a payload; raises MalformedError or TooLargeError."""
    fields = Fields(
        canonical.decode_object(data, limit_bytes=MAX_WAKE_LENGTH_BYTES, what="wake hint"), what="wake hint"
    )
    return Wake(
        rev=fields.integer("rev", maximum=MAX_REVISION), spread_s=fields.integer("spread_s", maximum=MAX_SPREAD_S)
    )
