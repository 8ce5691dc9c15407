"""``firmament consent``: which updates ask their owner, and what owners said."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from firmament.cli.common import output
from firmament.cli.operator_client import element
from firmament.cli.selection import with_server

if TYPE_CHECKING:
    from collections.abc import Callable

    from firmament.release.remote import OperatorApi

POLICY: Final = "/api/v1/consent/policy"
COUNTED: Final = ("asked", "agreed", "postponed", "declined", "no_answer")


@click.group("consent")
def group() -> None:
    """Which updates ask their owner, and what owners said."""


@group.group()
def policy() -> None:
    """Rules for a tenant, a group or a device; the most specific one holds."""


def _where(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--device", default="", help="For one device."),
        click.option("--group", "group_name", default="", help="For a group. Without both: for all devices."),
        click.option(
            "--class", "update_class", type=click.Choice(["security", "feature"]), required=True, help="Of updates."
        ),
    ):
        function = option(function)
    return function


def _level(device: str, group_name: str) -> tuple[str, str]:
    if device and group_name:
        raise click.UsageError("Give --device or --group, not both.")
    if device:
        return "device", device
    return ("group", group_name) if group_name else ("tenant", "")


@policy.command()
@click.argument("device", required=False)
@with_server
def show(server: Callable[[], OperatorApi], device: str | None) -> None:
    """List the rules that were set, or show which holds for a device."""
    out = output()
    with server() as client:
        if device is not None:
            answer = client.call("GET", f"/api/v1/devices/{element(device)}/consent")
            rows = [(name, *_cells(answer[name]["holding"])) for name in ("security", "feature")]
            lines = out.table(rows, header=("CLASS", "MODE", "WINDOW", "WHOSE", "SET BY"))
            if answer["opted_out_at"] is not None:
                lines = [*lines, "The owner switched updates off: none installs by itself."]
            out.document("consent-device", answer, lines=lines)
            return
        answer = client.call("GET", POLICY)
    rows = [(one["update_class"], *_cells(one)) for one in answer["rules"]]
    out.document("consent-policy", answer, lines=out.table(rows, header=("CLASS", "MODE", "WINDOW", "WHOSE", "SET BY")))


def _cells(rule: dict[str, Any]) -> tuple[str, ...]:
    return rule["mode"], rule["window"] or "", f"{rule['level']} {rule['subject']}".strip(), rule["set_by"]


@policy.command("set")
@_where
@click.argument("mode", type=click.Choice(["automatic", "ask", "window", "manual"]))
@click.option("--window", default="", metavar="HH:MM-HH:MM", help="On the device's own clock; for the mode window.")
@with_server
def set_(
    server: Callable[[], OperatorApi], device: str, group_name: str, update_class: str, mode: str, window: str
) -> None:
    """Say how updates of a class go."""
    level, subject = _level(device, group_name)
    body = {"level": level, "subject": subject, "update_class": update_class, "mode": mode}
    with server() as client:
        client.call("PUT", POLICY, {**body, **({"window": window} if window else {})})
    said = f"{update_class} updates of {subject or 'all devices'}: {mode} {window}".strip()
    output().document("consent-rule", body, lines=[said])


@policy.command()
@_where
@with_server
def clear(server: Callable[[], OperatorApi], device: str, group_name: str, update_class: str) -> None:
    """Take a rule away; the next more general one holds."""
    level, subject = _level(device, group_name)
    with server() as client:
        client.call("DELETE", f"{POLICY}?level={level}&subject={element(subject)}&update_class={update_class}")
    body = {"level": level, "subject": subject, "update_class": update_class, "mode": None}
    output().document("consent-rule", body, lines=["Taken away."])


@group.command()
@click.argument("release", required=False)
@with_server
def report(server: Callable[[], OperatorApi], release: str | None) -> None:
    """Count what owners said: the four answers add up to the number asked."""
    with server() as client:
        answer = client.call("GET", "/api/v1/consent/report" + (f"?release={element(release)}" if release else ""))
    out = output()
    rows = [(one["release"], *(str(one[name]) for name in COUNTED)) for one in answer["releases"]]
    rows.append(("all", *(str(answer[name]) for name in COUNTED)))
    lines = out.table(rows, header=("RELEASE", "ASKED", "AGREED", "POSTPONED", "DECLINED", "NO ANSWER"))
    out.document("consent-report", answer, lines=[*lines, f"{answer['opted_out']} owners switched updates off."])
