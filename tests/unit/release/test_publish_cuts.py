"""The power goes at every storage operation of a publish: what is left is the old or the new repository, whole."""

from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from support import authoring
from support.authoring import NOW, SECRETS

from firmament.errors import FirmamentError
from firmament.release import publish, rotation, sign
from firmament.release.store import RepositoryStore
from firmament.release.verify import verify_release, verify_repository
from firmament.release.workspace import Workspace
from firmament.sim.disk import SimDisk
from firmament.sim.faults import DiskFull, Survives
from firmament.trust import key_files

HOME = Path("/home/ws")
PUBLIC = Path("/srv/pub")
LATER = NOW + timedelta(hours=1)


@pytest.fixture
def disk(monkeypatch, tree):
    """1.0 is published to PUBLIC; 1.1 is signed and waits."""
    disk = SimDisk(capacity_bytes=1024**3)
    monkeypatch.setattr(key_files, "read_private_file", disk.get)
    for parent in (HOME.parent, PUBLIC.parent):
        disk.make_directory(parent)
        disk.sync_directory(parent.parent)
    workspace = authoring.make_workspace(HOME, disk=disk)
    authoring.release(workspace, tree, "1.0")
    publish.publish_directory(workspace, PUBLIC, now=NOW)
    (tree / "lib" / "x").write_text("2")
    authoring.build_release(workspace, tree, "1.1")
    authoring.sign_release(workspace, "thermo/1.1")
    disk.lose_power(Survives.ORDERED)
    return disk


def publish_all(disk):
    workspace = Workspace(disk, HOME)
    if sign.current_draft(workspace, "thermo") is not None:
        authoring.publish_local(workspace, now=LATER)
    publish.publish_directory(workspace, PUBLIC, now=LATER)


def state_of(disk, directory):
    """Verify everything a device would, and say what it finds: the state's identity."""
    store = RepositoryStore(disk, directory)
    files = store.files()
    view = verify_repository(files, files["1.root.json"], now=LATER)
    for release in view.releases:
        verify_release(view, store, disk, release)
    assert view.timestamp_version
    return view.root.signed.version, view.timestamp_version, tuple(sorted(view.releases))


def states_at_every_cut(disk, act):
    """Run `act` and keep what a cut at each operation would leave."""
    remnants = []

    def remember(operation):
        remnants.extend((operation, survives, disk.after_cut(survives)) for survives in Survives)

    disk.before = remember
    act(disk)
    disk.before = None
    return remnants


def check_every_cut(disk, act, monkeypatch):
    before = {directory: state_of(disk, directory) for directory in (HOME / "repository", PUBLIC)}
    remnants = states_at_every_cut(disk, act)
    after = {directory: state_of(disk, directory) for directory in before}
    seen = set()
    for operation, survives, remnant in remnants:
        for directory, old in before.items():
            found = state_of(remnant, directory)
            assert found in {old, after[directory]}, f"{operation} {survives}"
            seen.add((directory, found))
        if survives is Survives.LOST:
            monkeypatch.setattr(key_files, "read_private_file", remnant.get)
            act(remnant)
            assert state_of(remnant, PUBLIC)[2] == after[PUBLIC][2], f"again after {operation} {survives}"
    assert seen == {(directory, state[directory]) for directory in before for state in (before, after)}
    return len(remnants)


def test_a_cut_publish_leaves_the_old_or_the_new_repository(disk, monkeypatch):
    assert check_every_cut(disk, publish_all, monkeypatch) > 200


def test_a_cut_rotation_of_the_timestamp_key_leaves_the_old_or_the_new_repository(disk, monkeypatch):
    """The root and the timestamp under the new key appear in one instant."""

    def rotate(disk):
        workspace = Workspace(disk, HOME)
        if workspace.root().signed.version == 1:
            names = set(workspace.key_records())
            new = "timestamp-ed25519-2" if "timestamp-ed25519-2" in names else None
            rotation.replace(
                workspace,
                "timestamp",
                old="timestamp",
                new=new,
                passphrase=authoring.PASSPHRASE,
                secrets=SECRETS,
                now=LATER,
            )
        publish.publish_directory(workspace, PUBLIC, now=LATER)

    assert check_every_cut(disk, rotate, monkeypatch) > 100


def test_the_check_finds_a_store_that_writes_in_place(disk, monkeypatch):
    """The plain way, one file after the other in the directory that is served, does not hold the promise."""

    def commit_in_place(self, changed):
        for name, data in sorted(changed.items(), reverse=True):  # timestamp first: the record before the deed
            with closing(self._disk.open_writer(self._metadata / name)) as writer:
                writer.truncate(0)
                writer.write_at(0, data)
                writer.sync()
        self._disk.sync_directory(self._metadata)

    monkeypatch.setattr(RepositoryStore, "commit", commit_in_place)
    with pytest.raises((AssertionError, FirmamentError)):
        check_every_cut(disk, publish_all, monkeypatch)


def test_a_full_disk_leaves_the_old_repository_and_the_draft(disk):
    """Refused at every operation in turn; with room again, the same command succeeds."""
    old = state_of(disk, PUBLIC)
    total = disk.clone()
    start = total.operations
    publish_all(total)
    for number in range(start, total.operations, 3):
        full = disk.clone()
        full.faults.append(DiskFull(from_operation=number))
        try:
            publish_all(full)
        except FirmamentError as error:
            assert error.code == "slot/disk-full"  # noqa: PT017 - the last operations need no space
        full.faults.clear()
        assert state_of(full, PUBLIC) in {old, state_of(total, PUBLIC)}
        publish_all(full)
        assert state_of(full, PUBLIC)[2] == state_of(total, PUBLIC)[2]
