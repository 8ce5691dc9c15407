"""The story of the demonstration: what is done, in which order, and what must come of it."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from firmament.errors import DigestMismatchError, HealthError, RollbackError
from firmament.sim.demo import fleet
from firmament.sim.demo.fleet import FIRST, Device, Watch
from firmament.sim.demo.judge import Expected, Judge
from firmament.sim.demo.narrator import DeviceView
from firmament.sim.demo.products import GATEWAY, THERMO
from firmament.sim.demo.world import Differs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from firmament.sim.demo.narrator import Row
    from firmament.sim.demo.world import Done, World

OPERATOR: Final = "ana"
PRODUCTS: Final = (THERMO, GATEWAY)
CUT_AFTER_BYTES: Final = 5 * 1024 * 1024
# Past the first checkpoint (every 4 MiB), so that there is something to resume.
READY_TIMEOUT_S: Final = 30.0
UPDATE_TIMEOUT_S: Final = 90.0
# An update takes a few seconds; this is for a machine that is busy with something else.


@dataclass(frozen=True, slots=True)
class Played:
    """What came of it."""

    rows: tuple[Row, ...]
    url: str
    devices: dict[str, str]
    """Device ids by name."""


class Play:
    """One run of the whole story in a world; raises Differs at the first thing that is not as it must be."""

    def __init__(self, world: World, *, port: int = 0) -> None:
        self._world = world
        self._tell = world.narrator
        self._port = port or fleet.free_port()
        self._url = f"https://127.0.0.1:{self._port}"
        self._devices = fleet.make_fleet()
        self._watches: dict[str, Watch] = {}
        self._ids: dict[str, str] = {}
        self._rows: list[Row] = []
        self._author: Executor
        """Works on the next release while devices are busy with this one, as authors do."""
        self._first: dict[str, dict[str, Any]] = {}
        """The manifests of the first release, by product."""
        self._next: Future[None]
        self._judge = Judge(world, self._url, self._ids, self._watches)

    def run(self) -> Played:
        """Play every chapter."""
        with ThreadPoolExecutor(1, "author") as author, self._watching():
            self._author = author
            self._make_keys_and_server()
            self._make_devices()
            self._play_good_release()
            self._play_unhealthy_release()
            self._play_altered_release()
            self._play_stolen_server()
            self._play_power_cut()
        order = [device.name for device in self._devices]
        rows = sorted(self._rows, key=lambda row: order.index(row.device))
        return Played(tuple(rows), self._url, dict(self._ids))

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._world.close()  # or the author's thread would go on with commands
            raise
        finally:
            for watch in self._watches.values():
                watch.close()

    # --- the chapters ----------------------------------------------------------------------

    def _make_keys_and_server(self) -> None:
        world, tell = self._world, self._tell
        tell.chapter(
            "Keys, a server, a first release",
            "The author's keys never leave author/; the server cannot sign a release.",
        )
        password = world.secret_file("secrets/password").relative_to(world.directory)
        passphrase = world.secret_file("secrets/passphrase").relative_to(world.directory)
        world.export("FIRMAMENT_PASSPHRASE_FILE", str(passphrase))
        world.run("firmament", "server", "init", "server", "--address", "127.0.0.1", "--port", str(self._port))
        world.run("firmament", "init", "author", "--product", THERMO, "--online", "server/online-public.json")
        world.export("FIRMAMENT_WORKSPACE", "author")
        self._name_server()
        roots = [
            "--image",
            "author/repository/metadata/1.root.json",
            "--director",
            "author/director/metadata/1.root.json",
        ]
        first = self._author.submit(self._make_first_release)
        world.run_all(
            [
                ("firmament", "server", "trust", "-d", "server", *roots),
                ("firmament", "operator", "add", OPERATOR, "--role", "admin", "-d", "server",
                 "--password-file", password),
            ]
        )  # fmt: skip
        self._start_server()
        world.run("firmament", "operator", "login", OPERATOR, "--password-file", password, "--out", "secrets/token")
        world.export("FIRMAMENT_TOKEN_FILE", "secrets/token")
        self._first = first.result()
        world.run("firmament", "release", "publish")
        # What a thief may have copied on that day, for later.
        shutil.copytree(world.directory / "server/repository/current/", world.directory / "loot/image-1.0")
        tell.passed(f"the server answers over TLS on {self._url}; no default account, every secret in a 0600 file")

    def _make_first_release(self) -> dict[str, dict[str, Any]]:
        self._world.run("firmament", "product", "add", GATEWAY)
        return self._make(FIRST)

    def _make_devices(self) -> None:
        world, tell = self._world, self._tell
        tell.chapter(
            "Three devices with version 1.0",
            "Provisioned with the author's root; each makes its own keys and gets its name from the server.",
        )
        tell.say("while the devices are made, the author makes 1.1:")
        self._next = self._author.submit(self._release, "1.1")
        for device in self._devices:
            manifest = self._first[device.product]
            fleet.make_device(world, device, image=manifest["image"], sequence_number=manifest["sequence_number"])
        world.run_all(
            [
                ("firmament", "device", "provision-file", "--product", device.product, "--hardware", device.hardware,
                 "--out", f"{device.home}/provision.json")
                for device in self._devices
            ]
        )  # fmt: skip
        done = world.run_all(
            [
                ("firmament-agent", "--config", device.config, "provision", f"{device.home}/provision.json")
                for device in self._devices
            ],
            as_json=True,
        )  # fmt: skip
        for device, said in zip(self._devices, done, strict=True):
            self._ids[device.name] = said.json()["device_id"]
        for device in self._devices:
            self._power_on(device)
        self._wait_for_all("runs 1.0 and is idle", lambda view: (view.version, view.state) == (FIRST, "idle"))
        for device in self._devices:
            self._judge.wait_for_program(device)
            self._judge.require_runs(device, FIRST)
        tell.passed("all three run 1.0: two really serve their health page, one booted its ext4 image")

    def _play_good_release(self) -> None:
        self._tell.chapter(
            "1.1 is good", "Signed offline, published, assigned; each device proves it healthy and keeps it."
        )
        self._next.result()
        attempts = self._assign("1.1", self._devices)
        self._check(self._devices)
        self._finish(
            attempts,
            Expected("a good release", FIRST, "1.1", "confirmed", why="healthy twice in a row"),
            meanwhile="1.2",
        )

    def _play_unhealthy_release(self) -> None:
        self._tell.chapter(
            "1.2 does not come up healthy", "Correctly signed, and broken: every device goes back by itself."
        )
        attempts = self._assign("1.2", self._devices)
        self._check(self._devices)
        self._finish(
            attempts,
            Expected("not healthy", "1.1", "1.2", "reverted", HealthError.code, why="not healthy in time"),
            meanwhile="1.3",
        )

    def _play_altered_release(self) -> None:
        world = self._world
        self._tell.chapter(
            "1.3 is altered on the server's disk", "After publishing, somebody changes one byte of each payload."
        )
        for product in PRODUCTS:
            (path,) = (world.directory / "server/repository/targets" / product / "1.3").iterdir()
            alter(path)
            shown = f"{path.name[:8]}…{path.name[64:]}"
            self._tell.say(f"one byte of server/repository/targets/{product}/1.3/{shown} is now another")
        attempts = self._assign("1.3", self._devices)
        self._check(self._devices)
        self._finish(
            attempts,
            Expected("altered on the server", "1.1", "1.3", "refused", DigestMismatchError.code,
                     why="not the signed bytes"),
            meanwhile="1.4",
        )  # fmt: skip

    def _play_stolen_server(self) -> None:
        world, tell = self._world, self._tell
        tell.chapter(
            "The server is stolen",
            "The thief owns its disk and its online keys, and wants the devices back on 1.0 with its known hole.",
        )
        fresh, old = self._devices[0], self._devices[1]
        gateway = self._devices[2]
        refused = world.run(
            "firmament", "device", "assign", self._ids[fresh.name], f"{THERMO}/{FIRST}",
            codes=[RollbackError.exit_code], as_json=True,
        )  # fmt: skip
        said = json.loads(refused.stderr)
        tell.say(f"the server's own rule stands in the way: {said['message']} [{said['code']}]")
        self._edit_database("UPDATE device SET sequence_number = 0")
        tell.say("the thief edits the database, and the director's stolen keys sign the assignment of 1.0")
        attempts = self._assign(FIRST, (fresh, gateway))
        self._check((fresh, gateway), codes=[RollbackError.exit_code])
        self._finish(
            attempts,
            Expected("old release assigned", "1.1", FIRST, "refused", RollbackError.code,
                     why="older than confirmed"),
        )  # fmt: skip
        current = world.directory / "server/repository/current"
        before = str(current.readlink())
        self._point(current, str(world.directory / "loot/image-1.0"))
        tell.say("now the thief serves a copy of the whole repository from the day when 1.0 was the newest")
        self._edit_database("UPDATE device SET sequence_number = 0")
        attempts = self._assign(FIRST, (old,))
        self._check((old,), codes=[RollbackError.exit_code])
        self._finish(
            attempts,
            Expected("old repository served", "1.1", FIRST, "refused", RollbackError.code,
                     why="older metadata than seen"),
        )  # fmt: skip
        self._point(current, before)
        tell.say("the server is put right again; nothing on the devices has to be repaired")

    def _play_power_cut(self) -> None:
        world, tell = self._world, self._tell
        tell.chapter("1.4, and the power goes", "SIGKILL for everything on each device, in the middle of the download.")
        attempts = self._assign("1.4", self._devices)
        # Beside the watching below: the download begins before the last of the commands has ended.
        asked = self._author.submit(self._check, self._devices)
        left = {device.name for device in self._devices}

        def cut_those_in_the_middle() -> bool:
            self._draw()
            for name in sorted(left):
                view = self._watches[name].view
                if view.state == "fetching" and view.done_bytes >= CUT_AFTER_BYTES:
                    world.cut_power(name)
                    tell.say(f"{name}: power cut after {view.done_bytes:,} of {view.total_bytes:,} bytes")
                    left.discard(name)
                elif view.state in {"verified", "staged", "trial", "confirmed"}:
                    raise Differs(f"{name} was faster than the power cut; the download must take longer")
            return not left

        world.wait_until(
            "every device is in the middle of the download", cut_those_in_the_middle, timeout_s=UPDATE_TIMEOUT_S
        )
        asked.result()
        for device in self._devices:
            self._power_on(device)
        self._finish(
            attempts,
            Expected("power cut", "1.1", "1.4", "confirmed", is_resumed=True),
        )

    # --- what is done again and again ------------------------------------------------------

    def _release(self, name: str) -> None:
        """Build, sign and publish one version of both products."""
        self._make(name)
        self._world.run("firmament", "release", "publish")

    def _make(self, name: str) -> dict[str, dict[str, Any]]:
        """Build and sign one version of both products; return the manifests."""
        world = self._world
        sources = {product: fleet.build(world, product, name) for product in PRODUCTS}
        hardware = {device.product: device.hardware for device in self._devices}
        # One after the other: a workspace takes one command at a time.
        built = {
            product: world.run(
                "firmament", "release", "build", source, "--product", product, "--version", name,
                "--hardware", hardware[product], as_json=True,
            )
            for product, source in sources.items()
        }  # fmt: skip
        for product in PRODUCTS:
            world.run("firmament", "release", "sign", f"{product}/{name}")
        return {product: done.json()["manifest"] for product, done in built.items()}

    def _assign(self, name: str, devices: Sequence[Device]) -> dict[Device, str]:
        """Assign a release; return the attempts."""
        done = self._world.run_all(
            [
                ("firmament", "device", "assign", self._ids[device.name], f"{device.product}/{name}")
                for device in devices
            ],
            as_json=True,
        )
        return {device: said.json()["attempt_id"] for device, said in zip(devices, done, strict=True)}

    def _check(self, devices: Sequence[Device], *, codes: Sequence[int] = (0,)) -> list[Done]:
        """Let the devices ask now instead of at their next poll."""
        return self._world.run_all(
            [("firmament-agent", "--config", device.config, "check") for device in devices], codes=codes
        )

    def _finish(self, attempts: dict[Device, str], expected: Expected, *, meanwhile: str = "") -> None:
        """Wait for the end of each attempt, then compare every view with what must be.

        `meanwhile` is the version that the author builds, signs and publishes at the same time.
        """
        busy = self._author.submit(self._release, meanwhile) if meanwhile else None
        if meanwhile:
            self._tell.say(f"while the devices are busy with {expected.offered}, the author makes {meanwhile}:")
        self._world.wait_until(
            f"{expected.offered} is {expected.outcome} on {', '.join(device.name for device in attempts)}",
            lambda: self._draw() and all(self._has_ended(device, attempt) for device, attempt in attempts.items()),
            timeout_s=UPDATE_TIMEOUT_S,
        )
        self._rows += self._judge.judge(attempts, expected)
        if busy is not None:
            busy.result()

    def _has_ended(self, device: Device, attempt_id: str) -> bool:
        watch = self._watches[device.name]
        return attempt_id in watch.ended and watch.view.state == "idle"

    def _start_server(self) -> None:
        self._world.start("server", "firmament", "server", "run", "-d", "server", "--port-file", "server/port")
        self._world.wait_until(
            "the server takes connections", (self._world.directory / "server/port").exists, timeout_s=READY_TIMEOUT_S
        )

    def _power_on(self, device: Device) -> None:
        agent = ("firmament-agent", "--config", device.config, "run")
        machine = ("firmament", "sim", "device", "--config", device.config)  # with a boot loader to play
        log = self._world.start(device.name, *(agent if device.port else machine))
        if device.name not in self._watches:
            path = fleet.socket_path(self._world, device)
            self._watches[device.name] = Watch(device, path, log, DeviceView(device.name))

    def _wait_for_all(self, what: str, holds: Any) -> None:
        self._world.wait_until(
            what,
            lambda: self._draw() and all(holds(watch.view) for watch in self._watches.values()),
            timeout_s=READY_TIMEOUT_S,
        )

    def _draw(self) -> bool:
        for watch in self._watches.values():
            self._tell.device(watch.look())
        return True

    def _name_server(self) -> None:
        """Edit the workspace's settings as a person would."""
        path = self._world.directory / "author/firmament.toml"
        text = path.read_text(encoding="utf-8")
        for empty, filled in (('url = ""', f'url = "{self._url}"'), ('ca = ""', 'ca = "../server/tls/ca.pem"')):
            if empty not in text:
                raise Differs(f"{path} has no line `{empty}` to fill in")
            text = text.replace(empty, filled)
        path.write_text(text, encoding="utf-8")
        self._tell.say(f'in author/firmament.toml: url = "{self._url}", ca = "../server/tls/ca.pem"')

    def _edit_database(self, statement: str) -> None:
        path = self._world.directory / "server/database/firmament.db"
        self._tell.command(f'sqlite3 server/database/firmament.db "{statement}"')
        with contextlib.closing(sqlite3.connect(path, timeout=10)) as connection, connection:
            connection.execute(statement)

    def _point(self, link: Path, target: str) -> None:
        shown = target.removeprefix(f"{self._world.directory}/")
        self._tell.command(f"ln -sfn {shown} {link.relative_to(self._world.directory)}")
        new = link.with_name("current.thief")
        new.symlink_to(target)
        new.replace(link)


def alter(path: Path) -> None:
    """Change one byte in the middle of a file."""
    with path.open("r+b") as file:
        middle = path.stat().st_size // 2
        file.seek(middle)
        byte = file.read(1)[0]
        file.seek(middle)
        file.write(bytes([byte ^ 1]))
