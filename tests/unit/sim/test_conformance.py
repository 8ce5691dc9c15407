"""The conformance functions find what they are for: each mutant breaks one promise and is caught."""

from pathlib import Path

import pytest

from firmament.agent.bootctl.choice import Choice, Other, StoredBootControl, StoredLoader
from firmament.agent.bootctl.record import RecordStore
from firmament.agent.slots.image import ImageSlot
from firmament.agent.slots.port import Label
from firmament.core.manifest import Image
from firmament.errors import FileError, FirmamentError, SlotTooSmallError
from firmament.sim.conformance import check_boot_control, check_slot
from firmament.sim.disk import SimDisk
from firmament.sim.faults import BrokenDisk

PLACE, BOOT = Path("/slot.img"), Path("/boot")
DATA = bytes(range(256)) * 40


class SilentVerify(ImageSlot):
    def verify(self, image):
        """Believes what was written."""


class LengthOnlyVerify(ImageSlot):
    def verify(self, image):
        super().verify(Image(self._wrong(image), image.length_bytes))

    def _wrong(self, image):
        from firmament.core.digest import Digest

        return Digest.of(self._disk.get(PLACE)[: image.length_bytes])


class BoastfulCheckpoint(ImageSlot):
    def checkpoint(self):
        return super().checkpoint() + 1


class ForgetfulResume(ImageSlot):
    def resume(self, image, offset):
        self.begin(image)
        return 0


class BlindResume(ImageSlot):
    """Goes on where the journal says without reading what is there."""

    def resume(self, image, offset):
        self.begin(image)
        self._progress.offset = offset
        return offset


class Boundless(ImageSlot):
    def capacity_bytes(self):
        return 10**9

    def begin(self, image):
        self._limit_bytes = None
        try:
            super().begin(image)
        except SlotTooSmallError:
            super().begin(Image(image.digest, 1))


class NoEnd(ImageSlot):
    def finish(self):
        self.checkpoint()


class Endless(ImageSlot):
    def write(self, data):
        if data != b"\0":
            super().write(data)


class Unordered(ImageSlot):
    def checkpoint(self):
        return 0 if self._progress is None else super().checkpoint()


@pytest.mark.parametrize(
    "mutant",
    [
        SilentVerify,
        LengthOnlyVerify,
        BoastfulCheckpoint,
        ForgetfulResume,
        BlindResume,
        Boundless,
        NoEnd,
        Endless,
        Unordered,
    ],
)
def test_slots_that_break_a_promise_are_caught(mutant):
    disk = SimDisk()
    with pytest.raises((AssertionError, FirmamentError)):
        check_slot(lambda: mutant(disk, Label.B, PLACE), DATA)


def test_the_original_is_not():
    disk = SimDisk()
    check_slot(lambda: ImageSlot(disk, Label.B, PLACE), DATA)


def test_a_slot_on_a_broken_disk_fails_with_the_disks_error():
    disk = SimDisk()
    disk.put(PLACE, b"")
    disk.faults.append(BrokenDisk(PLACE))
    with pytest.raises(FileError):
        check_slot(lambda: ImageSlot(disk, Label.B, PLACE), DATA)


class Machine:
    label, starts = Label.A, 0

    def booted(self):
        return self.label

    def boot_id(self):
        return str(self.starts)

    def restart(self):
        pass


class Bench:
    def __init__(self, control=StoredBootControl, loader=StoredLoader):
        self.disk, self.machine = SimDisk(), Machine()
        self._control, self._loader = control, loader

    def control(self):
        return self._control(RecordStore(self.disk, BOOT), self.machine)

    def power_on(self):
        self.machine.label = self._loader(RecordStore(self.disk, BOOT)).start()
        self.machine.starts += 1
        return self.machine.label


class NeverSpends(StoredLoader):
    def start(self):
        choice = self._store.load()
        return choice.armed or choice.primary


class MakesPrimary(StoredLoader):
    def start(self):
        label = super().start()
        self._store.store(Choice(label, Other.WHOLE))
        return label


class NeverTries(StoredLoader):
    def start(self):
        return self._store.load().primary


class ArmsForGood(StoredBootControl):
    def arm(self, label):
        super().arm(label)
        self._store.store(Choice(label, Other.WHOLE))


class BlessesWhatDoesNotRun(StoredBootControl):
    def confirm(self, label):
        self._change(lambda choice: choice.confirm(label))


class ConfirmsNothing(StoredBootControl):
    def confirm(self, label):
        if label is not self.booted():
            super().confirm(label)


class RevertsNothing(StoredBootControl):
    def revert(self, label):
        pass


class RetiresNothing(StoredBootControl):
    def retire(self, label):
        if label is self._store.load().primary:
            super().retire(label)


class OneBootId(StoredBootControl):
    def boot_id(self):
        return "the same"


class Troubled(StoredBootControl):
    def trouble(self):
        return "always"


@pytest.mark.parametrize(
    "parts",
    [
        {"loader": NeverSpends},
        {"loader": MakesPrimary},
        {"loader": NeverTries},
        {"control": ArmsForGood},
        {"control": BlessesWhatDoesNotRun},
        {"control": ConfirmsNothing},
        {"control": RevertsNothing},
        {"control": RetiresNothing},
        {"control": OneBootId},
        {"control": Troubled},
    ],
    ids=lambda parts: next(iter(parts.values())).__name__,
)
def test_boot_controls_that_break_a_promise_are_caught(parts):
    with pytest.raises(AssertionError):
        check_boot_control(Bench(**parts))


def test_the_original_boot_control_is_not():
    check_boot_control(Bench())
