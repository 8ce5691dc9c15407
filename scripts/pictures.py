#!/usr/bin/env python3
"""Make the pictures of the documentation from real runs (`make pictures`); look at each before committing.

`PICTURES` is the table: file below docs/pictures -> function that makes it in a `Studio`, which
has a real server, a real device with a daemon, and a fleet that halts a rollout. With names as
arguments only those are made.
"""

from __future__ import annotations

import asyncio
import io
import os
import pty
import re
import select
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "scripts")]

from demo_picture import THEME, without_web_fonts  # noqa: E402 - a neighbour
from rich.console import Console  # noqa: E402
from rich.text import Text  # noqa: E402
from support.agent_device import Device, until  # noqa: E402
from support.databases import fresh_database  # noqa: E402
from support.server_world import World  # noqa: E402

from firmament.cli.menu_feed import Feed  # noqa: E402
from firmament.core.clock import SystemClock  # noqa: E402
from firmament.core.manifest import UpdateClass  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

PICTURES_DIRECTORY = ROOT / "docs/pictures"
AGENT = [sys.executable, "-c", "from firmament.cli.agent import main; main()"]
FIRMAMENT = [sys.executable, "-c", "from firmament.cli.main import main; main()"]
NOTES = {
    "en": "Fixes meter readings that stop after 49 days.\nCloses a hole in the MQTT broker.",
    "de": "Zählerstände bleiben nach 49 Tagen nicht mehr stehen.\nSchließt eine Lücke im MQTT-Broker.",
}
FLEET = 60


class Studio:
    """A whole world to take pictures of, made on first use."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._world: World | None = None
        self._device: Device | None = None
        self._machine: subprocess.Popen[bytes] | None = None
        self._number = 1

    def publish(self, version: str, data: bytes, **changes: Any) -> int:
        """Publish under the next sequence number, and return that."""
        self._number += 1
        self.world.publish_release("thermo", version, self._number, data, **changes)
        return self._number

    @property
    def world(self) -> World:
        """A server with one release."""
        if self._world is None:
            self._world = World(self.directory / "server", database=fresh_database("sqlite")).begin()
            self._world.publish_release("thermo", "2.13.4", 1, b"factory", update_class=UpdateClass.FEATURE)
        return self._world

    @property
    def device(self) -> Device:
        """A device that is asked for its consent to 2.14.0."""
        if self._device is None:
            device = Device(
                self.directory / "device",
                self.world,
                policy='mode = "ask"',
                extra="[transfer]\nmax_rate_bytes_per_s = 1300000\n"
                '[page]\nlisten = "127.0.0.1:0"\n'
                f'[factory]\nversion = "2.13.4"\nsequence_number = 1\ndigest = "sha256:{"0" * 64}"\n',
            ).provision()
            data = os.urandom(18_400_000)
            self.publish("2.14.0", data, notes=NOTES, update_class=UpdateClass.SECURITY)
            self.world.assign(device, "thermo/2.14.0")
            self._machine = subprocess.Popen(
                [*FIRMAMENT, "sim", "device", "--config", str(device.config)],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            until(device.socket.exists)
            until(lambda: device.run("status").get("state") == "waiting", limit_s=60)
            self._device = device
        return self._device

    def close(self) -> None:
        """End what was started."""
        if self._machine is not None:
            self._machine.terminate()
            self._machine.wait(30)
        if self._world is not None:
            self._world.close()


# --- the menu ------------------------------------------------------------------------------


def menu_screen(studio: Studio, keys: str, *, size: tuple[int, int], until_text: str) -> str:
    """Return the menu as SVG after some keys, once a text is on the screen."""
    from firmament.cli.menu_screen import MenuApp

    shown: list[str] = []

    async def play() -> None:
        feed = Feed(studio.device.socket, SystemClock())
        feed.start()
        app = MenuApp(feed)
        async with app.run_test(size=size) as pilot:
            await pilot.pause(1.0)
            for key in keys.split():
                await pilot.press(key)
                await pilot.pause(0.5)
            for _ in range(300):
                text = "\n".join("".join(s.text for s in strip) for strip in app.screen._compositor.render_strips())  # noqa: SLF001
                if until_text in text:
                    break
                await pilot.pause(0.1)
            shown.append(app.export_screenshot(title=f"firmament-agent menu, {size[0]} x {size[1]}"))
        feed.close()

    asyncio.run(play())
    return without_web_fonts(shown[0])


def menu_consent(studio: Studio) -> str:
    return menu_screen(studio, "", size=(112, 32), until_text="Ask me later")


def menu_small(studio: Studio) -> str:
    return menu_screen(studio, "escape", size=(80, 24), until_text="waits for your answer")


def menu_main(studio: Studio) -> str:
    return menu_screen(studio, "escape a y", size=(112, 32), until_text="left")


def menu_plain(studio: Studio) -> str:
    """Return the plain menu on a serial line: what it does, then nothing, because Enter is no yes."""
    pid, fd = pty.fork()
    if pid == 0:
        os.environ.update(TERM="vt220", LINES="24", COLUMNS="80", LC_ALL="C.UTF-8")
        os.execv(AGENT[0], [*AGENT, "--config", str(studio.device.config), "menu"])
    text, seen = "", 0
    for wanted, typed in (("Choice: ", "a\r"), ("(yes/no) ", "\r"), ("Choice: ", "q\r")):
        end = time.monotonic() + 40
        while wanted not in text[seen:] and time.monotonic() < end:
            if select.select([fd], [], [], 1.0)[0]:
                text += os.read(fd, 65_536).decode()
        seen = len(text)
        os.write(fd, typed.encode())
    with suppress(OSError):
        while data := os.read(fd, 65_536):
            text += data.decode()
    os.waitpid(pid, 0)
    return drawn("TERM=vt220 firmament-agent menu", text.replace("\r", ""), width=84)


# --- the command line ----------------------------------------------------------------------


def drawn(command: str, text: str, *, width: int) -> str:
    """Return terminal output as SVG, colours as they were printed."""
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text(f"$ {command}", style="bold"))
    console.print(Text.from_ansi(text.rstrip("\n")))
    return without_web_fonts(console.export_svg(title="firmament", theme=THEME))


def run(studio: Studio, *arguments: str) -> str:
    environment = {
        **os.environ,
        "FIRMAMENT_SERVER": studio.world.server.url,
        "FIRMAMENT_CA": str(studio.world.server.ca),
        "FIRMAMENT_TOKEN": studio.world.admin.token,
        "CLICOLOR_FORCE": "1",
    }
    done = subprocess.run([*FIRMAMENT, *arguments], capture_output=True, text=True, env=environment, check=False)
    return done.stdout + done.stderr


def rollout_halted(studio: Studio) -> str:
    """Return a rollout that its stop rule halted: real devices report, those of revision C fail."""
    world = studio.world
    fleet = [
        world.device(hardware="revC" if index > FLEET // 6 and index % 3 == 0 else "revB") for index in range(FLEET)
    ]
    for device in fleet:
        device.poll()
    number = studio.publish("2.15.0", b"new" * 1000, hardware=("revB", "revC"))
    made = run(
        studio, "rollout", "start", "thermo/2.15.0", "-q", "hardware in (revB, revC)", "--waves", "50,all",
        "--limit", "20%", "--min-finished", "45", "--expect-count", str(FLEET), "--json",
    )  # fmt: skip
    name = re.search(r'"rollout_id": "([^"]+)"', made)
    assert name is not None, made
    end = time.monotonic() + 120
    while time.monotonic() < end and "halted" not in run(studio, "rollout", "list"):
        for device in fleet:
            found = device.assignment()
            if found is None:
                continue
            bad = device.hardware == "revC"
            states = [("fetching", {}), ("verified", {}), ("staged", {}), ("trial", {"boot_id": "boot-b"})]
            last: tuple[str, dict[str, Any]] = (
                ("reverted", {"code": "slot/health", "message": "mqtt: connect timeout"})
                if bad
                else ("confirmed", {"boot_id": "boot-b", "version": "2.15.0", "sequence_number": number})
            )
            for status, changes in (*states, last):
                device.report(device.envelope(found["attempt_id"], status, **changes))
        time.sleep(0.5)
    shown = run(studio, "rollout", "show", name[1])
    return drawn(f"firmament rollout show {name[1]}", shown, width=112)


def consent_show(studio: Studio) -> str:
    done = subprocess.run(
        [*AGENT, "--config", str(studio.device.config), "consent", "show"],
        capture_output=True,
        text=True,
        check=False,
    )
    return drawn("firmament-agent consent show", done.stdout + done.stderr, width=92)


# --- the owner's page ----------------------------------------------------------------------


def owner_page(studio: Studio) -> bytes:
    from playwright.sync_api import sync_playwright

    url = studio.device.run("page")["url"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium-headless-shell",
            args=["--no-sandbox", "--disable-gpu"],
        )
        page = browser.new_page(viewport={"width": 460, "height": 900}, device_scale_factor=1.5)
        page.goto(url)
        picture = page.screenshot(full_page=True)
        browser.close()
    return picture


PICTURES: dict[str, Callable[[Studio], str | bytes]] = {
    # In this order: the last of the menu starts the update.
    "rollout-halted.svg": rollout_halted,
    "consent-show.svg": consent_show,
    "menu-consent.svg": menu_consent,
    "menu-80x24.svg": menu_small,
    "menu-plain.svg": menu_plain,
    "owner-page.png": owner_page,
    "menu.svg": menu_main,
}


def main() -> None:
    wanted = sys.argv[1:] or list(PICTURES)
    PICTURES_DIRECTORY.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="firmament-pictures-") as directory:
        studio = Studio(Path(directory))
        try:
            for name, make in PICTURES.items():
                if name in wanted:
                    made = make(studio)
                    data = made.encode() if isinstance(made, str) else made
                    (PICTURES_DIRECTORY / name).write_bytes(data)
                    print(f"{name}  {len(data)} bytes  {datetime.now(UTC):%H:%M:%S}")
        finally:
            studio.close()


if __name__ == "__main__":
    main()
