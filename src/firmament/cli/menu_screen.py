"""The menu on a screen (Textual, extra ``[tui]``): choices left, progress right, consent as a modal.

Everything is reachable by a letter, nothing is said by colour alone. The question to the owner
opens with the focus on "Ask me later": Enter can postpone, never agree. Below 100 columns the
descriptions and the facts go away (console.md §4.5).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

from textual.app import App, ComposeResult
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Button, Footer, Label, OptionList, RichLog, Static
from textual.widgets.option_list import Option

from firmament.cli.agent_consent import offer_lines
from firmament.cli.menu_feed import Feed, Snapshot, facts, headline, title, version_of

if TYPE_CHECKING:
    from textual.binding import BindingType

WIDE_COLUMNS: Final = 100
CHOICES: Final = (
    ("1", "check", "Check", "Ask the server what is new"),
    ("2", "download", "Download", "Into the other slot"),
    ("3", "verify", "Verify", "Read the other slot back"),
    ("4", "apply", "Apply", "Restart into it, kept if healthy"),
    ("a", "all", "Do all", "Check, download, verify, apply"),
)
MARKS: Final = {"done": "✓", "now": "▸", "todo": "○", "failed": "✗"}
STEP_NAMES: Final = {
    "check": "Check",
    "consent": "Consent",
    "download": "Download",
    "verify": "Verify",
    "restart": "Restart",
    "health": "Health",
    "confirm": "Confirm",
}
STEP_WORDS: Final = {"done": "done", "now": "now", "todo": "", "failed": "failed"}
NEEDS_YES: Final = frozenset({"apply", "all"})


class MenuApp(App[None]):
    """One device on one screen."""

    TITLE = "Firmament"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #title { background: $panel; color: $text; width: 100%; padding: 0 1; text-style: bold; }
    #left { width: 40; padding: 1 0 0 1; }
    #right { padding: 1 2 0 2; }
    #choices { height: auto; border: round $primary; }
    #facts { margin-top: 1; border: round $primary; padding: 0 1; height: auto; }
    #headline { height: auto; max-height: 3; }
    #bar { margin: 1 0; width: 100%; height: 1; color: $primary; }
    #steps { height: auto; }
    #note { height: auto; color: $text-warning; }
    #log { border: round $primary; height: 1fr; min-height: 4; margin-top: 1; scrollbar-size: 1 1; }
    #log { overflow-y: auto; }
    .narrow #facts { display: none; }
    .narrow #left { width: 20; }
    .narrow #bar { margin: 0; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        *((key, f"do('{command}')", name) for key, command, name, _ in CHOICES),
        ("c", "ask", "Consent"),
        ("r", "go_back", "Go back"),
        ("q", "quit", "Quit"),
    ]

    def __init__(self, feed: Feed) -> None:
        super().__init__()
        self._menu_feed = feed
        self._log_length = 0
        self._asked: tuple[object, ...] | None = None
        """Which question was already put by this menu: it does not pop up twice."""

    def compose(self) -> ComposeResult:
        """Lay the screen out."""
        yield Static(id="title", markup=False)
        with Horizontal():
            with Vertical(id="left"):
                yield OptionList(id="choices", markup=False)
                yield Static(id="facts", markup=False)
            with Vertical(id="right"):
                yield Static(id="headline", markup=False)
                yield Static(id="bar", markup=False)
                yield Static(id="steps", markup=False)
                yield Static(id="note", markup=False)
                yield RichLog(id="log", markup=False, wrap=True, max_lines=200, min_width=1)
        yield Footer()

    def on_mount(self) -> None:
        """Begin to follow the daemon."""
        self.query_one("#log", RichLog).border_title = "Log"
        self.query_one("#facts", Static).border_title = "Update"
        self._fit()
        self._menu_feed.on_change = self._changed
        self.draw()
        self.query_one("#choices", OptionList).focus()

    def on_unmount(self) -> None:
        """Stop drawing; the daemon goes on."""
        self._menu_feed.on_change = lambda: None

    def on_resize(self) -> None:
        """Follow the size of the terminal."""
        self._fit()

    def _fit(self) -> None:
        is_wide = self.size.width >= WIDE_COLUMNS
        self.screen.set_class(not is_wide, "narrow")
        choices = self.query_one("#choices", OptionList)
        at = choices.highlighted
        choices.clear_options()
        for key, command, name, described in CHOICES:
            choices.add_option(Option(f"{key}  {name}" + (f"\n   {described}" if is_wide else ""), id=command))
        choices.highlighted = at or 0

    def _changed(self) -> None:
        """Draw soon; called from the feed's threads."""
        if self.is_running:
            self.call_later(self.draw)

    def draw(self) -> None:
        """Show what the feed knows."""
        if not self.is_running or not self.screen_stack:
            return
        snapshot, base = self._menu_feed.snapshot(), self.screen_stack[0]
        base.query_one("#title", Static).update(title(snapshot))
        base.query_one("#headline", Static).update(headline(snapshot))
        bar = base.query_one("#bar", Static)
        bar.update(bar_of(int(snapshot.status.get("percent") or 0), bar.content_size.width or self.size.width // 2))
        base.query_one("#steps", Static).update(_steps(snapshot))
        busy = f"At work: {snapshot.busy}" if snapshot.busy and not snapshot.note else snapshot.note
        base.query_one("#note", Static).update(busy)
        base.query_one("#facts", Static).update("\n".join(f"{name:11} {value}" for name, value in facts(snapshot)))
        log = base.query_one("#log", RichLog)
        new = len(snapshot.log) - self._log_length
        for line in snapshot.log[-new:] if new > 0 else ():
            log.write(line)
        self._log_length = len(snapshot.log)
        self._ask_by_itself(snapshot)

    def _ask_by_itself(self, snapshot: Snapshot) -> None:
        consent, attempt = snapshot.status.get("consent") or {}, snapshot.status.get("attempt") or {}
        question = (attempt.get("attempt_id"), consent.get("answer"), consent.get("asked_at"))
        if consent.get("needs_answer") and self._asked != question and len(self.screen_stack) == 1:
            self._asked = question
            self.action_ask()

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Do what was chosen with Enter."""
        self.action_do(str(event.option_id))

    def action_do(self, command: str) -> None:
        """Start a command, after the question where it restarts the device or the owner is asked."""
        if command not in NEEDS_YES:
            self._menu_feed.run_soon(command)
            return
        snapshot = self._menu_feed.snapshot()
        if snapshot.status.get("offer") is None:
            self._menu_feed.run_soon("check")  # the question comes with the offer
            self._asked = None
            return
        _ = self.push_screen(ConsentScreen(snapshot), lambda answer: self._answered(answer, command))

    def action_ask(self) -> None:
        """Put the offer before the owner."""
        snapshot = self._menu_feed.snapshot()
        if snapshot.status.get("offer") is None:
            self.notify("Nothing is offered.")
            return
        _ = self.push_screen(ConsentScreen(snapshot), lambda answer: self._answered(answer, "all"))

    def _answered(self, answer: str | None, command: str) -> None:
        if answer == "now":
            self._menu_feed.run_soon(command, {"yes": True})
        elif answer is not None:
            self._menu_feed.run_soon("consent", {"action": answer})

    def action_go_back(self) -> None:
        """Ask before going back."""
        status = self._menu_feed.snapshot().status
        previous = status.get("previous")
        question = f"Go back to {previous['version']}?" if previous else "Give this update up?"
        _ = self.push_screen(
            GoBackScreen(f"{question} Runs now: {version_of(status)}."),
            self._sure,
        )

    def _sure(self, is_sure: bool | None) -> None:  # noqa: FBT001 - Textual's shape
        if is_sure:
            self._menu_feed.run_soon("revert")


def bar_of(percent: int, width: int) -> str:
    """Return a bar that says its number, so that it needs no colour."""
    room = max(10, width - len(" 100 %"))
    full = room * min(100, max(0, percent)) // 100
    return "━" * full + "╌" * (room - full) + f" {percent:3} %"


def _steps(snapshot: Snapshot) -> str:
    lines = []
    for step in snapshot.status.get("steps") or ():
        name = STEP_NAMES.get(step["name"], step["name"])
        lines.append(f"{MARKS.get(step['mark'], '?')} {name:10} {STEP_WORDS.get(step['mark'], '')}".rstrip())
    return "\n".join(lines)


class ConsentScreen(ModalScreen[str | None]):
    """The offer and its answers; closing it answers nothing."""

    CSS = """
    ConsentScreen { align: center middle; }
    #box { width: 84; max-width: 96%; height: auto; max-height: 96%; border: round $warning; padding: 1 2; }
    #box { background: $panel; }
    #text { height: auto; max-height: 100%; }
    #answers { height: auto; margin-top: 1; }
    #answers Button { margin-right: 1; min-width: 12; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        ("y", "say('now')", "Update now"),
        ("t", "say('tonight')", "Tonight"),
        ("l", "say('later')", "Ask me later"),
        ("n", "say('skip')", "Skip"),
        ("escape", "close", "Close"),
    ]

    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__()
        status: dict[str, Any] = snapshot.status
        self._consent = status.get("consent") or {}
        self._lines = list(offer_lines(status["offer"]))

    def compose(self) -> ComposeResult:
        """Lay the question out; the text may be long, the answers stay."""
        may_postpone = bool(self._consent.get("may_postpone", True))
        left = self._consent.get("postpones_left")
        words = [str(self._consent.get("consequence") or "")]
        if left is not None:
            words.append(f"Can be postponed {left} more times, until {self._consent.get('postpone_until')}.")
        with Vertical(id="box"):
            with VerticalScroll(id="text", can_focus=False):
                yield Static("\n".join(self._lines), markup=False)
                yield Static("\n" + "\n".join(filter(None, words)), markup=False)
            with Horizontal(id="answers"):
                yield Button("Update now (y)", id="now")
                yield Button("Tonight (t)", id="tonight")
                yield Button("Ask me later (l)", id="later", disabled=not may_postpone)
                yield Button("Skip (n)", id="skip")

    def on_mount(self) -> None:
        """Focus what agrees to nothing."""
        if self._consent.get("may_postpone", True):
            self.query_one("#later", Button).focus()
        else:
            self.set_focus(None)

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Take the answer of a button."""
        _ = self.dismiss(event.button.id)

    def action_say(self, answer: str) -> None:
        """Take the answer of a letter."""
        if answer != "later" or self._consent.get("may_postpone", True):
            _ = self.dismiss(answer)

    def action_close(self) -> None:
        """Answer nothing."""
        _ = self.dismiss(None)


class GoBackScreen(ModalScreen[bool]):
    """Are you sure? The focus is on no."""

    CSS = """
    GoBackScreen { align: center middle; }
    #sure { width: 60; max-width: 96%; height: auto; border: round $warning; padding: 1 2; background: $panel; }
    #sure Horizontal { height: auto; margin-top: 1; }
    #sure Button { margin-right: 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [("escape", "no", "No"), ("n", "no", "No"), ("y", "yes", "Yes")]

    def __init__(self, question: str) -> None:
        super().__init__()
        self._question = question

    def compose(self) -> ComposeResult:
        """Lay the question out."""
        with Vertical(id="sure"):
            yield Label(self._question, markup=False)
            with Horizontal():
                yield Button("No (n)", id="no")
                yield Button("Go back (y)", id="yes", variant="warning")

    def on_mount(self) -> None:
        """Focus no."""
        self.query_one("#no", Button).focus()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Take the answer."""
        _ = self.dismiss(event.button.id == "yes")

    def action_no(self) -> None:
        """Do not."""
        _ = self.dismiss(result=False)

    def action_yes(self) -> None:
        """Do."""
        _ = self.dismiss(result=True)
