"""Make a new wrapping key on the device, after the old one was revoked or may be known to others.

The new key is in force at once and the old one gone: until an operator has registered it
(`firmament device register-key`), sealed payloads cannot be opened here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from firmament.agent import identity
from firmament.core import canonical
from firmament.durable import replace_durably
from firmament.log import logger
from firmament.payload import wrap
from firmament.protocol.v1.envelope import WRAPPING_KEY_TYPE, Envelope, pre_authentication_encoding
from firmament.protocol.v1.wrapping_key import WrappingKey

if TYPE_CHECKING:
    from pathlib import Path

    from firmament.durable import Disk

log = logger("agent.wrapping-key")


def renew(disk: Disk, state_directory: Path) -> dict[str, Any]:
    """Replace the key; return the signed envelope that the operator registers. Hold the instance lock.

    Raises NotEnrolledError, CorruptStateError.
    """
    enrolment = identity.load(disk, state_directory)
    private, public = wrap.generate()
    payload = canonical.encode(WrappingKey(enrolment.device_id, public).to_json())
    signature = enrolment.key.sign(pre_authentication_encoding(WRAPPING_KEY_TYPE, payload))
    envelope = Envelope(payload, WRAPPING_KEY_TYPE, enrolment.key.keyid, signature)
    replace_durably(disk, enrolment.directory / identity.HPKE_KEY, private)
    log.info("wrapping-key.renewed", device_id=enrolment.device_id)
    return {"device_id": enrolment.device_id, "envelope": envelope.to_json()}
