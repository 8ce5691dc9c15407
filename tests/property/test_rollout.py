"""Rollouts under any order of events: limits hold, counts add up, consent never counts, and no rollout hangs.

A state machine over the server's own functions and a handful of devices that poll, answer, install,
fail, fall silent and come back, while people pause, resume, abort and revert, and time passes.
"""

import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, Phase, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from support.rollout_world import ADMIN, RolloutWorld

from firmament.errors import ConflictError
from firmament.server.rollouts.machine import ENDED, NEVER_A_FAILURE, TARGET_TRANSITIONS, WAITS_FOR, TargetStatus
from firmament.server.rollouts.model import Caps, GatePolicy, OnStop, Policy, WaveSpec

DEVICES = 12
LIFETIME_S = 40 * 86_400
numbers = st.integers(0, DEVICES - 1)


class Rollouts(RuleBasedStateMachine):
    kind = "sqlite"

    def __init__(self):
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.world = RolloutWorld(self.directory, kind=self.kind)
        self.world.release("2.0", 2, revertible_to=1)
        for number in range(DEVICES):
            self.world.add_device(site=f"site-{number % 3}", hardware="rpi5" if number % 4 == 0 else "rpi4")
        self.rollout_id = None
        self.busy = set()
        """Devices that have begun and not ended."""
        self.seen_statuses = {}

    def teardown(self):
        if self.rollout_id is not None:
            event(f"after the steps: {self.shown()['state']}")
            for status in self.shown()["counts"]:
                event(f"target: {status}")
            self.come_to_an_end()
        self.world.close()
        shutil.rmtree(self.directory)

    @initialize(
        total=st.none() | st.integers(1, 4),
        per_site=st.none() | st.integers(1, 2),
        rate=st.none() | st.integers(1, 3),
        limit=st.sampled_from([0.0, 0.2, 0.5, 1.0]),
        minimum=st.integers(1, 6),
        on_stop=st.sampled_from(OnStop),
        canaries=st.integers(1, 4),
        dynamic=st.booleans(),
        site_commit=st.sampled_from([None, 7200]),
    )
    def make(self, total, per_site, rate, limit, minimum, on_stop, canaries, dynamic, site_commit):
        self.policy = Policy(
            waves=(WaveSpec("canary", count=canaries), WaveSpec("half", percent=50.0), WaveSpec("all", percent=100.0)),
            gate=GatePolicy(limit_ratio=limit, min_finished=minimum, silence_floor_s=600),
            caps=Caps(total=total, per_site=per_site, starts_per_minute=rate),
            on_stop=on_stop,
            dynamic=dynamic,
            site_commit_s=site_commit,
            answer_s=3600,
            patience_s=7200,
            lifetime_s=LIFETIME_S,
        )
        self.rollout_id = self.world.create(policy=self.policy, scope=ADMIN)

    # --- what can happen -------------------------------------------------------------------

    def pick(self, number, fits):
        """One of the devices that fit, None when there is none."""
        found = [index for index, device in enumerate(self.world.devices) if fits(index, device)]
        return found[number % len(found)] if found else None

    def is_offered(self, index, device):
        return device.attempt_id is not None and not device.takes_back and index not in self.busy

    @rule(first=numbers, some=st.integers(1, DEVICES + 3))
    def poll(self, first, some):
        devices = self.world.devices
        for offset in range(min(some, len(devices))):
            index = (first + offset) % len(devices)
            if index not in self.busy:
                self.world.poll(devices[index])

    @rule(number=numbers, answer=st.sampled_from(["waiting", "declined"]))
    def answer(self, number, answer):
        index = self.pick(number, self.is_offered)
        if index is None:
            return
        device, before = self.world.devices[index], self.rate()
        was_silent = self.world.statuses(self.rollout_id).get(device.device_id) == "silent"
        self.world.tell(device, answer, code="policy/waiting-for-consent" if answer == "waiting" else "")
        # A silent device that answers has called back: that ends its silence, whatever it says.
        assert was_silent or self.rate() == before, "an owner's answer moved the failure rate"
        if answer == "declined":
            device.attempt_id = None

    @rule(number=numbers, some=st.integers(1, 4))
    def begin(self, number, some):
        for _ in range(some):
            index = self.pick(number, self.is_offered)
            if index is not None:
                self.world.tell(self.world.devices[index], "fetching")
                self.busy.add(index)

    @rule(number=numbers, some=st.integers(1, 4), how=st.sampled_from(["good", "good", "good", "sick", "broken"]))
    def end(self, number, some, how):
        for _ in range(some):
            index = self.pick(number, lambda index, _: index in self.busy)
            if index is None:
                return
            self.busy.discard(index)
            device = self.world.devices[index]
            if how == "good":
                self.world.install(device)
            elif how == "sick":
                self.world.break_down(device)
            else:
                self.world.tell(device, "failed", code="transfer/unreachable")
            device.attempt_id = None

    @rule(
        first=numbers,
        ends=st.lists(
            st.sampled_from(["good", "good", "good", "good", "sick", "broken", "away"]), min_size=3, max_size=12
        ),
    )
    def live(self, first, ends):
        """Some devices poll and, if they may, go through all of it."""
        for offset, how in enumerate(ends):
            index = (first + offset) % len(self.world.devices)
            device = self.world.devices[index]
            if index in self.busy or self.world.poll(device) is None or device.takes_back:
                continue
            self.world.tell(device, "fetching")
            if how == "away":
                self.busy.add(index)
                continue
            if how == "good":
                self.world.install(device)
            elif how == "sick":
                self.world.break_down(device)
            else:
                self.world.tell(device, "failed", code="transfer/unreachable")
            device.attempt_id = None
        self.world.tick(61)

    @rule(number=numbers, works=st.booleans())
    def go_back(self, number, works):
        index = self.pick(number, lambda _, device: device.attempt_id is not None and device.takes_back)
        if index is None:
            return
        device = self.world.devices[index]
        if works:
            self.world.go_back(device)
        else:
            self.world.tell(device, "refused", code="trust/rollback")
        device.attempt_id = None

    @rule()
    def step(self):
        """One piece of the loops' work; devices and people may come between two."""
        self.world.step()

    @rule(seconds=st.sampled_from([1, 60, 60, 700, 4000, 90_000]))
    def wait(self, seconds):
        self.world.tick(seconds)

    @rule(action=st.sampled_from(["pause", "resume", "resume", "resume", "next-wave", "retry-failed"]))
    def act(self, action):
        self.act_or_not(action)

    @rule(action=st.sampled_from(["abort", "revert", "revert"]))
    def give_up(self, action):
        if self.shown()["counts"].get("updated", 0) > 2:
            self.act_or_not(action)

    def act_or_not(self, action):
        said, problem = self.world.preview(self.rollout_id, action), ""
        try:
            self.world.act(self.rollout_id, action, scope=ADMIN, reason="because", expect_count=said["count"])
        except ConflictError as error:
            problem = error.problem
        assert (said["is_possible"], said["why_not"]) == (not problem, problem), "the preview said something else"
        if not problem:
            self.world.tick()

    @rule()
    def join(self):
        if len(self.world.devices) < DEVICES + 3:
            self.world.add_device(site="site-0")

    # --- what always holds -----------------------------------------------------------------

    def shown(self):
        return self.world.rollout(self.rollout_id)

    def rate(self):
        shown = self.shown()
        return [(wave["failed"], wave["finished"]) for wave in shown["waves"]]

    @invariant()
    def counts_add_up(self):
        if self.rollout_id is None:
            return
        self.world.check_counters()
        shown = self.shown()
        if shown["is_filled"]:
            assert sum(shown["counts"].values()) == shown["total"] == sum(wave["size"] for wave in shown["waves"])

    @invariant()
    def limits_hold(self):
        if self.rollout_id is None:
            return
        caps = self.policy.caps
        held = self.world.db.execute(
            "SELECT site_id, COUNT(*) AS n FROM rollout_target WHERE holds_slot > 0 GROUP BY site_id"
        ).fetchall()
        assert sum(row["n"] for row in held) <= (caps.total or DEVICES * 2)
        assert all(row["n"] <= (caps.per_site or DEVICES * 2) for row in held)
        started = self.world.db.execute(
            "SELECT created_at / 60 AS minute, COUNT(*) AS n FROM attempt WHERE takes_back IS NULL GROUP BY minute"
        )
        assert all(row["n"] <= (caps.starts_per_minute or DEVICES * 9) for row in started)
        open_attempts = self.world.db.execute(
            "SELECT COUNT(*) AS n FROM attempt WHERE active = 1 GROUP BY device_id HAVING COUNT(*) > 1"
        ).fetchall()
        assert open_attempts == []

    @invariant()
    def only_open_waves_start(self):
        if self.rollout_id is None:
            return
        for wave in self.shown()["waves"]:
            if wave["state"] == "pending":
                assert set(wave["counts"]) <= {"waiting", "skipped"}, wave

    @invariant()
    def targets_moved_by_the_table(self):
        if self.rollout_id is None:
            return
        now = {name: TargetStatus(status) for name, status in self.world.statuses(self.rollout_id).items()}
        for name, status in now.items():
            assert status in reachable(self.seen_statuses.get(name, status))
        self.seen_statuses = now

    @invariant()
    def an_open_rollout_says_what_it_waits_for(self):
        if self.rollout_id is None:
            return
        shown = self.shown()
        if shown["state"] not in ENDED:
            assert WAITS_FOR[shown["state"]]
            assert shown["state_reason"]["message"]

    @invariant()
    def consent_is_in_no_denominator(self):
        if self.rollout_id is None:
            return
        for wave in self.shown()["waves"]:
            asked = sum(wave["counts"].get(status, 0) for status in NEVER_A_FAILURE)
            assert wave["finished"] + asked <= wave["size"]

    def come_to_an_end(self):
        """Whatever happened: with time alone a rollout ends, or says which person it waits for."""
        for _ in range(4):
            self.world.tick(LIFETIME_S)
            self.world.tick(LIFETIME_S)
        shown = self.shown()
        assert shown["state"] in {*ENDED, "paused", "halted"}, (shown["state"], shown["state_reason"])
        if shown["state"] in {"paused", "halted"}:
            self.world.act(self.rollout_id, "abort", scope=ADMIN)
            self.world.tick()
        held = self.world.db.execute("SELECT COUNT(*) AS n FROM rollout_target WHERE active = 1 AND status = 'waiting'")
        assert held.fetchone()["n"] == 0, "an ended rollout lets go of devices that have not started"


def reachable(status):
    """Every status some moves can lead to."""
    found = {status}
    while more := {to for known in found for to in TARGET_TRANSITIONS[known]} - found:
        found |= more
    return found


class RolloutsOnPostgresql(Rollouts):
    kind = "postgresql"


TestRollouts = Rollouts.TestCase
TestRolloutsOnPostgresql = RolloutsOnPostgresql.TestCase
TestRollouts.settings = TestRolloutsOnPostgresql.settings = settings(
    max_examples=12,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    # Shrinking takes minutes here; the steps are printed as they were.
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)
