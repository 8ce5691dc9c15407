"""A console to look at: a real server, a crowd of virtual devices, and a rollout that stops by itself.

The second release is bad for one hardware revision. Nothing stops the rollout but the server's
own stop rule; what is left to do is what an operator would do, in the console.
"""

from __future__ import annotations

import json
import random  # noqa: TID251 - seeded below: every demonstration plays the same
import ssl
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import urllib3

from firmament.sim.crowd.device import CrowdDevice, DeviceRefusedError
from firmament.sim.demo import fleet
from firmament.sim.demo.world import Differs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from firmament.sim.demo.world import World

OPERATOR: Final = "ana"
PRODUCT: Final = "thermo"
GOOD, BAD = "rev-b", "rev-c"
BAD_RATIO: Final = 0.3
FAILING_RATIO: Final = 0.8
"""Of the devices of the bad revision: some start in spite of it, as in the field."""
SITES: Final = ("porto-03", "lyon-02", "turin-04", "oslo-07")
NOTES: Final = "Fixes meter readings that stop after 49 days.\nRestart, about two minutes without heating control.\n"
READY_TIMEOUT_S: Final = 30.0
WORKERS: Final = 4
SEED: Final = 49
REFUSED: Final = 300


@dataclass(frozen=True, slots=True)
class Opened:
    """What a person needs to look at it."""

    url: str
    rollout_path: str
    name: str
    password: str
    ca: Path


class ConsoleDemo:
    """Sets everything up in a world's folder, then lets the crowd live."""

    def __init__(self, world: World, *, devices: int, port: int = 0) -> None:
        self._world = world
        self._port = port or fleet.free_port()
        self._url = f"https://localhost:{self._port}"
        self._chance = random.Random(SEED)  # noqa: S311 - a repeatable crowd, no secret
        self._count = devices
        self.devices: list[CrowdDevice] = []
        self.rollout_id = ""
        self._password = ""

    def open(self) -> Opened:
        """Make server, releases, devices and the rollout."""
        self._make_server()
        self._make_releases()
        self._make_devices()
        self._start_rollout()
        return Opened(
            self._url,
            f"/rollouts/{self.rollout_id}",
            OPERATOR,
            self._password,
            self._world.directory / "server/tls/ca.pem",
        )

    def live(self) -> Iterator[int]:
        """Let every device take a step, again and again; yields how many were busy."""
        with ThreadPoolExecutor(WORKERS, "crowd") as pool:
            while True:
                yield sum(pool.map(_step, self.devices))

    def state(self) -> dict[str, Any]:
        """Return the rollout as the operator API tells it."""
        found: dict[str, Any] = self._ask("GET", f"/api/v1/rollouts/{self.rollout_id}")
        return found

    def close(self) -> None:
        """Let go of connections."""
        for device in self.devices:
            device.close()

    # --- setting up ------------------------------------------------------------------------

    def _make_server(self) -> None:
        world = self._world
        world.narrator.chapter("A server and its console", "Real processes; nothing is told to stop the rollout.")
        secret = world.secret_file("secrets/password")
        self._password = secret.read_text(encoding="utf-8").strip()
        password, passphrase = secret.relative_to(world.directory), world.secret_file("secrets/passphrase")
        world.export("FIRMAMENT_PASSPHRASE_FILE", str(passphrase.relative_to(world.directory)))
        world.run("firmament", "server", "init", "server", "--port", str(self._port))
        world.run("firmament", "init", "author", "--product", PRODUCT, "--online", "server/online-public.json")
        world.export("FIRMAMENT_WORKSPACE", "author")
        world.export("FIRMAMENT_SERVER", self._url)
        world.export("FIRMAMENT_CA", "server/tls/ca.pem")
        world.run(
            "firmament", "server", "trust", "-d", "server", "--image", "author/repository/metadata/1.root.json",
            "--director", "author/director/metadata/1.root.json",
        )  # fmt: skip
        world.run(
            "firmament", "operator", "add", OPERATOR, "--role", "admin", "-d", "server", "--password-file", password
        )
        # The whole crowd comes from one address within a moment.
        world.export("FIRMAMENT_SERVER_ENROLMENT_BURST", str(self._count + 100))
        world.export("FIRMAMENT_SERVER_ADDRESS_BURST", str(100_000))
        world.start("server", "firmament", "server", "run", "-d", "server", "--port-file", "server/port")
        world.wait_until(
            "the server takes connections", (world.directory / "server/port").exists, timeout_s=READY_TIMEOUT_S
        )
        world.run("firmament", "operator", "login", OPERATOR, "--password-file", password, "--out", "secrets/token")
        world.export("FIRMAMENT_TOKEN_FILE", "secrets/token")

    def _make_releases(self) -> None:
        world = self._world
        (world.directory / "notes.md").write_text(NOTES, encoding="utf-8")
        for version in ("1.0", "2.0"):
            folder = world.directory / f"app-{version}"
            folder.mkdir()
            (folder / "main.txt").write_text(f"thermo {version}\n" * 4000, encoding="utf-8")
            going_back = () if version == "1.0" else ("--revertible-to", "1", "--notes", "en=notes.md")
            world.run(
                "firmament", "release", "build", folder.name, "--product", PRODUCT, "--version", version,
                "--hardware", GOOD, "--hardware", BAD, *going_back,
            )  # fmt: skip
            world.run("firmament", "release", "sign", f"{PRODUCT}/{version}")
        world.run("firmament", "release", "publish")

    def _make_devices(self) -> None:
        world = self._world
        world.narrator.chapter(f"{self._count} devices", "Each with a key and a certificate of its own.")
        made = self._ask(
            "POST", "/api/v1/enrolment-tokens", {"product": PRODUCT, "expires_in_s": 3600, "uses": self._count}
        )
        ca = world.directory / "server/tls/ca.pem"
        self.devices = make_crowd(self._url, ca, self._count, self._chance)
        for device in self.devices:
            device.enrol(made["token"])
            device.live()
        for site in SITES:
            self._ask("PUT", f"/api/v1/sites/{site}", {})
        for number, device in enumerate(self.devices):
            self._ask("PUT", f"/api/v1/devices/{device.device_id}/place", {"site": SITES[number % len(SITES)]})

    def _start_rollout(self) -> None:
        made = self._ask(
            "POST",
            "/api/v1/rollouts",
            {
                "name": "thermo to 2.0",
                "release": f"{PRODUCT}/2.0",
                "waves": [
                    {"name": "canary", "devices": self._bench()},
                    {"name": "30 %", "percent": 30},
                    {"name": "everyone", "percent": 100},
                ],
                "gate": {"limit_ratio": "0.1", "min_finished": max(3, self._count // 12)},
                "note": "The console demonstration: revision C does not come up with 2.0.",
            },
        )
        self.rollout_id = made["rollout_id"]

    def _bench(self) -> list[str]:
        """Name the canaries: the bench has no device of the bad revision, as it goes."""
        good = [device.device_id for device in self.devices if device.hardware == GOOD]
        return good[: max(2, self._count // 20)]

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        world = self._world
        token = (world.directory / "secrets/token").read_text(encoding="utf-8").strip()
        context = ssl.create_default_context(cafile=str(world.directory / "server/tls/ca.pem"))
        with urllib3.PoolManager(ssl_context=context, retries=False, timeout=READY_TIMEOUT_S) as pool:
            # Plain JSON: rates are fractions, which the strict reader of signed files refuses.
            data = None if body is None else json.dumps(body).encode()
            headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
            answer = pool.request(method, self._url + path, body=data, headers=headers)
        if answer.status >= REFUSED:
            raise Differs(f"{method} {path} answered {answer.status}: {answer.data[:300]!r}")
        return json.loads(answer.data) if answer.data else {}


def make_crowd(url: str, ca: Path, count: int, chance: random.Random) -> list[CrowdDevice]:
    """Draw a crowd: serials, revisions, and who cannot start 2.0."""
    return [_draw(url, ca, number, chance) for number in range(1, count + 1)]


def _draw(url: str, ca: Path, number: int, chance: random.Random) -> CrowdDevice:
    hardware = BAD if chance.random() < BAD_RATIO else GOOD
    fails: Callable[[str], str] = _never
    if hardware == BAD and chance.random() < FAILING_RATIO:
        fails = _unhealthy
    own = random.Random(chance.random())  # noqa: S311 - nonces of a simulated device
    return CrowdDevice(url, ca, PRODUCT, hardware, f"TH-{number:05}", own, fails)


def _never(_version: str) -> str:
    return ""


def _unhealthy(version: str) -> str:
    return "slot/health" if version.startswith("2") else ""


def _step(device: CrowdDevice) -> bool:
    try:
        return device.live()
    except DeviceRefusedError:
        return False  # e.g. asked too often; it asks again
