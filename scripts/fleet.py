"""`make fleet`: a hundred thousand virtual devices meet a bad build, and a good one.

The bad build first: forecast, then play, then compare. The forecast plays five thousand devices of
another seed. Both must stop by themselves and bring the updated back; the number of devices touched
and the time of the stop must agree within `BAND`. Then the same for pairs of smaller fleets: each
failure rate, with its band, with each pair of seeds. Last, a build whose failures stay below the
limit goes through the whole fleet: it must finish, and every device must be counted once.
"""

import argparse
import logging
import sys
import tempfile
import time
from pathlib import Path

from firmament.server.rollouts.model import GatePolicy, OnStop, Policy, WaveSpec
from firmament.sim.fleet.evidence import export_and_verify
from firmament.sim.fleet.model import Build, Crowd, Scenario, Weather
from firmament.sim.fleet.play import Fleet, Played, duration, forecast

BAND = 1.5
"""Factor, either way, between what was forecast and what happened."""
WAVES = (WaveSpec("canary", count=500), WaveSpec("10 %", percent=10.0), WaveSpec("everyone", percent=100.0))
POLICY = Policy(waves=WAVES, gate=GatePolicy(limit_ratio=0.02, min_finished=50), on_stop=OnStop.REVERT, hold_s=3600)
BUILD = Build(failure_ratio=0.1, silent_ratio=0.01)
GOOD_BUILD = Build(failure_ratio=0.01, silent_ratio=0.001)
"""Some devices fail with every build; the limit is twice this."""
WEATHER = Weather(lost_ratio=0.02)
RATES = {0.05: 4.0, 0.1: 2.0, 0.3: 2.0}
"""Share of devices that fail, and the band: near the limit of 2 % a stop comes by chance, sooner or later."""
SEEDS = ((1, 11), (2, 12), (3, 13))
"""Of what happens, and of its forecast."""
RUN_DEVICES, FORECAST_DEVICES = 3000, 1500


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=100_000)
    options = parser.parse_args()
    logging.getLogger("firmament").setLevel(logging.CRITICAL)
    began = time.monotonic()
    said = forecast(Scenario(Crowd(devices=min(5000, options.devices)), WEATHER, BUILD, seed=2), POLICY)
    print(f"forecast: {said.sentence}", flush=True)
    happened, problems = with_evidence(Scenario(Crowd(devices=options.devices), WEATHER, BUILD, seed=1))
    problems += differences(said, happened)
    for rate, band in RATES.items():
        build = Build(failure_ratio=rate, silent_ratio=0.01)
        for of_run, of_forecast in SEEDS:
            run = forecast(Scenario(Crowd(devices=RUN_DEVICES), WEATHER, build, seed=of_run), POLICY)
            told = forecast(Scenario(Crowd(devices=FORECAST_DEVICES), WEATHER, build, seed=of_forecast), POLICY)
            print(
                f"{rate:.0%} fail, seeds {of_run}/{of_forecast}: touched {run.touched}, forecast {told.touched}; "
                f"stopped after {duration(run.halted_after_s or 0)}, forecast {duration(told.halted_after_s or 0)}",
                flush=True,
            )
            problems += differences(told, run, band)
    finished, found = with_evidence(Scenario(Crowd(devices=options.devices), WEATHER, GOOD_BUILD, seed=1))
    problems += found + unfinished(finished)
    print(
        f"devices: {options.devices}, problems: {len(problems)}, {time.monotonic() - began:.0f} s",
        *problems,
        sep="\n  ",
    )
    return 1 if problems else 0


def with_evidence(scenario: Scenario) -> tuple[Played, list[str]]:
    """Play the scenario, export its events and verify them; return what happened and what is wrong."""
    with tempfile.TemporaryDirectory() as directory:
        fleet = Fleet(Path(directory), scenario, POLICY)
        for _ in fleet.steps():
            pass
        happened = fleet.result()
        evidence = export_and_verify(fleet.server, Path(directory) / "evidence.jsonl")
        fleet.close()
    print(f"played:   {happened.sentence}")
    print(f"evidence: {evidence.last} events, {'verified' if evidence.broken is None else evidence.broken}", flush=True)
    return happened, [] if evidence.broken is None else ["the evidence is broken"]


def unfinished(happened: Played) -> list[str]:
    """Say what is wrong with a rollout that had to reach every device."""
    found = [] if happened.state == "finished" else [f"did not end as finished: {happened.state}"]
    if sum(happened.counts.values()) != happened.devices:
        found.append(f"{sum(happened.counts.values())} of {happened.devices} devices are counted")
    if happened.counts.get("updated", 0) < (1 - POLICY.gate.limit_ratio) * happened.devices:
        found.append(f"only {happened.counts.get('updated', 0)} of {happened.devices} were updated")
    return found


def differences(said: Played, happened: Played, band: float = BAND) -> list[str]:
    """Say what of a play was not as forecast."""
    if happened.state != "reverted" or said.state != "reverted":
        return [f"did not end as reverted: {said.state}, {happened.state}"]
    found = []
    if not within(said.touched, happened.touched, band):
        found.append(f"touched {happened.touched}, forecast {said.touched}")
    if not within(said.halted_after_s, happened.halted_after_s, band):
        found.append(f"stopped after {duration(happened.halted_after_s)}, forecast {duration(said.halted_after_s)}")
    return found


def within(one: float, other: float, band: float) -> bool:
    return max(one, other) <= band * max(1, min(one, other))


if __name__ == "__main__":
    sys.exit(main())
