"""The engine, on whole simulated devices: what it does, what it says, and what it never does."""

from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace

import pytest

from firmament.agent.agent import Agent
from firmament.agent.events import Asked, Progress, StateChanged
from firmament.agent.health.port import Finding
from firmament.agent.journal import COPIES
from firmament.agent.ledger import MAX_LIVES, MAX_RESTARTS
from firmament.agent.machine import State
from firmament.agent.policy import Answer, Policy
from firmament.agent.slots.port import Label
from firmament.core.consent import Mode, Window
from firmament.core.ids import AttemptId
from firmament.core.manifest import Preconditions
from firmament.errors import (
    BootControlError,
    CorruptStateError,
    DigestMismatchError,
    HealthError,
    NoInstallerError,
    NothingToDoError,
    OutsideWindowError,
    PreconditionError,
    ReadBackError,
    ReadOnlyError,
    RestartNeededError,
    SlotTooSmallError,
    UnreachableError,
    WaitingForConsentError,
)
from firmament.sim.bootloader import BootKind
from firmament.sim.faults import BrokenDisk, ReadOnlyDisk
from firmament.sim.geometries import BUNDLES, IMAGES
from firmament.sim.world import ATTEMPT_ID, STATE, Case, Condition, Ideal, SlotKind
from firmament.trust.floors import Floors

AGAIN = AttemptId("11111111-2222-4333-8444-555555555555")
JOURNAL = STATE / "agent"


def device(
    *, slot=SlotKind.IMAGE_FILE, boot=BootKind.UBOOT, condition=Condition.HEALTHY, geometry=None, policy=None, **release
):
    if geometry is None:
        geometry = BUNDLES[0] if slot is SlotKind.BUNDLE else IMAGES[0]
    world = Ideal(Case(slot, boot, condition, geometry), **release).provisioned()
    world.policy = replace(policy or Policy(), first_poll_within_s=0)
    world.heard = []
    world.events.listen(world.heard.append)
    return world


def supervised(**options):
    return device(slot=SlotKind.BUNDLE, boot=BootKind.SUPERVISOR, **options)


def server_of(world):
    return world.ideal.server


def statuses(world):
    return [report.status.value for report in server_of(world).reports]


def floor(world):
    return Floors(world.disk, STATE / "floors").load().sequence_number


def after_restart(world):
    world.disk.lose_power()
    return world.start()


# --- the happy path ------------------------------------------------------------------------


def test_a_good_release_is_installed_confirmed_and_reported():
    world = device()
    floors = []
    world.events.listen(
        lambda event: floors.append((event.state, floor(world))) if isinstance(event, StateChanged) else None
    )
    world.settle()
    result = world.result()
    assert (result.booted_new, result.status, result.reported, floor(world)) == (True, "confirmed", "confirmed", 2)
    path = [event.state for event in world.heard if isinstance(event, StateChanged)]
    assert path == ["offered", "fetching", "verified", "staged", "trial", "confirmed", "idle"]
    assert dict(floors)["confirmed"] == 0, "the floor is raised after the confirmation, never before"
    numbers = [report.report_number for report in server_of(world).reports]
    assert numbers == sorted(set(numbers))
    assert (statuses(world)[-1], server_of(world).reports[-1].version) == ("confirmed", "1.1")


def test_progress_is_honest():
    world = device()
    world.settle()
    percents = [event.percent for event in world.heard if isinstance(event, StateChanged | Progress)]
    confirmed = percents.index(100)
    assert percents[: confirmed + 1] == sorted(percents[: confirmed + 1])
    assert percents.count(100) == 1
    assert any(isinstance(event, Progress) and event.done_bytes == event.total_bytes for event in world.heard)


def test_a_supervised_bundle_needs_no_restart_of_the_agent():
    world = supervised()
    agent = world.start()
    status = agent.run_all()
    assert (status.state, status.running.version, status.previous.version) == (State.IDLE, "1.1", "1.0")
    assert status.to_json()["running"]["slot"] == "b"
    with pytest.raises(NothingToDoError):
        agent.run_all()


def test_commands_step_by_step():
    world = device()
    agent = world.start()
    assert agent.check().state is State.OFFERED
    assert agent.download().state is State.VERIFIED
    assert agent.verify().percent == 85
    with pytest.raises(RestartNeededError):
        agent.apply()
    assert agent.is_restarting
    agent = after_restart(world)
    assert agent.status().state is State.STAGED
    assert agent.run_all().running.version == "1.1"
    assert [ended.status for ended in agent.history()] == ["confirmed"]


def test_nothing_to_do_says_what_runs():
    world = device()
    server_of(world).assignment = None
    agent = world.start()
    for command in (agent.check, agent.download, agent.apply, agent.run_all, agent.verify, agent.confirm, agent.revert):
        with pytest.raises(NothingToDoError):
            command()
    with pytest.raises(NothingToDoError):
        agent.answer(Answer.NOW)
    assert agent.tick() > 60


# --- going back ----------------------------------------------------------------------------


@pytest.mark.parametrize("boot", BootKind)
def test_an_unhealthy_release_is_given_back_with_the_last_words_of_its_check(boot):
    world = device(boot=boot, condition=Condition.UNHEALTHY)
    world.settle()
    result = world.result()
    assert (result.booted_new, result.status, result.code, floor(world)) == (False, "reverted", "slot/health", 0)
    report = server_of(world).reports[-1]
    assert (report.status, report.code, report.version) == ("reverted", "slot/health", "1.0")
    assert "simulated illness" in report.log


def test_a_program_that_dies_is_given_back_at_once():
    world = supervised(condition=Condition.DIES)
    with pytest.raises(HealthError):
        world.start().run_all()
    assert "Traceback: simulated" in server_of(world).reports[-1].log
    assert world.ideal.clock.monotonic_s() < 3


def test_an_attempt_that_ended_here_is_not_begun_again_but_a_new_one_is():
    world = device(condition=Condition.UNHEALTHY)
    world.settle()
    server = server_of(world)
    server.assign(world.ideal.new, ATTEMPT_ID)  # a server that has lost our report
    before = len(server.reports)
    world.settle()
    assert world.agent.status().state is State.IDLE
    assert len(world.agent.history()) == 1
    assert [(report.status, report.attempt_id) for report in server.reports[before:]] == [("reverted", ATTEMPT_ID)]
    server.assign(world.ideal.new, AGAIN)
    world.settle()
    assert [(ended.attempt_id, ended.status) for ended in world.agent.history()] == [
        (ATTEMPT_ID, "reverted"),
        (AGAIN, "reverted"),
    ]


def test_a_power_cut_in_the_trial_gives_back_and_says_why():
    world = device()
    agent = world.start()
    with pytest.raises(RestartNeededError):
        agent.run_all()
    after_restart(world).tick()  # the trial begins
    assert world.agent.status().state is State.TRIAL
    with pytest.raises(Exception, match="trial ended in the previous image"):
        after_restart(world).run_all()
    assert world.agent.history()[-1].code == "slot/reverted"


def test_a_person_confirms_or_ends_a_trial():
    for act, status, version in (("confirm", "confirmed", "1.1"), ("revert", "reverted", "1.0")):
        world = supervised(condition=Condition.UNHEALTHY)
        agent = world.start()
        agent.check()
        while agent.status().state is not State.TRIAL:
            agent._step()
        found = getattr(agent, act)()
        assert (found.state, found.running.version) == (State.IDLE, version)
        assert agent.history()[-1].status == status


def test_a_person_goes_back_to_the_previous_release_once():
    world = device()
    world.settle()
    agent = after_restart(world)
    assert agent.status().previous.version == "1.0"
    with pytest.raises(RestartNeededError):
        agent.revert()
    agent = after_restart(world)
    status = agent.status()
    assert (status.running.version, status.booted, status.previous) == ("1.0", Label.A, None)
    assert floor(world) == 2, "a person may go back; the network still may not"
    with pytest.raises(NothingToDoError):
        agent.revert()


def test_going_back_to_a_damaged_slot_is_refused():
    world = device()
    world.settle()
    agent = after_restart(world)
    world.disk.put(world_path(world, Label.A), b"rubbish")
    with pytest.raises(ReadBackError):
        agent.revert()
    assert agent.status().running.version == "1.1"


def world_path(world, label):
    return world.agent._parts.slots[label].path


def test_it_goes_back_even_if_that_cannot_be_written_down():
    world = supervised(condition=Condition.UNHEALTHY)
    agent = world.start()
    agent.check()
    while agent.status().state is not State.TRIAL:
        agent._step()
    world.disk.faults.append(BrokenDisk(under=JOURNAL, reads=False))
    for _ in range(6):
        world.ideal.clock.advance(agent.tick())
    assert agent.status().booted is Label.A
    world.disk.faults.clear()
    world.settle()
    assert (world.result().status, floor(world)) == ("reverted", 0)


# --- refusals ------------------------------------------------------------------------------


def test_altered_bytes_are_refused_and_nothing_is_booted():
    world = device()
    files = world.ideal.author.files
    target = next(name for name in files if name.startswith("targets/thermo/1.1/"))
    files[target] = bytes(len(files[target]))
    with pytest.raises(DigestMismatchError):
        world.start().run_all()
    assert (statuses(world)[-1], server_of(world).reports[-1].code) == ("refused", "trust/digest-mismatch")
    assert world.agent.history()[-1].status == "refused"
    assert world.starts == 2
    assert sum(target in request for request in server_of(world).requests) == 1  # fetched once, not again and again
    with pytest.raises(NothingToDoError):
        world.agent.check()


def test_a_release_for_another_installer_is_refused_before_the_first_byte():
    world = device()
    world.alter = lambda parts: replace(parts, slots=replace(parts.slots, kind="mcuboot"))
    agent = world.start()
    with pytest.raises(NoInstallerError):
        agent.check()
    assert (statuses(world)[-1], agent.status().state) == ("refused", State.IDLE)
    assert not any("targets/thermo/1.1" in request for request in server_of(world).requests)


def test_a_refusal_by_the_link_is_reported_once():
    world = device()
    offered = server_of(world).assignment
    server_of(world).assignment = replace(offered, target="thermo/9.9/image.bin")
    agent = world.start()
    for _ in range(3):
        agent.tick()
        world.ideal.clock.advance(4000)
    assert [(report.status, report.code) for report in server_of(world).reports] == [
        ("refused", "trust/unknown-target")
    ]
    assert [ended.code for ended in agent.history()] == ["trust/unknown-target"]


def test_an_image_that_does_not_fit_fails():
    world = device(geometry=replace(IMAGES[0], slot_bytes=3000))
    with pytest.raises(SlotTooSmallError):
        world.start().run_all()
    assert (statuses(world)[-1], server_of(world).reports[-1].code) == ("failed", "slot/too-small")


# --- waiting -------------------------------------------------------------------------------


def test_asking_the_owner():
    world = device(policy=Policy(feature=Mode.ASK))
    agent = world.start()
    with pytest.raises(WaitingForConsentError):
        agent.run_all()
    assert agent.status().state is State.WAITING
    assert (statuses(world)[-1], server_of(world).reports[-1].code) == ("waiting", "policy/waiting-for-consent")
    assert any(isinstance(event, Asked) for event in world.heard)
    agent.answer(Answer.LATER)
    with pytest.raises(WaitingForConsentError):
        agent.apply()
    agent = after_restart(world)  # the answer survives
    assert agent.status().attempt.consent.answer is Answer.LATER
    agent.answer(Answer.NOW)
    with pytest.raises(RestartNeededError):
        agent.apply()
    world.disk.lose_power()
    world.settle()
    assert world.result().status == "confirmed"


def test_the_owner_may_say_no():
    world = device(policy=Policy(feature=Mode.ASK))
    agent = world.start()
    agent.tick()
    assert agent.answer(Answer.SKIP).state is State.IDLE
    assert (statuses(world)[-1], agent.history()[-1].status) == ("declined", "declined")
    assert world.agent.tick() >= 60


def test_a_window_is_awaited_without_busy_looping():
    world = device(policy=Policy(feature=Mode.WINDOW, window=Window.parse("02:00-04:00")))
    with pytest.raises(OutsideWindowError):
        world.start().run_all()
    ticks = 0
    while world.agent.status().state is State.WAITING:
        wait_s = world.agent.tick()
        assert wait_s >= 30 or world.agent.is_restarting
        world.ideal.clock.advance(wait_s)
        ticks += 1
    assert 2 <= world.ideal.clock.now().hour < 4
    assert ticks < 1000
    assert len([report for report in server_of(world).reports if report.status == "waiting"]) == 1


def test_a_precondition_is_awaited():
    world = device(preconditions=Preconditions(free_bytes=10**12))
    agent = world.start()
    with pytest.raises(PreconditionError):
        agent.run_all()
    world.disk.capacity_bytes = 10**13
    world.ideal.clock.advance(agent.tick())
    assert agent.status().state is State.WAITING or agent.is_restarting
    world.settle()
    assert world.result().status == "confirmed"


def test_a_withdrawn_release_is_forgotten_and_another_one_taken_up():
    world = device(policy=Policy(feature=Mode.ASK))
    agent = world.start()
    agent.tick()
    server_of(world).assignment = None
    with pytest.raises(NothingToDoError):
        agent.check()
    assert (agent.status().state, agent.history()) == (State.IDLE, ())
    server_of(world).assign(world.ideal.new, AGAIN)
    assert agent.check().attempt.attempt_id == AGAIN
    server_of(world).assign(world.ideal.new, ATTEMPT_ID)
    assert agent.check().attempt.attempt_id == ATTEMPT_ID


# --- storage and network -------------------------------------------------------------------


def test_an_offline_device_waits_and_goes_on_where_it_stopped():
    world = device()
    server = server_of(world)
    agent = world.start()
    agent.check()
    original, sent = server.request, []

    def dropping(method, url, **options):
        response = original(method, url, **options)
        if "targets/thermo/1.1" not in url:
            return response
        sent.append((options.get("headers") or {}).get("Range"))
        server.is_reachable = False
        chunks = iter(list(response.chunks())[:3])
        return SimpleNamespace(
            status=response.status, headers=response.headers, chunks=lambda: chunks, close=lambda: None
        )

    server.request = dropping
    with pytest.raises(UnreachableError):
        agent.download()
    assert agent.status().state is State.FETCHING
    assert agent.status().attempt.offset == 2100
    server.request, server.is_reachable = original, True
    server.requests.clear()
    world.settle()
    assert world.result().status == "confirmed"
    assert server.requests.count("GET /v1/image/" + next(n for n in world.ideal.author.files if "/1.1/" in n)) == 1


def test_reports_wait_for_the_server_and_keep_their_numbers():
    world = supervised()
    agent = world.start()
    agent.download()
    server_of(world).is_reachable = False
    agent.apply()
    assert agent.status().reports_waiting >= 1
    numbers = [report.report_number for report in agent._ledger.record.outbox]
    server_of(world).is_reachable = True
    world.settle()
    assert [report.report_number for report in server_of(world).reports][-len(numbers) :] == numbers
    assert statuses(world)[-1] == "confirmed"


def test_a_read_only_disk_is_trouble_and_nothing_more():
    world = device()
    agent = world.start()
    agent.start()
    world.disk.faults.append(ReadOnlyDisk())
    for _ in range(5):
        world.ideal.clock.advance(agent.tick())
    assert isinstance(agent.status().last_error, ReadOnlyError)
    world.disk.faults.clear()
    world.settle()
    assert world.result().status == "confirmed"


def test_a_slot_that_rots_while_the_window_is_awaited_is_fetched_again():
    world = device()
    agent = world.start()
    agent.download()
    path = world_path(world, Label.B)
    world.disk.put(path, bytes(world.disk.length_bytes(path)))
    after_restart(world)
    world.settle()
    assert world.result().status == "confirmed"
    assert State.FETCHING in [event.state for event in world.heard if isinstance(event, StateChanged)][3:]


def test_a_prefix_that_rots_between_two_fetches_is_fetched_again():
    world = device()
    agent = world.start()
    agent.check()
    server_of(world).chunk_bytes = 2000
    original = server_of(world).request

    def failing(method, url, **options):
        response = original(method, url, **options)
        if "targets/thermo/1.1" in url:
            server_of(world).is_reachable = False
            first = next(response.chunks())
            return SimpleNamespace(
                status=response.status, headers=response.headers, chunks=lambda: iter([first]), close=lambda: None
            )
        return response

    server_of(world).request = failing
    with pytest.raises(UnreachableError):
        agent.download()
    server_of(world).request, server_of(world).is_reachable = original, True
    path = world_path(world, Label.B)
    data = bytearray(world.disk.get(path))
    data[5] ^= 1
    world.disk.put(path, bytes(data))
    after_restart(world)
    world.settle()
    assert world.result().status == "confirmed"


def test_two_damaged_journals_stop_the_agent_and_nothing_else():
    world = device()
    for name in COPIES:
        world.disk.put(JOURNAL / name, b"rubbish")
    before = world.disk.fingerprint()
    agent = world.start()
    with pytest.raises(CorruptStateError):
        agent.tick()
    assert world.disk.fingerprint() == before


def test_an_image_that_nobody_confirmed_is_not_blessed_by_a_lost_journal():
    world = device()
    with pytest.raises(RestartNeededError):
        world.start().run_all()
    for name in COPIES:
        world.disk.remove(JOURNAL / name)
    world.disk.sync_directory(JOURNAL)
    server_of(world).assignment = None
    agent = after_restart(world)
    agent.tick()
    assert world.holds_new(Label.B)
    assert agent.status().booted is Label.B
    assert after_restart(world).status().booted is Label.A


# --- loops ---------------------------------------------------------------------------------


class CrashingAgent(Agent):
    """Dies in every fetch, as an agent with a bug does."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self._fetching.run = self._crash

    def _crash(self):
        raise ZeroDivisionError


def test_an_agent_that_crashes_in_the_same_step_gives_the_attempt_up():
    world = device()
    world.make_agent = CrashingAgent
    lives = 0
    while lives < MAX_LIVES + 5:
        lives += 1
        try:
            world.start().tick()
        except ZeroDivisionError:
            continue
        break
    assert MAX_LIVES - 1 <= lives <= MAX_LIVES + 2
    assert (world.agent.history()[-1].status, world.agent.history()[-1].code) == ("failed", "state/loop")


def test_a_machine_that_does_not_restart_gives_the_attempt_up_and_disarms():
    world = device()
    agent = world.start()
    for _ in range(3 * MAX_RESTARTS):
        world.ideal.clock.advance(max(agent.tick(), 1))
        if agent.history():
            break
    assert (agent.history()[-1].status, agent.history()[-1].code) == ("failed", "slot/boot-control")
    assert agent._parts.boot.armed() is None
    assert after_restart(world).status().booted is Label.A


def test_a_boot_control_that_fails_is_tried_again_a_few_times():
    world = device()

    def refuse():
        raise BootControlError("The machine cannot be restarted")

    agent = world.start()
    agent._parts.boot.restart = refuse
    for _ in range(10 * MAX_RESTARTS):
        world.ideal.clock.advance(agent.tick())
        if agent.history():
            break
    assert agent.history()[-1].code == "slot/boot-control"
    assert agent._parts.boot.armed() is None


def test_health_must_hold_for_several_rounds():
    world = supervised()
    answers = [True, False, True, True]

    class Flapping:
        name = "flapping"

        def check(self):
            return Finding(self.name, answers.pop(0), "")

    world.alter = lambda parts: replace(parts, checks=(Flapping(),), trial=replace(parts.trial, deadline_s=30))
    assert world.start().run_all().running.version == "1.1"
    assert answers == []


def test_a_device_without_a_clock_uses_the_signed_time_for_its_window():
    world = device(policy=Policy(feature=Mode.WINDOW, window=Window.parse("11:00-13:00")))
    agent = world.start()
    agent.check()
    world.ideal.clock.set(world.ideal.clock.now() - timedelta(days=20_000, hours=12))
    assert agent.download().state is State.VERIFIED
