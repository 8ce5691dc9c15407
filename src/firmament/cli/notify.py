"""``firmament notify``: whom the server tells, and what it told."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from firmament.cli.audit import what_and_where
from firmament.cli.common import EXIT_FAILED, output
from firmament.cli.operator_client import connect, element
from firmament.core.fields import format_time
from firmament.durable import RealDisk, replace_durably
from firmament.errors import MalformedError

if TYPE_CHECKING:
    from collections.abc import Callable

BASE: Final = "/api/v1/notifications"
_DURATION: Final = re.compile("([0-9]{1,6})(s|min|h|d)?")
_UNITS: Final = {None: 1, "s": 1, "min": 60, "h": 3600, "d": 86_400}


@click.group(name="notify")
def group() -> None:
    """Notifications: whom the server tells, and what it told."""


def _outlet(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.argument("name")(what_and_where(command))


@group.command(name="list")
@what_and_where
@click.option(
    "-n", "--lines", "count", type=click.IntRange(1, 200), default=20, show_default=True, help="How many notifications."
)
def list_all(
    server_url: str | None, ca: Path | None, workspace: Path | None, token_file: Path | None, count: int
) -> None:
    """List outlets and the newest notifications."""
    with connect(server_url, ca, workspace, token_file) as client:
        outlets = client.call("GET", f"{BASE}/outlets")["outlets"]
        told = client.call("GET", f"{BASE}?limit={count}")["notifications"]
    out = output()
    rows = [
        (each["name"], each["kind"], each["takes"], each["target"], "off" if each["disabled_at"] else "")
        for each in outlets
    ]
    lines = out.table(rows, header=("OUTLET", "KIND", "TAKES", "TARGET", "")) if rows else ["no outlets yet"]
    rows = [
        (
            each["id"],
            format_time(datetime.fromtimestamp(each["at"], UTC)),
            each["severity"],
            _state(each),
            each["title"],
        )
        for each in told
    ]
    lines += ["", *out.table(rows, header=("ID", "WHEN", "SEVERITY", "STATE", "WHAT"))] if rows else []
    out.document("notifications", {"outlets": outlets, "notifications": told}, lines=lines)
    if not outlets:
        out.next_command("firmament notify add NAME webhook https://HOST/PATH")


def _moment(unix_s: int) -> str:
    return format_time(datetime.fromtimestamp(unix_s, UTC))


def _state(each: dict[str, Any]) -> str:
    if each["acknowledged_by"]:
        return f"seen by {each['acknowledged_by']}"
    return "ended" if each["closed_at"] else "open"


@group.command()
@click.argument("name")
@click.argument("kind", type=click.Choice(["webhook", "email", "mqtt"]))
@click.argument("target")
@what_and_where
@click.option("--events", "takes_events", is_flag=True, help="Deliver each event as JSON, not sentences for people.")
@click.option("--kind", "kinds", multiple=True, help="With --events: only these, e.g. release.published or `rollout.`.")
@click.option("--escalation", is_flag=True, help="Only what nobody acknowledged in time.")
@click.option("--secret-out", type=click.Path(path_type=Path), help="Write the signing secret to this file (0600).")
def add(
    name: str,
    kind: str,
    target: str,
    server_url: str | None,
    ca: Path | None,
    workspace: Path | None,
    token_file: Path | None,
    takes_events: bool,  # noqa: FBT001 - click's shape
    kinds: tuple[str, ...],
    escalation: bool,  # noqa: FBT001 - click's shape
    secret_out: Path | None,
) -> None:
    """Tell TARGET: an https:// address, a mail address or a topic of the broker."""
    if kinds and not takes_events:
        raise MalformedError("Kinds are chosen for events only: give --events")
    body = {
        "name": name,
        "kind": {"email": "smtp"}.get(kind, kind),
        "target": target,
        "takes": "events" if takes_events else "notifications",
        "kinds": list(kinds),
        "is_escalation": escalation,
    }
    with connect(server_url, ca, workspace, token_file) as client:
        answer = client.call("POST", f"{BASE}/outlets", body)
    lines = [f"{name} is told from now on."]
    if answer["secret"] and secret_out is not None:
        replace_durably(RealDisk(), secret_out.absolute(), answer.pop("secret").encode() + b"\n")
        lines.append(f"Secret that signs each delivery: {secret_out}")
    elif answer["secret"]:
        lines.append(f"Secret that signs each delivery, shown this once: {answer['secret']}")
    out = output()
    out.document("outlet", answer, lines=lines)
    out.next_command(f"firmament notify test {name}")


@group.command()
@_outlet
def test(name: str, server_url: str | None, ca: Path | None, workspace: Path | None, token_file: Path | None) -> int:
    """Deliver a test message now; exit 1 if it was not taken."""
    with connect(server_url, ca, workspace, token_file) as client:
        answer = client.call("POST", f"{BASE}/outlets/{element(name)}/test")
    text = "delivered" if answer["ok"] else "not delivered"
    output().document("outlet-test", answer, lines=[f"{text}: {answer['answer']} ({answer['duration_ms']} ms)"])
    return 0 if answer["ok"] else EXIT_FAILED


@group.command()
@_outlet
@click.option("--for", "duration", default="2h", show_default=True, help="E.g. 30min, 2h, 1d; 0 ends it.")
def mute(
    name: str,
    server_url: str | None,
    ca: Path | None,
    workspace: Path | None,
    token_file: Path | None,
    duration: str,
) -> None:
    """Send an outlet no notifications for a while."""
    match = _DURATION.fullmatch(duration)
    if match is None:
        raise MalformedError("A duration is written as 30min, 2h or 1d", found=duration[:20])
    body = {"for_s": int(match[1]) * _UNITS[match[2]]}
    with connect(server_url, ca, workspace, token_file) as client:
        answer = client.call("POST", f"{BASE}/outlets/{element(name)}/mute", body)
    output().document("outlet", answer, lines=[f"{name} is told nothing for {duration}."])


@group.command()
@click.argument("number", type=click.IntRange(1))
@what_and_where
def ack(number: int, server_url: str | None, ca: Path | None, workspace: Path | None, token_file: Path | None) -> None:
    """Say that you have seen notification NUMBER: no more repeats, no escalation."""
    with connect(server_url, ca, workspace, token_file) as client:
        answer = client.call("POST", f"{BASE}/{number}/acknowledge")
    output().document("notification", answer, lines=[f"Acknowledged: {answer['title']}"])


@group.command()
@_outlet
def remove(name: str, server_url: str | None, ca: Path | None, workspace: Path | None, token_file: Path | None) -> None:
    """Remove an outlet with its log."""
    with connect(server_url, ca, workspace, token_file) as client:
        client.call("DELETE", f"{BASE}/outlets/{element(name)}")
    output().document("outlet-removed", {"name": name}, lines=[f"{name} is told nothing any more."])


@group.command()
@_outlet
@click.option("--replay-from", type=click.IntRange(1), help="Deliver events again from this number on.")
def enable(
    name: str,
    server_url: str | None,
    ca: Path | None,
    workspace: Path | None,
    token_file: Path | None,
    replay_from: int | None,
) -> None:
    """Switch an outlet on again after failures, and go back if asked to."""
    body = {"replay_from": replay_from} if replay_from is not None else {}
    with connect(server_url, ca, workspace, token_file) as client:
        answer = client.call("POST", f"{BASE}/outlets/{element(name)}/enable", body)
    output().document("outlet", answer, lines=[f"{name} goes on after event {answer['cursor']}."])


@group.command()
@_outlet
def log(name: str, server_url: str | None, ca: Path | None, workspace: Path | None, token_file: Path | None) -> None:
    """Show the newest deliveries of an outlet."""
    with connect(server_url, ca, workspace, token_file) as client:
        answer = client.call("GET", f"{BASE}/outlets/{element(name)}/deliveries")
    out = output()
    rows = [
        (
            _moment(each["at"]),
            "ok" if each["ok"] else "failed",
            each["event_number"] or "-",
            each["answer"],
        )
        for each in answer["deliveries"]
    ]
    out.document("deliveries", answer, lines=out.table(rows, header=("WHEN", "", "EVENT", "ANSWER")))


@group.command()
@what_and_where
def preview(server_url: str | None, ca: Path | None, workspace: Path | None, token_file: Path | None) -> None:
    """Show how a stopped rollout is told."""
    with connect(server_url, ca, workspace, token_file) as client:
        answer = client.call("GET", f"{BASE}/preview")
    output().document("notification-preview", answer, lines=[answer["text"]])
