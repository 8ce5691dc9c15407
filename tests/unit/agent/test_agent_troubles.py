"""The engine in trouble: networks, disks and boot controls that fail, agents that crash, owners who interrupt."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from unit.agent.test_agent import (
    AGAIN,
    JOURNAL,
    after_restart,
    device,
    server_of,
    statuses,
    supervised,
    world_path,
)

from firmament.agent.agent import RESTART_GRACE_S, Agent
from firmament.agent.events import Trouble
from firmament.agent.ledger import MAX_JOURNAL_WRITES, MAX_LIVES, MAX_STARTS_OVER, MAX_TRIES
from firmament.agent.machine import State
from firmament.agent.parts import TrialSettings
from firmament.agent.policy import Policy
from firmament.agent.record import Attempt
from firmament.agent.slots.port import Label
from firmament.core.consent import Mode
from firmament.core.fields import Fields
from firmament.core.ids import AttemptId
from firmament.errors import (
    HttpStatusError,
    LengthExceededError,
    LoopError,
    MalformedError,
    NothingToDoError,
    RangeError,
    ReadBackError,
    RestartNeededError,
    TruncatedError,
    UnknownTargetError,
    UnreachableError,
)
from firmament.sim.faults import BrokenDisk, DiskFull
from firmament.sim.world import Condition


def another_agent(world):
    """The agent's process ended and a service manager started it again; the machine went on."""
    world.agent = Agent(world.agent._parts, checkpoint_bytes=world.case.geometry.checkpoint_bytes)
    return world.agent


def payloads(world, answer):
    """Let `answer(response)` change how the new release's payload arrives."""
    original = server_of(world).request

    def request(method, url, **options):
        response = original(method, url, **options)
        return answer(response) if "targets/thermo/1.1" in url else response

    server_of(world).request = request
    return lambda: setattr(server_of(world), "request", original)


def body(response, data, **changes):
    return SimpleNamespace(
        **{"status": response.status, "headers": response.headers, **changes},
        chunks=lambda: iter(data),
        close=lambda: None,
    )


def raiser(error):
    def act(*_args, **_options):
        raise error

    return act


# --- network -------------------------------------------------------------------------------


def test_polls_back_off_while_the_server_is_away():
    world = device()
    server_of(world).is_reachable = False
    agent = world.start()
    waits = []
    for _ in range(8):
        waits.append(agent.tick())
        world.ideal.clock.advance(waits[-1])
    assert waits == sorted(waits)
    assert waits[-1] > 100
    troubles = [event for event in world.heard if isinstance(event, Trouble)]
    assert {event.code for event in troubles} == {"transfer/unreachable"}
    server_of(world).is_reachable = True
    agent.poll_soon()
    agent.tick()
    assert agent.status().state is not State.IDLE


def test_a_longer_payload_than_was_signed_ends_the_download():
    world = device()
    payloads(world, lambda response: body(response, [bytes(3000), bytes(3000)], headers={}))
    with pytest.raises(LengthExceededError):
        world.start().download()
    assert world.agent.status().state is State.IDLE


def test_a_longer_payload_than_was_signed_ends_the_attempt():
    world = device()
    payloads(world, lambda response: body(response, [bytes(3000), bytes(3000)], headers={}))
    with pytest.raises(LengthExceededError):
        world.start().run_all()
    assert (statuses(world)[-1], server_of(world).reports[-1].code) == ("failed", "transfer/length-exceeded")


def test_a_server_that_never_brings_the_payload_is_given_up_after_many_tries():
    world = device()
    payloads(world, lambda response: body(response, [], status=410))
    agent = world.start()
    with pytest.raises(HttpStatusError):
        agent.run_all()
    for _ in range(3 * MAX_TRIES):
        world.ideal.clock.advance(agent.tick())
        if agent.history():
            break
    assert (agent.history()[-1].status, agent.history()[-1].code) == ("failed", "transfer/http-status")
    assert world.ideal.clock.monotonic_s() > 3600, "backed off, not hammered"


def test_being_offline_is_never_given_up():
    world = device()
    agent = world.start()
    agent.check()
    server_of(world).is_reachable = False
    for _ in range(3 * MAX_TRIES):
        world.ideal.clock.advance(agent.tick())
    assert agent.status().state is State.FETCHING
    assert isinstance(agent.status().last_error, UnreachableError)
    server_of(world).is_reachable = True
    world.settle()
    assert world.result().status == "confirmed"


def test_a_payload_that_ends_early_is_continued():
    world = device()
    agent = world.start()
    agent.check()
    agent._parts.link.open_payload = lambda payload, *, offset, parcel: iter([b"x" * 10])
    agent._step()
    with pytest.raises(TruncatedError):
        agent._step()
    assert (agent.status().state, agent.status().attempt.tries) == (State.FETCHING, 1)


def test_a_server_whose_file_changed_is_asked_from_the_start():
    world = device()
    agent = world.start()
    agent.check()
    real = agent._parts.link.open_payload

    def broken(payload, *, offset, parcel):
        yield bytes(1600)
        raise UnreachableError("gone")

    agent._parts.link.open_payload = broken
    agent._step()
    with pytest.raises(UnreachableError):
        agent._step()
    assert agent.status().attempt.offset == 1600
    agent._parts.link.open_payload = raiser(RangeError("another file"))
    agent._step()
    assert (agent.status().attempt.offset, agent.status().attempt.starts_over) == (0, 1)
    with pytest.raises(RangeError):
        agent._step()
    agent._parts.link.open_payload = real
    assert agent.download().state is State.VERIFIED


def test_the_daemon_may_be_stopped_in_a_download_and_loses_nothing():
    world = device()
    stop = []
    world.alter = lambda parts: replace(parts, should_stop=lambda: bool(stop))
    agent = world.start()
    agent.check()
    real = agent._parts.link.open_payload

    def stopping(payload, *, offset, parcel):
        for number, chunk in enumerate(real(payload, offset=offset, parcel=parcel)):
            if number == 1:
                stop.append(1)
            yield chunk

    agent._parts.link.open_payload = stopping
    agent.tick()
    assert agent.status().attempt.offset == 1400
    stop.clear()
    agent._parts.link.open_payload = real
    server_of(world).requests.clear()
    world.settle()
    assert world.result().status == "confirmed"


def test_reports_that_are_not_taken_are_sent_again_later_without_a_busy_loop():
    world = supervised()
    world.alter = lambda parts: replace(parts, link=Deaf(parts.link))
    agent = world.start()
    agent.run_all()
    assert agent.status().reports_waiting == 1
    for _ in range(5):
        wait_s = agent.tick()
        assert wait_s >= 2.5
        world.ideal.clock.advance(wait_s)


class Deaf:
    """A link whose server stores no report."""

    def __init__(self, link):
        self._link = link

    def __getattr__(self, name):
        return getattr(self._link, name)

    def send(self, reports):
        return ()


# --- storage -------------------------------------------------------------------------------


def test_a_full_disk_is_said_once_and_the_update_goes_on_when_there_is_space():
    world = device()
    agent = world.start()
    agent.check()
    world.disk.faults.append(DiskFull())
    for _ in range(5):
        world.ideal.clock.advance(agent.tick())
    assert [report.code for report in server_of(world).reports].count("slot/disk-full") == 1
    assert agent.status().state is State.FETCHING
    world.disk.faults.clear()
    world.settle()
    assert world.result().status == "confirmed"


def test_storage_that_returns_other_bytes_is_given_up():
    world = device()
    agent = world.start()
    agent.check()
    slot = agent._parts.slots.b
    slot.verify = raiser(ReadBackError("other bytes", slot="b"))
    with pytest.raises(ReadBackError):
        agent.run_all()
    assert (agent.history()[-1].status, agent.history()[-1].code) == ("failed", "slot/read-back")
    assert agent._parts.boot.armed() is None


def test_a_verified_slot_that_keeps_changing_is_given_up():
    world = device()
    agent = world.start()
    agent.download()
    for _ in range(MAX_STARTS_OVER + 1):
        agent = after_restart(world)
        path = world_path(world, Label.B)
        world.disk.put(path, bytes(world.disk.length_bytes(path)))
        agent.start()
        agent._step()
        if agent.status().state is State.FETCHING:
            agent.download()
    assert agent.history() or agent.status().state is State.FAILED
    agent.tick()
    assert agent.history()[-1].code == "slot/read-back"


def test_a_broken_journal_at_start_does_not_keep_a_trial_from_ending():
    world = device(condition=Condition.UNHEALTHY)
    with pytest.raises(RestartNeededError):
        world.start().run_all()
    world.disk.lose_power()
    world.disk.faults.append(BrokenDisk(under=JOURNAL, reads=False))
    agent = world.start()
    agent.tick()  # cannot even record that the trial began
    assert agent.status().state is State.STAGED
    world.disk.faults.clear()
    world.settle()
    assert world.result().status == "reverted"


# --- commands that do not apply, and offers that change -------------------------------------


def test_verify_says_what_is_missing():
    agent = device().start()
    agent.check()
    with pytest.raises(NothingToDoError, match="No image"):
        agent.verify()
    agent._parts.link.open_payload = raiser(UnreachableError("gone"))
    with pytest.raises(UnreachableError):
        agent.download()
    with pytest.raises(NothingToDoError, match="not complete"):
        agent.verify()


def test_a_refusal_of_what_is_in_hand_ends_it():
    """The author withdrew the release while the owner was thinking about it."""
    world = device(policy=Policy(feature=Mode.ASK))
    agent = world.start()
    agent.tick()
    server = server_of(world)
    offered = server.assignment
    server.assignment = replace(offered, target="thermo/9.9/image.bin")
    with pytest.raises(UnknownTargetError):
        agent.check()
    assert (agent.history()[-1].status, agent.history()[-1].code) == ("refused", "trust/unknown-target")


def test_a_refusal_of_another_attempt_replaces_what_is_in_hand():
    world = device(policy=Policy(feature=Mode.ASK))
    agent = world.start()
    agent.tick()
    server = server_of(world)
    server.assignment = replace(server.assignment, attempt_id=AGAIN, target="thermo/9.9/image.bin")
    with pytest.raises(UnknownTargetError):
        agent.check()
    assert agent.status().state is State.IDLE
    assert [(ended.attempt_id, ended.status) for ended in agent.history()] == [(AGAIN, "refused")]


def test_an_attempt_is_given_up_by_hand_even_when_it_is_armed():
    world = device()
    agent = world.start()
    with pytest.raises(RestartNeededError):
        agent.run_all()
    agent = another_agent(world)
    assert agent.revert().state is State.IDLE
    assert agent._parts.boot.armed() is None
    assert (agent.history()[-1].status, statuses(world)[-1]) == ("declined", "declined")


def test_a_supervised_program_goes_back_by_hand():
    world = supervised()
    agent = world.start()
    agent.run_all()
    assert agent.revert().running.version == "1.0"
    assert agent.status().booted is Label.A


# --- restarts and loops --------------------------------------------------------------------


def test_while_the_machine_goes_down_nothing_is_done():
    world = device()
    agent = world.start()
    while not agent.is_restarting:
        world.ideal.clock.advance(agent.tick())
    requests = len(server_of(world).requests)
    assert 0 < agent.tick() <= RESTART_GRACE_S
    world.ideal.clock.advance(10)
    assert 0 < agent.tick() <= RESTART_GRACE_S - 10
    assert len(server_of(world).requests) == requests


def test_a_slot_that_somebody_disarmed_is_armed_again():
    world = device()
    with pytest.raises(RestartNeededError):
        world.start().run_all()
    agent = another_agent(world)
    agent._parts.boot.retire(Label.B)
    with pytest.raises(RestartNeededError):
        agent.run_all()
    assert agent._parts.boot.armed() is Label.B
    world.disk.lose_power()
    world.settle()
    assert world.result().status == "confirmed"


def test_a_trial_that_began_unrecorded_cannot_be_withdrawn():
    """The power went between arming and its record, the new image started, the server changed its mind."""
    world = device()
    agent = world.start()
    agent.download()
    agent._parts.boot.arm(Label.B)
    server_of(world).assignment = None
    world.disk.lose_power()
    world.settle()
    assert (world.result().booted_new, world.result().status) == (True, "confirmed")


def test_a_trial_that_began_unrecorded_is_ended_like_any_other():
    world = device()
    with pytest.raises(RestartNeededError):
        world.start().run_all()
    agent = after_restart(world)
    assert (agent.status().state, agent.status().booted) == (State.STAGED, Label.B)
    with pytest.raises(RestartNeededError):
        agent.revert()
    world.disk.lose_power()
    world.settle()
    assert (world.result().booted_new, world.result().status) == (False, "reverted")


def test_an_agent_that_crashes_on_trial_goes_back():
    world = device()
    with pytest.raises(RestartNeededError):
        world.start().run_all()
    agent = after_restart(world)
    agent.tick()
    assert agent.status().state is State.TRIAL
    for _ in range(MAX_LIVES + 1):
        agent = another_agent(world)
        agent._trial.examine = raiser(ZeroDivisionError())
        try:
            agent.tick()
        except ZeroDivisionError:
            continue
        break
    assert agent.is_restarting
    world.disk.lose_power()
    world.settle()
    assert (world.result().status, world.agent.history()[-1].code) == ("reverted", "state/loop")


def test_an_agent_that_crashes_while_staged_disarms():
    world = device()
    agent = world.start()
    agent.download()
    agent._step()
    assert agent.status().state is State.STAGED
    for _ in range(MAX_LIVES + 1):
        agent = another_agent(world)
        agent._trial.restart = raiser(ZeroDivisionError())
        try:
            agent.tick()
        except ZeroDivisionError:
            continue
        break
    assert (agent.history()[-1].status, agent.history()[-1].code) == ("failed", "state/loop")
    assert agent._parts.boot.armed() is None


def test_an_agent_that_crashes_between_trial_boot_and_its_record_goes_back():
    world = device()
    with pytest.raises(RestartNeededError):
        world.start().run_all()
    agent = after_restart(world)
    agent._trial.restart = raiser(ZeroDivisionError())
    for _ in range(MAX_LIVES + 1):
        try:
            agent.tick()
        except ZeroDivisionError:
            agent = another_agent(world)
            agent._trial.restart = raiser(ZeroDivisionError())
            continue
        break
    assert agent.is_restarting
    world.disk.lose_power()
    world.settle()
    assert (world.result().status, world.agent.history()[-1].code) == ("reverted", "state/loop")


def test_whatever_stores_without_getting_further_is_a_loop():
    world = device()
    agent = world.start()
    agent.check()
    agent._step()
    for _ in range(MAX_JOURNAL_WRITES):
        agent._ledger.note(tries=0)
    with pytest.raises(LoopError):
        agent.run_all()
    assert agent.history()[-1].status == "failed"


def test_waiting_for_an_owner_is_no_loop_however_long():
    world = device(policy=Policy(feature=Mode.ASK))
    for _ in range(3 * MAX_LIVES):
        world.disk.lose_power()
        world.start().tick()
    assert world.agent.status().state is State.WAITING


# --- small things --------------------------------------------------------------------------


def test_a_payload_that_the_manifest_does_not_name_is_a_mistake():
    with pytest.raises(RuntimeError):
        _ = Attempt(AttemptId("x"), payload="none").chosen
    with pytest.raises(RuntimeError):
        _ = device().agent._ledger.attempt


def test_trial_settings():
    settings = TrialSettings.from_fields(Fields({"deadline_s": 5, "passes": 1}, what="trial"))
    assert settings == TrialSettings(deadline_s=5, interval_s=1, passes=1)
    with pytest.raises(MalformedError):
        TrialSettings.from_fields(Fields({"deadline_s": 0}, what="trial"))
