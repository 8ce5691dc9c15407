"""``firmament sim fleet`` and ``firmament rollout forecast``: the real rollout engine on a virtual clock."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from firmament.cli.common import output, output_options

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from firmament.server.rollouts.model import Policy
    from firmament.sim.fleet.model import Scenario

F = TypeVar("F", bound="Callable[..., Any]")
PERCENT: Final = click.FloatRange(0, 100)
MAX_DEVICES: Final = 1_000_000
MAX_FORECAST: Final = 5000
"""A forecast for more is played with so many: shares stay, counts are scaled by whoever reads it."""


SCENARIO: Final = (
    "failing",
    "silent",
    "bad_hardware",
    "asleep",
    "asking",
    "lost",
    "broken_fetches",
    "interval",
    "zones",
    "sites",
    "seed",
    "days",
    "bad_build",
)
"""Names of the options below, and of the forecast's own."""


def scenario_options(function: F) -> F:
    """Add what is assumed about devices, network and build."""
    for option in (
        click.option("--failing", type=PERCENT, default=0.0, help="Percent of devices that fall back."),
        click.option("--silent", type=PERCENT, default=0.0, help="Percent that do not come back from the restart."),
        click.option("--bad-hardware", default="", metavar="NAME", help="Only devices of this hardware fail."),
        click.option("--asleep", type=PERCENT, default=0.0, help="Percent that are off and wake up every few days."),
        click.option("--asking", type=PERCENT, default=0.0, help="Percent whose owner is asked."),
        click.option("--lost", type=PERCENT, default=0.0, help="Percent of messages that do not arrive."),
        click.option("--broken-fetches", type=PERCENT, default=0.0, help="Percent of fetches that fail."),
        click.option("--interval", type=click.IntRange(min=10), default=14_400, help="Seconds between polls."),
        click.option("--zone", "zones", multiple=True, help="Time zone of the devices; may be given more than once."),
        click.option("--sites", type=click.IntRange(min=0), default=0, help="Sites the devices are spread over."),
        click.option("--seed", type=int, default=1, help="The same seed plays the same."),
        click.option("--days", type=click.FloatRange(min=0.01, max=365), default=60.0, help="Play at most so long."),
    ):  # fmt: skip
        function = option(function)
    return function


def make_scenario(devices: int, options: Mapping[str, Any]) -> Scenario:
    """Return the scenario that options describe."""
    from firmament.sim.fleet.model import Build, Crowd, Scenario, Weather

    zones = options["zones"] or ("UTC",)
    return Scenario(
        crowd=Crowd(
            devices=devices,
            interval_s=options["interval"],
            asleep_ratio=options["asleep"] / 100,
            zones=dict.fromkeys(zones, 1.0),
            sites=options["sites"],
            ask_ratio=options["asking"] / 100,
        ),
        weather=Weather(lost_ratio=options["lost"] / 100, broken_fetch_ratio=options["broken_fetches"] / 100),
        build=Build(
            failure_ratio=options["failing"] / 100,
            silent_ratio=options["silent"] / 100,
            bad_hardware=options["bad_hardware"],
        ),
        seed=options["seed"],
    )


@click.command()
@click.option("--devices", type=click.IntRange(1, MAX_DEVICES), default=1000, show_default=True, help="How many.")
@click.option(
    "--policy",
    "policy_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The rollout's policy as JSON, as the operator API takes it.",
)
@click.option("--limit", type=PERCENT, default=5.0, show_default=True, help="Stop above this percentage of failures.")
@click.option("--min-finished", type=click.IntRange(min=1), default=20, show_default=True, help="Minimum sample.")
@click.option("--hold", type=click.IntRange(min=0), default=3600, show_default=True, help="Seconds after each wave.")
@click.option("--on-stop", type=click.Choice(["hold", "revert"]), default="revert", show_default=True, help="And then.")
@click.option("--export", "export_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the evidence.")
@scenario_options
@output_options
def fleet(
    devices: int,
    policy_file: Path | None,
    limit: float,
    min_finished: int,
    hold: int,
    on_stop: str,
    export_file: Path | None,
    **options: Any,
) -> int:
    """Play a whole rollout with virtual devices on the server's own code.

    Everything that decides is real: protocol messages, signed reports, waves, stop rule, going
    back, the chain of events. Time is virtual: days take seconds.
    """
    import tempfile

    from firmament.sim.fleet.evidence import export_and_verify
    from firmament.sim.fleet.play import Fleet

    policy = _policy(policy_file, limit=limit, min_finished=min_finished, hold=hold, on_stop=on_stop)
    with tempfile.TemporaryDirectory(prefix="firmament-sim-") as directory:
        played = Fleet(Path(directory), make_scenario(devices, options), policy)
        try:
            for _ in played.steps(days=options["days"]):
                pass
            result = played.result()
            evidence = export_and_verify(played.server, export_file or Path(directory) / "evidence.jsonl")
        finally:
            played.close()
    value = {
        **result.to_json(),
        "evidence": {"events": evidence.last, "is_whole": evidence.broken is None},
    }
    whole = "verified" if evidence.broken is None else f"broken at {evidence.broken.number}"
    lines = [result.sentence, *_wave_lines(result.waves), f"evidence: {evidence.last} events, {whole}"]
    output().document("sim-fleet", value, lines=lines)
    return 0 if evidence.broken is None else 1


def _policy(path: Path | None, *, limit: float, min_finished: int, hold: int, on_stop: str) -> Policy:
    from firmament.core.canonical import decode_object
    from firmament.core.fields import Fields
    from firmament.server.rollouts.model import MAX_POLICY_LENGTH_BYTES, GatePolicy, OnStop, Policy, decode_policy

    if path is not None:
        value = decode_object(path.read_bytes(), limit_bytes=MAX_POLICY_LENGTH_BYTES, what="The policy")
        return decode_policy(Fields(value, what="policy"))
    gate = GatePolicy(limit_ratio=limit / 100, min_finished=min_finished)
    return Policy(gate=gate, hold_s=hold, on_stop=OnStop(on_stop))


def forecast_lines(count: int, body: Mapping[str, Any], options: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Play a plan's rollout twice, as assumed and with a bad build; return the document and its lines."""
    from firmament.core.fields import Fields
    from firmament.server.rollouts.model import decode_policy
    from firmament.sim.fleet.play import forecast

    played_with = min(count, MAX_FORECAST)
    policy = decode_policy(Fields(dict(body), what="policy"))
    good = forecast(make_scenario(played_with, options), policy, days=options["days"])
    bad_options = {**options, "failing": options["bad_build"]}
    bad = forecast(make_scenario(played_with, bad_options), policy, days=options["days"])
    value = {
        "devices": count,
        "played_with": played_with,
        "as_assumed": good.to_json(),
        "bad_build": bad.to_json(),
    }
    sample = "" if played_with == count else f" (played with {played_with} of {count})"
    lines = [
        f"As assumed{sample}: {good.sentence}",
        f"If {options['bad_build']:g} % of devices failed: {bad.sentence}",
    ]
    return value, lines


def _wave_lines(waves: list[dict[str, Any]]) -> list[str]:
    return [
        f"wave {wave['number']} {wave['name']}: {wave['state']}, {wave['finished']} of {wave['size']} finished, "
        f"{wave['failed']} failed"
        for wave in waves
    ]
