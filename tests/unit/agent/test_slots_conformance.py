"""Both kinds of slots keep the port's promises, on real storage, simulated storage, and through power cuts."""

import hashlib
import subprocess
from contextlib import closing, suppress
from pathlib import Path

import pytest

from firmament.agent.slots.bundle import BundleSlot
from firmament.agent.slots.image import ImageSlot
from firmament.agent.slots.port import Label, Slots
from firmament.core import bundle
from firmament.core.bundle import Entry, EntryKind
from firmament.core.digest import Digest
from firmament.core.manifest import Image
from firmament.durable import RealDisk
from firmament.errors import BootControlError, DiskFullError, FileError, ReadBackError, ReadOnlyError, SlotTooSmallError
from firmament.sim.conformance import check_slot
from firmament.sim.disk import SimDisk
from firmament.sim.faults import BrokenDisk, Cut, DiskFull, PowerCut, ReadOnlyDisk, Survives

APP, DEVICE, FILE = Path("/opt/app"), Path("/dev/slot-b"), Path("/var/slot-b.img")
OLD = b"old image " * 500


def noise(length, seed=b""):
    out = b""
    while len(out) < length:
        out += hashlib.sha256(seed + len(out).to_bytes(8, "big")).digest()
    return out[:length]


def tree(seed=b"") -> bytes:
    members = (
        (Entry("bin", EntryKind.DIRECTORY), b""),
        (Entry("bin/tool", EntryKind.FILE, is_executable=True, length_bytes=3000), noise(3000, seed)),
        (Entry("current", EntryKind.SYMLINK, link="bin"), b""),
        (Entry("data", EntryKind.FILE, length_bytes=2500), noise(2500, b"2")),
        (Entry("empty", EntryKind.FILE), b""),
    )
    return b"".join(bundle.header(e) + d + bundle.padding(len(d)) for e, d in members) + bundle.END


def image_of(data: bytes) -> Image:
    return Image(Digest.of(data), len(data))


# --- kinds on a simulated disk -------------------------------------------------------------


def sim_device(disk):
    return ImageSlot(disk, Label.B, DEVICE)


def sim_file(disk):
    return ImageSlot(disk, Label.B, FILE)


def sim_bundle(disk):
    return BundleSlot(disk, Label.B, APP)


KINDS = {"device": (sim_device, noise(9000)), "file": (sim_file, noise(9000)), "bundle": (sim_bundle, tree())}


def sim_disk() -> SimDisk:
    disk = SimDisk(capacity_bytes=200_000)
    disk.put(DEVICE, OLD.ljust(20_000, b"o"), is_device=True)
    disk.put(FILE, OLD)
    disk.put(APP / "a/main.py", b"runs")
    disk.put(APP / "b/main.py", b"old")
    disk.put(APP / "b/lib/old", b"old")
    disk.symlink("a", APP / "current")
    disk.sync_directory(APP)
    disk.sync_directory(Path("/"))
    return disk


@pytest.mark.parametrize("kind", KINDS)
def test_conformance_on_a_simulated_disk(kind):
    make, data = KINDS[kind]
    disk = sim_disk()
    check_slot(lambda: make(disk), data)
    assert disk.get(APP / "a/main.py") == b"runs"


def test_conformance_of_real_directories(tmp_path):
    check_slot(lambda: BundleSlot(RealDisk(), Label.A, tmp_path / "app", limit_bytes=10**6), tree())


def test_conformance_of_real_files(tmp_path):
    check_slot(lambda: ImageSlot(RealDisk(), Label.A, tmp_path / "a.img", limit_bytes=10**6), noise(70_000))


@pytest.fixture
def loop_device(tmp_path):
    backing = tmp_path / "backing"
    backing.write_bytes(b"\xff" * 1_048_576)
    made = subprocess.run(["losetup", "--find", "--show", backing], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"no loop devices here: {made.stderr.strip()}")
    device = Path(made.stdout.strip())
    yield device
    subprocess.run(["losetup", "--detach", device], check=True)


def test_conformance_of_a_real_block_device(loop_device):
    slot = ImageSlot(RealDisk(), Label.A, loop_device)
    assert slot.capacity_bytes() == 1_048_576
    check_slot(lambda: ImageSlot(RealDisk(), Label.A, loop_device), noise(200_000))
    assert loop_device.is_block_device()


def test_a_mounted_device_is_never_written(loop_device, tmp_path):
    subprocess.run(["mkfs.ext4", "-q", loop_device], check=True)
    where = tmp_path / "mounted"
    where.mkdir()
    if subprocess.run(["mount", loop_device, where], capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(BootControlError):
            ImageSlot(RealDisk(), Label.A, loop_device).begin(image_of(b"x" * 4096))
    finally:
        subprocess.run(["umount", where], check=True)


def test_a_missing_device_does_not_become_a_file():
    slot = ImageSlot(RealDisk(), Label.A, Path("/dev/firmament-no-such-device"))
    with pytest.raises((SlotTooSmallError, FileError)):
        slot.begin(image_of(b"x"))
    with pytest.raises(FileError):
        slot.begin(image_of(b""))
    assert not slot.path.exists()


def test_a_device_keeps_its_length_and_what_lies_behind_the_image():
    disk = sim_disk()
    data = noise(5000)
    with closing(sim_device(disk)) as slot:
        slot.begin(image_of(data))
        slot.write(data)
        slot.finish()
    assert len(disk.get(DEVICE)) == 20_000
    assert disk.get(DEVICE)[5000:] == OLD.ljust(20_000, b"o")[5000:]


def test_a_file_gets_the_images_length():
    disk = sim_disk()
    data = noise(4096)
    with closing(sim_file(disk)) as slot:
        slot.begin(image_of(data))
        slot.write(data)
        slot.finish()
        slot.verify(image_of(data))
    assert disk.get(FILE) == data


def test_a_bit_that_flips_in_the_storage_is_seen():
    disk = sim_disk()
    data = noise(9000)
    with closing(sim_device(disk)) as slot:
        slot.begin(image_of(data))
        slot.write(data)
        slot.finish()
        spoilt = bytearray(disk.get(DEVICE))
        spoilt[4567] ^= 1
        disk.put(DEVICE, bytes(spoilt), is_device=True)
        with pytest.raises(ReadBackError):
            slot.verify(image_of(data))


# --- failing storage -----------------------------------------------------------------------


def whole(slot, data, *, journal=None):
    """A session with a checkpoint after every kilobyte; `journal` remembers their offsets."""
    image = image_of(data)
    journal = {"offset": 0} if journal is None else journal
    with closing(slot):
        start = slot.resume(image, journal["offset"])
        journal["offset"] = start
        for at in range(start, len(data), 1000):
            slot.write(data[at : at + 1000])
            journal["offset"] = slot.checkpoint()
        slot.finish()
        slot.verify(image)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at", range(0, 60, 3))
@pytest.mark.parametrize("fault", [DiskFull, ReadOnlyDisk])
def test_full_and_read_only_disks_lose_nothing(kind, at, fault):
    make, data = KINDS[kind]
    disk = sim_disk()
    journal = {"offset": 0}
    disk.faults.append(fault(from_operation=disk.operations + at))
    try:
        whole(make(disk), data, journal=journal)
    except (DiskFullError, ReadOnlyError):
        disk.faults.clear()
        whole(make(disk), data, journal=journal)
    assert disk.get(APP / "a/main.py") == b"runs"


def test_a_disk_that_cannot_be_read_is_an_error_not_a_bad_image():
    disk = sim_disk()
    whole(sim_file(disk), KINDS["file"][1])
    disk.faults.append(BrokenDisk(FILE))
    with pytest.raises(FileError):
        sim_file(disk).verify(image_of(KINDS["file"][1]))


@pytest.mark.parametrize("survives", Survives)
@pytest.mark.parametrize("kind", KINDS)
def test_power_cut_at_every_operation(kind, survives):
    """Wherever the power goes, the next start resumes from the journalled offset and ends with the image."""
    make, data = KINDS[kind]
    cuts = 0
    while True:
        disk = sim_disk()
        journal = {"offset": 0}
        disk.cut = Cut(disk.operations + cuts, survives)
        try:
            whole(make(disk), data, journal=journal)
        except PowerCut:
            disk.lose_power(survives)
        else:
            break
        promised = journal["offset"]
        with closing(make(disk)) as slot:
            assert slot.resume(image_of(data), promised) == promised, f"cut {cuts}: a promise was broken"
        whole(make(disk), data, journal=journal)
        disk.lose_power(Survives.LOST)
        make(disk).verify(image_of(data))
        assert disk.get(APP / "a/main.py") == b"runs"
        assert disk.read_link(APP / "current") == "a"
        cuts += 1
    assert cuts >= 18


@pytest.mark.parametrize("kind", KINDS)
def test_the_power_goes_twice(kind):
    make, data = KINDS[kind]
    for first in range(5, 40, 7):
        for second in range(0, 40, 7):
            disk, journal = sim_disk(), {"offset": 0}
            for cut in (first, second):
                disk.cut = Cut(disk.operations + cut, Survives.LOST)
                with suppress(PowerCut):
                    whole(make(disk), data, journal=journal)
                disk.lose_power(Survives.LOST)
            whole(make(disk), data, journal=journal)


def test_slots_know_the_other():
    disk = sim_disk()
    slots = Slots("bundle", BundleSlot(disk, Label.A, APP), BundleSlot(disk, Label.B, APP))
    assert slots.other(Label.A).label is Label.B
    assert slots[Label.A].label is Label.A
