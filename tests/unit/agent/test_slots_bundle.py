"""The bundle slot: unpacked while it arrives, resumable, read back, and nothing outside itself."""

import io
import os
import stat
import tarfile
from pathlib import Path

import pytest

from firmament.agent.slots.bundle import BundleSlot
from firmament.agent.slots.port import Label
from firmament.core import bundle
from firmament.core.bundle import Entry, EntryKind
from firmament.core.digest import Digest
from firmament.core.manifest import Image
from firmament.durable import RealDisk
from firmament.errors import (
    BootControlError,
    DigestMismatchError,
    LengthExceededError,
    ReadBackError,
    SlotTooSmallError,
    UnsafeArchiveError,
)
from firmament.sim.disk import SimDisk

TREE = (
    (Entry("bin", EntryKind.DIRECTORY), b""),
    (Entry("bin/tool", EntryKind.FILE, is_executable=True, length_bytes=700), b"#!" + b"x" * 698),
    (Entry("bin-data", EntryKind.FILE, length_bytes=3), b"abc"),
    (Entry("empty", EntryKind.DIRECTORY), b""),
    (Entry("lib", EntryKind.DIRECTORY), b""),
    (Entry("lib/deep", EntryKind.DIRECTORY), b""),
    (Entry("lib/deep/" + "n" * 120, EntryKind.FILE, length_bytes=512), b"p" * 512),
    (Entry("lib/link", EntryKind.SYMLINK, link="../bin/tool"), b""),
    (Entry("main.py", EntryKind.FILE, length_bytes=5000), bytes(range(250)) * 20),
    (Entry("zero", EntryKind.FILE), b""),
)


def pack(tree=TREE) -> bytes:
    return b"".join(bundle.header(e) + d + bundle.padding(len(d)) for e, d in tree) + bundle.END


def image_of(data: bytes) -> Image:
    return Image(Digest.of(data), len(data))


DATA = pack()
IMAGE = image_of(DATA)


def fill(slot, data=DATA, image=IMAGE, step=97):
    slot.begin(image)
    for start in range(0, len(data), step):
        slot.write(data[start : start + step])
    slot.finish()
    slot.verify(image)
    slot.close()


@pytest.fixture(params=["real", "simulated"])
def disk(request):
    return RealDisk() if request.param == "real" else SimDisk()


@pytest.fixture
def slot(disk, tmp_path):
    disk.make_directory(tmp_path, mode=0o755)
    return BundleSlot(disk, Label.B, tmp_path / "app")


def test_the_order_of_the_tests_tree_is_the_grammars():
    reader = bundle.Reader()
    assert [found for found in reader.feed(DATA) if isinstance(found, Entry)] == [entry for entry, _ in TREE]
    reader.finish()


@pytest.mark.parametrize("step", [1, 511, 512, 1000, 10**6])
def test_what_is_packed_is_unpacked(slot, disk, step):
    fill(slot, step=step)
    for entry, data in TREE:
        path = slot.path / entry.path
        assert stat.S_IMODE(disk.mode(path)) == entry.mode
        if entry.kind is EntryKind.FILE:
            reader = disk.open_reader(path)
            assert reader.read_at(0, 10_000) == data
            reader.close()
    assert disk.read_link(slot.path / "lib/link") == "../bin/tool"


def test_the_umask_changes_nothing(tmp_path):
    old = os.umask(0o077)
    try:
        fill(BundleSlot(RealDisk(), Label.A, tmp_path))
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a/bin").stat().st_mode) == 0o755


def test_pythons_tarfile_reads_the_same(tmp_path):
    fill(BundleSlot(RealDisk(), Label.A, tmp_path))
    with tarfile.open(fileobj=io.BytesIO(DATA)) as tar:
        tar.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.2, Debian's, has none
        tar.extractall(tmp_path / "tar")
    ours = {p.relative_to(tmp_path / "a"): p.is_file() and p.read_bytes() for p in (tmp_path / "a").rglob("*")}
    theirs = {p.relative_to(tmp_path / "tar"): p.is_file() and p.read_bytes() for p in (tmp_path / "tar").rglob("*")}
    assert ours == theirs


@pytest.mark.parametrize("stop", range(0, len(DATA), 256))
def test_every_checkpoint_is_a_place_to_go_on(disk, tmp_path, stop):
    disk.make_directory(tmp_path, mode=0o755)
    slot = BundleSlot(disk, Label.B, tmp_path / "app")
    slot.begin(IMAGE)
    slot.write(DATA[:stop])
    offset = slot.checkpoint()
    assert stop - 3 * 512 - 1024 <= offset <= stop  # at most one (extended) header or the end is told again
    slot.write(DATA[stop : stop + 900])  # never promised
    slot.close()
    again = BundleSlot(disk, Label.B, tmp_path / "app")
    assert again.resume(IMAGE, offset) == offset
    assert again.resume(IMAGE, offset) == offset
    assert again.checkpoint() == offset
    again.write(DATA[offset:])
    again.finish()
    again.verify(IMAGE)
    again.close()


def test_resume_begins_again_when_what_was_stored_is_gone(slot, disk):
    slot.begin(IMAGE)
    slot.write(DATA[:4000])
    offset = slot.checkpoint()
    slot.close()
    disk.remove(slot.path / "bin/tool")
    assert slot.resume(IMAGE, offset) == 0
    assert disk.list(slot.path) == []
    slot.write(DATA)
    slot.finish()
    slot.close()


def test_leftovers_are_removed(slot, disk):
    fill(slot)
    fill(slot, pack(TREE[:2]), image_of(pack(TREE[:2])))
    assert disk.list(slot.path) == ["bin"]
    assert disk.list(slot.path / "bin") == ["tool"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda root: (root / "main.py").write_bytes(b"y" * 5000),
        lambda root: (root / "main.py").write_bytes(b""),
        lambda root: (root / "main.py").unlink(),
        lambda root: (root / "bin/tool").chmod(0o644),
        lambda root: (root / "bin/tool").chmod(0o4755),
        lambda root: (root / "more").write_bytes(b""),
        lambda root: (root / "__pycache__").mkdir(),
        lambda root: os.mkfifo(root / "fifo"),
        lambda root: (root / "zzz").symlink_to("/etc/passwd"),
        lambda root: (root / "\udcff").write_bytes(b""),
        lambda root: (root / "endless").write_bytes(b"e" * 100_000),
    ],
    ids=["bytes", "shorter", "gone", "mode", "setuid", "more", "directory", "fifo", "symlink", "name", "endless"],
)
def test_read_back_sees_every_change(tmp_path, spoil):
    slot = BundleSlot(RealDisk(), Label.A, tmp_path)
    fill(slot)
    spoil(slot.path)
    with pytest.raises(ReadBackError):
        slot.verify(IMAGE)


def test_the_booted_slot_is_never_touched(disk, tmp_path):
    disk.make_directory(tmp_path / "app/b", mode=0o755)
    disk.symlink("b", tmp_path / "app/current")
    slot = BundleSlot(disk, Label.B, tmp_path / "app")
    for start in (slot.begin, lambda image: slot.resume(image, 512)):
        with pytest.raises(BootControlError):
            start(IMAGE)


def test_a_slot_that_is_a_symlink_is_replaced_not_followed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/precious").write_bytes(b"1")
    (tmp_path / "b").symlink_to("elsewhere")
    fill(BundleSlot(RealDisk(), Label.B, tmp_path))
    assert (tmp_path / "elsewhere/precious").read_bytes() == b"1"
    assert not (tmp_path / "b").is_symlink()


def test_too_small_changes_nothing(disk, tmp_path):
    disk.make_directory(tmp_path, mode=0o755)
    slot = BundleSlot(disk, Label.B, tmp_path / "app")
    fill(slot)
    small = BundleSlot(disk, Label.B, tmp_path / "app", limit_bytes=len(DATA) - 1)
    with pytest.raises(SlotTooSmallError):
        small.begin(IMAGE)
    small.verify(IMAGE)


def test_the_signed_length_and_digest_bound_what_is_written(slot):
    slot.begin(IMAGE)
    slot.write(DATA)
    with pytest.raises(LengthExceededError):
        slot.write(b"\0")
    slot.begin(IMAGE)
    with pytest.raises(LengthExceededError, match="A file of the bundle"):
        slot.write(bundle.header(Entry("a", EntryKind.FILE, length_bytes=IMAGE.length_bytes)))
    slot.begin(IMAGE)
    slot.write(DATA[:-512])
    with pytest.raises(DigestMismatchError):
        slot.finish()
    slot.begin(IMAGE)
    slot.write(DATA.replace(b"abc", b"abd"))
    with pytest.raises(DigestMismatchError):
        slot.finish()
    slot.close()


EVIL = {
    "zip slip": lambda t: t.replace_name("../../evil"),
    "absolute": lambda t: t.replace_name("/etc/evil"),
    "setuid": lambda t: t.replace(mode=0o4755),
    "hard link": lambda t: t.replace(type=tarfile.LNKTYPE, linkname="a"),
    "device": lambda t: t.replace(type=tarfile.CHRTYPE),
    "fifo": lambda t: t.replace(type=tarfile.FIFOTYPE),
    "absolute symlink": lambda t: t.replace(type=tarfile.SYMTYPE, linkname="/etc"),
    "escaping symlink": lambda t: t.replace(type=tarfile.SYMTYPE, linkname="../x"),
    "owner": lambda t: t.replace(uid=1000),
}


class _Member(tarfile.TarInfo):
    def replace(self, **fields):
        for key, value in fields.items():
            setattr(self, key, value)

    def replace_name(self, name):
        self.name = name


@pytest.mark.parametrize("attack", EVIL)
def test_case_56_an_archive_that_means_harm_is_refused(disk, tmp_path, attack):
    """An author's key was misused: the archive is signed, and still nothing outside the slot is written."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        evil = _Member("evil")
        evil.mode, evil.mtime = 0o644, bundle.BUNDLE_TIME
        EVIL[attack](evil)
        tar.addfile(evil)
    data = out.getvalue()
    disk.make_directory(tmp_path / "app", mode=0o755)
    slot = BundleSlot(disk, Label.B, tmp_path / "app")
    slot.begin(image_of(data))
    with pytest.raises(UnsafeArchiveError):
        slot.write(data)
    slot.close()
    assert disk.list(slot.path) == []
    assert disk.list(tmp_path) == ["app"]
    assert not Path("/etc/evil").exists()


def test_a_member_below_a_symlink_is_refused(slot, disk):
    tree = ((Entry("a", EntryKind.SYMLINK, link="b"), b""), (Entry("a/evil", EntryKind.FILE, length_bytes=1), b"x"))
    data = pack(tree)
    slot.begin(image_of(data))
    with pytest.raises(UnsafeArchiveError):
        slot.write(data)
    slot.close()
    assert disk.list(slot.path) == ["a"]


def test_calls_in_the_wrong_order_are_mistakes(slot):
    for call in (lambda: slot.write(b""), slot.checkpoint, slot.finish):
        with pytest.raises(RuntimeError):
            call()
    slot.close()
    slot.close()


def test_resume_begins_again_over_what_it_did_not_write(tmp_path):
    slot = BundleSlot(RealDisk(), Label.A, tmp_path)
    for spoil in (lambda: os.mkfifo(slot.path / "bin/fifo"), lambda: (slot.path / "bin/\\").write_bytes(b"")):
        slot.begin(IMAGE)
        slot.write(DATA[:9000])
        offset = slot.checkpoint()
        slot.close()
        spoil()
        assert slot.resume(IMAGE, offset) == 0
        slot.close()


def test_an_offset_that_no_checkpoint_gave_begins_again(slot):
    slot.begin(IMAGE)
    slot.write(DATA)
    slot.finish()
    slot.close()
    for offset in (1, 100, 513, len(DATA), len(DATA) + 1):
        assert slot.resume(IMAGE, offset) in {0, offset}
        slot.close()
        fill(slot)
    assert slot.resume(IMAGE, 100) == 0
    slot.close()


def test_what_is_in_the_way_of_the_slot_is_removed(tmp_path):
    (tmp_path / "b").write_bytes(b"a file")
    slot = BundleSlot(RealDisk(), Label.B, tmp_path)
    assert slot.capacity_bytes() > 0
    fill(slot)
