"""Virtual fleets on the real engine: bad builds stop, good ones arrive, the same seed plays the same, forecasts hold."""

from pathlib import Path

import pytest

from firmament.server.rollouts.model import Caps, GatePolicy, OnStop, Policy, WaveSpec
from firmament.sim.fleet.evidence import export_and_verify
from firmament.sim.fleet.model import Build, Crowd, Scenario, Weather
from firmament.sim.fleet.play import Fleet, forecast, play

GATE = GatePolicy(limit_ratio=0.02, min_finished=50)
BAD = Build(failure_ratio=0.1, silent_ratio=0.01)
BAND = 0.5
"""How far a forecast of another seed may be from what happens: half of it. Stops of small waves are chance."""


def test_two_thousand_devices_meet_a_bad_build(tmp_path):
    """It stops by itself, brings the updated back, and the evidence is whole."""
    policy = Policy(gate=GATE, on_stop=OnStop.REVERT, hold_s=3600)
    scenario = Scenario(Crowd(devices=2000), Weather(lost_ratio=0.05), BAD, seed=3)
    fleet = Fleet(tmp_path, scenario, policy)
    try:
        for _ in fleet.steps():
            pass
        result = fleet.result()
        evidence = export_and_verify(fleet.server, tmp_path / "evidence.jsonl")
        versions = {device.version for device in fleet.devices if not device.fate.never_returns}
    finally:
        fleet.close()
    assert result.state == "reverted"
    assert result.touched < 220, "the blast was at most the second wave"
    assert result.counts["went-back"] > 0
    assert sum(result.counts.values()) == 2000
    assert versions == {"1.0"}
    assert evidence.broken is None
    assert evidence.last > result.touched * 4
    kinds = (tmp_path / "evidence.jsonl").read_text()
    for kind in ("rollout.created", "wave.opened", "rollout.halted", "attempt.moved", "rollout.moved"):
        assert kind in kinds


def test_a_good_build_reaches_everybody_in_the_time_that_was_forecast():
    policy = Policy(gate=GATE, hold_s=3600, caps=Caps(total=40))
    crowd = Crowd(devices=150, interval_s=3600)
    said = forecast(Scenario(crowd, seed=1), policy)
    happened = forecast(Scenario(crowd, Weather(lost_ratio=0.05), seed=2), policy)
    assert (said.state, happened.state) == ("finished", "finished")
    assert happened.counts == {"updated": 150}
    assert abs(said.duration_s - happened.duration_s) <= BAND * said.duration_s


@pytest.mark.parametrize("failing", [0.05, 0.3])
def test_where_a_bad_build_stops_is_as_forecast(failing):
    policy = Policy(gate=GATE, waves=(WaveSpec("canary", count=20), WaveSpec("all", percent=100.0)))
    build = Build(failure_ratio=failing)
    said = forecast(Scenario(Crowd(devices=800, interval_s=3600), build=build, seed=5), policy)
    happened = forecast(Scenario(Crowd(devices=800, interval_s=3600), build=build, seed=6), policy)
    assert {said.state, happened.state} == {"halted"}
    # A forecast names a size of the damage, not a number: within a wave of it.
    assert abs(said.touched - happened.touched) <= max(BAND * said.touched, 150)


def test_the_same_seed_plays_the_same_and_another_does_not():
    def once(seed):
        crowd = Crowd(devices=80, interval_s=3600, ask_ratio=0.3)
        weather = Weather(lost_ratio=0.1, broken_fetch_ratio=0.1)
        return forecast(Scenario(crowd, weather, BAD, seed=seed), Policy(gate=GATE), days=1)

    first = once(9)
    assert once(9) == first
    assert once(10) != first


def test_owners_are_asked_and_hold_nobody_up():
    policy = Policy(gate=GATE, answer_s=3600, lifetime_s=2 * 86_400)
    scenario = Scenario(Crowd(devices=120, interval_s=3600, ask_ratio=0.5))
    result = forecast(scenario, policy)
    assert result.state == "finished"
    assert result.counts["declined"] > 0
    assert result.counts["updated"] > 80
    assert sum(wave["failed"] for wave in result.waves) == 0


def test_the_engine_names_the_hardware_that_fails():
    policy = Policy(gate=GatePolicy(limit_ratio=0.2, min_finished=100), waves=(WaveSpec("all", percent=100.0),))
    build = Build(failure_ratio=0.9, bad_hardware="rev-c")
    result = forecast(Scenario(Crowd(devices=400, interval_s=3600), build=build), policy)
    assert result.state == "halted"
    assert result.common is not None
    assert (result.common["attribute"], result.common["value"]) == ("hardware", "rev-c")


def test_a_fleet_can_be_shown_step_by_step(tmp_path):
    seen = []
    play(
        Scenario(Crowd(devices=10, interval_s=600)),
        Policy(),
        directory=Path(tmp_path),
        pace=lambda fleet: seen.append((fleet.elapsed_s, fleet.server.state())),
    )
    assert seen == sorted(seen)
    assert seen[-1][1] == "finished"
