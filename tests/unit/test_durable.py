"""Storage: the order of operations that makes a replacement durable, and errors in our words."""

import errno
import os
import stat

import pytest

from firmament.durable import (
    RealDisk,
    make_directory_durably,
    mapped_errors,
    public_mode_of,
    read_file,
    replace_durably,
)
from firmament.errors import DiskFullError, FileError, ReadOnlyError, TooLargeError


class RecordingWriter:
    def __init__(self, inner, name, log):
        self._inner, self._name, self._log = inner, name, log

    def __getattr__(self, operation):
        def call(*args):
            self._log.append((operation, self._name))
            return getattr(self._inner, operation)(*args)

        return call


class RecordingDisk(RealDisk):
    """Writes down every operation that changes storage, and can fail at one of them."""

    def __init__(self, fail_at=None):
        self.log = []
        self.fail_at = fail_at

    def _record(self, operation, name):
        self.log.append((operation, name))
        if operation == self.fail_at:
            raise DiskFullError("No space is left")

    def open_writer(self, path, **options):
        self._record("open_writer", path.name)
        return RecordingWriter(super().open_writer(path, **options), path.name, self.log)

    def replace(self, source, destination):
        self._record("replace", f"{source.name} {destination.name}")
        super().replace(source, destination)

    def sync_directory(self, path):
        self._record("sync_directory", path.name)
        super().sync_directory(path)

    def remove(self, path):
        self._record("remove", path.name)
        super().remove(path)


def test_a_replacement_is_synced_before_and_after_its_rename(tmp_path):
    disk = RecordingDisk()
    directory = tmp_path / "state"
    directory.mkdir()
    replace_durably(disk, directory / "journal", b"new")
    assert disk.log == [
        ("remove", "journal.new"),
        ("open_writer", "journal.new"),
        ("write_at", "journal.new"),
        ("sync", "journal.new"),
        ("close", "journal.new"),
        ("replace", "journal.new journal"),
        ("sync_directory", "state"),
    ]
    assert (directory / "journal").read_bytes() == b"new"


@pytest.mark.parametrize("fail_at", ["open_writer", "replace"])
def test_a_failed_replacement_leaves_the_old_bytes_and_no_rest(tmp_path, fail_at):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(DiskFullError):
        replace_durably(RecordingDisk(fail_at), path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_rest_of_an_earlier_replacement_does_not_matter(tmp_path):
    (tmp_path / "file.new").write_bytes(b"a longer rest of an interrupted replacement")
    replace_durably(RealDisk(), tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_files_are_private_unless_asked_otherwise(tmp_path, mode):
    replace_durably(RealDisk(), tmp_path / "file", b"", **({} if mode == 0o600 else {"mode": mode}))
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


def test_what_is_written_at_offsets_is_read_at_offsets(tmp_path):
    disk = RealDisk()
    writer = disk.open_writer(tmp_path / "slot")
    writer.write_at(4, b"5678")
    writer.write_at(0, memoryview(b"1234"))
    writer.truncate(6)
    writer.sync()
    writer.close()
    reader = disk.open_reader(tmp_path / "slot")
    assert reader.read_at(0, 3) + reader.read_at(3, 100) + reader.read_at(6, 1) == b"123456"
    reader.close()
    assert disk.length_bytes(tmp_path / "slot") == 6


def test_opening_for_writing_never_truncates_and_never_follows_a_symlink(tmp_path):
    disk = RealDisk()
    (tmp_path / "file").write_bytes(b"kept")
    disk.open_writer(tmp_path / "file").close()
    assert (tmp_path / "file").read_bytes() == b"kept"
    disk.symlink("file", tmp_path / "link")
    with pytest.raises(FileError):
        disk.open_writer(tmp_path / "link")
    with pytest.raises(FileError):
        disk.open_writer(tmp_path / "absent", create=False)


def test_short_reads_and_writes_of_the_system_are_completed(tmp_path, monkeypatch):
    real_read, real_write = os.pread, os.pwrite
    monkeypatch.setattr(os, "pread", lambda fd, length, offset: real_read(fd, min(length, 3), offset))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real_write(fd, data[:2], offset))
    replace_durably(RealDisk(), tmp_path / "file", b"0123456789")
    assert read_file(RealDisk(), tmp_path / "file", limit_bytes=10) == b"0123456789"


def test_every_read_has_a_ceiling(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    assert read_file(RealDisk(), tmp_path / "file", limit_bytes=5) == b"12345"
    with pytest.raises(TooLargeError) as caught:
        read_file(RealDisk(), tmp_path / "file", limit_bytes=4)
    assert caught.value.facts["length_bytes"] == 5
    with pytest.raises(FileError, match="does not exist"):
        read_file(RealDisk(), tmp_path / "absent", limit_bytes=5)
    with pytest.raises(FileError):
        read_file(RealDisk(), tmp_path, limit_bytes=1_000_000)  # a directory


def test_names(tmp_path):
    disk = RealDisk()
    tree = tmp_path / "a" / "b"
    disk.make_directory(tree)
    disk.make_directory(tree)
    assert stat.S_IMODE(tree.stat().st_mode) == 0o700
    disk.symlink("nowhere", tree / "link")
    assert disk.exists(tree / "link")  # dangling, but there
    assert disk.read_link(tree / "link") == "nowhere"
    assert disk.read_link(tree) is None
    assert disk.list(tree) == ["link"]
    assert disk.list(tmp_path / "absent") == []
    assert disk.length_bytes(tmp_path / "absent") is None
    assert disk.length_bytes(tree / "link" / "below") is None
    disk.symlink("elsewhere", tree / "link.new")
    disk.replace(tree / "link.new", tree / "link")
    assert disk.read_link(tree / "link") == "elsewhere"
    with pytest.raises(FileError):
        disk.symlink("again", tree / "link")
    disk.remove(tree / "link")
    disk.remove(tree / "link")
    disk.remove_tree(tmp_path / "a")
    disk.remove_tree(tmp_path / "a")
    assert not disk.exists(tmp_path / "a")
    assert disk.free_bytes(tmp_path) > 0


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, DiskFullError),
        (errno.EDQUOT, DiskFullError),
        (errno.EROFS, ReadOnlyError),
        (errno.EACCES, FileError),
        (errno.EIO, FileError),
        (errno.ELOOP, FileError),
    ],
)
def test_errors_of_the_system_are_mapped_and_keep_their_cause(tmp_path, number, expected):
    with pytest.raises(expected) as caught, mapped_errors(tmp_path / "file"):
        raise OSError(number, os.strerror(number))
    assert type(caught.value) is expected
    assert caught.value.facts == {"path": tmp_path / "file", "reason": os.strerror(number)}
    assert caught.value.__cause__.errno == number


@pytest.mark.parametrize("operation", ["pwrite", "fsync", "ftruncate", "pread"])
def test_every_operation_on_an_open_file_is_mapped(tmp_path, monkeypatch, operation):
    file = RealDisk().open_writer(tmp_path / "file")

    def fail(*args):
        raise OSError(errno.EROFS, "read-only")

    monkeypatch.setattr(os, operation, fail)
    call = {
        "pwrite": lambda: file.write_at(0, b"x"),
        "fsync": file.sync,
        "ftruncate": lambda: file.truncate(0),
        "pread": lambda: file.read_at(0, 1),
    }[operation]
    with pytest.raises(ReadOnlyError):
        call()
    file.close()


def test_a_directory_that_cannot_be_synced_is_an_error(tmp_path):
    with pytest.raises(FileError):
        RealDisk().sync_directory(tmp_path / "absent")


def test_a_path_that_cannot_be_is_our_error(tmp_path):
    for call in (RealDisk().open_reader, RealDisk().length_bytes, RealDisk().make_directory, RealDisk().remove):
        with pytest.raises(FileError, match="not a path"):
            call(tmp_path / "a\0b")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a device that is always full")  # noqa: PTH110
def test_a_full_device_says_so():
    from pathlib import Path

    writer = RealDisk().open_writer(Path("/dev/full"), create=False)
    with pytest.raises(DiskFullError, match="No space is left"):
        writer.write_at(0, b"x")
    writer.close()


def test_the_length_of_a_block_device_is_found_by_seeking(tmp_path, monkeypatch):
    (tmp_path / "device").write_bytes(b"12345")  # stat() of a real one says 0
    monkeypatch.setattr(stat, "S_ISBLK", lambda mode: True)
    assert RealDisk().length_bytes(tmp_path / "device") == 5


def test_the_mode_tells_what_a_name_is_without_following_it(tmp_path):
    disk = RealDisk()
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "file").chmod(0o640)
    disk.symlink("file", tmp_path / "link")
    assert disk.mode(tmp_path / "file") == stat.S_IFREG | 0o640
    assert stat.S_ISLNK(disk.mode(tmp_path / "link"))
    assert stat.S_ISDIR(disk.mode(tmp_path))
    assert disk.mode(tmp_path / "absent") is None
    assert disk.mode(tmp_path / "file" / "below") is None


def test_dropping_the_cache_changes_nothing_and_never_fails(tmp_path):
    (tmp_path / "file").write_bytes(b"kept")
    RealDisk().drop_cache(tmp_path / "file")
    RealDisk().drop_cache(tmp_path / "absent")
    assert (tmp_path / "file").read_bytes() == b"kept"


def test_a_new_directory_is_durable_with_its_parents(tmp_path):
    disk = RecordingDisk()
    make_directory_durably(disk, tmp_path / "a" / "b" / "c")
    synced = [name for operation, name in disk.log if operation == "sync_directory"]
    assert {tmp_path.name, "a", "b"} <= set(synced)
    assert (tmp_path / "a/b/c").is_dir()
    disk.log.clear()
    make_directory_durably(disk, tmp_path / "a" / "b" / "c")
    assert disk.log == [], "what is there costs nothing"


class Fat(RealDisk):
    """A stick: vfat refuses every mode but that of its mount, and asked for all bits drops the others."""

    def open_writer(self, path, *, mode=0o600, create=True):
        if create and mode != 0o777 and not path.exists():
            path.touch()
            raise FileError("The file cannot be used", path=path, reason="Operation not permitted")
        return super().open_writer(path, mode=mode, create=create)


@pytest.mark.parametrize(("disk", "mode"), [(Fat(), 0o777), (RealDisk(), 0o644)])
def test_files_for_everybody_are_written_on_sticks_too(disk, mode, tmp_path):
    assert public_mode_of(disk, tmp_path) == mode
    replace_durably(disk, tmp_path / "receipt", b"signed", mode=public_mode_of(disk, tmp_path))
    assert (tmp_path / "receipt").read_bytes() == b"signed"
    assert [path.name for path in tmp_path.iterdir()] == ["receipt"]
