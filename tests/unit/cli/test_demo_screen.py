"""The demonstration reads the same without colour, without a terminal, and with hostile words in it."""

import io
from datetime import UTC, datetime

import pytest

from firmament.cli import demo_screen
from firmament.core.clock import FixedClock
from firmament.sim.demo.narrator import DeviceView, Row

REFUSED = Row("thermo-1", "altered", "1.1", "1.3", "refused", "trust/digest-mismatch", "1.1", "not what was signed")


@pytest.fixture
def stream():
    return io.StringIO()


def tell(screen) -> None:
    with screen:
        screen.chapter("Keys", "Made here.")
        screen.command("firmament server init server")
        screen.say("meanwhile")
        screen.device(DeviceView("thermo-1", "1.0", "fetching", "1.1", 4 << 20, 64 << 20))
        screen.device(DeviceView("thermo-1", "1.0", "fetching", "1.1", 8 << 20, 64 << 20))
        screen.device(DeviceView("thermo-1", "1.1", "confirmed"))
        screen.passed("it is [so]")
        screen.failed("it is not [/so]")


def test_plain_lines_tell_each_change_once(stream):
    tell(demo_screen.PlainScreen(stream, FixedClock(datetime(2026, 1, 1, tzinfo=UTC))))
    lines = stream.getvalue().splitlines()
    assert "1. Keys" in lines
    assert "   $ firmament server init server" in lines
    assert sum("fetching" in line for line in lines) == 1
    assert "   ok: it is [so]" in lines
    assert "   NOT AS IT MUST BE: it is not [/so]" in lines
    assert "\x1b" not in stream.getvalue()


def test_the_live_screen_keeps_every_line_and_reads_no_markup(stream):
    console = demo_screen.rich_console(stream, force_terminal=True, width=100, color_system=None)
    tell(demo_screen.RichScreen(console))
    text = stream.getvalue()
    for expected in ("1  Keys", "$ firmament server init server", "meanwhile", "✓ it is [so]", "✗ it is not [/so]"):
        assert expected in text


def test_the_live_panel_shows_where_each_device_is(stream):
    screen = demo_screen.RichScreen(demo_screen.rich_console(stream, width=100), is_live=False)
    screen.device(DeviceView("gateway-1", "1.0", "fetching", "1.1", 16 << 20, 64 << 20))
    demo_screen.rich_console(stream, width=100).print(screen)
    assert "gateway-1" in stream.getvalue()
    assert "1.0 → 1.1" in stream.getvalue()
    assert "16 of 64 MiB" in stream.getvalue()


def test_the_table_holds_what_happened_and_why(stream):
    demo_screen.rich_console(stream, width=160).print(demo_screen.table([REFUSED]))
    for cell in demo_screen.cells(REFUSED):
        assert cell in stream.getvalue()
    assert "1.1 → 1.3" in demo_screen.cells(REFUSED)


@pytest.mark.parametrize(
    ("is_terminal", "environment", "expected"),
    [
        (True, {"TERM": "xterm"}, True),
        (True, {"TERM": "dumb"}, False),
        (True, {}, False),
        (False, {"TERM": "xterm"}, False),
    ],
)
def test_lines_are_redrawn_only_where_that_works(is_terminal, environment, expected, stream):
    stream.isatty = lambda: is_terminal
    assert demo_screen.is_live(stream, environment) is expected
