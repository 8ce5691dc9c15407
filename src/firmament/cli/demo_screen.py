"""How the demonstration looks: live on a terminal, one line per event otherwise.

Progress goes to stderr; stdout holds the table at the end (console.md §4.2). Colour says nothing
that a word does not say as well.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Final, Self, TextIO

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from rich.console import Console, RenderableType

    from firmament.core.clock import Clock
    from firmament.sim.demo.narrator import DeviceView, Row

HEADER: Final = ("DEVICE", "WHAT HAPPENED", "FROM → TO", "OUTCOME", "RUNS", "CODE", "WHY")
STYLES: Final = {"confirmed": "green", "reverted": "yellow", "refused": "red"}
MEBIBYTE: Final = 1024 * 1024
REFRESHES_PER_S: Final = 10


def is_live(stream: TextIO, environment: Mapping[str, str]) -> bool:
    """Whether `stream` is a terminal that can redraw lines."""
    return stream.isatty() and environment.get("TERM", "") not in {"", "dumb"}


def cells(row: Row) -> tuple[str, ...]:
    """Return a row of the final table as text."""
    return (
        row.device,
        row.story,
        f"{row.before} → {row.offered}",
        row.outcome,
        row.runs,
        row.code or "-",
        row.why,
    )


class PlainScreen:
    """One line per event; devices only when their state changes."""

    def __init__(self, stream: TextIO, clock: Clock) -> None:
        self._stream = stream
        self._clock = clock
        self._began_s = clock.monotonic_s()
        self._chapters = 0
        self._states: dict[str, tuple[str, str]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.flush()

    def chapter(self, title: str, why: str) -> None:  # noqa: D102 - see Narrator, here and below
        self._chapters += 1
        self._line(f"\n{self._chapters}. {title}\n   {why}")

    def command(self, line: str) -> None:  # noqa: D102
        self._line(f"   $ {line}")

    def say(self, text: str) -> None:  # noqa: D102
        self._line(f"   {text}")

    def passed(self, text: str) -> None:  # noqa: D102
        self._line(f"   ok: {text}")

    def failed(self, text: str) -> None:  # noqa: D102
        self._line(f"   NOT AS IT MUST BE: {text}")

    def device(self, view: DeviceView) -> None:  # noqa: D102
        if self._states.get(view.name) == (view.state, view.note):
            return
        self._states[view.name] = (view.state, view.note)
        elapsed_s = self._clock.monotonic_s() - self._began_s
        way = f"{view.version} → {view.target}" if view.target else view.version
        self._line(f"   {elapsed_s:5.1f} s  {view.name:<10} {view.state:<10} {way}  {view.note}".rstrip())

    def _line(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()


class RichScreen:
    """Lines that stay, above a panel of the devices that is redrawn."""

    def __init__(self, console: Console, *, is_live: bool = True) -> None:
        from rich.live import Live

        self._console = console
        self._views: dict[str, DeviceView] = {}
        self._chapters = 0
        self._live = (
            Live(self, console=console, refresh_per_second=REFRESHES_PER_S, transient=True) if is_live else None
        )

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def chapter(self, title: str, why: str) -> None:  # noqa: D102 - see Narrator, here and below
        self._chapters += 1
        self._console.print()
        self._print((f"{self._chapters}  {title}", "bold"), indent=0)
        self._print((why, "dim"))

    def command(self, line: str) -> None:  # noqa: D102
        self._print(("$ ", "dim"), (line, "cyan"))

    def say(self, text: str) -> None:  # noqa: D102
        self._print((text, ""))

    def passed(self, text: str) -> None:  # noqa: D102
        self._print(("✓ ", "green"), (text, ""))

    def failed(self, text: str) -> None:  # noqa: D102
        self._print((f"✗ {text}", "bold red"))

    def device(self, view: DeviceView) -> None:  # noqa: D102
        self._views[view.name] = view

    def __rich__(self) -> RenderableType:
        """Draw the panel."""
        from rich.panel import Panel
        from rich.table import Table

        table = Table.grid(padding=(0, 2), expand=True)
        for width in (11, 11, 10, 32, None):
            table.add_column(width=width, no_wrap=True, ratio=None if width else 1)
        for view in list(self._views.values()):  # drawn by another thread than `device`
            table.add_row(*self._panel_row(view))
        return Panel(table, title="devices", title_align="left", border_style="dim") if self._views else ""

    def _panel_row(self, view: DeviceView) -> Sequence[RenderableType]:
        from rich.progress_bar import ProgressBar
        from rich.text import Text

        way = f"{view.version} → {view.target}" if view.target else view.version
        bar: RenderableType = Text(view.note, style="dim")
        amount = ""
        if view.total_bytes:
            bar = ProgressBar(total=view.total_bytes, completed=view.done_bytes, width=30, complete_style="cyan")
            amount = f"{view.done_bytes / MEBIBYTE:.0f} of {view.total_bytes / MEBIBYTE:.0f} MiB  {view.note}"
        return view.name, way, Text(view.state, style=STYLES.get(view.state, "")), bar, amount

    def _print(self, *parts: tuple[str, str], indent: int = 3) -> None:
        from rich.padding import Padding
        from rich.text import Text

        # The padding also indents what is wrapped.
        self._console.print(Padding(Text.assemble(*parts), (0, 0, 0, indent), expand=False))


def rich_console(stream: TextIO, **options: Any) -> Console:
    """Return a console that paints only what we paint."""
    from rich.console import Console

    return Console(file=stream, highlight=False, **options)


def open_screen(clock: Clock) -> PlainScreen | RichScreen:
    """Return the screen that fits stderr."""
    return RichScreen(rich_console(sys.stderr)) if is_live(sys.stderr, os.environ) else PlainScreen(sys.stderr, clock)


def table(rows: Sequence[Row]) -> RenderableType:
    """Return the table at the end, for a terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    found = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for name in HEADER:
        found.add_column(name, no_wrap=name in {"DEVICE", "FROM → TO", "OUTCOME", "RUNS"}, overflow="fold")
    last = ""
    for row in rows:
        if last and row.device != last:
            found.add_section()
        last = row.device
        values: list[RenderableType] = list(cells(row))
        values[3] = Text(row.outcome, style=STYLES.get(row.outcome, ""))
        found.add_row(*values)
    return found
