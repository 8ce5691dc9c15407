#!/usr/bin/env python3
"""Play the demonstration for real and draw it: docs/pictures/demo.svg and demo-commands.svg.

The first shows what happened without the commands, the second everything. Run it after a change
of what the demonstration shows; look at both pictures before committing them.
"""

import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.terminal_theme import TerminalTheme

from firmament.cli.demo_screen import RichScreen, rich_console, table
from firmament.core.clock import SystemClock
from firmament.sim.demo.narrator import DeviceView
from firmament.sim.demo.play import Play
from firmament.sim.demo.world import World

WIDTH = 118
PICTURES = Path(__file__).parent.parent / "docs/pictures"
DARK = ["484f58", "ff7b72", "3fb950", "d29922", "58a6ff", "bc8cff", "39c5cf", "b1bac4"]
BRIGHT = ["6e7681", "ffa198", "56d364", "e3b341", "79c0ff", "d2a8ff", "56d4dd", "ffffff"]


def colour(code: str) -> tuple[int, int, int]:
    """Read RRGGBB."""
    red, green, blue = bytes.fromhex(code)
    return red, green, blue


THEME = TerminalTheme(  # dark; every colour we use stands out from it by at least 4.5 to 1
    colour("0d1117"), colour("e6edf3"), [*map(colour, DARK)], [*map(colour, BRIGHT)]
)


def without_web_fonts(svg: str) -> str:
    """Let the reader's own monospace font be used: a picture should not call a third party."""
    svg = re.sub(r"\s*@font-face \{.*?\}\n", "\n", svg, flags=re.DOTALL)
    return re.sub(
        r"font-family: [^;]*;", "font-family: ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace;", svg
    )


class Recorder:
    """A narrator that draws on two screens at once."""

    def __init__(self) -> None:
        options: dict[str, Any] = {"record": True, "force_terminal": True, "width": WIDTH, "color_system": "truecolor"}
        self.stream = Path("/dev/null").open("w", encoding="utf-8")  # noqa: SIM115 - closed with the process
        self.brief = rich_console(self.stream, **options)
        self.whole = rich_console(self.stream, **options)
        self._brief = RichScreen(self.brief, is_live=False)
        self._whole = RichScreen(self.whole, is_live=False)
        self._is_panel_shown = False
        self._views: dict[str, DeviceView] = {}

    def chapter(self, title: str, why: str) -> None:
        """Draw it on both."""
        print(title, file=sys.stderr)
        self._brief.chapter(title, why)
        self._whole.chapter(title, why)

    def command(self, line: str) -> None:
        """Draw it on the whole one."""
        self._whole.command(line)

    def say(self, text: str) -> None:
        """Draw it."""
        if not text.startswith(("while the devices", "in author/")):
            self._brief.say(text)
        self._whole.say(text)

    def passed(self, text: str) -> None:
        """Draw it on both."""
        self._brief.passed(text)
        self._whole.passed(text)

    def failed(self, text: str) -> None:
        """Draw it on both."""
        self._brief.failed(text)
        self._whole.failed(text)

    def device(self, view: DeviceView) -> None:
        """Remember it for the panel, and draw that once, when there is most to see."""
        self._brief.device(view)
        self._views[view.name] = view
        fetching = [found for found in self._views.values() if found.done_bytes]
        if len(fetching) == len(self._views) > 1 and not self._is_panel_shown:
            self._is_panel_shown = True
            self.brief.print(self._brief)


def main() -> None:
    """Play and draw."""
    recorder, clock = Recorder(), SystemClock()
    with tempfile.TemporaryDirectory(prefix="firmament-picture-") as folder:
        began_s = clock.monotonic_s()
        with World(Path(folder), recorder, clock) as world:
            played = Play(world).run()
        lasted_s = clock.monotonic_s() - began_s
    PICTURES.mkdir(exist_ok=True)
    for console, name, title in (
        (recorder.brief, "demo.svg", "firmament demo"),
        (recorder.whole, "demo-commands.svg", "firmament demo, with every command"),
    ):
        console.print(table(played.rows))
        console.print(f"{len(played.rows)} outcomes, each as it must be, in {lasted_s:.0f} s.")
        (PICTURES / name).write_text(without_web_fonts(console.export_svg(title=title, theme=THEME)), encoding="utf-8")


if __name__ == "__main__":
    main()
