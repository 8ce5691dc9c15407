"""Compares what the server says, what the device says and what really runs with what must be."""

from __future__ import annotations

import http.client
import json
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from firmament.release.remote import OperatorApi
from firmament.sim.demo import fleet
from firmament.sim.demo.narrator import Row
from firmament.sim.demo.products import read_from_image
from firmament.sim.demo.world import Differs, Log

if TYPE_CHECKING:
    from firmament.sim.demo.fleet import Device, Watch
    from firmament.sim.demo.world import World

HEALTH_TIMEOUT_S: Final = 5
PROGRAM_TIMEOUT_S: Final = 30.0
REPORT_TIMEOUT_S: Final = 30.0
OK: Final = 200
PARTIAL: Final = 206


@dataclass(frozen=True, slots=True)
class Expected:
    """How a story must end on a device."""

    story: str
    before: str
    offered: str
    outcome: str
    code: str = ""
    why: str = ""
    is_resumed: bool = False

    @property
    def runs(self) -> str:
        """The version that must run afterwards."""
        return self.offered if self.outcome == "confirmed" else self.before


class Judge:
    """Asks the operator API, the agents' sockets and what runs; raises Differs at the first disagreement."""

    def __init__(self, world: World, url: str, ids: dict[str, str], watches: dict[str, Watch]) -> None:
        self._world = world
        self._url = url
        self._tell = world.narrator
        self._ids = ids
        self._watches = watches
        self._server_log: list[dict[str, Any]] = []
        self._server = Log(world.logs / "server.log")

    def judge(self, attempts: dict[Device, str], expected: Expected) -> list[Row]:
        """Compare all views of each attempt; return the rows for the table."""
        for device in attempts:
            self._wait_for_report(device)
        with OperatorApi(self._url, token=self._token(), ca=self._world.directory / "server/tls/ca.pem") as api:
            return [self._compare(device, attempt, expected, api) for device, attempt in attempts.items()]

    def require_runs(self, device: Device, version: str) -> None:
        """Ask what really runs: the program's health page, or the file system that is booted."""
        if device.port:
            status, found = ask_health(device)
            require(device, "its program answers", status, OK)
            require(device, "its program says it is version", found.get("version"), version)
            return
        booted = self._watches[device.name].ask("status")["booted"]
        image = self._world.directory / "devices" / device.name / f"slot-{booted}.img"
        text = read_from_image(image, "/etc/gateway-version") or b""
        require(device, f"slot {booted} holds the file system of", text.decode().strip(), version)

    def wait_for_program(self, device: Device) -> None:
        """Wait until a program that was just started listens; a trial waits for that by itself. Raises Differs."""
        if device.port:
            self._world.wait_until(
                f"{device.name}: its program answers", lambda: listens(device), timeout_s=PROGRAM_TIMEOUT_S
            )

    def _compare(self, device: Device, attempt_id: str, expected: Expected, api: OperatorApi) -> Row:
        path = f"/api/v1/devices/{self._ids[device.name]}"
        known, attempts = api.call("GET", path), api.call("GET", f"{path}/attempts")["attempts"]
        status, history = (self._watches[device.name].ask(question) for question in ("status", "history"))
        says = next((item for item in attempts if item["attempt_id"] == attempt_id), None)
        ended = next((item for item in history["attempts"] if item["attempt_id"] == attempt_id), None)
        if says is None or ended is None:
            raise Differs(
                f"{device.name}: the attempt is missing {'on the server' if says is None else 'on the device'}"
            )
        require(device, "the device says the attempt ended", ended["status"], expected.outcome)
        require(device, "the server says the attempt ended", says["status"], expected.outcome)
        require(device, "the device's code is", ended["code"], expected.code)
        require(device, "the server's code is", says["code"], expected.code)
        require(device, "the device says it runs", status["running"]["version"], expected.runs)
        require(device, "the server says it runs", known["version"], expected.runs)
        require(device, "the device is", status["state"], "idle")
        self.require_runs(device, expected.runs)
        why = expected.why
        if expected.is_resumed:
            why = f"resumed at byte {self._require_resumed(device, attempt_id):,}"
        code = f" [{expected.code}]" if expected.code else ""
        self._tell.passed(
            f"{device.name}: {expected.offered} {expected.outcome}{code}; server and device agree, {expected.runs} runs"
        )
        return Row(
            device=device.name,
            story=expected.story,
            before=expected.before,
            offered=expected.offered,
            outcome=expected.outcome,
            code=expected.code,
            runs=expected.runs,
            why=why,
        )

    def _token(self) -> str:
        return (self._world.directory / "secrets/token").read_text(encoding="ascii").strip()

    def _wait_for_report(self, device: Device) -> None:
        """Wait until nothing is left in the device's outbox."""
        watch = self._watches[device.name]
        self._world.wait_until(
            f"{device.name} has reported",
            lambda: watch.ask("status").get("reports_waiting") == 0,
            timeout_s=REPORT_TIMEOUT_S,
        )

    def _require_resumed(self, device: Device, attempt_id: str) -> int:
        """Return the byte at which the download went on; both sides' logs must say that it did."""
        lives: list[list[int]] = []
        for line in Log(self._world.logs / f"{device.name}.log").new():
            if line.get("event") == "agent.started":
                lives.append([])
            elif line.get("event") == "fetch.begun" and line.get("attempt_id") == attempt_id:
                lives[-1].append(line["offset"])
        fetches = [offsets for offsets in lives if offsets]
        if len(fetches) != 2:  # noqa: PLR2004 - before and after the cut
            raise Differs(
                f"{device.name}: the download must be seen before and after the power cut, but began {fetches}"
            )
        before, after = fetches
        if before[0] != 0 or min(after) < fleet.MEBIBYTE:
            raise Differs(f"{device.name}: the download began at {before}, after the power cut at {after}")
        self._server_log += self._server.new()
        statuses = [
            line["status"]
            for line in self._server_log
            if line.get("event") == "request.done"
            and line.get("device_id") == self._ids[device.name]
            and f"/{device.product}/1.4/" in str(line.get("path"))
            and line.get("method") == "GET"
        ]
        if not statuses or statuses[-1] != PARTIAL or statuses.count(OK) > 1:
            raise Differs(f"{device.name}: the server must have sent the rest only, but answered {statuses}")
        return after[0]


def require(device: Device, what: str, found: object, expected: object) -> None:
    """Raise Differs unless `found` is what must be."""
    if found != expected:
        raise Differs(f"{device.name}: {what} {found!r}, which must be {expected!r}")


def listens(device: Device) -> bool:
    """Whether the device's program takes connections."""
    try:
        with socket.create_connection(("127.0.0.1", device.port), timeout=HEALTH_TIMEOUT_S):
            return True
    except OSError:
        return False


def ask_health(device: Device) -> tuple[int, dict[str, Any]]:
    """Ask a device's program how it is."""
    connection = http.client.HTTPConnection("127.0.0.1", device.port, timeout=HEALTH_TIMEOUT_S)
    try:
        connection.request("GET", "/health")
        response = connection.getresponse()
        found = json.loads(response.read(fleet.MEBIBYTE))
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Differs(f"{device.name}: its program does not answer: {error!r}") from error
    finally:
        connection.close()
    return response.status, found
