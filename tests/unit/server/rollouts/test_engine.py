"""Rollouts over a real database file, driven by devices that poll and report, on a clock of ours."""

import asyncio
import itertools
from pathlib import Path

import pytest
from support.rollout_world import ADMIN, APPROVER, OPERATOR, rollout_world

from firmament.core.clock import SystemClock
from firmament.core.consent import Mode
from firmament.core.manifest import Requires, UpdateClass
from firmament.errors import (
    ConflictError,
    FirmamentError,
    ForbiddenError,
    MalformedError,
    NotFoundError,
    SecondPersonError,
)
from firmament.protocol.v1.messages import PollRequest
from firmament.server import events
from firmament.server.attempts import service as attempts
from firmament.server.consent import rules
from firmament.server.consent.model import Level
from firmament.server.database.opening import open_database
from firmament.server.inventory import marks
from firmament.server.inventory.model import Device, Mark
from firmament.server.inventory.store import LINK_QUERY
from firmament.server.outbox import store as outlets
from firmament.server.outbox.model import OutletKind, Takes
from firmament.server.people.vault import Vault
from firmament.server.rollouts import actions, facts, loops, offers, permitted, plan, service, why
from firmament.server.rollouts.machine import RolloutState
from firmament.server.rollouts.model import (
    Advance,
    Caps,
    GatePolicy,
    OldStock,
    OnStop,
    Policy,
    WaitFor,
    WaveSpec,
)
from firmament.server.rollouts.windows import Window
from firmament.server.scope import Role, Scope

FIVE_AND_REST = (WaveSpec("canary", count=5), WaveSpec("everyone", percent=100.0))
ONE_WAVE = (WaveSpec("everyone", percent=100.0),)
LAX = GatePolicy(limit_ratio=1.0, health=False)


@pytest.fixture
def world(tmp_path, database_kind):
    with rollout_world(tmp_path, kind=database_kind, devices=30) as made:
        made.release("2.0", 2, revertible_to=1)
        yield made


def poll_all(world):
    return [device for device in world.devices if world.poll(device) is not None]


def test_waves_open_one_after_the_other_and_a_good_release_reaches_everybody(world):
    rollout_id = world.create(policy=Policy(waves=FIVE_AND_REST, hold_s=600))
    world.tick()
    shown = world.rollout(rollout_id)
    assert (shown["state"], [wave["size"] for wave in shown["waves"]]) == ("running", [5, 25])
    canaries = poll_all(world)
    assert len(canaries) == 5
    for device in canaries:
        world.install(device)
    world.tick()
    assert world.rollout(rollout_id)["state"] == "holding"
    assert world.rollout(rollout_id)["state_reason"]["code"] == "rollout/hold-time"
    assert poll_all(world) == []
    world.tick(601)
    assert world.rollout(rollout_id)["state"] == "running"
    others = poll_all(world)
    assert len(others) == 25
    for device in others:
        world.install(device)
    world.tick()
    assert world.rollout(rollout_id)["state"] == "finished"
    assert world.rollout(rollout_id)["counts"] == {"updated": 30}
    assert {device.version for device in world.devices} == {"2.0"}


def test_a_bad_build_stops_by_itself_and_brings_the_updated_back(world):
    policy = Policy(waves=FIVE_AND_REST, gate=GatePolicy(limit_ratio=0.1, min_finished=10), on_stop=OnStop.REVERT)
    rollout_id = world.create(policy=policy)
    world.tick()
    canaries = poll_all(world)
    for device in canaries:
        world.install(device)
    world.tick()
    others = poll_all(world)
    for device in others[:4]:
        world.install(device)
    for device in others[4:6]:
        world.break_down(device)
    shown = world.rollout(rollout_id)
    # Two of eleven: in the transaction of the second failure, not seconds later.
    assert (shown["state"], shown["halt"]["code"]) == ("reverting", "rollout/failures")
    assert (shown["halt"]["failed"], shown["halt"]["finished"]) == (2, 11)
    world.tick()
    # Nineteen were offered and had not begun: they are safe.
    assert world.rollout(rollout_id)["counts"] == {"failed": 2, "reverting": 9, "waiting": 19}
    back = poll_all(world)
    assert (len(back), {device.takes_back is not None for device in back}) == (9, {True})
    for device in back:
        world.go_back(device)
    world.tick()
    shown = world.rollout(rollout_id)
    assert shown["state"] == "reverted"
    assert shown["counts"] == {"failed": 2, "went-back": 9, "waiting": 19}
    assert {device.version for device in world.devices} == {"1.0"}
    assert poll_all(world) == []


def test_a_canary_that_cannot_pass_any_more_stops_before_the_minimum_sample(world):
    policy = Policy(waves=FIVE_AND_REST, gate=GatePolicy(limit_ratio=0.1, min_finished=200))
    rollout_id = world.create(policy=policy)
    world.tick()
    world.break_down(poll_all(world)[0])
    shown = world.rollout(rollout_id)
    assert (shown["state"], shown["halt"]["code"]) == ("halted", "rollout/cannot-pass")
    assert shown["halt"]["sentence"].startswith(
        "Stopped in wave 1: 1 failed, the limit of 10 % allows 0 of the wave's 5 devices; it cannot pass whatever "
        "the others do, so nobody waited for 200 to finish. 1 failed and called back, 0 have not called back."
    )
    [event] = world.events("rollout.halted")
    assert event["facts"]["possible"] == 5


def test_silent_devices_count_as_failed_until_they_call_back(world):
    policy = Policy(waves=ONE_WAVE, gate=GatePolicy(limit_ratio=0.1, min_finished=5, silence_floor_s=600))
    rollout_id = world.create(policy=policy)
    for _ in range(3):  # the devices' own rhythm: every five minutes
        poll_all(world)
        world.pass_time(300)
    world.tick()
    started = poll_all(world)
    for device in started[5:]:
        world.install(device)
    for device in started[:5]:
        world.tell(device, "fetching")
    world.tick(800)
    assert world.rollout(rollout_id)["counts"] == {"updated": 25, "in-flight": 5}
    world.tick(101)
    shown = world.rollout(rollout_id)
    assert shown["counts"] == {"updated": 25, "silent": 5}
    assert (shown["state"], shown["halt"]["silent"]) == ("halted", 5)
    late = started[0]
    late.boot += 1
    world.tell(late, "confirmed", version="2.0", sequence_number=2)
    assert world.rollout(rollout_id)["counts"] == {"updated": 26, "silent": 4}


def test_consent_is_never_a_failure_and_holds_nobody_up(world):
    policy = Policy(waves=FIVE_AND_REST, gate=GatePolicy(limit_ratio=0.1, min_finished=3), answer_s=3600)
    rollout_id = world.create(policy=policy)
    world.tick()
    one, two, *rest = poll_all(world)
    world.tell(one, "declined")
    world.tell(two, "waiting", code="policy/waiting-for-consent")
    for device in rest:
        world.install(device)
    world.tick()
    shown = world.rollout(rollout_id)
    assert shown["waves"][0]["counts"] == {"declined": 1, "asking": 1, "updated": 3}
    assert (shown["gate"]["failed"], shown["gate"]["finished"]) == (0, 3)
    assert shown["state"] == "running"
    world.tick(3601)
    world.tick()
    shown = world.rollout(rollout_id)
    assert shown["waves"][0]["counts"] == {"declined": 1, "postponed": 1, "updated": 3}
    assert shown["waves"][1]["state"] == "open"
    assert world.poll(two) is None
    world.pass_time(3600)
    assert world.poll(two) is not None


def test_caps_and_rate_are_never_exceeded(world):
    caps = Caps(total=4, starts_per_minute=3)
    rollout_id = world.create(policy=Policy(waves=ONE_WAVE, caps=caps))
    world.tick()
    first = poll_all(world)
    assert len(first) == 3
    finding = world.why(world.devices[-1])
    assert (finding.rule, finding.facts) == ("room", {"limit": "starts per minute", "most": 3})
    world.pass_time(60)
    assert len([device for device in poll_all(world) if device not in first]) == 1
    assert world.why(world.devices[-1]).facts == {"limit": "all", "in_flight": 4, "most": 4}
    world.install(first[0])
    world.pass_time(60)
    assert len(poll_all(world)) == 4
    assert world.rollout(rollout_id)["counts"]["waiting"] == 25


def test_a_site_has_a_cap_of_its_own(tmp_path, database_kind):
    with rollout_world(tmp_path, kind=database_kind) as world:
        world.release("2.0", 2)
        for number in range(8):
            world.add_device(site=f"site-{number % 2}")
        world.create(policy=Policy(waves=ONE_WAVE, caps=Caps(per_site=1)))
        world.tick()
        assert len(poll_all(world)) == 2
        assert world.why(world.devices[-1]).facts["limit"] == "site"


def test_windows_are_on_the_devices_own_clock(tmp_path, database_kind):
    from datetime import time

    with rollout_world(tmp_path, kind=database_kind) as world:  # it is 12:00 UTC
        world.release("2.0", 2)
        east = world.add_device(attributes={"zone": "Asia/Tokyo"})  # 21:00
        here = world.add_device()
        world.create(policy=Policy(waves=ONE_WAVE, windows=(Window(time(20), time(4)),)))
        world.tick()
        assert world.poll(here) is None
        assert world.why(here).facts["local"] == "Fri 20:00"
        assert world.poll(east) is not None
        world.tick(8 * 3600)
        assert world.poll(here) is not None


def test_a_fetch_that_failed_is_tried_again_within_its_budget_and_then_never_by_itself(world):
    policy = Policy(waves=ONE_WAVE, gate=LAX, retry_budget=2)
    rollout_id = world.create(policy=policy)
    world.tick()
    device = world.devices[0]
    for wait_s in (900, 1800):
        assert world.poll(device) is not None
        world.tell(device, "failed", code="transfer/unreachable")
        assert world.statuses(rollout_id)[device.device_id] == "waiting"
        assert world.poll(device) is None
        world.pass_time(wait_s)
    world.poll(device)
    world.tell(device, "failed", code="transfer/unreachable")
    assert world.statuses(rollout_id)[device.device_id] == "failed"
    world.act(rollout_id, "abort")
    world.tick()
    world.release("3.0", 3)
    again = world.create(policy=policy)
    world.tick()
    assert device.device_id not in world.statuses(again)
    assert world.rollout(again)["excluded"][0]["rule"] == "not-failed-here"
    newer = world.create(release="thermo/3.0", selector=f"id={device.device_id}", policy=policy)
    world.tick()
    assert world.statuses(newer) == {device.device_id: "waiting"}
    world.submit(
        lambda db: service.clear_failures(db, OPERATOR, devices=[device.device_id], release=None, now=world.now)
    )
    assert why.first_missing(world.ask(device, "thermo/2.0")).rule == "status"


def test_an_unhealthy_device_is_not_tried_again(world):
    rollout_id = world.create(policy=Policy(waves=ONE_WAVE, gate=LAX, retry_budget=5))
    world.tick()
    device = world.devices[0]
    world.poll(device)
    world.break_down(device)
    assert world.statuses(rollout_id)[device.device_id] == "failed"
    assert world.poll(device) is None
    world.act(rollout_id, "retry-failed", reason="the power supply was changed")
    assert world.poll(device) is not None


def test_after_a_resume_the_stop_rule_counts_from_there(world):
    policy = Policy(waves=ONE_WAVE, gate=GatePolicy(limit_ratio=0.1, min_finished=5))
    rollout_id = world.create(policy=policy)
    world.tick()
    started = poll_all(world)
    for device in started[:4]:
        world.install(device)
    world.break_down(started[4])
    assert world.rollout(rollout_id)["state"] == "halted"
    with pytest.raises(MalformedError):
        world.act(rollout_id, "resume")
    world.act(rollout_id, "resume", reason="known", exclude=f"id={started[10].device_id}")
    world.tick()
    assert world.rollout(rollout_id)["state"] == "running"
    assert world.rollout(rollout_id)["halt"] is None
    for device in poll_all(world)[:6]:
        world.break_down(device)
        if world.rollout(rollout_id)["state"] == "halted":
            break
    assert world.rollout(rollout_id)["gate"]["failed"] == 3
    assert world.rollout(rollout_id)["state"] == "halted"


def test_a_second_person_approves_and_never_the_creator(world):
    policy = Policy(waves=ONE_WAVE, approval_above=10)
    rollout_id = world.create(policy=policy)
    assert world.rollout(rollout_id)["state"] == "awaiting-approval"
    world.tick()
    assert poll_all(world) == []
    with pytest.raises(ForbiddenError):
        world.act(rollout_id, "approve", scope=OPERATOR)
    with pytest.raises(SecondPersonError):
        world.act(rollout_id, "approve", scope=Scope(1, OPERATOR.actor, Role.ADMIN))
    world.act(rollout_id, "approve", scope=APPROVER)
    world.tick()
    shown = world.rollout(rollout_id)
    assert (shown["state"], shown["decided_by"], shown["total"]) == ("running", "person:anna", 30)
    world.act(rollout_id, "abort")
    world.tick()
    denied = world.create(selector="product=thermo", policy=policy, is_draft=True)
    world.act(denied, "start")
    world.act(denied, "deny", scope=APPROVER, reason="not on a Friday")
    assert world.rollout(denied)["state"] == "denied"


def test_pause_takes_back_what_was_not_begun(world):
    rollout_id = world.create(policy=Policy(waves=ONE_WAVE))
    world.tick()
    started = poll_all(world)
    world.tell(started[0], "fetching")
    world.act(rollout_id, "pause", expect_count=29)
    assert world.rollout(rollout_id)["counts"] == {"waiting": 29, "in-flight": 1}
    assert poll_all(world) == [started[0]]
    with pytest.raises(ConflictError):
        world.act(rollout_id, "approve", scope=ADMIN)
    world.act(rollout_id, "resume")
    assert len(poll_all(world)) == 30


def test_an_action_on_an_old_view_is_refused(world):
    rollout_id = world.create(policy=Policy(waves=ONE_WAVE))
    revision = world.rollout(rollout_id)["revision"]
    world.act(rollout_id, "pause", expect_revision=revision)
    with pytest.raises(ConflictError):
        world.act(rollout_id, "abort", expect_revision=revision)
    with pytest.raises(MalformedError):
        world.act(rollout_id, "explode")
    world.act(rollout_id, "resume")
    world.tick()
    preview = world.preview(rollout_id, "abort", scope=OPERATOR)
    assert preview["is_possible"]
    assert "30 not started stay as they are" in preview["sentence"]
    viewer = world.preview(rollout_id, "abort", scope=Scope(1, "person:vic", Role.VIEWER))
    assert (viewer["is_possible"], viewer["why_not"]) == (False, "This role may not do that")


def test_a_plan_says_who_is_left_out_and_why(world):
    world.release("2.1", 3, requires=Requires(min_sequence_number=2), hardware=("rpi4",))
    world.add_device(hardware="rpi5")
    new = world.add_device(version="2.0", sequence_number=2)
    world.add_device(version="3.0", sequence_number=9)
    made = plan.make_plan(
        world.db, OPERATOR, release="thermo/2.1", selector="", policy=Policy(approval_above=0), now=world.now
    )
    assert (made["matching"], made["count"], made["sample"]) == (33, 1, [new.device_id])
    assert {item["rule"]: item["count"] for item in made["excluded"]} == {
        "stepping-stone": 30,
        "hardware": 1,
        "newer": 1,
    }
    assert made["excluded"][0]["hint"] == "Roll that one out first."
    assert made["needs_approval"]
    assert made["bytes_whole"] == len(b"image of 2.1")
    nobody = plan.make_plan(world.db, OPERATOR, release="thermo/2.0", selector="tag=x", policy=Policy(), now=world.now)
    assert [item["code"] for item in nobody["blockers"]] == ["no-targets"]
    with pytest.raises(ConflictError):
        world.create(selector="tag=x")
    with pytest.raises(ConflictError):
        world.create(expect_count=7)


def test_named_canaries_go_first_and_late_devices_join_the_last_wave(world):
    chosen = world.devices[17]
    waves = (WaveSpec("mine", devices=(chosen.device_id,)), WaveSpec("ten", percent=10.0), *ONE_WAVE)
    rollout_id = world.create(policy=Policy(waves=waves, dynamic=True))
    world.tick()
    assert [wave["size"] for wave in world.rollout(rollout_id)["waves"]] == [1, 2, 27]
    assert poll_all(world) == [chosen]
    late = world.add_device()
    world.tick()
    assert [wave["size"] for wave in world.rollout(rollout_id)["waves"]] == [1, 2, 28]
    assert world.statuses(rollout_id)[late.device_id] == "waiting"
    for _ in range(3):
        for device in poll_all(world):
            world.install(device)
        world.tick()
    assert world.rollout(rollout_id)["state_reason"]["code"] == "rollout/late-joiners"
    world.tick(31 * 86_400)
    assert world.rollout(rollout_id)["state"] == "finished"


def test_old_stock_need_not_wait_for_its_wave_and_has_a_lane_of_its_own(world):
    old = [world.add_device(version="0.1", sequence_number=0) for _ in range(3)]
    waves = (WaveSpec("mine", devices=(world.devices[0].device_id,)), WaveSpec("two", count=2), *ONE_WAVE)
    policy = Policy(waves=waves, old_stock=OldStock(1, 2), caps=Caps(total=1))
    world.create(policy=policy)
    world.tick()
    assert poll_all(world) == [world.devices[0]]  # the first wave proves the build
    world.install(world.devices[0])
    world.tick()
    world.tick()
    started = poll_all(world)
    assert len([device for device in started if device in old]) == 2
    assert len([device for device in started if device not in old]) <= 1


def test_a_wave_by_hand_and_the_next_one_before_its_time(world):
    rollout_id = world.create(policy=Policy(waves=FIVE_AND_REST, advance=Advance.MANUAL))
    world.tick()
    for device in poll_all(world):
        world.install(device)
    world.tick()
    assert world.rollout(rollout_id)["state_reason"]["code"] == "rollout/by-hand"
    with pytest.raises(MalformedError):
        world.act(rollout_id, "next-wave")
    world.act(rollout_id, "next-wave", reason="seen in the lab")
    assert len(poll_all(world)) == 25


def test_a_wave_may_wait_for_reported_health_and_sick_devices_stop_a_rollout(world):
    policy = Policy(waves=FIVE_AND_REST, wait_for=WaitFor.HEALTHY, gate=GatePolicy(limit_ratio=0.3, min_finished=5))
    rollout_id = world.create(policy=policy)
    world.tick()
    canaries = poll_all(world)
    for device in canaries:
        world.install(device)
    world.tick()
    assert world.rollout(rollout_id)["state_reason"]["code"] == "rollout/health-unknown"
    for device in canaries:
        device.attributes["health"] = "ok"
        world.poll(device)
    world.tick()
    assert world.rollout(rollout_id)["state"] == "running"
    others = poll_all(world)
    for device in others[:12]:
        world.install(device)
        device.attributes["health"] = "failing"
        world.poll(device)
    for device in others[12:]:
        device.attributes["health"] = "ok"
        world.poll(device)
    world.act(rollout_id, "pause")
    world.act(rollout_id, "resume")
    world.tick(61)
    shown = world.rollout(rollout_id)
    assert (shown["state"], shown["halt"]["code"]) == ("halted", "rollout/health")


def test_a_site_confirms_as_a_whole_or_goes_back_as_a_whole(tmp_path, database_kind):
    with rollout_world(tmp_path, kind=database_kind) as world:
        world.release("2.0", 2, revertible_to=1)
        good = [world.add_device(site="good") for _ in range(3)]
        bad = [world.add_device(site="bad") for _ in range(3)]
        rollout_id = world.create(policy=Policy(waves=ONE_WAVE, gate=LAX, site_commit_s=3600))
        world.tick()
        poll_all(world)
        for device in (*good, *bad[:2]):
            world.install(device)
        world.break_down(bad[2])
        world.tick()
        back = [device for device in bad[:2] if world.poll(device) is not None and device.takes_back]
        assert len(back) == 2
        for device in back:
            world.go_back(device)
        world.tick()
        world.tick()
        shown = world.rollout(rollout_id)
        assert shown["counts"] == {"updated": 3, "went-back": 2, "failed": 1}
        assert shown["state"] == "finished"
        assert [event["facts"]["site"] for event in world.events("site.committed")] == ["good"]


def test_a_withdrawn_release_stops_its_rollout(world):
    rollout_id = world.create(policy=Policy(waves=ONE_WAVE))
    world.tick()
    poll_all(world)
    world.db.execute("UPDATE release SET withdrawn_at = 1 WHERE version = '2.0'")
    world.tick()
    shown = world.rollout(rollout_id)
    assert (shown["state"], shown["counts"]) == ("halted", {"waiting": 30})
    assert shown["halt"]["sentence"] == "Stopped: the release was withdrawn. No new device starts."


def test_a_device_that_a_person_assigns_something_else_is_skipped(world):
    rollout_id = world.create(policy=Policy(waves=ONE_WAVE))
    world.tick()
    device = poll_all(world)[0]
    world.release("3.0", 3)
    world.submit(
        lambda db: attempts.assign(
            db, OPERATOR, device_id=device.device_id, product="thermo", version="3.0", now=world.now
        )
    )
    assert world.statuses(rollout_id)[device.device_id] == "skipped"


def test_an_old_image_that_is_not_published_any_more_is_no_way_back(world):
    rollout_id = world.create(policy=Policy(waves=ONE_WAVE))
    world.tick()
    device = poll_all(world)[0]
    world.install(device)
    world.db.execute("UPDATE release SET withdrawn_at = 1 WHERE version = '1.0'")
    world.act(rollout_id, "revert", reason="bad", scope=ADMIN)
    world.tick()
    assert world.poll(device) is None
    world.tick()
    shown = world.rollout(rollout_id)
    assert (shown["state"], shown["state_reason"]["facts"]["kept"]) == ("reverted", 1)


def test_failures_are_grouped_with_what_stands_out(tmp_path, database_kind):
    with rollout_world(tmp_path, kind=database_kind) as world:
        world.release("2.0", 2)
        for number in range(80):
            world.add_device(hardware="rpi5" if number % 4 == 0 else "rpi4")
        rollout_id = world.create(policy=Policy(waves=ONE_WAVE, gate=LAX))
        world.tick()
        for device in poll_all(world):
            number = world.devices.index(device)
            if number % 4 == 0:
                world.break_down(device)
            elif number == 1:
                world.tell(device, "failed", code="slot/too-small")
            else:
                world.install(device)
        reasons = world.reasons(rollout_id)
        assert [(item["code"], item["count"]) for item in reasons] == [("slot/health", 20), ("slot/too-small", 1)]
        common = reasons[0]["common"]
        assert (common["attribute"], common["value"], common["share"]) == ("hardware", "rpi5", 1.0)
        assert common["lift"] > 3
        assert common["p"] < 0.01
        assert reasons[1]["common"] is None


def test_why_names_the_first_rule_that_stands_against_it(world):
    device = world.devices[0]
    assert world.why(device, "thermo/2.0").rule == "in-rollout"
    world.create(policy=Policy(waves=(WaveSpec("other", devices=(world.devices[5].device_id,)), *ONE_WAVE)))
    world.tick()
    assert world.why(device).rule == "wave-open"
    world.submit(
        lambda db: service.quarantine(db, OPERATOR, device_id=device.device_id, reason="on the bench", now=world.now)
    )
    finding = world.why(device)
    assert (finding.rule, finding.facts) == ("not-quarantined", {"reason": "on the bench"})
    world.submit(lambda db: service.release_device(db, OPERATOR, device_id=device.device_id, now=world.now))
    assert world.why(device).rule == "wave-open"
    rules = [item.rule for item in why.judge(facts.ask_why(world.db, ADMIN, device.device_id, None, world.now))]
    assert rules[0] == "device-enabled"
    assert rules[-1] == "has-asked"


def test_a_pinned_device_stays_on_what_it_runs(world):
    """Left out by plan and rollout, not offered by hand; only the revert of what brought it there takes it back."""
    device, other = world.devices[:2]
    pin = {"device_id": device.device_id, "mark": Mark.PINNED, "now": world.now}
    world.submit(lambda db: marks.set_mark(db, OPERATOR, reason="customer's audit", **pin))
    made = plan.make_plan(world.db, OPERATOR, release="thermo/2.0", selector="", policy=Policy(), now=world.now)
    assert made["count"] == 29
    assert [(row["rule"], row["sample"]) for row in made["excluded"]] == [("not-pinned", [device.device_id])]
    assert world.why(device, "thermo/2.0").rule == "not-pinned"
    assert world.why(device, "thermo/2.0").facts == {"reason": "customer's audit"}
    by_hand = {"product": "thermo", "version": "2.0", "now": world.now}
    with pytest.raises(ConflictError, match="pinned"):
        world.submit(lambda db: attempts.assign(db, OPERATOR, device_id=device.device_id, **by_hand))
    world.submit(lambda db: marks.clear_mark(db, OPERATOR, **pin))
    with pytest.raises(NotFoundError, match="not pinned"):
        world.submit(lambda db: marks.clear_mark(db, OPERATOR, **pin))
    rollout_id = world.create(policy=Policy(waves=ONE_WAVE, gate=LAX, on_stop=OnStop.REVERT))
    world.tick()
    for each in (device, other):
        world.poll(each)
    with pytest.raises(ConflictError, match="open attempt"):
        world.submit(lambda db: marks.set_mark(db, OPERATOR, reason="x", **pin))
    world.install(device)
    world.submit(lambda db: marks.set_mark(db, OPERATOR, reason="x", **pin))
    world.act(rollout_id, "revert", reason="bad")
    world.tick()
    assert world.poll(device) is not None, "the way back of the rollout that brought it there"
    with pytest.raises(ForbiddenError):
        world.submit(lambda db: marks.set_mark(db, Scope(1, "person:v", Role.VIEWER), reason="x", **pin))


def test_a_muted_devices_troubles_go_to_nobody_and_count_all_the_same(world):
    muted, loud = world.devices[:2]
    mute = {"device_id": muted.device_id, "mark": Mark.MUTED, "now": world.now}
    outlet = {"name": "ops", "kind": OutletKind.MQTT, "takes": Takes.EVENTS, "target": "a/b", "kinds": ("attempt.",)}
    world.submit(
        lambda db: outlets.add_outlet(db, ADMIN, vault=Vault(bytes(32)), is_escalation=False, now=world.now, **outlet)
    )
    rollout_id = world.create(policy=Policy(waves=ONE_WAVE, gate=LAX))
    world.tick()
    world.submit(lambda db: marks.set_mark(db, OPERATOR, reason="test bench", **mute))
    for device in (muted, loud):
        world.poll(device)
        world.break_down(device)
    assert world.rollout(rollout_id)["counts"]["failed"] == 2
    parcels, _ = outlets.next_parcels(world.db, outlets.get_outlet(world.db, ADMIN, "ops"), 100)
    assert {parcel.value["subject"] for parcel in parcels if parcel.value["facts"].get("code")} == {loud.device_id}
    assert {parcel.value["subject"] for parcel in parcels} == {muted.device_id, loud.device_id}, (
        "what went well is told"
    )
    world.submit(lambda db: marks.clear_mark(db, OPERATOR, **mute))
    parcels, _ = outlets.next_parcels(world.db, outlets.get_outlet(world.db, ADMIN, "ops"), 100)
    assert {parcel.value["subject"] for parcel in parcels if parcel.value["facts"].get("code")} == {
        muted.device_id,
        loud.device_id,
    }
    kinds = [event["kind"] for event in events.find_events(world.db, ADMIN, events.Wanted(subject=muted.device_id))]
    assert {"device.muted", "device.unmuted"} <= set(kinds)


def test_one_update_at_a_time(world):
    first = world.create(policy=Policy(waves=ONE_WAVE))
    world.tick()
    world.release("3.0", 3)
    second = world.create(release="thermo/3.0", policy=Policy(waves=ONE_WAVE, dynamic=True), is_draft=True)
    with pytest.raises(ConflictError):
        world.act(second, "start")
    world.act(first, "abort")
    world.tick()
    late = world.create(release="thermo/3.0", policy=Policy(waves=ONE_WAVE))
    world.tick()
    assert world.rollout(late)["total"] == 30


def test_devices_that_never_ask_do_not_keep_a_wave_open_for_ever(world):
    waves = (WaveSpec("ten", count=10), *ONE_WAVE)
    rollout_id = world.create(policy=Policy(waves=waves, patience_s=3600, lifetime_s=86_400))
    world.tick()
    asked = 0
    for device in world.devices:
        if asked < 5 and world.poll(device) is not None:
            world.install(device)
            asked += 1
    world.tick(1800)
    assert world.rollout(rollout_id)["state_reason"]["code"] == "rollout/waiting-for-devices"
    world.tick(1801)
    world.tick()
    assert world.rollout(rollout_id)["waves"][1]["state"] == "open"
    world.tick(86_400)
    shown = world.rollout(rollout_id)
    assert (shown["state"], shown["state_reason"]["code"]) == ("finished", "rollout/over")
    world.release("3.0", 3)
    assert world.rollout(world.create(release="thermo/3.0"))["total"] == 30


def test_where_owners_are_asked_the_release_needs_notes_for_them(world):
    rule = {"level": Level.TENANT, "subject": "", "update_class": UpdateClass.FEATURE}
    world.submit(lambda db: rules.set_rule(db, ADMIN, **rule, mode=Mode.ASK, window=None, now=world.now))
    made = plan.make_plan(world.db, OPERATOR, release="thermo/2.0", selector="", policy=Policy(), now=world.now)
    assert made["consent"]["ask"] == 30
    assert [item["code"] for item in made["blockers"]] == ["consent/no-notes"]
    with pytest.raises(ConflictError):
        world.create()
    world.release("2.1", 3, notes={"en": "Fixes the clock."})
    world.create(release="thermo/2.1")


def test_a_poll_while_targets_are_written_starts_nobody_and_counts_add_up(world):
    """Between the list of targets and their waves a device has no wave: no gate may take that for an open one."""
    rollout_id = world.create(policy=Policy(waves=FIVE_AND_REST))
    newer = world.devices[7]
    while world.rollout(rollout_id)["is_filled"] is False:
        assert poll_all(world) == []
        newer.version, newer.sequence_number = "2.0", 2  # by hand, meanwhile: it is skipped at its poll
        world.step()
        world.check_counters()
    world.tick()
    assert world.statuses(rollout_id)[newer.device_id] == "skipped"
    assert world.rollout(rollout_id)["counts"] == {"waiting": 29, "skipped": 1}
    assert len(poll_all(world)) in {4, 5}


def test_every_action_in_every_state_is_what_its_preview_said(world):
    rollout_id = world.create(policy=Policy(waves=FIVE_AND_REST))
    world.tick()
    for updated in (0, 1):
        for state, action in itertools.product(RolloutState, permitted.RULES):
            world.db.execute("BEGIN")
            try:
                world.db.execute("UPDATE rollout SET state = ?", (state.value,))
                said, problem = permitted.preview(world.db, APPROVER, rollout_id, action, now=world.now), ""
                try:
                    actions.act(world.db, APPROVER, rollout_id, action, actions.Request(reason="why"), world.now)
                except FirmamentError as error:
                    problem = error.problem
                assert (said["is_possible"], said["why_not"]) == (not problem, problem), (state, action)
            finally:
                world.db.execute("ROLLBACK")
        if not updated:
            world.install(poll_all(world)[0])


def test_nothing_goes_back_where_nothing_was_updated(world):
    rollout_id = world.create(policy=Policy(waves=FIVE_AND_REST))
    world.tick()
    assert world.preview(rollout_id, "revert")["why_not"] == "No device was updated"
    with pytest.raises(ConflictError, match="No device was updated"):
        world.act(rollout_id, "revert", scope=ADMIN, reason="because")
    assert world.rollout(rollout_id)["state"] == "running"


def test_a_preview_says_whom_resume_leaves_out(world):
    rollout_id = world.create(policy=Policy(waves=ONE_WAVE, caps=Caps(total=2)))
    world.tick()
    left_out = world.devices[20]
    world.act(rollout_id, "pause")
    query = f"id={left_out.device_id}"
    said = world.preview(rollout_id, "resume", exclude=query)
    assert (said["count"], said["counts"]) == (29, {"waiting": 29, "skipped": 1})
    assert said["sentence"].startswith("29 devices go on")
    with pytest.raises(MalformedError, match="Only resume"):
        world.preview(rollout_id, "abort", exclude=query)
    with pytest.raises(ConflictError, match="Another number"):
        world.act(rollout_id, "resume", exclude=query, expect_count=30)
    world.act(rollout_id, "resume", exclude=query, expect_count=29)
    world.tick()
    assert world.rollout(rollout_id)["counts"] == said["counts"]


def test_an_ended_rollout_keeps_no_device_for_itself(world):
    """A device that was silent calls again after the end; one that goes back from an ended rollout is free after."""
    rollout_id = world.create(
        policy=Policy(waves=ONE_WAVE, dynamic=True, gate=GatePolicy(limit_ratio=1.0, silence_floor_s=600))
    )
    world.tick()
    started = poll_all(world)
    world.install(started[0])
    for device in started[1:]:
        world.tell(device, "fetching")
    world.tick(100_000)
    world.act(rollout_id, "abort")
    world.tick()
    poll_all(world)
    for action in ("retry-failed", "revert"):
        if world.preview(rollout_id, action)["is_possible"]:
            world.act(rollout_id, action, scope=ADMIN, reason="because")
            world.tick()
            world.tick(100_000)
    assert world.rollout(rollout_id)["state"] == "reverted"
    held = world.db.execute("SELECT COUNT(*) AS n FROM rollout_target WHERE active = 1 AND status = 'waiting'")
    assert held.fetchone()["n"] == 0


def test_polls_reports_and_loops_at_the_same_time_keep_the_counts(world):
    """Through the servers' own writers, two of them where the database takes two, while the list is being written."""

    async def play():
        databases = [
            open_database(world.target, SystemClock()) for _ in range(1 if isinstance(world.target, Path) else 2)
        ]
        try:
            asks = PollRequest(nonce=bytes(16), version="1.0", sequence_number=1, boot_id="boot-1")
            poll = offers.polled(asks)

            async def live(number):
                row, database = world.devices[number].row_id, databases[number % len(databases)]
                link = await database.read(
                    lambda c: c.execute(LINK_QUERY, (world.devices[number].device_id,)).fetchone()
                )
                described = offers.describe(Device.of_row(link), asks)
                for _ in range(6):
                    await database.submit(lambda c: offers.begin(c, row, described, poll, world.now))

            async def tick(database):
                for _ in range(8):
                    await database.submit(lambda c: loops.tick(c, world.now))

            await asyncio.gather(*map(live, range(len(world.devices))), *map(tick, databases))
        finally:
            for database in databases:
                database.close()

    rollout_id = world.create(policy=Policy(waves=FIVE_AND_REST, caps=Caps(total=3)))
    asyncio.run(play())
    world.tick()
    world.check_counters()
    assert world.rollout(rollout_id)["counts"] == {"offered": 3, "waiting": 27}
