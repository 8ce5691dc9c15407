"""``firmament-agent menu``: check, download, verify, apply, or all of it, for a technician at the device.

Two faces of one thing. Where the terminal can do it and the extra ``[tui]`` is installed: a
screen (menu_screen.py). Everywhere else, above all on a serial line: numbered choices, one line
per event, no cursor movement, ASCII only. Both are clients of the daemon (menu_feed.py).
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import click

from firmament.cli.agent import load_settings
from firmament.cli.agent_consent import offer_lines
from firmament.cli.common import output, output_options
from firmament.cli.menu_feed import Feed, Snapshot, headline, title
from firmament.core.clock import SystemClock
from firmament.core.offer import printable, size
from firmament.errors import FileError

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

MIN_COLUMNS: Final = 80
MIN_ROWS: Final = 20
_SERIAL: Final = re.compile(r"/dev/(ttyS|ttyAMA|ttymxc|ttyGS|ttyUSB|hvc)\d*")
_DUMB: Final = re.compile(r"dumb|unknown|vt\d.*|")
WAIT_S: Final = 0.2
PROGRESS_STEP_PERCENT: Final = 10


@dataclass(frozen=True, slots=True)
class Terminal:
    """What is known of the terminal; `Terminal.found` looks."""

    is_tty: bool
    term: str
    device: str
    columns: int
    rows: int
    has_textual: bool

    @classmethod
    def found(cls) -> Terminal:
        """Look at this process's terminal. COLORTERM is not asked: it lies on serial lines."""
        is_tty = sys.stdin.isatty() and sys.stdout.isatty()
        size = shutil.get_terminal_size((0, 0))
        return cls(
            is_tty=is_tty,
            term=os.environ.get("TERM", ""),
            device=os.ttyname(sys.stdout.fileno()) if is_tty else "",
            columns=size.columns,
            rows=size.lines,
            has_textual=importlib.util.find_spec("textual") is not None,
        )


def why_plain(terminal: Terminal) -> str:
    """Return why only the plain menu works here; empty when the screen does."""
    if not terminal.is_tty:
        return "this is no terminal"
    if _DUMB.fullmatch(terminal.term):
        return f"the terminal is {terminal.term or 'unknown'}"
    if terminal.term == "linux" and _SERIAL.fullmatch(terminal.device):
        return f"{terminal.device} is a serial line"
    if not terminal.columns or not terminal.rows:
        return "the size of the terminal is unknown"
    if terminal.columns < MIN_COLUMNS or terminal.rows < MIN_ROWS:
        return (
            f"the terminal has {terminal.columns} x {terminal.rows} characters, {MIN_COLUMNS} x {MIN_ROWS} are needed"
        )
    if not terminal.has_textual:
        return "the extra firmament[tui] is not installed"
    return ""


@click.command("menu")
@click.option("--plain", is_flag=True, help="Numbered choices without a screen, as on a serial line.")
@output_options
@click.pass_context
def command(context: click.Context, plain: bool) -> None:  # noqa: FBT001 - click's shape
    """Check, download, verify and apply from a menu.

    A client of the daemon: closing it stops nothing, and two menus show the same. With --json it
    prints the daemon's state once.
    """
    settings = load_settings(context)
    feed = Feed(settings.socket, SystemClock())
    feed.start()
    snapshot = feed.snapshot()
    if not snapshot.is_connected:
        feed.close()
        raise FileError("There is no daemon; start `firmament-agent run`", socket=settings.socket)
    try:
        if output().as_json:
            output().document("status", snapshot.status)
        elif reason := "asked for" if plain else why_plain(Terminal.found()):
            PlainMenu(feed, reason).run()
        else:
            from firmament.cli.menu_screen import MenuApp

            MenuApp(feed).run()
    finally:
        feed.close()


class PlainMenu:
    """Numbered choices on any line that carries text."""

    def __init__(self, feed: Feed, reason: str) -> None:
        self._feed = feed
        self._reason = reason
        self._shown = 0
        self.choices: dict[str, tuple[str, Callable[[], None]]] = {
            "1": ("Check", lambda: self._do("check")),
            "2": ("Download", lambda: self._do("download")),
            "3": ("Verify", lambda: self._do("verify")),
            "4": ("Apply", lambda: self._with_consent("apply")),
            "a": ("Do all", lambda: self._with_consent("all")),
            "w": ("What does it do?", self._explain),
            "t": ("Tonight", lambda: self._answer("tonight")),
            "l": ("Ask me later", lambda: self._answer("later")),
            "n": ("Skip this version", lambda: self._answer("skip")),
            "r": ("Go back", self._go_back),
            "g": ("Log", self._log),
            "q": ("Quit", lambda: None),
        }

    def run(self) -> None:
        """Ask for choices until the end; an empty line changes nothing."""
        self._shown = len(self._feed.snapshot().log)
        print(f"Plain menu ({self._reason}).")
        self._show()
        while True:
            try:
                choice = input("Choice: ").strip().lower()
            except EOFError:
                print()
                return
            if choice == "q":
                return
            if choice in self.choices:
                self.choices[choice][1]()
                self._show()
            elif choice:
                print(f"There is no choice {_shown(choice)[:20]!r}.")
            else:
                self._show()

    def _show(self) -> None:
        snapshot = self._feed.snapshot()
        print()
        print(_shown(title(snapshot)))
        print(_shown(headline(snapshot)) + ".")
        offered = _offered(snapshot)
        if offered:
            print(_shown(offered))
        if snapshot.note:
            print(_shown(snapshot.note))
        print()
        items = [f"{key} {name}" for key, (name, _) in self.choices.items()]
        for start in range(0, len(items), 4):
            print(" " + "".join(item.ljust(20) for item in items[start : start + 4]).rstrip())
        print(flush=True)

    def _do(self, command: str, arguments: dict[str, object] | None = None) -> None:
        """Run a command and print what happens, until it ends or Ctrl-C leaves it to the daemon."""
        thread = self._feed.run_soon(command, arguments)
        try:
            self._follow(thread)
        except KeyboardInterrupt:
            print("\nThe daemon goes on by itself.")

    def _follow(self, thread: threading.Thread) -> None:
        percent = -PROGRESS_STEP_PERCENT
        while thread.is_alive():
            thread.join(WAIT_S)
            snapshot = self._feed.snapshot()
            self._print_log(snapshot)
            now = int(snapshot.status.get("percent") or 0)
            if snapshot.status.get("state") == "fetching" and now >= percent + PROGRESS_STEP_PERCENT:
                percent = now
                print(f" {now:3} %  {_shown(headline(snapshot))}", flush=True)
        self._print_log(self._feed.snapshot())

    def _with_consent(self, command: str) -> None:
        snapshot = self._feed.snapshot()
        if snapshot.status.get("state") == "idle":
            self._do("check")
            snapshot = self._feed.snapshot()
            if snapshot.status.get("state") == "idle":
                return
        if (snapshot.status.get("consent") or {}).get("needs_answer"):
            self._explain()
        minutes = -(-int(snapshot.status.get("offline_s") or 120) // 60)
        print(f"Go ahead? The device restarts and is away for about {minutes} min. (yes/no) ", end="", flush=True)
        try:
            answer = input().strip().lower()
        except EOFError:
            answer = ""
        if answer == "yes":
            self._do(command, {"yes": True})
        else:
            print("Nothing was changed.")

    def _answer(self, action: str) -> None:
        if self._feed.run("consent", {"action": action}) is None:
            consent = self._feed.snapshot().status.get("consent") or {}
            texts = {"tonight": "Agreed, for the next window.", "skip": "This version is skipped."}
            print(texts.get(action) or f"Postponed until {consent.get('again_at')}.")

    def _explain(self) -> None:
        offer = self._feed.snapshot().status.get("offer")
        print()
        for line in offer_lines(offer) if offer else ("Nothing is offered.",):
            print(_shown(line))
        consequence = (self._feed.snapshot().status.get("consent") or {}).get("consequence")
        if offer and consequence:
            print(_shown(consequence))
        print(flush=True)

    def _go_back(self) -> None:
        previous = self._feed.snapshot().status.get("previous")
        what = f"to {previous['version']}" if previous else "and give this update up"
        print(f"Go back {_shown(what)}? (yes/no) ", end="", flush=True)
        try:
            answer = input().strip().lower()
        except EOFError:
            answer = ""
        if answer == "yes":
            self._do("revert")

    def _log(self) -> None:
        for line in self._feed.snapshot().log[-20:]:
            print(f" {_shown(line)}")

    def _print_log(self, snapshot: Snapshot) -> None:
        for line in snapshot.log[self._shown :]:
            print(f" {_shown(line)}", flush=True)
        self._shown = len(snapshot.log)


def _offered(snapshot: Snapshot) -> str:
    status = snapshot.status
    attempt = status.get("attempt")
    if not attempt or status.get("state") not in {"offered", "waiting", "verified"}:
        return ""
    total = attempt.get("total_bytes")
    return f"Offered: {attempt.get('release_id')}{f', {size(int(total))}' if total else ''}. Restart needed."


def _shown(text: str) -> str:
    """Return text that this line carries: as it is where it is UTF-8, else in ASCII."""
    shown = printable(text)
    encoding = (getattr(sys.stdout, "encoding", "") or "").lower().replace("-", "")
    return shown if encoding == "utf8" else shown.replace("·", "-").encode("ascii", "replace").decode()
