"""The devices of the demonstration: their settings, what the factory put on them, and what they say."""

from __future__ import annotations

import json
import shutil
import socket
import threading
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from firmament.agent.socket import MAX_PATH_LENGTH_BYTES, ControlClient
from firmament.errors import FirmamentError
from firmament.sim.demo.products import GATEWAY, MODEM_FIRMWARE, THERMO, build_gateway, build_thermo, tool, version

if TYPE_CHECKING:
    from pathlib import Path

    from firmament.sim.demo.narrator import DeviceView
    from firmament.sim.demo.world import Log, World

MEBIBYTE: Final = 1024 * 1024
RATES_BYTES_PER_S: Final = {THERMO: 4 * MEBIBYTE, GATEWAY: 20 * MEBIBYTE}
# Three seconds each: slow enough to see the download and to cut the power inside it.
TRIAL_DEADLINE_S: Final = 6
# A healthy image needs two seconds (two rounds), and on a busy machine some more to start.
RECONNECT_S: Final = 0.05
FINAL: Final = frozenset({"confirmed", "reverted", "refused", "failed", "declined"})
FIRST: Final = "1.0"


@dataclass(frozen=True, slots=True)
class Device:
    """One device of the demonstration."""

    name: str
    product: str
    hardware: str
    port: int = 0
    """Where its program answers; 0: it has none."""

    @property
    def home(self) -> str:
        """Its folder, from the world's."""
        return f"devices/{self.name}"

    @property
    def config(self) -> str:
        """The agent's settings, from the world's folder."""
        return f"{self.home}/agent.toml"


@dataclass
class Watch:
    """Follows one device across restarts and power cuts: its agent's local socket and its log."""

    device: Device
    socket_path: Path
    log: Log
    """What the agent wrote: survives restarts, which the socket does not."""
    view: DeviceView
    ended: dict[str, str] = field(default_factory=dict)
    """How attempts ended, by id."""

    def __post_init__(self) -> None:
        self._changing = threading.Lock()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._listen, name=f"watch-{self.device.name}", daemon=True)
        self._thread.start()

    def look(self) -> DeviceView:
        """Read the log on; return where the device is."""
        for line in self.log.new():
            if line.get("event") == "attempt.moved" and line.get("state") in FINAL:
                self.ended[line["attempt_id"]] = line["state"]
        return self.view

    def close(self) -> None:
        """Stop listening; what was said stays."""
        self._is_over.set()

    def _listen(self) -> None:
        while not self._is_over.wait(RECONNECT_S):
            with suppress(FirmamentError, OSError):
                status = self.ask("status")
                if status.get("state") is not None:  # a daemon that is starting cannot say yet
                    self.ask("watch")
            with self._changing:
                state = "restarts" if self.view.state in {"staged", "trial", "restarts"} else "off"
                self.view = replace(self.view, state=state, done_bytes=0, total_bytes=0)

    def ask(self, command: str) -> dict[str, Any]:
        """Ask the agent over its socket, as `firmament-agent status` does; nothing while it is away."""
        client = ControlClient.connect(self.socket_path)
        return {} if client is None else client.ask(command, {}, on_event=self._hear)

    def _hear(self, event: dict[str, Any]) -> None:
        with self._changing:
            self.view = seen(self.view, event)


def seen(view: DeviceView, event: dict[str, Any]) -> DeviceView:
    """Return what is known of a device after one more event."""
    match event.get("event"):
        case "status":
            attempt, running = event.get("attempt") or {}, event.get("running") or {}
            return replace(
                view,
                version=running.get("version") or view.version,
                state=event.get("state") or "starting",
                target=_version_of(attempt.get("release_id")),
                done_bytes=attempt.get("done_bytes") or 0,
                total_bytes=(attempt.get("total_bytes") or 0) if event.get("state") == "fetching" else 0,
                note="",
            )
        case "progress":
            return replace(view, done_bytes=event["done_bytes"], total_bytes=event["total_bytes"])
        case "state-changed":
            target = _version_of(event.get("release_id"))
            state, is_new = event["state"], event["state"] == "confirmed"
            return replace(
                view,
                version=target if is_new else view.version,
                state=state,
                target="" if is_new or state == "idle" else target or view.target,
                done_bytes=0,
                total_bytes=0,
                note=event.get("code", ""),
            )
        case "health-checked":
            return replace(view, note="healthy" if event["is_healthy"] else f"not healthy yet: {event['check']}")
        case "trouble":
            return replace(view, note=event["code"])
        case _:
            return view


def _version_of(release: str | None) -> str:
    return (release or "").partition("/")[2]


def make_fleet() -> tuple[Device, ...]:
    """Name the three devices; the two with a program get a free port each."""
    return (
        Device("thermo-1", THERMO, "rpi4", free_port()),
        Device("thermo-2", THERMO, "rpi4", free_port()),
        Device("gateway-1", GATEWAY, "gw-x2"),
    )


def free_port() -> int:
    """Return a TCP port that nobody listens on now."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def make_device(world: World, device: Device, *, image: dict[str, Any], sequence_number: int) -> None:
    """Do what the factory does: put the first version into slot A and write the agent's settings.

    `image` is the image of the first release as its manifest describes it.
    """
    home = world.directory / device.home
    home.mkdir(parents=True)
    factory = {
        "version": FIRST,
        "sequence_number": sequence_number,
        "digest": f"sha256:{image['digest']['sha256']}",
        "length_bytes": image["length_bytes"],
        "slot": "a",
    }
    if device.product == THERMO:
        shutil.copytree(world.directory / "build" / f"{THERMO}-{FIRST}", home / "app" / "a")
        kind = _bundle_settings(home, device)
    else:
        shutil.copy(world.directory / "build" / f"{GATEWAY}-{FIRST}.img", home / "slot-a.img")
        (home / "slot-b.img").touch()
        kind = _image_settings(home)
    (home / "agent.toml").write_text(
        f"state_dir = {_text(home / 'state')}\n"
        f"socket = {_text(socket_path(world, device))}\n\n"
        f"[device]\nhardware = {_text(device.hardware)}\n\n"
        f"{_section('factory', factory)}\n"
        f"{kind}\n"
        f"{_section('trial', {'deadline_s': TRIAL_DEADLINE_S})}\n"
        f"{_section('policy', {'mode': 'automatic', 'first_poll_within_s': 0})}\n"
        f"{_section('transfer', {'max_rate_bytes_per_s': RATES_BYTES_PER_S[device.product]})}",
        encoding="utf-8",
    )


def socket_path(world: World, device: Device) -> Path:
    """Return where the device's agent listens for local commands; a socket's path must be short."""
    path = world.directory / device.home / "agent.sock"
    return path if len(bytes(path)) <= MAX_PATH_LENGTH_BYTES else world.short_directory() / f"{device.name}.sock"


def _bundle_settings(home: Path, device: Device) -> str:
    return "\n".join(
        (
            _section("slots", {"kind": "bundle", "directory": str(home / "app")}),
            _section("boot", {"kind": "supervisor", "command": ["python3", "main.py", "--port", str(device.port)]}),
            f'[[health]]\nkind = "http"\nurl = {_text(health_url(device))}\ntimeout_s = 2\n',
        )
    )


def _image_settings(home: Path) -> str:
    # A machine with real partitions would run the check inside the booted system; here the check
    # looks into the image that the simulated boot loader says it started.
    check = home / "health.sh"
    check.write_text(
        "#!/bin/sh\n"
        "# Healthy when the booted slot's file system holds the modem's firmware.\n"
        f"slot=$(sed -n 's/.*\"slot\":\"\\([ab]\\)\".*/\\1/p' '{home}/state/boot/booted')\n"
        f"found=$('{tool('debugfs')}' -R 'stat {MODEM_FIRMWARE}' '{home}/slot-'\"$slot\".img 2>&1)\n"
        f"echo \"slot $slot holds $('{tool('debugfs')}' -R 'cat /etc/gateway-version' "
        f'\'{home}/slot-\'"$slot".img 2>/dev/null)"\n'
        "case $found in *Inode:*) exit 0 ;; esac\n"
        f"echo 'the modem does not start: {MODEM_FIRMWARE} is missing'\n"
        "exit 1\n",
        encoding="utf-8",
    )
    check.chmod(0o755)
    return "\n".join(
        (
            _section(
                "slots",
                {
                    "kind": "image",
                    "a": str(home / "slot-a.img"),
                    "b": str(home / "slot-b.img"),
                    "limit_bytes": 64 * MEBIBYTE,
                },
            ),
            _section("boot", {"kind": "sim"}),
            f'[[health]]\nkind = "command"\ncommand = [{_text(check)}]\n',
        )
    )


def health_url(device: Device) -> str:
    """Return where the device's program tells how it is."""
    return f"http://127.0.0.1:{device.port}/health"


def build(world: World, product: str, name: str) -> str:
    """Build what the author releases; return its path from the world's folder."""
    if product == THERMO:
        build_thermo(world.directory / "build" / f"{product}-{name}", version(name))
        return f"build/{product}-{name}"
    build_gateway(world.directory / "build" / f"{product}-{name}.img", version(name), workspace=world.directory)
    return f"build/{product}-{name}.img"


def _section(name: str, values: dict[str, Any]) -> str:
    return f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


def _text(value: object) -> str:
    return json.dumps(str(value))  # TOML's basic strings are JSON's
