"""The real engine stops a rollout; what people are told is what its page says, and waves wake buckets."""

import contextlib

import pytest
from support.rollout_world import ADMIN, RolloutWorld

from firmament.protocol.v1.wake import WAKE_TOPICS
from firmament.server.events import Wanted, find_events
from firmament.server.notify.news import news_of
from firmament.server.notify.worker import read_rollout
from firmament.server.outbox.wake import _to_wake
from firmament.server.rollouts.model import GatePolicy, Policy, WaveSpec


@pytest.fixture
def world(tmp_path, database_kind):
    found = RolloutWorld(tmp_path, kind=database_kind, devices=24)
    for _ in range(16):
        found.add_device(hardware="rpi5")
    found.release("2.0", 2)
    with contextlib.closing(found):
        yield found


def test_a_real_stop_is_told_with_the_common_factor_and_the_next_actions(world):
    world.create(
        policy=Policy(waves=(WaveSpec("all", percent=100.0),), gate=GatePolicy(limit_ratio=0.3, min_finished=30))
    )
    world.tick()
    bad = [device for device in world.devices if world.poll(device) is not None]
    for device in bad[:24]:
        world.install(device)
    for device in bad[24:]:
        if find_events(world.db, ADMIN, Wanted(kind="rollout.halted")):
            break
        world.break_down(device)
    [event] = find_events(world.db, ADMIN, Wanted(kind="rollout.halted"))
    rollout = read_rollout(world.db, ADMIN, event["subject"])
    told = news_of(event, rollout, base_url="https://ota.example")
    halt = rollout["halt"]
    assert f"{halt['failed']}/{halt['finished']} failed" in told.body
    assert "limit 30 %" in told.body
    common = halt["common"]
    assert (common["attribute"], common["value"]) == ("hardware", "rpi5"), halt
    assert f"{round(100 * common['share'])} % are hardware=rpi5." in told.body
    assert "not started (safe)" in told.body
    assert f"https://ota.example/rollouts/{event['subject']}" in told.body
    for action in halt["next_actions"]:
        if action["is_possible"]:
            assert action["sentence"] in told.body
    assert read_rollout(world.db, ADMIN, "gone") is None


def test_a_wave_wakes_the_buckets_of_its_devices_and_never_more_than_all(world):
    world.create(policy=Policy(waves=(WaveSpec("all", percent=100.0),)))
    world.tick()
    buckets, upto = _to_wake(world.db, 1, 0)
    rows = world.db.execute("SELECT DISTINCT bucket FROM device").fetchall()
    assert buckets == {row["bucket"] % WAKE_TOPICS for row in rows}
    assert len(buckets) <= WAKE_TOPICS
    assert _to_wake(world.db, 1, upto) == (set(), upto)
