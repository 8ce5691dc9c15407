"""``firmament rollout``: plan, start, watch and steer rollouts through the operator API.

What changes a fleet says first what it would do and to how many devices: ``--dry-run`` stops
there, with the same table as the console. Otherwise a person types the number of devices, or a
script gives ``--yes``; ``--expect-count`` refuses when the number has changed since somebody looked.
"""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urlencode

import click

from firmament.cli.common import output
from firmament.cli.operator_client import element
from firmament.cli.rollout_view import (
    ENDED_BADLY,
    ENDED_WELL,
    action_lines,
    list_rows,
    plan_lines,
    reason_rows,
    rollout_lines,
)
from firmament.cli.selection import confirm_count, require_count, with_server
from firmament.cli.sim_fleet import SCENARIO, forecast_lines, scenario_options
from firmament.errors import ConflictError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from firmament.release.remote import OperatorApi

F = TypeVar("F", bound="Callable[..., Any]")

EXIT_ENDED_BADLY: Final = 3
"""What was watched ended as nobody wished: halted, aborted, denied, reverted."""
EXIT_TIMED_OUT: Final = 6
BASE: Final = "/api/v1/rollouts"
UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
PAGE: Final = 500


@click.group("rollout")
def group() -> None:
    """Plan, start, watch and steer rollouts."""


def _policy_options(function: F) -> F:
    for option in (
        click.option("-q", "--query", "selector", default="", help="Which devices, e.g. 'group=eu and hardware=C'."),
        click.option("--waves", default="", metavar="LIST", help="E.g. 50,1%,10%,50%,all; else a ramp is proposed."),
        click.option("--hold", default="", metavar="TIME", help="Wait so long after each wave, e.g. 2h."),
        click.option("--wait-for", type=click.Choice(["installed", "healthy"]), help="What a wave waits for."),
        click.option("--by-hand", is_flag=True, help="A person opens each wave."),
        click.option("--limit", default="", metavar="PERCENT", help="Halt above this failure rate, e.g. 2%."),
        click.option("--min-finished", type=int, help="Devices that must have finished before the rate counts."),
        click.option("--per-site", type=int, help="Devices of one site on the way at once, at most."),
        click.option("--per-minute", type=int, help="Starts a minute, at most."),
        click.option("--dynamic", is_flag=True, help="Also devices that match later."),
        click.option("--on-stop", type=click.Choice(["hold", "revert"]), help="What the stop rule does with updated."),
    ):  # fmt: skip
        function = option(function)
    return function


@group.command()
@click.argument("release")
@click.option(
    "--bad-build",
    type=click.FloatRange(0, 100),
    default=30.0,
    show_default=True,
    help="Percent that a bad build fails.",
)
@scenario_options
@_policy_options
@with_server
def forecast(server: Callable[[], OperatorApi], release: str, **options: Any) -> None:
    """Say how long a rollout of RELEASE would take, and where it would stop if the build is bad.

    The server counts the devices; the rollout is then played here, by the server's own engine with
    virtual devices on a virtual clock. It is as good as what is assumed about them.
    """
    assumed = {name: options.pop(name) for name in SCENARIO}
    body = _policy(**options)
    with server() as client:
        found = client.call("POST", f"{BASE}/plan", {"release": release, **body})
    body.pop("selector")
    value, lines = forecast_lines(found["count"], body, assumed)
    output().document("rollout-forecast", {"release": release, **value}, lines=lines)


@group.command()
@click.argument("release")
@_policy_options
@with_server
def plan(server: Callable[[], OperatorApi], release: str, **options: Any) -> int:
    """Say what a rollout of RELEASE (product/version) would do; change nothing.

    Exit code 3 when something blocks it.
    """
    with server() as client:
        found = client.call("POST", f"{BASE}/plan", {"release": release, **_policy(**options)})
    out = output()
    out.document("rollout-plan", found, lines=plan_lines(found))
    if found["blockers"]:
        return EXIT_ENDED_BADLY
    out.next_command(f"firmament rollout start {release} --name NAME --expect-count {found['count']} ...")
    return 0


@group.command()
@click.argument("release")
@click.option("--name", default="", help="What people call it. [default: the release]")
@click.option("--note", default="", help="For whoever looks at it later.")
@_policy_options
@click.option("--draft", is_flag=True, help="Make it, but do not start it.")
@click.option("--dry-run", is_flag=True, help="Say what it would do, and change nothing.")
@click.option("--expect-count", type=int, help="Refuse unless it is for so many devices.")
@click.option("--yes", is_flag=True, help="Do not ask; with --expect-count a script is safe.")
@with_server
def start(
    server: Callable[[], OperatorApi],
    release: str,
    name: str,
    note: str,
    draft: bool,  # noqa: FBT001 - click's shape
    dry_run: bool,  # noqa: FBT001
    expect_count: int | None,
    yes: bool,  # noqa: FBT001
    **options: Any,
) -> int:
    """Roll RELEASE (product/version) out to the devices a query selects, or begin a draft.

    A draft is named by its rollout's id in the place of RELEASE. It has its devices and rules
    already: only --dry-run, --expect-count and --yes go with one.
    """
    if "/" not in release:
        if name or note or draft or _policy(**options) != {"selector": ""}:
            raise click.UsageError("A draft begins as it was made; RELEASE is product/version")
        _act(server, "start", release, dry_run=dry_run, expect_count=expect_count, yes=yes)
        return 0
    body = {"release": release, **_policy(**options)}
    out = output()
    with server() as client:
        planned = client.call("POST", f"{BASE}/plan", body)
        if dry_run:
            out.document("rollout-plan", planned, lines=plan_lines(planned))
            return EXIT_ENDED_BADLY if planned["blockers"] else 0
        require_count(expect_count, planned["count"])
        sure = yes or expect_count is not None
        if not sure and not out.as_json:
            for line in plan_lines(planned):
                out.note(line)
        confirm_count(planned["count"], is_sure=sure)
        body |= {"name": name or release, "note": note, "expect_count": planned["count"], "draft": draft}
        made = client.call("POST", BASE, body)
    out.document(
        "rollout", made, lines=[f"Rollout {made['rollout_id']} is {made['state']}: {planned['count']} devices."]
    )
    out.next_command(f"firmament rollout {'start' if draft else 'watch'} {made['rollout_id']}")
    return 0


@group.command("list")
@click.option("--product", help="Only of this product.")
@click.option("--state", help="Only in this state, e.g. running or halted.")
@with_server
def list_(server: Callable[[], OperatorApi], product: str | None, state: str | None) -> None:
    """List rollouts, newest first."""
    asked = "".join(f"&{name}={element(value)}" for name, value in (("product", product), ("state", state)) if value)
    with server() as client:
        found = client.call("GET", f"{BASE}?limit=100{asked}")
    out = output()
    header = ("ROLLOUT", "NAME", "RELEASE", "STATE", "UPDATED", "FAILED", "TOTAL")
    out.document("rollouts", found, lines=out.table(list_rows(found["rollouts"]), header=header))


@group.command()
@click.argument("rollout")
@with_server
def show(server: Callable[[], OperatorApi], rollout: str) -> None:
    """Show a rollout: state, waves, stop rule, and why it stopped."""
    with server() as client:
        found, reasons = _read(client, rollout)
    out = output()
    out.document("rollout", found, lines=rollout_lines(found, reasons, paint=out.paint))
    _next(found)


@group.command()
@click.argument("rollout")
@click.option(
    "--interval", type=click.FloatRange(min=0.2), default=2.0, show_default=True, help="Seconds between looks."
)
@click.option("--timeout", default="", metavar="TIME", help="Give up after this time, e.g. 30m (exit code 6).")
@with_server
def watch(server: Callable[[], OperatorApi], rollout: str, interval: float, timeout: str) -> int:
    """Follow a rollout until it ends or stops.

    Exit code 0 when it finished, 3 when it halted, was aborted, denied or reverted. With --json
    one document a line, whenever something changed.
    """
    from firmament.core.clock import SystemClock

    clock, out = SystemClock(), output()
    until_s = clock.monotonic_s() + seconds(timeout) if timeout else None
    before, height = "", 0
    with server() as client:
        while True:
            found, reasons = _read(client, rollout)
            now = f"{found['revision']} {found['state']} {found['counts']}"
            if now != before:
                height = _draw(found, reasons, height)
            before = now
            if found["state"] in ENDED_WELL | ENDED_BADLY:
                _next(found)
                return 0 if found["state"] in ENDED_WELL else EXIT_ENDED_BADLY
            if until_s is not None and clock.monotonic_s() >= until_s:
                out.note(f"Still {found['state']}; gave up watching.")
                return EXIT_TIMED_OUT
            clock.sleep(interval)


@group.command()
@click.argument("rollout")
@with_server
def reasons(server: Callable[[], OperatorApi], rollout: str) -> None:
    """Group failures by reason, with what the failed devices have in common."""
    with server() as client:
        found = client.call("GET", f"{BASE}/{element(rollout)}/reasons")
    out = output()
    header = ("REASON", "DEVICES", "IN COMMON", "WHAT IT SAYS")
    out.document("rollout-reasons", found, lines=out.table(reason_rows(found["reasons"]), header=header))


@group.command()
@click.argument("rollout")
@click.option("--status", help="Only targets with this status, e.g. failed.")
@click.option("--reason", help="Only targets that failed with this code.")
@with_server
def export(server: Callable[[], OperatorApi], rollout: str, status: str | None, reason: str | None) -> None:
    """Write every device of a rollout: tab-separated, or one JSON document a line."""
    asked = "".join(f"&{name}={element(value)}" for name, value in (("status", status), ("reason", reason)) if value)
    columns = ("device_id", "serial", "hardware", "version", "wave", "status", "code", "message", "updated_at")
    out = output()
    if not out.as_json:
        print("\t".join(columns))
    with server() as client:
        for target in _pages(client, f"{BASE}/{element(rollout)}/targets", asked, "targets"):
            out.line("rollout-target", target, text="\t".join(str(target[name] or "") for name in columns))


def _act(
    server: Callable[[], OperatorApi],
    name: str,
    rollout: str,
    *,
    dry_run: bool,
    expect_count: int | None,
    yes: bool,
    reason: str = "",
    exclude: str = "",
) -> None:
    """Do one of the actions of a rollout (server/rollouts/actions.py), after saying what it does."""
    out = output()
    place = f"{BASE}/{element(rollout)}"
    with server() as client:
        asked = f"?{urlencode({'exclude': exclude})}" if exclude else ""
        preview = client.call("GET", f"{place}/actions/{name}{asked}")
        if dry_run:
            out.document("rollout-action", preview, lines=action_lines(preview))
            return
        if not preview["is_possible"]:
            raise ConflictError(preview["why_not"] or "This cannot be done now", action=name, rollout=rollout)
        require_count(expect_count, preview["count"])
        sure = yes or expect_count is not None or not (preview["needs_reason"] or name == "start")
        if not sure:
            for line in action_lines(preview):
                out.note(line)
        confirm_count(preview["count"], is_sure=sure)
        body: dict[str, Any] = {"reason": reason} if reason else {}
        if exclude:
            body["exclude"] = exclude
        if expect_count is not None:
            body["expect_count"] = expect_count
        found = client.call("POST", f"{place}/{name}", body)
    out.document("rollout", found, lines=[f"{preview['sentence']}", f"Rollout {rollout} is {found['state']}."])
    _next(found)


def _action(name: str, summary: str, *, takes_exclude: bool = False) -> None:
    """Add one command that acts on a rollout; they differ by name, help and what they ask."""

    def act(server: Callable[[], OperatorApi], rollout: str, **options: Any) -> None:
        _act(server, name, rollout, **options)

    act.__name__, act.__doc__ = name.replace("-", "_"), summary
    command = with_server(act)
    for option in (
        click.option("--yes", is_flag=True, help="Do not ask."),
        click.option("--expect-count", type=int, help="Refuse unless it is about so many devices."),
        click.option("--dry-run", is_flag=True, help="Say what it would do, and change nothing."),
        click.option("--reason", default="", help="Why, for whoever looks at it later."),
    ):
        command = option(command)
    if takes_exclude:
        command = click.option(
            "--exclude", default="", metavar="QUERY", help="Without these devices, e.g. 'hardware=C'."
        )(command)
    group.command(name)(click.argument("rollout")(command))


_action("pause", "Let no new device start.")
_action("resume", "Go on after a pause or a halt; a halt needs --reason.", takes_exclude=True)
_action("next-wave", "Open the next wave now; needs --reason.")
_action("abort", "End a rollout; what is on the way ends by itself.")
_action("revert", "Bring updated devices back to the slot they still hold; needs --reason.")
_action("approve", "Agree, as the second person.")
_action("deny", "Refuse, as the second person; needs --reason.")
_action("retry-failed", "Offer it again to devices that failed; needs --reason.")
_action("acknowledge", "Say that you look after a stop.")


# --- parts ---------------------------------------------------------------------------------


def seconds(text: str) -> int:
    """Read ``90s``, ``30m``, ``2h`` or ``1d``; raises click's BadParameter."""
    match = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if match is None:
        raise click.BadParameter(f"{text!r} is not a time, e.g. 30m or 2h")
    return int(match[1]) * UNITS[match[2]]


def read_waves(text: str) -> list[dict[str, Any]]:
    """Read ``50,1%,10%,all``; raises click's BadParameter."""
    found: list[dict[str, Any]] = []
    for part in filter(None, (item.strip() for item in text.split(","))):
        if part == "all":
            found.append({"name": "everyone", "percent": 100})
        elif re.fullmatch(r"\d{1,3}(\.\d{1,3})?%", part):
            found.append({"name": part.replace("%", " %"), "percent": _number(part.removesuffix("%"))})
        elif part.isdigit():
            found.append({"name": "canary" if not found else f"wave {len(found) + 1}", "count": int(part)})
        else:
            raise click.BadParameter(f"{part!r} is no wave; say a number, a percentage or all", param_hint="--waves")
    return found


def _number(text: str) -> int | str:
    """Spell a number as JSON without fractions: decimal text where there is one."""
    return int(text) if text.isdigit() else text


def _policy(
    *,
    selector: str,
    waves: str,
    hold: str,
    wait_for: str | None,
    by_hand: bool,
    limit: str,
    min_finished: int | None,
    per_site: int | None,
    per_minute: int | None,
    dynamic: bool,
    on_stop: str | None,
) -> dict[str, Any]:
    body: dict[str, Any] = {"selector": selector}
    if waves:
        body["waves"] = read_waves(waves)
    if hold:
        body["hold_s"] = seconds(hold)
    if wait_for:
        body["wait_for"] = wait_for
    if by_hand:
        body["advance"] = "manual"
    gate: dict[str, Any] = {"min_finished": min_finished} if min_finished is not None else {}
    if limit:
        if not re.fullmatch(r"\d{1,2}(\.\d{1,3})?%?", limit):
            raise click.BadParameter(f"{limit!r} is no percentage, e.g. 2%", param_hint="--limit")
        gate["limit_ratio"] = f"{float(limit.removesuffix('%')) / 100:.6f}"
    if gate:
        body["gate"] = gate
    caps = {name: value for name, value in (("per_site", per_site), ("starts_per_minute", per_minute)) if value}
    if caps:
        body["caps"] = caps
    if dynamic:
        body["dynamic"] = True
    if on_stop:
        body["on_stop"] = on_stop
    return body


def _read(client: OperatorApi, rollout: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    place = f"{BASE}/{element(rollout)}"
    found = client.call("GET", place)
    has_failures = any(found["counts"].get(status) for status in ("failed", "silent"))
    return found, client.call("GET", f"{place}/reasons")["reasons"] if has_failures else []


def _pages(client: OperatorApi, place: str, asked: str, field: str) -> Iterator[dict[str, Any]]:
    cursor: str | None = "0"
    while cursor is not None:
        page = client.call("GET", f"{place}?limit={PAGE}&cursor={cursor}{asked}")
        yield from page[field]
        cursor = page["next"]


def _draw(found: dict[str, Any], reasons: list[dict[str, Any]], height: int) -> int:
    """Draw a rollout, over what was drawn before on a terminal; return how many lines that were."""
    out = output()
    if out.as_json:
        out.line("rollout", found, text="")
        return 0
    lines = rollout_lines(found, reasons, paint=out.paint)
    if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        if height:
            sys.stdout.write(f"\x1b[{height}A\x1b[J")
        print("\n".join(lines), flush=True)
        return len(lines)
    print("\n".join(lines), flush=True)
    return 0


def _next(found: dict[str, Any]) -> None:
    out, rollout = output(), found["rollout_id"]
    if found["state"] == "halted":
        halt = found.get("halt") or {}
        common = halt.get("common")
        if common:
            out.next_command(
                f"firmament rollout resume {rollout} --exclude '{common['attribute']}={common['value']}' --reason TEXT"
            )
        out.next_command(f"firmament rollout revert {rollout} --dry-run")
    elif found["state"] == "awaiting-approval":
        out.next_command(f"firmament rollout approve {rollout}   # by somebody else")
    elif found["state"] in {"running", "scheduled", "holding"}:
        out.next_command(f"firmament rollout watch {rollout}")
