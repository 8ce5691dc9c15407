"""The owner is asked, answers, changes their mind; silence is never a yes (console.md §1.4)."""

from dataclasses import replace
from datetime import UTC, datetime, time, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmament.agent.consent import Who
from firmament.agent.events import Asked
from firmament.agent.machine import State
from firmament.agent.owner import MAX_CONSENTS, Owner, Said, postponing, with_said
from firmament.agent.policy import Answer, Policy
from firmament.core.consent import Mode, Window
from firmament.core.ids import AttemptId
from firmament.core.manifest import UpdateClass
from firmament.errors import NothingToDoError, PostponeLimitError, SettingError
from firmament.protocol.status import ConsentAnswer
from firmament.protocol.v1.messages import ConsentEvent
from firmament.sim.bootloader import BootKind
from firmament.sim.geometries import IMAGES
from firmament.sim.world import ATTEMPT_ID, Case, Condition, Ideal, SlotKind

OWNER = Who("uid:1000", "menu")
ASK = Policy(security=Mode.ASK, feature=Mode.ASK, first_poll_within_s=0)
NOTES = {"en": "Fixes meter readings.", "de": "Zählerstände stimmen wieder."}
SECURITY = {"update_class": UpdateClass.SECURITY, "notes": NOTES}


def device(policy=ASK, **release):
    case = Case(SlotKind.IMAGE_FILE, BootKind.UBOOT, Condition.HEALTHY, IMAGES[0])
    world = Ideal(case, **{"notes": NOTES, **release}).provisioned()
    world.policy = policy
    world.heard = []
    world.events.listen(world.heard.append)
    return world


def asked(policy=ASK, **release):
    """A device that has put an offer before its owner."""
    world = device(policy, **release)
    world.start()
    tick(world)
    return world


def tick(world, *, days=0.0):
    world.ideal.clock.advance(days * 86_400)
    for _ in range(3):
        world.agent.tick()
    return world.agent.status()


def consents(world):
    tick(world)
    return [event.answer.value for event in world.ideal.server.consents]


def reported(world):
    return {report.status.value for report in world.ideal.server.reports}


def test_the_owner_is_asked_once_and_the_server_hears_of_it():
    world = asked()
    status = world.agent.status().to_json()
    assert status["state"] == "waiting"
    assert status["consent"]["needs_answer"]
    assert status["blocked"] == "1.1 is offered, waits for your answer"
    assert status["offer"]["sections"][0]["lines"] == ["Fixes meter readings."]
    for _ in range(5):
        tick(world, days=0.2)
    assert consents(world) == ["asked"]
    event = world.ideal.server.consents[0]
    assert (event.attempt_id, event.release_id, event.language) == (ATTEMPT_ID, "thermo/1.1", "en")
    assert event.text_digest == status["offer"]["text_digest"]


@pytest.mark.parametrize("policy", [ASK, replace(ASK, security=Mode.MANUAL, feature=Mode.MANUAL)])
def test_silence_is_never_a_yes(policy):
    """A year without an answer, restarts included, and past every limit of postponing."""
    world = asked(policy, **SECURITY)
    for _ in range(12):
        tick(world, days=30)
        world.start()
    assert tick(world).state is State.WAITING
    assert set(consents(world)) == {"asked"}
    assert reported(world) <= {"offered", "waiting"}


def test_a_yes_goes_ahead_and_is_signed_with_what_was_read():
    world = asked()
    world.agent.answer(Answer.NOW, OWNER)
    assert world.agent.status().to_json()["blocked"] is None
    world.settle()
    assert world.result().booted_new
    said = world.ideal.server.consents[-1]
    assert (said.answer, said.actor, said.via) == (ConsentAnswer.NOW, "uid:1000", "menu")
    assert said.text_digest.startswith("sha256:")


def test_the_text_is_in_the_owners_language():
    world = device()
    world.alter = lambda parts: replace(parts, language="de-AT", offline_s=90)
    world.start()
    status = tick(world).to_json()
    offer = status["offer"]
    assert offer["language"] == "de"
    assert offer["title"] == "Auf 1.1 aktualisieren?"
    assert [part["heading"] for part in offer["sections"]] == [
        "Was es tut",
        "Was sich für Sie ändert",
        "Wenn es misslingt",
    ]
    assert offer["sections"][1]["lines"][0].endswith("etwa 2 Min. nicht erreichbar.")
    heard = next(event for event in world.heard if isinstance(event, Asked))
    assert heard.text.splitlines()[0] == offer["title"]


def test_tonight_waits_for_the_window_and_can_be_taken_back():
    world = asked()
    world.agent.answer(Answer.TONIGHT, OWNER)
    status = tick(world).to_json()
    assert status["consent"]["answer"] == "tonight"
    assert "waits for the window" in status["blocked"]
    world.agent.answer(Answer.LATER, OWNER)
    assert tick(world, days=0.9).state is State.WAITING
    assert consents(world) == ["asked", "tonight", "later"]
    tonight, later = world.ideal.server.consents[1:]
    assert tonight.until.hour == 2
    assert later.until == later.at + timedelta(hours=24)


def test_later_asks_again_after_the_time_that_was_wished():
    world = asked()
    world.agent.answer(Answer.LATER, OWNER, timedelta(hours=8))
    assert not tick(world, days=0.3).to_json()["consent"]["needs_answer"]
    count = sum(isinstance(event, Asked) for event in world.heard)
    assert tick(world, days=0.1).to_json()["consent"]["needs_answer"]
    assert sum(isinstance(event, Asked) for event in world.heard) == count + 1


def test_a_security_update_is_postponed_three_times_and_says_so():
    world = asked(**SECURITY)
    for left in (2, 1, 0):
        world.agent.answer(Answer.LATER, OWNER, timedelta(hours=1))
        assert tick(world, days=0.1).to_json()["consent"]["postpones_left"] == left
    with pytest.raises(PostponeLimitError):
        world.agent.answer(Answer.LATER, OWNER)
    consent = world.agent.status().to_json()["consent"]
    assert not consent["may_postpone"]
    assert consent["consequence"].endswith("you will be asked every day.")
    world.agent.answer(Answer.SKIP, OWNER)
    assert world.agent.history()[-1].status == "declined"


def test_no_wish_goes_beyond_fourteen_days():
    world = asked(**SECURITY)
    started = world.ideal.clock.now()
    world.agent.answer(Answer.LATER, OWNER, timedelta(days=300))
    assert world.ideal.server.consents or consents(world)
    until = world.agent.status().attempt.consent.until
    assert timedelta(days=13) < until - started <= timedelta(days=14)
    tick(world, days=15)
    with pytest.raises(PostponeLimitError):
        world.agent.answer(Answer.LATER, OWNER)


def test_an_automatic_update_that_was_put_off_goes_ahead_afterwards():
    """The owner of a device with automatic updates puts one off; then the policy holds again."""
    window = Window(time(0, 0), time(0, 1))
    world = device(Policy(security=Mode.WINDOW, feature=Mode.WINDOW, window=window, first_poll_within_s=0), **SECURITY)
    world.start()
    assert tick(world).state is State.WAITING
    world.agent.answer(Answer.LATER, OWNER, timedelta(hours=2))
    assert "by itself" in world.agent.status().to_json()["consent"]["consequence"]
    tick(world, days=0.1)
    world.policy = replace(world.policy, security=Mode.AUTOMATIC)
    world.settle()
    assert world.result().booted_new


def test_a_feature_may_be_postponed_for_ever():
    world = asked()
    for _ in range(10):
        world.agent.answer(Answer.LATER, OWNER)
        tick(world, days=2)
    assert world.agent.status().to_json()["consent"]["postpones_left"] is None


def test_skipping_is_per_version_and_holds_for_a_second_offer():
    world = asked()
    world.agent.answer(Answer.SKIP, OWNER)
    tick(world)
    assert (world.agent.history()[-1].status, world.agent.status().state) == ("declined", State.IDLE)
    again = AttemptId("11111111-2222-4333-8444-555555555555")
    world.ideal.server.assign(world.ideal.new, again)
    world.agent.poll_soon()
    tick(world)
    assert [ended.status.value for ended in world.agent.history()] == ["declined", "declined"]
    assert reported(world) & {"failed", "reverted", "refused"} == set()
    assert world.agent.status().to_json()["consent"]["skipped"] == ["thermo/1.1"]
    world.agent.opt_in(OWNER)
    assert world.agent.status().to_json()["consent"]["skipped"] == []


def test_a_yes_is_withdrawn_until_the_new_image_is_armed():
    world = asked()
    world.agent.answer(Answer.NOW, OWNER)
    world.agent.withdraw(OWNER)
    assert tick(world).state is State.WAITING
    with pytest.raises(NothingToDoError):
        world.agent.withdraw(OWNER)
    assert consents(world) == ["asked", "now", "withdrawn"]


def test_withdrawn_after_the_download_it_is_not_installed():
    world = asked()
    world.agent.answer(Answer.NOW, OWNER)
    world.policy = replace(world.policy, security=Mode.ASK)
    world.agent.download()
    assert world.agent.status().state is State.VERIFIED
    world.agent.withdraw(OWNER)
    status = tick(world, days=3).to_json()
    assert status["state"] == "verified"
    assert status["blocked"] == "1.1 is ready, waits for your answer"


def test_nothing_can_be_answered_when_nothing_is_offered():
    world = device()
    world.ideal.server.assignment = None
    world.start()
    tick(world)
    for answer in Answer:
        with pytest.raises(NothingToDoError):
            world.agent.answer(answer, OWNER)
    with pytest.raises(NothingToDoError):
        world.agent.withdraw(OWNER)


def test_opting_out_holds_over_restarts_and_still_tells():
    world = device(Policy(first_poll_within_s=0))
    world.start()
    world.agent.opt_out(OWNER)
    status = tick(world).to_json()
    assert (status["state"], status["consent"]["opted_out"], status["consent"]["mode"]) == ("waiting", True, "ask")
    world.start()
    assert tick(world, days=60).state is State.WAITING
    event = world.ideal.server.consents[0]
    assert (event.answer, event.attempt_id) == (ConsentAnswer.OPT_OUT, None)
    world.agent.opt_in(OWNER)
    world.settle()
    assert world.result().booted_new
    assert "opt-in" in [said.answer.value for said in world.ideal.server.consents]


def test_the_owner_chooses_modes_but_cannot_undo_manual():
    world = asked(replace(ASK, security=Mode.MANUAL))
    world.agent.choose({UpdateClass.SECURITY: Mode.AUTOMATIC, UpdateClass.FEATURE: Mode.MANUAL})
    consent = world.agent.status().to_json()["consent"]
    assert (consent["security"], consent["feature"]) == ("manual", "manual")
    world.agent.choose({UpdateClass.FEATURE: None})
    assert world.agent.status().to_json()["consent"]["feature"] == "ask"
    with pytest.raises(SettingError):
        world.agent.choose({UpdateClass.FEATURE: Mode.WINDOW})


def test_a_server_without_consent_events_gets_them_when_it_learns_of_them():
    world = device()
    world.ideal.server.knows_consent = False
    world.start()
    tick(world)
    world.agent.answer(Answer.LATER, OWNER)
    for _ in range(30):
        tick(world, days=0.001)
    assert world.ideal.server.consents == []
    assert world.agent.status().to_json()["consent"]["events_waiting"] == 2
    asked_for = sum("consent" in line for line in world.ideal.server.requests)
    assert asked_for <= 15, "backed off"
    world.ideal.server.knows_consent = True
    tick(world, days=0.5)
    assert consents(world) == ["asked", "later"]
    assert world.agent.status().to_json()["consent"]["events_waiting"] == 0


def test_events_wait_through_a_power_cut_with_the_answer():
    world = asked()
    world.ideal.server.is_reachable = False
    world.agent.answer(Answer.TONIGHT, OWNER)
    world.disk.lose_power()
    world.start()
    assert world.agent.status().attempt.consent.answer is Answer.TONIGHT
    world.ideal.server.is_reachable = True
    tick(world, days=0.1)
    assert consents(world) == ["asked", "tonight"]


# --- pure ----------------------------------------------------------------------------------

AT = datetime(2026, 11, 20, 12, tzinfo=UTC)


def event(number, answer=ConsentAnswer.LATER):
    return ConsentEvent("0a1b2c3d-4e5f-4a6b-8c7d-9e0f1a2b3c4d", number, answer, AT, "uid:0", "menu")


def test_what_the_server_has_goes_first_then_that_somebody_was_asked():
    said = (Said(event(1, ConsentAnswer.ASKED)), Said(event(2)), *(Said(event(n)) for n in range(3, MAX_CONSENTS + 1)))
    said = (*said[:5], replace(said[5], is_stored=True), *said[6:])
    numbers = [item.event.consent_number for item in with_said(said, event(99))]
    assert 6 not in numbers
    numbers = [item.event.consent_number for item in with_said(with_said(said, event(99)), event(100))]
    assert 1 not in numbers
    assert numbers[-2:] == [99, 100]
    assert len(numbers) == MAX_CONSENTS


@given(
    times=st.integers(0, 10), days=st.integers(-5, 40), wish_h=st.none() | st.integers(0, 10_000),
    update_class=st.sampled_from(UpdateClass),
)  # fmt: skip
def test_postponing_never_goes_past_its_limit(times, days, wish_h, update_class):
    policy, now = Policy(), AT + timedelta(days=days)
    left = postponing(policy, update_class=update_class, asked_at=AT, times=times, now=now)
    wish = timedelta(hours=wish_h) if wish_h is not None else None
    try:
        moment = left.moment(now, wish)
    except PostponeLimitError:
        assert update_class is UpdateClass.SECURITY
        assert times >= 3 or now >= AT + timedelta(days=14)
        return
    assert moment > now or moment == left.until
    if update_class is UpdateClass.SECURITY:
        assert times < 3
        assert moment <= AT + timedelta(days=14)


@given(
    opted_out=st.booleans(),
    owner=st.none() | st.sampled_from(Mode),
    integrator=st.sampled_from(Mode),
    has_window=st.booleans(),
)
def test_an_opt_out_is_never_automatic_and_manual_stays(opted_out, owner, integrator, has_window):
    window = Window(time(2), time(4)) if has_window or integrator is Mode.WINDOW else None
    policy = Policy(security=integrator, window=window)
    mode = Owner(is_opted_out=opted_out, security=owner).applied_to(policy).security
    if opted_out:
        assert mode in {Mode.ASK, Mode.MANUAL}
    if integrator is Mode.MANUAL:
        assert mode is Mode.MANUAL
    if mode is Mode.WINDOW:
        assert window is not None


def asked_by_operator(mode, policy):
    world = device(policy, **SECURITY)
    world.ideal.server.assignment = replace(world.ideal.server.assignment, consent=mode)
    world.start()
    return world, tick(world)


AUTOMATIC = Policy(first_poll_within_s=0)


@pytest.mark.parametrize(
    ("operator", "owner", "holds"),
    [
        (Mode.ASK, Mode.AUTOMATIC, Mode.ASK),
        (Mode.MANUAL, Mode.ASK, Mode.MANUAL),
        (Mode.ASK, Mode.MANUAL, Mode.MANUAL),
        (Mode.AUTOMATIC, Mode.ASK, Mode.ASK),
    ],
)
def test_of_the_operators_and_the_owners_rule_the_stricter_holds(operator, owner, holds):
    world, status = asked_by_operator(operator, replace(AUTOMATIC, security=owner))
    assert (status.state, status.to_json()["consent"]["security"]) == (State.WAITING, holds.value)
    world.start()  # it is journalled
    assert tick(world).state is State.WAITING
    world.agent.answer(Answer.NOW, OWNER)
    world.settle()
    assert world.result().booted_new


def test_an_operator_may_take_the_question_back_before_anything_began():
    world, _ = asked_by_operator(Mode.ASK, AUTOMATIC)
    world.ideal.server.assignment = replace(world.ideal.server.assignment, consent=Mode.AUTOMATIC)
    tick(world, days=1)
    world.settle()
    assert world.result().booted_new


def test_what_a_device_tells_of_its_owners_rule():
    assert AUTOMATIC.told() == {"policy.security": "automatic", "policy.feature": "automatic"}
    window = replace(AUTOMATIC, feature=Mode.WINDOW, window=Window.parse("02:00-04:00"))
    assert window.told() == {"policy.security": "automatic", "policy.feature": "window", "policy.window": "02:00-04:00"}
    assert Owner(is_opted_out=True).applied_to(AUTOMATIC).told()["policy.security"] == "ask"
