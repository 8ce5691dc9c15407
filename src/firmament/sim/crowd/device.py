"""One virtual device of a crowd: enrolled with a token, it polls and reports as an agent does.

It installs nothing: what it "does" with a release is decided by its fate. Everything that the
server sees is real: TLS with a client certificate, signed reports, boot ids.
"""

from __future__ import annotations

import json
import ssl
import tempfile
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import urllib3

from firmament.core.ids import AttemptId, DeviceId
from firmament.protocol.status import AttemptStatus
from firmament.protocol.v1.envelope import REPORT_TYPE, Envelope, pre_authentication_encoding
from firmament.protocol.v1.messages import HPKE_PUBLIC_KEY_LENGTH_BYTES, PollRequest, Report
from firmament.trust.device_keys import IdentityKey

if TYPE_CHECKING:
    import random  # noqa: TID251 - the chance is an argument
    from collections.abc import Callable

NONCE_LENGTH_BYTES: Final = 16
OK: Final = 200
TIMEOUT_S: Final = 30
PATIENCE: Final = urllib3.Retry(
    total=20, status_forcelist=[429], allowed_methods=None, respect_retry_after_header=True, raise_on_status=False
)
"""A whole crowd shares one address, and so its limit; an agent waits as it is told."""
STEPS: Final = (AttemptStatus.FETCHING, AttemptStatus.VERIFIED, AttemptStatus.STAGED)
FAILED_HEALTH: Final = "health: mqtt connect timed out after 30 s (3 of 3)"


class DeviceRefusedError(Exception):
    """The server did not take what a device said."""


@dataclass(slots=True)
class CrowdDevice:
    """Identity, what it runs, and where it is with an update."""

    url: str
    ca: Path
    product: str
    hardware: str
    serial: str
    chance: random.Random
    fails: Callable[[str], str]
    """Returns the code with which a version fails on this device, empty when it is healthy."""
    version: str = "1.0"
    sequence_number: int = 1
    device_id: str = ""
    boots: int = 1
    numbers: int = 0
    step: int = 0
    previous: tuple[str, int] = ("1.0", 1)
    key: IdentityKey = field(default_factory=IdentityKey.generate)
    _pool: urllib3.PoolManager | None = None

    def enrol(self, token: str) -> None:
        """Get an identity."""
        body = {
            "v": 1,
            "product": self.product,
            "hardware": self.hardware,
            "serial": self.serial,
            "csr_pem": self.key.request_pem(product=self.product, hardware=self.hardware),
            "hpke_public_key": self.chance.randbytes(HPKE_PUBLIC_KEY_LENGTH_BYTES).hex(),
            "token": token,
        }
        context = ssl.create_default_context(cafile=str(self.ca))
        with urllib3.PoolManager(ssl_context=context, retries=False, timeout=TIMEOUT_S) as pool:
            reply = _ask(pool, self.url + "/v1/enrol", body)
        self.device_id = reply["device_id"]
        with tempfile.TemporaryDirectory(prefix="firmament-crowd-") as directory:
            chain, key = Path(directory, "chain.pem"), Path(directory, "key.pem")
            chain.write_text(reply["certificate_chain_pem"])
            key.write_bytes(self.key.pem)
            context = ssl.create_default_context(cafile=str(self.ca))
            context.load_cert_chain(chain, key)
        self._pool = urllib3.PoolManager(ssl_context=context, retries=False, timeout=TIMEOUT_S)

    def close(self) -> None:
        """Let go of its connection."""
        if self._pool is not None:
            self._pool.clear()

    def live(self) -> bool:
        """Poll, and take one step of an update if there is one; return whether anything is going on."""
        task = self._poll()
        if task is None:
            return False
        attempt_id = task["attempt_id"]
        if task.get("action") == "revert":
            self.boots += 1
            self.version, self.sequence_number = self.previous
            self._tell(attempt_id, AttemptStatus.CONFIRMED)
            return True
        if self.step < len(STEPS):
            self._tell(attempt_id, STEPS[self.step])
            self.step += 1
            return True
        self.step = 0
        self.boots += 1
        before = (self.version, self.sequence_number)
        self.version, self.sequence_number = task["version"], self.sequence_number + 1
        self._tell(attempt_id, AttemptStatus.TRIAL)
        code = self.fails(self.version)
        if code:
            self.boots += 1  # it started again from the slot it ran before
            self.version, self.sequence_number = before
            self._tell(attempt_id, AttemptStatus.REVERTED, code=code, log=(FAILED_HEALTH,))
            return True
        self.previous = before
        self._tell(attempt_id, AttemptStatus.CONFIRMED)
        return True

    @property
    def boot_id(self) -> str:
        """Which start of the device this is."""
        return f"{self.serial.lower()}-{self.boots}"

    def _poll(self) -> dict[str, Any] | None:
        request = PollRequest(
            nonce=self.chance.randbytes(NONCE_LENGTH_BYTES),
            version=self.version,
            sequence_number=self.sequence_number,
            boot_id=self.boot_id,
        )
        reply = _ask(self._connected(), self.url + "/v1/poll", request.to_json())
        targets = json.loads(reply["targets"])["signed"]["targets"]
        for target, entry in targets.items():
            return {**entry["custom"], "version": target.split("/")[1]}
        return None

    def _tell(self, attempt_id: str, status: AttemptStatus, *, code: str = "", log: tuple[str, ...] = ()) -> None:
        self.numbers += 1
        report = Report(
            device_id=DeviceId(self.device_id),
            report_number=self.numbers,
            attempt_id=AttemptId(attempt_id),
            status=status,
            version=self.version,
            sequence_number=self.sequence_number,
            boot_id=self.boot_id,
            at=datetime(2026, 11, 20, tzinfo=UTC),  # a device's clock is not believed
            code=code,
            log=log,
        )
        payload = json.dumps(report.to_json()).encode()
        signature = self.key.sign(pre_authentication_encoding(REPORT_TYPE, payload))
        envelope = Envelope(payload, REPORT_TYPE, self.key.keyid, signature).to_json()
        _ask(self._connected(), self.url + "/v1/report", {"v": 1, "reports": [envelope]})

    def _connected(self) -> urllib3.PoolManager:
        if self._pool is None:
            raise RuntimeError("enrol() first")
        return self._pool


def _ask(pool: urllib3.PoolManager, url: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = pool.request(
        "POST", url, body=json.dumps(body).encode(), headers={"content-type": "application/json"}, retries=PATIENCE
    )
    if answer.status != OK:
        raise DeviceRefusedError(f"{url}: {answer.status} {answer.data[:300]!r}")
    found: dict[str, Any] = json.loads(answer.data)
    return found
