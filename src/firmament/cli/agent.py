"""The `firmament-agent` command: one device.

While the daemon runs, commands go through its local socket: the daemon does the work, so closing
the terminal stops nothing. Without a daemon a command works directly, under the instance lock;
``status`` and ``history`` then only read.

Everything beyond the command line itself is imported when a command needs it: start-up counts on
small processors, and the peak memory of `check` is a test.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

from firmament import __version__
from firmament.cli.common import EXIT_FAILED, output, output_options
from firmament.cli.program import LazyCommand, LazyGroup

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from firmament.agent.settings import AgentSettings

CONFIG_VARIABLE: Final = "FIRMAMENT_AGENT_CONFIG"
DEFAULT_CONFIG: Final = "/etc/firmament/agent.toml"
EXIT_WAITING: Final = 11
TRIES: Final = frozenset({"apply", "all", "confirm", "install", "revert"})
"""Commands that may start or examine an image."""
MARKS: Final = {"good": "ok  ", "warning": "warn", "bad": "BAD "}

EPILOG: Final = """Exit codes: 0 done; 1 failed; 2 usage; 3 what was watched or planned ended badly; 5 nothing to do;
6 timed out waiting; 10 restart needed; 11 waiting for the
user; 20-39 trust; 40-49 not for this device; 50-59 transfer; 60-69 slot; 70-79 state; 80-89 request; 90-99 policy;
100-109 this machine; 110-119 proof or person missing; 120-123 a repeated request; 130 interrupted."""


@click.group(
    cls=LazyGroup,
    lazy={
        "consent": LazyCommand("firmament.cli.agent_consent:group", "Read the offer and answer it as the owner."),
        "completion": LazyCommand("firmament.cli.shell:completion", "Print the completion script of a shell."),
        "man": LazyCommand("firmament.cli.shell:man", "Print or write manual pages."),
        "menu": LazyCommand("firmament.cli.menu:command", "Check, download, verify and apply from a menu."),
        "install": LazyCommand("firmament.cli.agent_parcel:install", "Install from a parcel, without a network."),
        "receipt": LazyCommand("firmament.cli.agent_parcel:receipt", "Write signed receipts to carry back."),
        "provision": LazyCommand("firmament.cli.agent_setup:provision", "Give this device its identity and anchors."),
        "wrapping-key": LazyCommand("firmament.cli.agent_setup:wrapping_key", "Make a new key for sealed payloads."),
        "rewrap": LazyCommand("firmament.cli.rewrap:rewrap", "Write an MCUboot image so that one device can open it."),
        "install-service": LazyCommand(
            "firmament.cli.agent_setup:install_service", "Write the systemd unit, settings skeleton and directories."
        ),
    },
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="firmament-agent", message="%(prog)s %(version)s")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    default=DEFAULT_CONFIG,
    envvar=CONFIG_VARIABLE,
    show_envvar=True,
    show_default=True,
    help="The settings.",
)
@output_options
@click.pass_context
def program(context: click.Context, config: Path) -> None:
    """Keep this device on the firmware its author signed, proven healthy, or on what it had."""
    context.obj = config


def main() -> NoReturn:
    """Entry point of the `firmament-agent` command."""
    program.main(prog_name="firmament-agent")


def load_settings(context: click.Context) -> AgentSettings:
    """Return the settings; raises FileError or SettingError."""
    from firmament.agent.settings import require_settings
    from firmament.durable import RealDisk

    config: Path = context.obj
    return require_settings(RealDisk(), config.absolute())


# --- the daemon ----------------------------------------------------------------------------


@program.command()
@output_options
@click.pass_context
def run(context: click.Context) -> int:
    """Run the daemon, until SIGTERM."""
    from firmament import log
    from firmament.agent.daemon import Daemon
    from firmament.core.clock import SystemClock
    from firmament.durable import RealDisk

    settings = load_settings(context)
    log.configure(level=settings.log_level)
    daemon = Daemon(settings, disk=RealDisk(), clock=SystemClock())
    daemon.on_signals()
    return daemon.run()


# --- commands that move the machine --------------------------------------------------------


yes_option = click.option("--yes", "-y", is_flag=True, help="Agree on the owner's behalf: do not wait for consent.")


@program.command()
@output_options
@click.pass_context
def check(context: click.Context) -> int:
    """Ask whether there is a release, and verify it.

    Exit code 5 when there is none, 11 when the owner has to agree first.
    """
    settings = load_settings(context)
    status = ask_engine(settings, "check", {})
    _show(status)
    return EXIT_WAITING if waits_for_owner(status) else 0


@program.command()
@yes_option
@output_options
@click.pass_context
def download(context: click.Context, yes: bool) -> None:  # noqa: FBT001 - click's shape, here and below
    """Fetch the release into the other slot.

    Nothing is restarted.
    """
    _show(ask_engine(load_settings(context), "download", {"yes": yes}))
    output().next_command("firmament-agent apply")


@program.command()
@output_options
@click.pass_context
def verify(context: click.Context) -> None:
    """Read the other slot back and compare it."""
    _show(ask_engine(load_settings(context), "verify", {}))


@program.command()
@yes_option
@output_options
@click.pass_context
def apply(context: click.Context, yes: bool) -> None:  # noqa: FBT001
    """Try the image in the other slot.

    It is kept when it proves healthy, else given back.
    """
    _show(ask_engine(load_settings(context), "apply", {"yes": yes}))


@program.command(name="all")
@yes_option
@output_options
@click.pass_context
def run_all(context: click.Context, yes: bool) -> None:  # noqa: FBT001
    """Check, download, apply and judge, in one go."""
    _show(ask_engine(load_settings(context), "all", {"yes": yes}))


@program.command()
@click.argument("answer", type=click.Choice(["now", "tonight", "later", "skip"]))
@output_options
@click.pass_context
def answer(context: click.Context, answer: str) -> None:
    """Answer the offer as the owner.

    now: go ahead; tonight: when the window opens; later: ask again another day; skip: not this release.
    """
    _show(ask_engine(load_settings(context), "answer", {"answer": answer}))


@program.command()
@output_options
@click.pass_context
def confirm(context: click.Context) -> None:
    """Keep the image on trial now.

    Its health checks are not waited for: you have examined it.
    """
    _show(ask_engine(load_settings(context), "confirm", {}))


@program.command()
@output_options
@click.pass_context
def revert(context: click.Context) -> None:
    """Go back, or give the attempt up."""
    _show(ask_engine(load_settings(context), "revert", {}))


# --- commands that look --------------------------------------------------------------------


@program.command()
@click.option("--watch", is_flag=True, help="Go on with every event, one line each (JSON lines with --json).")
@output_options
@click.pass_context
def status(context: click.Context, watch: bool) -> None:  # noqa: FBT001
    """Show what runs and what is in hand."""
    from firmament.agent.socket import ControlClient
    from firmament.errors import FileError

    settings = load_settings(context)
    client = ControlClient.connect(settings.socket)
    if watch:
        if client is None:
            raise FileError("There is no daemon to watch; start `firmament-agent run`", socket=settings.socket)
        client.ask("watch", {}, on_event=_print_event)
    else:
        _show(client.ask("status", {}) if client is not None else _look(settings)[0])


@program.command()
@output_options
@click.pass_context
def page(context: click.Context) -> None:
    """Say where the owner's page is, and the one-time code for the next answer there."""
    from firmament.agent.socket import ControlClient
    from firmament.errors import FileError

    settings = load_settings(context)
    client = ControlClient.connect(settings.socket)
    if client is None:
        raise FileError("There is no daemon; start `firmament-agent run`", socket=settings.socket)
    found = client.ask("page", {})
    output().document("page", found, lines=[f"{found['url']}   code {found['code']}"])


@program.command()
@output_options
@click.pass_context
def slots(context: click.Context) -> None:
    """Show both slots: what is in them, which is booted, primary and armed."""
    from firmament.agent.storage import compose_storage
    from firmament.core.clock import SystemClock
    from firmament.durable import RealDisk

    settings = load_settings(context)
    status = look(settings)
    storage = compose_storage(settings, disk=RealDisk(), clock=SystemClock())
    boot = storage.boot
    booted, primary, armed = boot.booted(), boot.primary(), boot.armed()
    rows = []
    for slot in (storage.slots.a, storage.slots.b):
        held = [
            (release, words)
            for release, words in ((status.get("running"), "running"), (status.get("previous"), "previous"))
            if release and release["slot"] == slot.label.value
        ]
        attempt = status.get("attempt") or {}
        holds = held[0][0]["version"] if held else ""
        if not held and attempt.get("slot") == slot.label.value:
            holds = str(attempt.get("release_id") or "").rpartition("/")[2]
        rows.append(
            {
                "slot": slot.label.value,
                "holds": holds,
                "state": held[0][1] if held else status.get("state") if holds else "",
                "booted": slot.label is booted,
                "primary": slot.label is primary,
                "armed": slot.label is armed,
                "capacity_bytes": slot.capacity_bytes(),
            }
        )
    out = output()
    table = [
        [
            row["slot"],
            row["holds"] or "-",
            row["state"] or "-",
            " ".join(word for word in ("booted", "primary", "armed") if row[word]) or "-",
        ]
        for row in rows
    ]
    out.document("slots", {"slots": rows}, lines=out.table(table, header=["slot", "holds", "state", "boot control"]))


@program.command()
@output_options
@click.pass_context
def history(context: click.Context) -> None:
    """List the attempts that ended on this device."""
    from firmament.agent.socket import ControlClient

    settings = load_settings(context)
    client = ControlClient.connect(settings.socket)
    attempts = client.ask("history", {})["attempts"] if client is not None else _look(settings)[1]
    rows = [[item["at"], item["release_id"] or "?", item["status"], item["code"]] for item in attempts]
    out = output()
    out.document("history", {"attempts": attempts}, lines=out.table(rows, header=["at", "release", "outcome", "code"]))


@program.command()
@output_options
@click.pass_context
def doctor(context: click.Context) -> int:
    """Check this device and say what to do.

    Looks at identity, floors, clock, space, slots, boot control, health and server; exit code 1 if
    something is bad.
    """
    from firmament.agent.doctor import Doctor
    from firmament.core.clock import SystemClock
    from firmament.core.finding import Verdict
    from firmament.durable import RealDisk

    lines, found = [], []
    for finding in Doctor(load_settings(context), disk=RealDisk(), clock=SystemClock()).findings():
        lines.append(f"{MARKS[finding.verdict.value]}  {finding.check}: {finding.seen}")
        if finding.action:
            lines.append(f"      -> {finding.action}")
        found.append(finding)
    is_bad = any(finding.verdict is Verdict.BAD for finding in found)
    output().document(
        "agent-doctor",
        {
            "ok": not is_bad,
            "findings": [
                {"check": f.check, "verdict": f.verdict.value, "seen": f.seen, "action": f.action} for f in found
            ],
        },
        lines=lines,
    )
    return EXIT_FAILED if is_bad else 0


# --- ways to the engine --------------------------------------------------------------------


def ask_engine(settings: AgentSettings, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Let the daemon do it, or do it here; returns the status afterwards."""
    from firmament.agent.socket import ControlClient

    client = ControlClient.connect(settings.socket)
    if client is not None:
        with _patience():
            return client.ask(command, arguments, on_event=_print_progress)
    return _move_here(settings, command, arguments)


def _move_here(settings: AgentSettings, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
    from firmament import log
    from firmament.agent.compose import compose
    from firmament.agent.daemon import event_value, execute
    from firmament.agent.lock import InstanceLock
    from firmament.core.clock import SystemClock
    from firmament.core.fields import Fields
    from firmament.durable import RealDisk, make_directory_durably

    log.configure(level="debug" if output().is_verbose else "error")
    disk = RealDisk()
    make_directory_durably(disk, settings.state_directory)
    with InstanceLock(settings.state_directory):
        world = compose(settings, disk=disk, clock=SystemClock())
        world.events.listen(lambda event: _print_progress(event_value(event)))
        # A supervisor has to run the program to examine it; it ends with this command.
        supervises = settings.boot.value.get("kind") == "supervisor" and command in TRIES
        try:
            if supervises:
                world.boot.start()
            return execute(world.agent, command, Fields(arguments, what="arguments"), actor=f"uid:{os.getuid()}")
        finally:
            if supervises:
                world.boot.stop()
            world.close()


def look(settings: AgentSettings) -> dict[str, Any]:
    """Return the status: the daemon's, else what the journal says."""
    from firmament.agent.socket import ControlClient

    client = ControlClient.connect(settings.socket)
    return client.ask("status", {}) if client is not None else _look(settings)[0]


def _look(settings: AgentSettings) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Read status and history from the journal, changing nothing."""
    from firmament.agent.journal import Journal
    from firmament.agent.record import Record
    from firmament.agent.status import Facts, status_of
    from firmament.agent.storage import JOURNAL_DIRECTORY, compose_storage
    from firmament.core.clock import SystemClock
    from firmament.durable import RealDisk

    disk = RealDisk()
    boot = compose_storage(settings, disk=disk, clock=SystemClock()).boot
    record = Journal(disk, settings.state_directory / JOURNAL_DIRECTORY).load() or Record()
    device = Facts(settings.policy, settings.owner.language, settings.owner.offline_s, SystemClock().now())
    found = status_of(
        record, booted=boot.booted(), boot_id=boot.boot_id(), waits_for=None, last_error=None, device=device
    )
    return found.to_json(), [ended.to_json() for ended in record.history]


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    """Say that Ctrl-C leaves the daemon at work."""
    try:
        yield
    except KeyboardInterrupt:
        output().note("The daemon goes on; `firmament-agent status --watch` follows it.")
        raise


def waits_for_owner(status: dict[str, Any]) -> bool:
    """Whether the owner has to say something before the update goes on."""
    return bool(status.get("consent", {}).get("needs_answer")) and status["state"] in {"offered", "waiting", "verified"}


# --- for people ----------------------------------------------------------------------------


def _show(status: dict[str, Any]) -> None:
    output().document("status", status, lines=sentences(status))


def sentences(status: dict[str, Any]) -> Iterator[str]:
    """Say a status in sentences."""
    if status.get("state") is None:
        yield f"Updates do not work: {status.get('error', {}).get('message', 'the daemon is starting')}"
        return
    running = status["running"]
    runs = f"{running['version']} (sequence number {running['sequence_number']})" if running else "an unknown image"
    yield f"Runs {runs}, slot {status['booted']}."
    attempt = status["attempt"]
    if attempt is None:
        yield "No update is in hand."
    else:
        yield f"{attempt['release_id'] or 'A release'} is {status['state']}, {status['percent']} %."
        if attempt["message"]:
            yield f"{attempt['message']} [{attempt['code']}]"
    if status["last_error"] is not None and not (attempt and attempt["code"] == status["last_error"]["code"]):
        yield status["last_error"]["message"]
    if status["blocked"]:
        yield f"{status['blocked']}."
    if status["back_in_s"]:
        yield f"The device restarts; back in about {-(-status['back_in_s'] // 60)} min."
    if status["consent"]["opted_out"]:
        yield "Opted out: no update installs by itself (`firmament-agent consent opt-in`)."
    if status["reports_waiting"]:
        yield f"{status['reports_waiting']} reports wait for the server."


def _print_progress(event: dict[str, Any]) -> None:
    """Show an event on stderr, for somebody who waits at a terminal."""
    if not sys.stderr.isatty() or output().as_json:
        return
    text = _event_text(event)
    end = "\r" if event["event"] == "progress" else "\n"
    print(f"\033[K{text}", end=end, file=sys.stderr, flush=True)


def _print_event(event: dict[str, Any]) -> None:
    """Show an event on stdout: ``status --watch``."""
    out = output()
    out.line("agent-event", event, text="" if out.as_json else _event_text(event))


def _event_text(event: dict[str, Any]) -> str:
    texts: dict[str, Callable[[], str]] = {
        "progress": lambda: f"{event['percent']:3} %  {event['done_bytes']} of {event['total_bytes']} bytes",
        "state-changed": lambda: (
            f"{event['percent']:3} %  {event['release_id'] or 'release'} is {event['state']}"
            + (f": {event['message']} [{event['code']}]" if event["code"] else "")
        ),
        "health-checked": lambda: f"       health: {'good' if event['is_healthy'] else event['check']}",
        "trouble": lambda: f"       {event['message']}",
        "asked": lambda: f"       {event['release_id']} waits for the owner's answer",
        "status": lambda: " ".join(sentences(event)),
    }
    return texts.get(event["event"], lambda: json.dumps(event, default=str))()
