"""`firmament-agent consent`: what the owner of a device is asked, and says.

Silence never means yes: nothing here reads an answer from a prompt, and `show` changes nothing.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import click

from firmament.cli.agent import EXIT_WAITING, ask_engine, load_settings, look, sentences, waits_for_owner
from firmament.cli.common import output, output_options

if TYPE_CHECKING:
    from collections.abc import Iterator

UNITS: Final = {"m": 60, "h": 3600, "d": 86_400}
MODES: Final = ("automatic", "ask", "window", "manual", "settings")


@click.group("consent")
def group() -> None:
    """Read the offer and answer it as the owner; opt out of automatic updates."""


@group.command()
@output_options
@click.pass_context
def show(context: click.Context) -> int:
    """Show what is offered, what was said, and what can be answered.

    Exit code 11 while the update waits for the owner.
    """
    status = look(load_settings(context))
    out = output()
    out.document("consent", _facts(status), lines=_lines(status))
    if waits_for_owner(status):
        out.next_command("firmament-agent consent accept|tonight|postpone|skip")
        return EXIT_WAITING
    return 0


@group.command()
@output_options
@click.pass_context
def accept(context: click.Context) -> None:
    """Agree: the update goes ahead now."""
    _say(context, "now")


@group.command()
@output_options
@click.pass_context
def tonight(context: click.Context) -> None:
    """Agree: the update is installed when the window opens, 02:00 without one."""
    _say(context, "tonight")


@group.command()
@click.argument("duration", default="")
@output_options
@click.pass_context
def postpone(context: click.Context, duration: str) -> None:
    """Put the update off, for DURATION (30m, 8h, 2d) or a day; also takes a yes back."""
    _say(context, "later", for_s=seconds(duration) if duration else 0)


@group.command()
@output_options
@click.pass_context
def withdraw(context: click.Context) -> None:
    """Take a yes back; possible until the device is about to restart into the new image."""
    _say(context, "withdraw")


@group.command()
@output_options
@click.pass_context
def skip(context: click.Context) -> None:
    """Decline this version for good; the next one is offered again."""
    _say(context, "skip")


@group.command(name="opt-out")
@output_options
@click.pass_context
def opt_out(context: click.Context) -> None:
    """Let no update install by itself any more; you are still told about them."""
    from firmament.agent.owner import OPT_OUT_RISK

    _say(context, "opt-out")
    output().note(OPT_OUT_RISK)


@group.command(name="opt-in")
@output_options
@click.pass_context
def opt_in(context: click.Context) -> None:
    """Follow the policy again, and offer skipped versions anew."""
    _say(context, "opt-in")


@group.command()
@click.option("--security", type=click.Choice(MODES), help="For security updates; settings: as the settings say.")
@click.option("--feature", type=click.Choice(MODES), help="For all other updates.")
@output_options
@click.pass_context
def policy(context: click.Context, security: str | None, feature: str | None) -> None:
    """Show or set how updates go: automatic, ask, window or manual, by class."""
    modes = {name: mode for name, mode in (("security", security), ("feature", feature)) if mode is not None}
    if modes:
        _say(context, "mode", **modes)
        return
    status = look(load_settings(context))
    output().document("consent", _facts(status), lines=_policy_lines(status))


def seconds(text: str) -> int:
    """Read ``30m``, ``8h`` or ``2d``; raises click's BadParameter."""
    match = re.fullmatch(r"([1-9]\d{0,4})([mhd])", text)
    if match is None:
        raise click.BadParameter(f"{text!r} is not a duration, e.g. 30m, 8h or 2d")
    return int(match[1]) * UNITS[match[2]]


def _say(context: click.Context, action: str, **arguments: Any) -> None:
    given = {name: value for name, value in arguments.items() if value}
    status = ask_engine(load_settings(context), "consent", {"action": action, "via": "command", **given})
    out = output()
    out.document("consent", _facts(status), lines=[*_answered(action, status), *_after(status)])
    if action == "now" and status["state"] in {"offered", "waiting"}:
        out.next_command("firmament-agent all")
    elif action == "tonight":
        out.next_command("firmament-agent consent postpone   # takes it back")
    elif action == "opt-out":
        out.next_command("firmament-agent consent opt-in   # takes it back")


def _facts(status: dict[str, Any]) -> dict[str, Any]:
    attempt = status.get("attempt") or {}
    return {
        "state": status.get("state"),
        "release_id": attempt.get("release_id"),
        "class": attempt.get("class"),
        "consent": status.get("consent"),
        "offer": status.get("offer"),
        "blocked": status.get("blocked"),
    }


def _answered(action: str, status: dict[str, Any]) -> Iterator[str]:
    consent = status.get("consent") or {}
    texts = {
        "now": "Agreed.",
        "tonight": "Agreed, for the next window.",
        "later": f"Postponed until {consent.get('again_at')}.",
        "withdraw": "Your yes was taken back.",
        "skip": "This version is skipped.",
        "opt-out": "Opted out: no update installs by itself.",
        "opt-in": "Opted in: updates follow the policy.",
    }
    if action == "mode":
        yield from _policy_lines(status)
    else:
        yield texts[action]
    left = consent.get("postpones_left")
    if action == "later" and left is not None:
        yield f"It can be postponed {left} more times, at the longest until {consent.get('postpone_until')}."
        yield str(consent.get("consequence"))


def _after(status: dict[str, Any]) -> Iterator[str]:
    if status.get("blocked"):
        yield f"{status['blocked']}."


def _policy_lines(status: dict[str, Any]) -> Iterator[str]:
    consent = status["consent"]
    yield f"security updates: {consent['security']}"
    yield f"other updates:    {consent['feature']}"
    if consent["opted_out"]:
        yield "opted out: no update installs by itself"
    if consent["skipped"]:
        yield f"skipped: {', '.join(consent['skipped'])}"


def _lines(status: dict[str, Any]) -> Iterator[str]:
    offer, consent = status.get("offer"), status.get("consent") or {}
    if offer is None:
        yield from sentences(status)
        yield from _policy_lines(status)
        return
    yield from offer_lines(offer)
    yield ""
    if consent.get("answer"):
        again = f", asked again at {consent['again_at']}" if consent.get("again_at") else ""
        yield f"Answered: {consent['answer']}{again}."
    if consent.get("consequence"):
        yield str(consent["consequence"])
    if consent.get("postpones_left") is not None:
        left, until = consent["postpones_left"], consent["postpone_until"]
        yield f"It can be postponed {left} more times, at the longest until {until}."


def offer_lines(offer: dict[str, Any]) -> Iterator[str]:
    """Yield the text of an offer as the owner reads it, byte for byte what its digest is of."""
    yield offer["title"]
    for section in offer["sections"]:
        yield ""
        yield section["heading"]
        yield from (f"  {line}" for line in section["lines"])
    yield ""
    yield offer["facts"]
