"""A device with everything happening to it: cuts within cuts, full disks, servers that come, go and change their mind.

The sweep cuts the power once, everywhere; this cuts it again and again, anywhere, in any mixture
with what else happens in the field, and looks at the same promises.
"""

import logging
import uuid

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from firmament.agent.policy import Answer, Policy
from firmament.core.consent import Mode
from firmament.core.ids import AttemptId
from firmament.errors import FirmamentError, NothingToDoError
from firmament.sim.bootloader import BootKind
from firmament.sim.faults import Cut, DiskFull, PowerCut, Survives
from firmament.sim.geometries import geometries
from firmament.sim.world import Case, Condition, Ideal, SlotKind

IDEALS: dict = {}
SURVIVES = st.sampled_from(Survives)
AFTER = st.sampled_from(range(130))
"""Operations of a whole update, all alike: integers would favour the first few."""


def ideal(slot, boot, condition) -> Ideal:
    key = slot, boot, condition
    if key not in IDEALS:  # keys and releases are made once
        IDEALS[key] = Ideal(Case(slot, boot, condition, geometries(slot)[0]))
    return IDEALS[key]


@pytest.fixture(autouse=True)
def _quiet():
    logging.getLogger("firmament").setLevel(logging.CRITICAL)
    yield
    logging.getLogger("firmament").setLevel(logging.NOTSET)


class Device(RuleBasedStateMachine):
    @initialize(
        slot=st.sampled_from(SlotKind),
        boot=st.sampled_from(BootKind),
        condition=st.sampled_from([Condition.HEALTHY, Condition.UNHEALTHY]),
        mode=st.sampled_from([Mode.AUTOMATIC, Mode.ASK]),
    )
    def begin(self, slot, boot, condition, mode):
        self.world = ideal(slot, boot, condition).provisioned()
        self.world.policy = Policy(feature=mode, first_poll_within_s=0)
        self.server = self.world.ideal.server
        self.server.is_reachable = True
        self.survives = Survives.LOST
        self.power_on()

    def power_on(self):
        """Start it; a cut while it starts is followed by another start, as long as it takes."""
        while True:
            try:
                self.world.start()  # the judge looks at what the boot loader chose
            except PowerCut:
                self.world.disk.lose_power(self.survives)
            else:
                return

    def live(self, act):
        try:
            act()
        except PowerCut:
            self.world.disk.lose_power(self.survives)
            self.power_on()
        except FirmamentError:
            pass  # shown to a person; the device goes on
        else:
            if self.world.agent.is_restarting:
                self.world.disk.lose_power(Survives.LOST)
                self.power_on()

    @rule()
    def time_passes(self):
        for _ in range(4):
            self.live(lambda: self.world.ideal.clock.advance(self.world.agent.tick()))

    @rule(after=AFTER, survives=SURVIVES)
    def time_passes_until_the_power_fails(self, after, survives):
        self.survives = survives
        self.world.disk.cut = Cut(self.world.disk.operations + after, survives)
        self.time_passes()
        self.world.disk.cut = None

    @rule(survives=SURVIVES)
    def power_fails_now(self, survives):
        self.world.disk.lose_power(survives)
        self.power_on()

    @rule(is_reachable=st.booleans())
    def server_comes_or_goes(self, is_reachable):
        self.server.is_reachable = is_reachable

    @rule()
    def server_withdraws(self):
        self.server.assignment = None

    @rule(number=st.integers(1, 4))
    def server_assigns(self, number):
        self.server.assign(self.world.ideal.new, AttemptId(str(uuid.UUID(int=number))))

    @rule(answer=st.sampled_from(Answer))
    def owner_answers(self, answer):
        self.live(lambda: self.world.agent.answer(answer))

    @rule()
    def person_goes_back(self):
        self.live(self.world.agent.revert)

    @rule(is_full=st.booleans())
    def disk_fills_or_empties(self, is_full):
        self.world.disk.faults[:] = [DiskFull()] if is_full else []

    def teardown(self):
        if not hasattr(self, "world"):
            return
        world = self.world
        world.disk.cut = None
        world.disk.faults.clear()
        self.server.is_reachable = True
        world.policy = Policy(first_poll_within_s=0)
        world.disk.lose_power(Survives.LOST)
        world.ideal.clock.advance(2 * 86_400)  # an owner who said "later" is not asked before tomorrow
        world.settle()
        result = world.result()
        running = world.agent.status().running
        assert result.booted_new == (running.version == world.ideal.new.version)
        if world.case.condition is Condition.UNHEALTHY:
            assert not result.booted_new
        if result.booted_new:
            assert result.sequence_floor == 2
        numbers = [report.report_number for report in self.server.reports]
        assert len(numbers) == len(set(numbers))
        ended = [item.attempt_id for item in world.agent.history()]
        assert len(ended) == len(set(ended)), "no attempt is begun twice"
        with pytest.raises(NothingToDoError):
            world.agent.check()


Device.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestDevice = Device.TestCase
