"""The power-cut sweep: a representative part of ``make sweep``, and proof that it finds what it should."""

import re
import subprocess
import sys
from dataclasses import replace

import pytest

from firmament.agent.agent import Agent
from firmament.agent.machine import Event
from firmament.sim.bootloader import BootKind
from firmament.sim.geometries import geometries
from firmament.sim.sweep import Faulty, Tally, all_cases, sweep
from firmament.sim.world import Case, Condition, SlotKind, Travel, Way

PAIRS = [
    # Each slot and each boot control, each healthy and not; the rest is in `make sweep`.
    (SlotKind.BUNDLE, BootKind.SUPERVISOR, Condition.HEALTHY),
    (SlotKind.BUNDLE, BootKind.SUPERVISOR, Condition.DIES),
    (SlotKind.IMAGE_FILE, BootKind.SIM, Condition.UNHEALTHY),
    (SlotKind.IMAGE_DEVICE, BootKind.UBOOT, Condition.HEALTHY),
    (SlotKind.IMAGE_DEVICE, BootKind.GRUB, Condition.UNHEALTHY),
    (SlotKind.IMAGE_FILE, BootKind.GRUB, Condition.HEALTHY),
    (SlotKind.BUNDLE, BootKind.UBOOT, Condition.UNHEALTHY),
]


def case(slot=SlotKind.IMAGE_DEVICE, boot=BootKind.UBOOT, condition=Condition.HEALTHY, *, geometry=0) -> Case:
    return Case(slot, boot, condition, geometries(slot)[geometry])


def faulty_sweep(row: Case, every: int = 1, **how) -> Tally:
    return sweep(row, Faulty(**how), every=every, with_full_disk=False)


@pytest.mark.parametrize(("slot", "boot", "condition"), PAIRS)
def test_every_fifth_operation_is_survived(slot, boot, condition):
    tally = sweep(case(slot, boot, condition), every=5)
    assert tally.losses == []
    assert tally.tried > 100
    assert (tally.lost_in_trial > 0) is (condition is Condition.HEALTHY), "the judge sees what a trial costs"


@pytest.mark.parametrize(
    ("slot", "boot", "condition"),
    [
        (SlotKind.BUNDLE, BootKind.SUPERVISOR, Condition.HEALTHY),
        (SlotKind.IMAGE_DEVICE, BootKind.UBOOT, Condition.UNHEALTHY),
        (SlotKind.IMAGE_FILE, BootKind.GRUB, Condition.HEALTHY),
    ],
)
def test_a_device_that_is_brought_back_survives_every_third_cut(slot, boot, condition):
    tally = sweep(Case(slot, boot, condition, geometries(slot)[0], Way.BACK), every=3)
    assert tally.losses == []
    assert tally.tried > 50


TRAVELS = [
    (SlotKind.IMAGE_DEVICE, Travel.SEALED),
    (SlotKind.BUNDLE, Travel.DELTA),
    (SlotKind.IMAGE_FILE, Travel.FALLBACK),
    (SlotKind.IMAGE_FILE, Travel.SEALED_FALLBACK),
    (SlotKind.IMAGE_DEVICE, Travel.PARCEL),
    (SlotKind.BUNDLE, Travel.SEALED_PARCEL),
]


@pytest.mark.parametrize(("slot", "travel"), TRAVELS)
def test_every_seventh_operation_of_other_payloads_is_survived(slot, travel):
    boot = BootKind.SUPERVISOR if slot is SlotKind.BUNDLE else BootKind.UBOOT
    geometry = geometries(slot)[0]
    if slot is SlotKind.IMAGE_DEVICE:
        # A device's slot has no names to sync: more checkpoints make its story as long as the others.
        geometry = replace(geometry, chunk_bytes=350, checkpoint_bytes=350)
    tally = sweep(Case(slot, boot, Condition.HEALTHY, geometry, travel=travel), every=7)
    assert tally.losses == []
    assert tally.tried > 100


def test_the_rows_cover_every_combination():
    rows = {(row.slot, row.boot, row.condition) for row in all_cases()}
    both = {Condition.HEALTHY, Condition.UNHEALTHY}
    back = {(row.slot, row.boot, row.condition) for row in all_cases() if row.way is Way.BACK}
    assert back == rows
    assert rows >= {(slot, boot, condition) for slot in SlotKind for boot in BootKind for condition in both}
    assert {(row.slot, row.travel) for row in all_cases()} == {(slot, way) for slot in SlotKind for way in Travel}
    for slot in SlotKind:
        assert len({geometry.why for geometry in geometries(slot)}) == len(geometries(slot)) >= 2


# --- planted faults ------------------------------------------------------------------------


class RecordsBeforeDeed(Agent):
    """Says "staged" first and arms then: the order seen in the wild (house.md, anti-pattern 1)."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self._trial.stage = self._stage_the_wrong_way_round

    def _stage_the_wrong_way_round(self):
        boot, ledger = self._parts.boot, self._ledger
        ledger.go(Event.TRIAL_ARMED, armed_boot_id=boot.boot_id())
        if not self._trial.is_booted():
            boot.arm(ledger.attempt.slot)


class ConfirmsBeforeDeed(Agent):
    """Says "confirmed" first and tells the boot control then."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self._trial.confirm = self._confirm_the_wrong_way_round

    def _confirm_the_wrong_way_round(self):
        self._ledger.go(Event.HEALTH_PASSED)
        self._parts.boot.confirm(self._ledger.attempt.slot)


class RaisesFloorsTooEarly(Agent):
    """Raises the sequence number when the image is verified, not when it is confirmed."""

    def _stage(self):
        self._parts.floors.raise_sequence(self._ledger.attempt.manifest.sequence_number)
        return super()._stage()


class Forgetful:
    """A disk whose driver forgets one kind of sync."""

    def __init__(self, disk, forgets):
        self._disk, self._forgets = disk, forgets

    def __getattr__(self, name):
        return getattr(self._disk, name)

    def sync_directory(self, path):
        if self._forgets != "sync_directory":
            self._disk.sync_directory(path)

    def open_writer(self, path, **options):
        writer = self._disk.open_writer(path, **options)
        if self._forgets == "sync":
            writer.sync = lambda: None
        return writer


def kinds(tally: Tally) -> set[str]:
    return {loss.kind for loss in tally.losses}


def test_record_before_deed_loses_good_images_and_the_sweep_says_so():
    tally = faulty_sweep(case(geometry=2), make_agent=RecordsBeforeDeed)
    assert kinds(tally) == {"lost"}
    assert not tally.is_clean
    assert str(tally).endswith(f"{len(tally.losses)} good images lost outside the trial")
    assert "0 good images lost" not in str(tally)
    # Exactly the cuts from the record that reached the disk to the deed that did not.
    where = {re.search(r"\((\S+) .*/(\w+)\.", loss.operation).groups() for loss in tally.losses}
    assert where == {("sync", "journal"), ("write", "env"), ("sync", "env")}


def test_confirmed_before_the_boot_control_is_found():
    assert "wrong" in kinds(faulty_sweep(case(geometry=2), make_agent=ConfirmsBeforeDeed))


def test_floors_raised_before_the_confirmation_are_found():
    tally = faulty_sweep(case(condition=Condition.UNHEALTHY), 5, make_agent=RaisesFloorsTooEarly)
    assert kinds(tally) == {"wrong"}
    assert "floor" in tally.losses[0].problem


def test_a_forgotten_directory_sync_is_found():
    tally = faulty_sweep(
        case(SlotKind.BUNDLE, BootKind.SUPERVISOR), 3, view=lambda disk: Forgetful(disk, "sync_directory")
    )
    assert kinds(tally) == {"bricked"}, "the new slot's names are gone when the boot loader starts it"


def test_a_forgotten_file_sync_is_found():
    tally = faulty_sweep(case(SlotKind.IMAGE_FILE), 3, view=lambda disk: Forgetful(disk, "sync"))
    assert kinds(tally) == {"bricked"}


class ForgetsTheStoredPayload(Agent):
    """Says that payload bytes are stored before they are durable."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self._fetching._stored.checkpoint = lambda: None


class BelievesAnyDelta(Agent):
    """Does not compare what a delta made with the signed digest, in the slot or after."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        for slot in (self._parts.slots.a, self._parts.slots.b):
            slot.verify = lambda image: None
            slot.finish = slot.checkpoint


def test_an_unsynced_stored_payload_is_only_fetched_again():
    """The digest finds it: a lie about stored bytes costs a download, never an image."""
    row = Case(
        SlotKind.IMAGE_DEVICE, BootKind.UBOOT, Condition.HEALTHY, geometries(SlotKind.IMAGE_DEVICE)[0], Travel.DELTA
    )
    assert faulty_sweep(row, 3, make_agent=ForgetsTheStoredPayload).losses == []


def test_a_delta_that_is_believed_bricks_and_the_sweep_says_so():
    geometry = geometries(SlotKind.IMAGE_DEVICE)[0]
    row = Case(SlotKind.IMAGE_DEVICE, BootKind.UBOOT, Condition.HEALTHY, geometry, travel=Travel.FALLBACK)
    assert kinds(faulty_sweep(row, 5, make_agent=BelievesAnyDelta)) == {"bricked"}


# --- the command ---------------------------------------------------------------------------


def test_the_last_line_and_the_exit_code():
    command = [
        sys.executable,
        "-m",
        "firmament.cli.sweep",
        "--jobs",
        "1",
        "--every",
        "5",
        "--only",
        "image-device x grub x healthy x uneven x back",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    last = done.stdout.splitlines()[-1].split()
    assert done.returncode == 0, done.stdout
    assert last[:2] == ["power", "cuts:"]
    assert last[2] == last[4]
    assert done.stdout.endswith("survived, 0 bricked, 0 good images lost outside the trial\n")
    nothing = subprocess.run([*command[:-1], "no such row"], capture_output=True, text=True, timeout=60, check=False)
    assert nothing.returncode == 1, "a sweep of nothing proves nothing"
