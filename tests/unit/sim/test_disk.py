"""SimDisk keeps POSIX's promises about durability, and no others."""

from pathlib import Path

import pytest

from firmament.durable import RealDisk, replace_durably
from firmament.errors import DiskFullError, FileError, ReadOnlyError
from firmament.sim.disk import SimDisk
from firmament.sim.faults import BrokenDisk, Cut, DiskFull, PowerCut, ReadOnlyDisk, Survives

FILE = Path("/state/file")


def disk_with(old: bytes = b"old") -> SimDisk:
    disk = SimDisk()
    disk.put(FILE, old)
    return disk


def write(disk, path: Path, data: bytes, *, sync: bool = False) -> None:
    writer = disk.open_writer(path)
    writer.write_at(0, data)
    if sync:
        writer.sync()
    writer.close()


@pytest.mark.parametrize(
    ("survives", "left"),
    [
        (Survives.ORDERED, b"new data"),
        (Survives.LOST, b"old"),
        (Survives.HOLLOW, b"old\0\0\0\0\0"),
        (Survives.NAMELESS, b"new data"),
    ],
)
def test_unsynced_bytes_are_at_the_mercy_of_the_cut(survives, left):
    disk = disk_with()
    write(disk, FILE, b"new data")
    disk.lose_power(survives)
    assert disk.get(FILE) == left


@pytest.mark.parametrize("survives", list(Survives))
def test_synced_bytes_survive_every_cut(survives):
    disk = disk_with()
    write(disk, FILE, b"new data", sync=True)
    disk.lose_power(survives)
    assert disk.get(FILE) == b"new data"


@pytest.mark.parametrize(
    ("survives", "there"),
    [(Survives.ORDERED, True), (Survives.LOST, False), (Survives.HOLLOW, True), (Survives.NAMELESS, False)],
)
def test_a_name_needs_its_directory_synced(survives, there):
    disk = disk_with()
    write(disk, FILE.with_name("other"), b"x", sync=True)
    disk.lose_power(survives)
    assert disk.exists(FILE.with_name("other")) is there


def test_the_second_half_of_a_torn_write_is_missing():
    disk = disk_with(b"old old!")
    writer = disk.open_writer(FILE)
    disk.cut = Cut(at=0, survives=Survives.TORN)
    with pytest.raises(PowerCut):
        writer.write_at(0, b"new new!")
    disk.lose_power()
    assert disk.get(FILE) == b"new old!"


def test_a_torn_write_back_lands_in_the_wrong_order():
    disk = disk_with(b"o" * 64)
    writer = disk.open_writer(FILE)
    writer.write_at(0, b"n" * 64)
    disk.cut = Cut(at=1, survives=Survives.TORN)
    with pytest.raises(PowerCut):
        writer.sync()
    disk.lose_power()
    assert disk.get(FILE) == b"o" * 32 + b"n" * 32


@pytest.mark.parametrize("survives", list(Survives))
def test_durable_replacement_leaves_the_old_bytes_or_the_new_ones_whole(survives):
    total = disk_with()
    replace_durably(total, FILE, b"the new bytes")
    found = set()
    for at in range(total.operations):
        disk = disk_with()
        disk.cut = Cut(at, survives)
        with pytest.raises(PowerCut):
            replace_durably(disk, FILE, b"the new bytes")
        disk.lose_power()
        found.add(disk.get(FILE))
        assert found <= {b"old", b"the new bytes"}
    assert b"old" in found


def test_a_forgotten_file_sync_is_found():
    """The test above can fail: without the sync, a cut leaves NULs under the name."""
    disk = disk_with()
    temporary = FILE.with_name("file.new")
    write(disk, temporary, b"the new bytes")
    disk.replace(temporary, FILE)
    disk.sync_directory(FILE.parent)
    disk.lose_power(Survives.HOLLOW)
    assert disk.get(FILE) == b"\0" * 13


def test_nothing_works_while_the_power_is_off():
    disk = disk_with()
    writer = disk.open_writer(FILE)
    disk.cut = Cut(at=0)
    for attempt in (lambda: writer.write_at(0, b"x"), writer.sync, lambda: disk.list(FILE.parent)):
        with pytest.raises(PowerCut):
            attempt()
    disk.lose_power()
    assert disk.get(FILE) == b"old"


def test_a_full_disk_refuses_growth_but_not_overwriting():
    disk = disk_with()
    fault = DiskFull()
    disk.faults.append(fault)
    write(disk, FILE, b"new", sync=True)
    with pytest.raises(DiskFullError):
        write(disk, FILE, b"longer")
    with pytest.raises(DiskFullError):
        write(disk, FILE.with_name("other"), b"")
    assert fault.struck == 2


def test_the_capacity_is_a_limit_and_removed_files_give_it_back():
    disk = SimDisk(capacity_bytes=10)
    disk.put(FILE, b"12345")
    with pytest.raises(DiskFullError):
        write(disk, FILE, b"12345678901")
    assert disk.free_bytes(FILE.parent) == 5
    disk.remove(FILE)
    assert disk.free_bytes(FILE.parent) == 10


def test_a_device_never_changes_its_length():
    disk = SimDisk()
    disk.put(FILE, bytes(8), is_device=True)
    writer = disk.open_writer(FILE)
    writer.write_at(0, b"12345678")
    with pytest.raises(DiskFullError):
        writer.write_at(4, b"12345")
    with pytest.raises(FileError):
        writer.truncate(4)
    assert disk.get(FILE) == b"12345678"


def test_read_only_and_broken_disks():
    disk = disk_with()
    disk.faults[:] = [ReadOnlyDisk()]
    with pytest.raises(ReadOnlyError):
        write(disk, FILE, b"new")
    disk.faults[:] = [BrokenDisk(under=FILE.parent, changes=False)]
    with pytest.raises(FileError):
        disk.open_reader(FILE)
    write(disk, FILE, b"new")
    assert disk.get(FILE) == b"new"


def test_a_clone_is_independent_and_equal():
    disk = disk_with()
    twin = disk.clone()
    assert twin.fingerprint() == disk.fingerprint()
    write(twin, FILE, b"new", sync=True)
    assert disk.get(FILE) == b"old"
    assert twin.fingerprint() != disk.fingerprint()


def test_dump_marks_what_is_not_durable():
    disk = disk_with()
    write(disk, FILE, b"new")
    assert "/state/file 644 3" in disk.dump()
    assert disk.dump().endswith(" *")


SCRIPT = [
    lambda d, r: d.make_directory(r / "a" / "b"),
    lambda d, r: write(d, r / "a" / "file", b"hello"),
    lambda d, r: d.symlink("a/file", r / "link"),
    lambda d, r: d.symlink("../a", r / "a" / "loop"),
    lambda d, r: d.symlink("nowhere", r / "dangling"),
    lambda d, r: d.replace(r / "a" / "file", r / "a" / "moved"),
    lambda d, r: d.replace(r / "a" / "file", r / "a" / "gone"),
    lambda d, r: write(d, r / "a" / "file", b"again"),
    lambda d, r: d.replace(r / "a" / "moved", r / "a"),
    lambda d, r: d.replace(r / "a" / "b", r / "c"),
    lambda d, r: d.remove(r / "c"),
    lambda d, r: d.remove(r / "missing"),
    lambda d, r: d.symlink("x", r / "link"),
    lambda d, r: write(d, r / "link", b"through a symlink"),
    lambda d, r: write(d, r / "none" / "file", b"no directory"),
    lambda d, r: d.open_writer(r / "missing", create=False).close(),
    lambda d, r: d.open_reader(r / "dangling").close(),
    lambda d, r: d.make_directory(r / "a" / "file"),
    lambda d, r: d.sync_directory(r / "a"),
    lambda d, r: d.sync_directory(r / "missing"),
    lambda d, r: d.remove_tree(r / "missing"),
    lambda d, r: d.list(r / "a" / "file"),
    lambda d, r: d.remove_tree(r / "a"),
]


def seen(disk, root: Path):
    def content(path: Path):
        try:
            reader = disk.open_reader(path)
        except FileError:
            return None
        try:
            return reader.read_at(1, 100)
        except FileError:
            return None
        finally:
            reader.close()

    paths = [root / name for name in ("", "a", "a/file", "a/moved", "a/loop", "a/loop/file", "link", "dangling", "c")]
    return [
        (
            str(path.relative_to(root)),
            disk.exists(path),
            disk.read_link(path),
            content(path),
            None if path.name in {"", "a", "c", "loop"} or path == root else disk.length_bytes(path),
        )
        for path in paths
    ]


def test_it_behaves_like_the_real_disk(tmp_path):
    """The same steps, the same refusals and the same sight after each step."""
    sim, real = SimDisk(), RealDisk()
    sim.make_directory(Path("/root"))
    for number, step in enumerate(SCRIPT):
        outcomes = []
        for disk, root in ((sim, Path("/root")), (real, tmp_path)):
            try:
                step(disk, root)
                outcomes.append(None)
            except FileError as error:
                outcomes.append(error.code)
        assert outcomes[0] == outcomes[1], f"step {number}"
        assert seen(sim, Path("/root")) == seen(real, tmp_path), f"step {number}"
