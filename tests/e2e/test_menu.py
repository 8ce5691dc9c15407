"""`firmament-agent menu` in front of a real daemon: on a screen, on a plain line, two at once."""

import asyncio
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from support import programs
from support.agent_device import AGENT, Device, until
from support.databases import fresh_database
from support.server_world import World

from firmament.cli.menu import MIN_COLUMNS, MIN_ROWS, Terminal, why_plain
from firmament.cli.menu_feed import Feed, Rate, came_back_with, duration, headline, line_of
from firmament.cli.menu_screen import ConsentScreen, GoBackScreen, MenuApp
from firmament.core.clock import SystemClock

SCREEN = Terminal(is_tty=True, term="xterm-256color", device="/dev/pts/1", columns=120, rows=40, has_textual=True)
TYPED = [str(Path(sys.executable).with_name(AGENT))]
NOTES = {"en": "Fixes readings.\nA \x1b[31mtrick\x1b[0m.", "de": "Werte stimmen."}


@pytest.fixture(scope="module")
def world(tmp_path_factory, database_kind):
    made = World(tmp_path_factory.mktemp("world"), database=fresh_database(database_kind)).begin()
    made.number = 1
    yield made
    made.close()


@pytest.fixture
def offered(tmp_path, world):
    """A device with a daemon on a simulated machine, and a release that waits for its owner's answer."""
    device = Device(
        tmp_path,
        world,
        policy='mode = "ask"',
        extra="[transfer]\nmax_rate_bytes_per_s = 1500000\n[owner]\noffline_s = 60\n",
    ).provision()
    world.number += 1
    device.version = f"1.{world.number}"
    world.publish_release("thermo", device.version, world.number, os.urandom(3_000_000), notes=NOTES)
    world.assign(device, f"thermo/{device.version}")
    machine = programs.Program(
        ["firmament", "sim", "device", "--config", device.config],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until(device.socket.exists)
    until(lambda: device.run("status").get("state") == "waiting")
    yield device
    machine.terminate()
    machine.wait(30)


# --- which of the two ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, ""),
        ({"term": "linux"}, ""),
        ({"is_tty": False}, "no terminal"),
        ({"term": "dumb"}, "dumb"),
        ({"term": ""}, "unknown"),
        ({"term": "vt100"}, "vt100"),
        ({"term": "vt220"}, "vt220"),
        ({"term": "linux", "device": "/dev/ttyS0"}, "serial"),
        ({"term": "linux", "device": "/dev/ttyAMA0"}, "serial"),
        ({"term": "linux", "device": "/dev/ttymxc1"}, "serial"),
        ({"term": "linux", "device": "/dev/hvc0"}, "serial"),
        ({"columns": 0}, "size"),
        ({"rows": 0}, "size"),
        ({"columns": MIN_COLUMNS - 1}, "79 x 40"),
        ({"rows": MIN_ROWS - 1}, "120 x 19"),
        ({"has_textual": False}, "firmament[tui]"),
    ],
)
def test_the_plain_menu_is_taken_where_a_screen_would_not_work(changes, why):
    from dataclasses import replace

    found = why_plain(replace(SCREEN, **changes))
    assert (why in found) if why else found == ""


# --- on a screen ---------------------------------------------------------------------------


def on_screen(device, story, size=(120, 36)):
    """Play a story in front of the menu, headless, on the real socket."""

    async def play():
        feed = Feed(device.socket, SystemClock())
        feed.start()
        try:
            app = MenuApp(feed)
            async with app.run_test(size=size) as pilot:
                await story(app, pilot)
        finally:
            feed.close()

    asyncio.run(play())


async def shows(app, pilot, text, limit_s=30.0):
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        await pilot.pause(0.1)
        if text in screen_text(app):
            return
    raise AssertionError(f"{text!r} not in\n{screen_text(app)}")


def screen_text(app):
    return "\n".join("".join(segment.text for segment in strip) for strip in app.screen._compositor.render_strips())


def test_the_whole_update_from_the_screen_through_a_restart(offered):
    async def story(app, pilot):
        await shows(app, pilot, f"Update to {offered.version}?")
        assert isinstance(app.screen, ConsentScreen)
        assert app.focused.id == "later", "the focus is on what agrees to nothing"
        assert "\x1b" not in screen_text(app)
        await pilot.press("escape")
        await shows(app, pilot, "waits for your answer")
        assert "▸ Consent" in screen_text(app)
        await pilot.press("a")
        await shows(app, pilot, "What changes for you")
        await pilot.press("y")
        await shows(app, pilot, "Downloading")
        await shows(app, pilot, "MB/s")
        await shows(app, pilot, "Started the new image")
        await shows(app, pilot, f"thermo/{offered.version} was confirmed")

    on_screen(offered, story)
    assert offered.run("status")["running"]["version"] == offered.version


def test_enter_on_the_question_postpones_and_never_agrees(offered):
    async def story(app, pilot):
        await shows(app, pilot, "Ask me later")
        await pilot.press("enter")
        await shows(app, pilot, "postponed until")

    on_screen(offered, story)
    consent = offered.run("consent", "show", code=0)["consent"]
    assert consent["answer"] == "later"
    assert offered.run("status")["state"] == "waiting"


def test_every_size_shows_the_choices_and_the_question(offered):
    async def story(app, pilot):
        await shows(app, pilot, "Ask me later")
        await pilot.press("escape")
        await shows(app, pilot, "Check")
        text = screen_text(app)
        assert all(f"{key}  {name}" in text for key, name in (("1", "Check"), ("4", "Apply"), ("a", "Do all")))
        assert "Free space" not in text, "facts need a wide terminal"
        await pilot.press("r")
        await shows(app, pilot, "Give this update up?")
        assert isinstance(app.screen, GoBackScreen)
        assert app.focused.id == "no"
        await pilot.press("enter")
        assert len(app.screen_stack) == 1

    on_screen(offered, story, size=(80, 24))
    assert offered.run("status")["state"] == "waiting", "nothing was given up"


def test_two_menus_see_the_same_and_closing_one_stops_nothing(offered):
    first, second = (Feed(offered.socket, SystemClock()) for _ in range(2))
    first.start()
    second.start()
    working = first.run_soon("download", {"yes": True})
    until(lambda: second.snapshot().status.get("state") == "fetching")
    until(lambda: headline(second.snapshot()).startswith(f"Downloading {offered.version}"))
    first.close()
    # The log, not the state: the owner agreed, so the device goes on at once and restarts.
    until(lambda: any(f"thermo/{offered.version} is verified" in line for line in second.snapshot().log))
    working.join(20)
    assert not working.is_alive()
    second.close()


# --- on a line, and in a real terminal ----------------------------------------------------


class Line:
    """A program at the other end of a terminal line."""

    def __init__(self, command, *, term, size=(24, 80)):
        self.process, self.fd, self.text = None, None, ""
        pid, self.fd = pty.fork()
        if pid == 0:
            os.environ.update(TERM=term, LINES=str(size[0]), COLUMNS=str(size[1]), LC_ALL="C.UTF-8")
            os.execv(command[0], command)
        self.pid = pid

    def read_until(self, text, limit_s=40.0):
        end = time.monotonic() + limit_s
        while text not in self.text:
            if not select.select([self.fd], [], [], max(0.0, end - time.monotonic()))[0]:
                raise AssertionError(f"{text!r} not in {self.text}")
            try:
                data = os.read(self.fd, 65_536)
            except OSError:
                data = b""
            if not data:
                raise AssertionError(f"it ended without {text!r}: {self.text}")
            self.text += data.decode(errors="replace")
        seen, self.text = self.text[: self.text.index(text)] + text, self.text[self.text.index(text) + len(text) :]
        return seen

    def type(self, text):
        os.write(self.fd, text.encode())

    def end(self):
        os.close(self.fd)
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)


def test_the_whole_update_on_a_serial_line(offered):
    line = Line([*TYPED, "--config", str(offered.config), "menu"], term="vt220")
    seen = line.read_until("Choice: ")
    assert "Plain menu (the terminal is vt220)." in seen
    assert "1 Check" in seen
    assert "a Do all" in seen
    line.type("\r")
    line.read_until("Choice: ")
    line.type("w\r")
    seen = line.read_until("Choice: ")
    assert "Fixes readings." in seen
    assert "Nothing is installed until you agree." in seen
    line.type("a\r")
    line.read_until("away for about 1 min. (yes/no) ")
    line.type("\r")
    assert "Nothing was changed." in line.read_until("Choice: ")
    line.type("a\r")
    line.read_until("(yes/no) ")
    line.type("yes\r")
    seen = line.read_until("Choice: ", limit_s=60)
    assert "is fetching" in seen
    assert re.search(r" \d+ %  Downloading", seen)
    assert "is verified" in seen
    assert "\x1b[" not in seen, "no cursor movement on a line"
    until(lambda: offered.run("status").get("running"), limit_s=30)
    line.type("\r")
    until(lambda: offered.run("status").get("state") == "idle")
    line.type("q\r")
    line.end()
    assert offered.run("status")["running"]["version"] == offered.version


def test_no_terminal_at_all_reads_choices_until_the_end(offered):
    done = programs.run([AGENT, "--config", offered.config, "menu"], typed="x\nl\n")
    assert done.returncode == 0, done.stderr
    assert "Plain menu (this is no terminal)." in done.stdout
    assert "There is no choice 'x'." in done.stdout
    assert "Postponed until" in done.stdout
    assert offered.run("consent", "show")["consent"]["answer"] == "later"


def test_a_real_terminal_of_80_by_24(offered):
    assert shutil.which("tmux"), "scripts/debian.sh installs it"
    name = f"firmament-{uuid.uuid4().hex[:8]}"
    tmux = ["tmux", "-L", name, "-f", "/dev/null"]
    command = " ".join([*(f"'{word}'" for word in TYPED), "--config", str(offered.config), "menu"])
    subprocess.run([*tmux, "new-session", "-d", "-x", "80", "-y", "24", command], check=True)
    try:

        def pane():
            return subprocess.run([*tmux, "capture-pane", "-p"], capture_output=True, text=True, check=False).stdout

        until(lambda: f"Update to {offered.version}?" in pane(), limit_s=40)
        assert "Ask me later (l)" in pane()
        subprocess.run([*tmux, "send-keys", "t"], check=True)
        until(lambda: "waits for the window" in pane(), limit_s=40)
        subprocess.run([*tmux, "send-keys", "q"], check=True)
    finally:
        subprocess.run([*tmux, "kill-server"], check=False, capture_output=True)
    assert offered.run("consent", "show")["consent"]["answer"] == "tonight"


def test_without_a_daemon_it_says_how_to_start_one(tmp_path, world):
    device = Device(tmp_path, world)
    error = device.error("menu")
    assert error["code"] == "local/file"
    assert "firmament-agent run" in error["message"]


def test_json_gives_the_state_once(offered):
    assert offered.run("menu", code=0)["state"] == "waiting"


# --- small things --------------------------------------------------------------------------


def test_a_rate_is_of_the_last_seconds():
    rate = Rate()
    assert rate.bytes_per_s == 0
    for second in range(60):
        rate.note(float(second), second * 1000 if second < 40 else 40_000)
    assert rate.bytes_per_s == 0, "a stall is seen"
    rate.note(61.0, 10)
    assert len(rate.samples) == 1, "begun anew"


@pytest.mark.parametrize(
    ("before", "now", "was_restarting", "text"),
    [
        ({"boot_id": "a", "running": None}, {"boot_id": "a", "running": None}, False, "The daemon is back."),
        ({"boot_id": "a"}, {"boot_id": "b", "state": "trial"}, True, "Started the new image; it has to prove itself now."),
        ({"boot_id": "a", "running": {"version": "1"}}, {"boot_id": "b", "running": {"version": "2"}}, True, "Came back with 2."),
        ({"boot_id": "a", "running": {"version": "1"}}, {"boot_id": "b", "running": {"version": "1"}}, True, "Came back with 1, as before."),
    ],
)  # fmt: skip
def test_what_came_back_is_told_by_boot_id_and_version(before, now, was_restarting, text):
    assert came_back_with(before, now, was_restarting=was_restarting) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "1 s"), (60, "60 s"), (600, "10 min"), (7200, "2 h")])
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_events_that_the_screen_shows_elsewhere_make_no_line():
    assert line_of({"event": "status"}) == ""
