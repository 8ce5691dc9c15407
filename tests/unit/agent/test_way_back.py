"""Going back because a rollout asks: what the author permitted, one step, without a download."""

from firmament.agent.policy import Policy
from firmament.agent.slots.port import Label
from firmament.core.consent import Mode
from firmament.core.ids import AttemptId
from firmament.sim.bootloader import BootKind
from firmament.sim.geometries import geometries
from firmament.sim.world import ATTEMPT_ID, WAY_BACK_ID, Case, Condition, Ideal, SlotKind, Way
from firmament.trust.floors import Floors

OTHER_ID = AttemptId("00000000-0000-4000-8000-0000000000c3")


def world(condition=Condition.HEALTHY, slot=SlotKind.IMAGE_FILE, **release):
    """A device that was updated; the server asks it back."""
    return Ideal(Case(slot, BootKind.SIM, condition, geometries(slot)[0], Way.BACK), **release).provisioned()


def ask_again(made, *, attempt_id=OTHER_ID, takes_back=ATTEMPT_ID, release=None):
    made.ideal.server.assign(release or made.ideal.old, attempt_id, takes_back=takes_back)
    made.settle()
    return made.result()


def test_a_device_goes_back_to_the_slot_it_holds_without_fetching_anything():
    made = world()
    before = len(made.ideal.server.requests)
    made.settle()
    result = made.result()
    assert (result.booted_new, result.status, result.reported) == (True, "confirmed", "confirmed")
    assert result.sequence_floor == 2
    assert not [line for line in made.ideal.server.requests[before:] if "/targets/" in line]
    statuses = [report.status.value for report in made.ideal.server.reports if report.attempt_id == WAY_BACK_ID]
    assert statuses[-1] == "confirmed"
    assert made.ideal.server.reports[-1].version == made.ideal.old.version


def test_what_was_taken_back_may_be_installed_again():
    made = world()
    made.settle()
    made.ideal.server.assign(made.ideal.new, OTHER_ID)
    made.settle()
    assert made.result().booted_new is False  # the goal of this case is the old one
    assert made.agent.history()[-1].status.value == "confirmed"


def test_an_old_image_that_is_ill_now_leaves_the_device_where_it_was():
    made = world(Condition.UNHEALTHY)
    made.settle()
    result = made.result()
    assert (result.booted_new, result.status, result.code) == (False, "reverted", "slot/health")


def test_67_without_the_authors_word_nobody_goes_back():
    """A stolen director asks a device back to a correctly signed, older release: it keeps what it runs."""
    made = world(revertible_to=None)
    made.settle()
    result = made.result()
    assert (result.booted_new, result.status, result.code) == (False, "refused", "trust/rollback")


def test_67_not_below_what_the_author_permitted():
    made = world(revertible_to=2)
    made.settle()
    assert made.result().code == "trust/rollback"


def test_67_only_the_attempt_that_brought_what_runs_is_taken_back():
    made = world()
    made.ideal.server.assign(made.ideal.old, WAY_BACK_ID, takes_back=OTHER_ID)
    made.settle()
    assert (made.result().booted_new, made.result().code) == (False, "trust/replay")


def test_67_there_is_no_second_step_back():
    made = world()
    made.settle()
    assert made.result().booted_new is True
    result = ask_again(made)
    assert result.code in {"trust/replay", "trust/rollback"}
    result = ask_again(made, attempt_id=AttemptId("00000000-0000-4000-8000-0000000000d4"), takes_back=WAY_BACK_ID)
    assert result.code == "trust/rollback"


def test_a_slot_that_lost_the_image_is_no_way_back():
    made = world()
    label = Label.A if made.holds_new(Label.A) else Label.B
    slot = made.start()._parts.slots[label]
    slot.begin(made.ideal.old.image)
    slot.write(b"something else")
    slot.close()
    made.settle()
    result = made.result()
    assert (result.booted_new, result.status, result.code) == (False, "failed", "slot/read-back")


def test_the_owners_answer_counts_for_going_back_too():
    made = world()
    made.policy = Policy(security=Mode.ASK, feature=Mode.ASK, first_poll_within_s=0)
    made.start()
    made.agent.tick()
    assert made.agent.status().state == "waiting"
    assert Floors(made.disk, made.agent._parts.state_directory.parent / "floors").load().sequence_number == 2
