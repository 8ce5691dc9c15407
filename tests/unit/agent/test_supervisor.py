"""The supervisor with programs that pretend: what it starts, when it starts again, and what it tells."""

import math
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fake_processes import SimProcesses

from firmament.agent.bootctl.port import Restart
from firmament.agent.bootctl.supervisor import MAX_BACKOFF_S, Supervisor, SupervisorSettings
from firmament.agent.slots.port import Label
from firmament.core.clock import FixedClock
from firmament.errors import BootControlError
from firmament.sim.disk import SimDisk

APP, STATE = Path("/opt/app"), Path("/var/lib/firmament/boot")


class World:
    def __init__(self):
        self.disk = SimDisk()
        for label in Label:
            self.disk.put(APP / label / "main.py", b"")
        self.processes = SimProcesses()
        self.clock = FixedClock(datetime(2026, 11, 20, tzinfo=UTC))
        self.boot = self.new()

    def new(self):
        settings = SupervisorSettings(("python3", "main.py"), environment={"COLOUR": "blue"})
        return Supervisor(self.disk, APP, STATE, settings, self.clock, self.processes)

    @property
    def program(self):
        (program,) = self.processes.running
        return program


@pytest.fixture
def world():
    return World()


def test_the_program_starts_in_the_booted_slot(world):
    world.boot.start()
    assert world.program.argv == ("python3", "main.py")
    assert world.program.directory == APP / "a"
    assert world.program.environment == {
        "COLOUR": "blue",
        "FIRMAMENT_DIRECTORY": "/opt/app",
        "FIRMAMENT_SLOT": "a",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    world.boot.stop()
    assert world.processes.running == []
    assert world.boot.tend() > 0
    assert world.processes.running == []


def test_a_trial_swaps_the_program_and_the_symlink(world):
    world.boot.start()
    world.boot.arm(Label.B)
    first = world.boot.boot_id()
    assert world.boot.restart() is Restart.DONE
    assert world.program.directory == APP / "b"
    assert world.disk.read_link(APP / "current") == "b"
    assert (world.boot.booted(), world.boot.primary(), world.boot.armed()) == (Label.B, Label.A, None)
    assert world.boot.boot_id() != first
    assert len(world.boot.boot_id()) <= 64


def test_a_program_that_dies_on_trial_is_not_started_again_and_told(world):
    world.processes.dies_in.add("b")
    world.boot.start()
    world.boot.arm(Label.B)
    world.boot.restart()
    assert "exit code 1" in world.boot.trouble()
    assert "simulated death" in world.boot.trouble()
    for _ in range(5):
        world.clock.advance(100)
        world.boot.tend()
    assert len([p for p in world.processes.started if p.directory.name == "b"]) == 1
    world.boot.revert(Label.A)
    world.boot.restart()
    assert world.boot.trouble() is None
    assert world.program.directory == APP / "a"


def test_a_program_that_cannot_be_started_on_trial_is_told(world):
    world.processes.missing_in.add("b")
    world.boot.start()
    world.boot.arm(Label.B)
    world.boot.restart()
    assert "cannot be started" in world.boot.trouble()


def test_a_crash_after_confirm_is_no_trouble_and_is_mended(world):
    world.boot.start()
    world.boot.arm(Label.B)
    world.boot.restart()
    world.boot.confirm(Label.B)
    boot_id = world.boot.boot_id()
    world.program.exit_code = -11
    assert world.boot.trouble() is None
    world.clock.advance(2)
    world.boot.tend()
    assert world.program.directory == APP / "b"
    assert world.boot.boot_id() == boot_id  # the same start of the image, as far as trials go


def test_a_program_that_keeps_dying_is_started_ever_more_slowly(world):
    world.processes.dies_in.add("a")
    world.boot.start()
    waits = []
    for _ in range(10):
        world.boot.tend()
        before = len(world.processes.started)
        wait_s = 0.0
        while len(world.processes.started) == before:
            wait_s += 0.5
            world.clock.advance(0.5)
            world.boot.tend()
            assert wait_s < 2 * MAX_BACKOFF_S
        waits.append(wait_s)
    assert waits == sorted(waits)
    assert waits[0] <= 2
    assert waits[-1] == pytest.approx(MAX_BACKOFF_S, abs=1)


def test_a_program_that_ran_well_is_started_at_once(world):
    world.boot.start()
    for _ in range(5):
        world.clock.advance(1000)
        world.program.exit_code = 0
        world.boot.tend()
        world.clock.advance(1.5)
        world.boot.tend()
        assert world.program.directory == APP / "a"


def test_an_agent_that_starts_again_ends_what_the_last_one_left(world):
    world.boot.start()
    left = world.program
    again = world.new()
    again.start()
    assert left.exit_code is not None
    assert world.program is not left


def test_a_restart_of_the_agent_spends_an_armed_try(world):
    """Power lost between arm and restart: the next start is the trial."""
    world.boot.start()
    world.boot.arm(Label.B)
    again = world.new()
    again.start()
    assert (again.booted(), again.armed()) == (Label.B, None)
    third = world.new()
    third.start()
    assert third.booted() is Label.A


def test_a_new_device_has_no_program_yet(world):
    world.disk.remove_tree(APP)
    world.disk.make_directory(APP)
    world.boot.start()
    assert world.processes.running == []
    assert world.boot.booted() is Label.A
    assert math.isfinite(world.boot.tend())
    assert world.processes.running == []
    assert world.boot.trouble() is None


def test_a_symlink_that_leads_elsewhere_is_told(world):
    world.disk.symlink("/etc", APP / "current")
    with pytest.raises(BootControlError):
        world.boot.booted()
