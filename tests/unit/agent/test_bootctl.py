"""Every boot control keeps the port's promises, alone and through power cuts at every operation."""

import math
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fake_processes import SimProcesses

from firmament.agent.bootctl import grub_env, record
from firmament.agent.bootctl.choice import Choice, Other, StoredBootControl, StoredLoader, decide
from firmament.agent.bootctl.grub import GrubLoader, GrubStore, decide_block
from firmament.agent.bootctl.grub_env import GrubEnvironment
from firmament.agent.bootctl.port import Restart
from firmament.agent.bootctl.record import RecordStore
from firmament.agent.bootctl.sim import SimBootControl
from firmament.agent.bootctl.supervisor import Supervisor, SupervisorSettings
from firmament.agent.bootctl.uboot import KEPT, LEFT, ORDER, UBootLoader, UBootStore, decide_variables, variables_of
from firmament.agent.bootctl.uboot_env import Place, UBootEnvironment, encode_copy
from firmament.agent.slots.port import Label
from firmament.core.clock import FixedClock, SystemClock
from firmament.errors import BootControlError, FileError, ReadOnlyError
from firmament.sim.conformance import check_boot_control
from firmament.sim.disk import SimDisk
from firmament.sim.faults import BrokenDisk, Cut, DiskFull, PowerCut, ReadOnlyDisk, Survives

BOOT, APP = Path("/boot"), Path("/opt/app")
PLACES = tuple(Place(BOOT / "env.bin", offset, 256) for offset in (0, 256))
OTHERS = {"bootcmd": b"run firmament", "ethaddr": b"02:00:00:00:00:01"}
CHOICES = [Choice(primary, other) for primary in Label for other in Other]


@dataclass
class Machine:
    label: Label = Label.A
    starts: int = 0
    restarts: int = 0

    def booted(self):
        return self.label

    def boot_id(self):
        return f"start-{self.starts}"

    def restart(self):
        self.restarts += 1


@dataclass
class Bench:
    """A machine whose boot loader reads `store` and whose disk is simulated."""

    disk: SimDisk = field(default_factory=SimDisk)
    machine: Machine = field(default_factory=Machine)

    def store(self):
        raise NotImplementedError

    def loader(self):
        return StoredLoader(self.store())

    def control(self):
        return StoredBootControl(self.store(), self.machine)

    def power_on(self):
        self.machine.label = self.loader().start()
        self.machine.starts += 1
        return self.machine.label


class RecordBench(Bench):
    def store(self):
        return RecordStore(self.disk, BOOT)


class UBootBench(Bench):
    def __init__(self):
        super().__init__()
        self.disk.put(PLACES[0].path, encode_copy(OTHERS, length_bytes=256, flags=255) + b"\xff" * 256, is_device=True)

    def environment(self):
        return UBootEnvironment(self.disk, PLACES)

    def store(self):
        return UBootStore(self.environment())

    def loader(self):
        return UBootLoader(self.environment())


class SingleUBootBench(UBootBench):
    def __init__(self):
        super().__init__()
        self.disk.put(PLACES[0].path, encode_copy(OTHERS, length_bytes=256, flags=None), is_device=True)

    def environment(self):
        return UBootEnvironment(self.disk, PLACES[:1], accept_single_copy=True)


class GrubBench(Bench):
    def __init__(self):
        super().__init__()
        self.disk.put(BOOT / "grubenv", grub_env.set_variable(grub_env.empty(), "saved_entry", b"0"))

    def environment(self):
        return GrubEnvironment(self.disk, BOOT / "grubenv")

    def store(self):
        return GrubStore(self.environment())

    def loader(self):
        return GrubLoader(self.environment())


class SimBench(Bench):
    def store(self):
        return RecordStore(self.disk, BOOT)

    def control(self):
        return SimBootControl(self.disk, BOOT)

    def power_on(self):
        self.control().start()
        return self.control().booted()


class SupervisorBench(Bench):
    def __init__(self):
        super().__init__()
        self.processes = SimProcesses()
        for label in Label:
            self.disk.put(APP / label / "main.py", b"")
        self.supervisor = self.new()
        self.supervisor.start()

    def store(self):
        return RecordStore(self.disk, BOOT)

    def new(self):
        settings = SupervisorSettings(("python3", "main.py"))
        return Supervisor(self.disk, APP, BOOT, settings, FixedClock(SystemClock().now()), self.processes)

    def control(self):
        return self.supervisor

    def power_on(self):
        self.processes.lose_power()
        self.supervisor = self.new()
        self.supervisor.start()
        (program,) = self.processes.running
        assert program.directory.name == self.supervisor.booted()
        return self.supervisor.booted()


BENCHES = {
    "record": RecordBench,
    "uboot": UBootBench,
    "uboot-single": SingleUBootBench,
    "grub": GrubBench,
    "sim": SimBench,
    "supervisor": SupervisorBench,
}
ATOMIC = [kind for kind in BENCHES if kind != "uboot-single"]


@pytest.mark.parametrize("kind", BENCHES)
def test_conformance(kind):
    check_boot_control(BENCHES[kind]())


@pytest.mark.parametrize("kind", BENCHES)
def test_every_choice_is_stored_and_read_and_decided_alike(kind):
    """Six choices, all changes between them, and the loader's decision is the one of the rules."""
    for old in CHOICES:
        for new in CHOICES:
            bench = BENCHES[kind]()
            bench.store().store(old)
            bench.store().store(new)
            assert bench.store().load() == new
            assert bench.loader().start() is decide(new)[0]
            assert decide(bench.store().load())[0] is new.primary
            assert bench.store().load() == decide(new)[1]


OPERATIONS = {
    "arm": (Choice(Label.A, Other.SPENT), Label.A, lambda boot: boot.arm(Label.B)),
    "retire": (Choice(Label.A, Other.WHOLE), Label.A, lambda boot: boot.retire(Label.B)),
    "disarm": (Choice(Label.A, Other.ARMED), Label.A, lambda boot: boot.revert(Label.A)),
    "confirm": (Choice(Label.A, Other.SPENT), Label.B, lambda boot: boot.confirm(Label.B)),
    "revert": (Choice(Label.A, Other.WHOLE), Label.B, lambda boot: boot.revert(Label.A)),
    "revert after confirm": (Choice(Label.B, Other.WHOLE), Label.B, lambda boot: boot.revert(Label.A)),
}
STORES = {kind: BENCHES[kind] for kind in ("record", "uboot", "grub")}
BOOTED_BEFORE = {Label.A: Choice(Label.A, Other.SPENT), Label.B: Choice(Label.B, Other.SPENT)}


def prepared(kind, old, booted):
    bench = STORES[kind]()
    bench.store().store(old)
    bench.machine.label = booted
    bench.disk.lose_power(Survives.ORDERED)
    return bench


@pytest.mark.parametrize("survives", Survives)
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("kind", STORES)
def test_power_cut_in_every_change(kind, operation, survives):
    """After a cut the change happened or did not; done again, it has happened; done, it stays."""
    old, booted, act = OPERATIONS[operation]
    cut = 0
    while True:
        bench = prepared(kind, old, booted)
        bench.disk.cut = Cut(bench.disk.operations + cut, survives)
        try:
            act(bench.control())
        except PowerCut:
            pass
        else:
            break
        finally:
            bench.disk.lose_power(survives)
        new = after(kind, operation)
        found = bench.store().load()
        assert found.armed in {old.armed, new.armed}
        assert decide(found)[0] in {decide(old)[0], decide(new)[0]}
        assert found in {old, new} or (kind == "grub" and found == Choice(found.primary, Other.SPENT))
        act(bench.control())
        again = bench.store().load()
        # Cut between the two bytes, GRUB's confirm loses the fallback and nothing else.
        assert again == new or (kind == "grub" and again == Choice(new.primary, Other.SPENT))
        cut += 1
    assert cut > 1
    bench.disk.lose_power(survives)
    assert bench.store().load() == after(kind, operation)


def after(kind, operation):
    old, booted, act = OPERATIONS[operation]
    bench = prepared(kind, old, booted)
    act(bench.control())
    return bench.store().load()


@pytest.mark.parametrize("survives", Survives)
@pytest.mark.parametrize("kind", STORES)
def test_power_cut_in_the_boot_loader(kind, survives):
    """The loader starts the armed slot once at most, wherever the power goes."""
    cut, trials = 0, 0
    while True:
        bench = prepared(kind, Choice(Label.A, Other.ARMED), Label.A)
        bench.disk.cut = Cut(bench.disk.operations + cut, survives)
        try:
            started = bench.loader().start()
        except PowerCut:
            bench.disk.lose_power(survives)
            # It has not jumped yet: the try may be left or lost, and then one try is one try.
            trials += bench.loader().start() is Label.B
            assert bench.loader().start() is Label.A
        else:
            assert started is Label.B
            bench.disk.lose_power(survives)
            assert bench.loader().start() is Label.A
            break
        cut += 1
    assert cut > 1
    assert trials or survives is not Survives.LOST


@pytest.mark.parametrize("survives", Survives)
def test_power_cut_in_every_step_of_the_supervisor(survives):
    """Whatever the supervisor was doing, the next start runs one program, of a slot that may run."""

    def life(bench):
        bench.control().retire(Label.B)
        bench.control().arm(Label.B)
        bench.control().restart()
        bench.control().confirm(Label.B)
        bench.control().revert(Label.A)
        bench.control().restart()

    cut = 0
    while True:
        bench = SupervisorBench()
        bench.disk.lose_power(Survives.ORDERED)
        bench.disk.cut = Cut(bench.disk.operations + cut, survives)
        try:
            life(bench)
        except PowerCut:
            bench.disk.lose_power(survives)
        else:
            break
        choice = bench.store().load()
        assert bench.power_on() is decide(choice)[0]
        bench.disk.lose_power(Survives.LOST)
        assert bench.disk.read_link(APP / "current") == decide(choice)[0]
        assert bench.power_on() is choice.primary
        cut += 1
    assert cut > 25


@pytest.mark.parametrize("kind", ATOMIC)
@pytest.mark.parametrize("fault", [DiskFull, ReadOnlyDisk])
def test_full_and_read_only_disks_change_nothing(kind, fault):
    bench = BENCHES[kind]()
    bench.control().arm(Label.B)
    bench.control().revert(Label.A)
    before = bench.store().load()
    bench.disk.faults.append(fault(from_operation=0))
    if fault is DiskFull:  # every place is written where it lies, so going back needs no space
        bench.control().arm(Label.B)
        assert bench.store().load().armed is Label.B
        return
    with pytest.raises(ReadOnlyError):
        bench.control().arm(Label.B)
    bench.disk.faults.clear()
    assert bench.store().load() == before


@pytest.mark.parametrize("kind", ["record", "sim", "supervisor"])
def test_one_damaged_copy_of_the_record_loses_nothing(kind):
    for name in record.COPIES:
        bench = BENCHES[kind]()
        bench.control().arm(Label.B)
        bench.disk.put(BOOT / name, b"rubbish")
        assert bench.control().armed() is Label.B
        bench.control().revert(Label.A)
        assert bench.control().armed() is None


@pytest.mark.parametrize("rubbish", [b"", b"rubbish", b"firmament-boot/1 00000000\n{}", b"x" * 5000])
def test_two_damaged_copies_of_the_record_are_an_error(rubbish):
    bench = RecordBench()
    for name in record.COPIES:
        bench.disk.put(BOOT / name, rubbish)
    with pytest.raises(BootControlError):
        bench.control().armed()


def test_a_record_decides_as_bytes():
    for choice in CHOICES:
        label, after_bytes = record.decide_bytes(record.encode(choice, 7))
        assert (label, record.decode(after_bytes)[0]) == decide(choice)


def test_a_broken_disk_is_told():
    bench = UBootBench()
    bench.disk.faults.append(BrokenDisk(BOOT))
    with pytest.raises(FileError):
        bench.control().armed()


# --- U-Boot --------------------------------------------------------------------------------


def test_uboot_keeps_the_boards_variables():
    bench = UBootBench()
    bench.control().arm(Label.B)
    bench.power_on()
    bench.control().confirm(Label.B)
    assert bench.environment().read() == {**OTHERS, ORDER: b"B A", LEFT[Label.A]: b"3", LEFT[Label.B]: b"3"}


def test_uboot_without_an_environment_is_not_invented():
    bench = UBootBench()
    bench.disk.put(PLACES[0].path, b"\xff" * 512, is_device=True)
    with pytest.raises(BootControlError):
        bench.control().arm(Label.B)


def test_uboot_that_is_full_says_so():
    bench = UBootBench()
    bench.environment().write({"big": b"x" * 240})
    with pytest.raises(BootControlError):
        bench.control().arm(Label.B)
    assert bench.environment().read() == {"big": b"x" * 240}


def test_uboot_flags_wrap_around():
    bench = UBootBench()
    for turn in range(600):
        bench.environment().write({"n": b"%d" % turn})
        assert bench.environment().read() == {"n": b"%d" % turn}


def test_raucs_script_counts_and_confirm_sets_back():
    """RAUC's boot script also counts the starts of a kept slot; the agent's confirm at each start undoes it."""
    bench = UBootBench()
    bench.control().confirm(Label.A)
    for _ in range(2):
        variables = {**bench.environment().read(), LEFT[Label.A]: b"%d" % (KEPT - 1)}
        bench.environment().write(variables)
        bench.control().confirm(Label.A)
        assert decide_variables(bench.environment().read())[0] is Label.A
        assert bench.environment().read()[LEFT[Label.A]] == b"3"


@pytest.mark.parametrize("choice", CHOICES)
def test_uboot_decides_as_the_rules(choice):
    label, variables = decide_variables(variables_of(choice))
    assert label is decide(choice)[0]
    assert decide_variables(variables)[0] is choice.primary


# --- GRUB ----------------------------------------------------------------------------------


def test_grub_keeps_other_variables_and_makes_a_missing_block():
    bench = GrubBench()
    bench.control().arm(Label.B)
    assert grub_env.decode(bench.disk.get(BOOT / "grubenv"))["saved_entry"] == b"0"
    bench.disk.remove(BOOT / "grubenv")
    assert bench.power_on() is Label.A
    bench.control().arm(Label.B)
    assert bench.power_on() is Label.B


@pytest.mark.parametrize("block", [b"", b"x" * 1024, grub_env.empty()[:-1], grub_env.empty() + b"#"])
def test_a_block_that_grub_would_refuse_is_refused(block):
    bench = GrubBench()
    bench.disk.put(BOOT / "grubenv", block)
    with pytest.raises(BootControlError):
        bench.control().armed()


def test_a_symlinked_block_is_refused():
    bench = GrubBench()
    bench.disk.replace(BOOT / "grubenv", BOOT / "elsewhere")
    bench.disk.symlink("elsewhere", BOOT / "grubenv")
    with pytest.raises(BootControlError):
        bench.control().armed()


def test_grub_changes_one_byte_at_a_time():
    for old in CHOICES:
        block = grub_env.empty()
        bench = GrubBench()
        bench.store().store(old)
        block = bench.disk.get(BOOT / "grubenv")
        after_block = decide_block(block)[1]
        assert sum(a != b for a, b in zip(block, after_block, strict=True)) == (old.other is Other.ARMED)


def test_a_full_block_says_so():
    bench = GrubBench()
    block = grub_env.set_variable(grub_env.empty(), "big", b"x" * 900)
    bench.disk.put(BOOT / "grubenv", block)
    with pytest.raises(BootControlError):
        bench.control().arm(Label.B)
    assert bench.disk.get(BOOT / "grubenv") == block


def test_grub_only_changes_characters_that_have_a_place():
    bench = GrubBench()
    with pytest.raises(RuntimeError):
        bench.environment().set_character("new", b"1")
    bench.disk.remove(BOOT / "grubenv")
    with pytest.raises(BootControlError):
        bench.environment().set_character("new", b"1")


def test_a_machine_in_a_directory_restarts_by_being_started_again():
    bench = SimBench()
    bench.control().arm(Label.B)
    assert bench.control().restart() is Restart.UNDERWAY
    assert bench.power_on() is Label.B
    bench.control().stop()
    assert bench.control().tend() == math.inf


def test_a_supervisor_that_cannot_write_still_starts_what_ran_last():
    bench = SupervisorBench()
    bench.control().arm(Label.B)
    bench.disk.faults.append(ReadOnlyDisk())
    assert bench.power_on() is Label.A
    bench.disk.faults.clear()
    assert bench.power_on() is Label.B
