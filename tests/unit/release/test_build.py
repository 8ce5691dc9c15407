"""Build: the same tree gives the same bytes, every kind of source is told apart, nothing half-built stays."""

import json
import os
import shutil
import socket
import struct
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from support import authoring
from support.authoring import NOW

from firmament.core.bundle import Entry
from firmament.core.digest import Digest
from firmament.core.manifest import decode
from firmament.durable import RealDisk
from firmament.errors import (
    ConflictError,
    DiskFullError,
    FileError,
    FirmamentError,
    MalformedError,
    NotFoundError,
    ReadOnlyError,
    RollbackError,
    UnsafeArchiveError,
)
from firmament.payload.mcuboot.layout import MAGIC
from firmament.release import build, bundle, sign
from firmament.sim.disk import SimDisk
from firmament.sim.faults import DiskFull, ReadOnlyDisk


def mcuboot_image(body=b"x" * 100, *, header=32, protected=0, magic=MAGIC, image=None, tlvs=b"\x07\x69\x04\x00"):
    size = len(body) if image is None else image
    head = struct.pack("<IIHHIIBBHI4x", magic, 0, header, protected, size, 0, 1, 2, 3, 4)
    return head + bytes(header - 32) + body + tlvs


def test_the_same_tree_gives_the_same_bytes(tmp_path):
    """Other owners, times, permissions, places and orders of creation change nothing."""
    first = authoring.make_tree(tmp_path / "a", x="1", y="2")
    second = authoring.make_tree(tmp_path / "b", y="2", x="1")
    (second / "lib" / "x").chmod(0o600)
    (second / "main.py").chmod(0o711)
    os.utime(second / "lib" / "y", (1, 1))
    shutil.copytree(first, tmp_path / "elsewhere" / "deep")
    digests = {Digest.of(bundle.write(root)) for root in (first, second, tmp_path / "elsewhere" / "deep")}
    assert len(digests) == 1
    (second / "lib" / "x").write_text("3")
    assert Digest.of(bundle.write(second)) not in digests


def test_a_bundle_holds_the_tree(tree):
    (tree / "run").symlink_to("lib/x")
    (tree / "empty").mkdir()
    found = {entry.path: entry for entry, _ in bundle.check(bundle.write(tree))}
    assert sorted(found) == ["empty", "lib", "lib/x", "main.py", "run"]
    assert found["main.py"].is_executable
    assert not found["lib/x"].is_executable
    assert found["run"].link == "lib/x"
    assert isinstance(found["lib"], Entry)


def make_fifo(tree):
    os.mkfifo(tree / "pipe")


def make_socket(tree):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tree / "s"))


BAD_TREES = {
    "fifo": make_fifo,
    "socket": make_socket,
    "setuid": lambda tree: (tree / "main.py").chmod(0o4755),
    "link-absolute": lambda tree: (tree / "l").symlink_to("/etc/passwd"),
    "link-outside": lambda tree: (tree / "lib" / "l").symlink_to("../../x"),
    "case-clash": lambda tree: (tree / "MAIN.py").write_text(""),
    "newline": lambda tree: (tree / "a\nb").write_text(""),
    "not-utf8": lambda tree: Path(os.fsdecode(os.fsencode(tree) + b"/\xff")).write_text(""),
    "backslash": lambda tree: (tree / "a\\b").write_text(""),
}


@pytest.mark.parametrize("name", BAD_TREES)
def test_a_tree_no_bundle_can_hold_is_refused_and_nothing_stays(workspace, tree, name):
    BAD_TREES[name](tree)
    with pytest.raises(UnsafeArchiveError):
        authoring.build_release(workspace, tree, "1.0")
    assert list((workspace.directory / "releases").iterdir()) == []


def test_a_file_that_grows_while_it_is_read_is_refused(tree, monkeypatch):
    listed = bundle.entries(tree)
    monkeypatch.setattr(bundle, "entries", lambda _root: listed)
    (tree / "lib" / "x").write_text("longer than before")
    with pytest.raises(FileError, match="changed"):
        list(bundle.write(tree))
    (tree / "lib" / "x").write_text("")
    with pytest.raises(FileError, match="changed"):
        list(bundle.write(tree))


def test_sources_are_told_apart(tmp_path, tree):
    (tmp_path / "image").write_bytes(b"\0" * 4096)
    (tmp_path / "mcu").write_bytes(mcuboot_image())
    assert build.detect_installer(tree) == "bundle"
    assert build.detect_installer(tmp_path / "image") == "image"
    assert build.detect_installer(tmp_path / "mcu") == "mcuboot"
    make_fifo(tmp_path)
    for bad in (tmp_path / "absent", tmp_path / "pipe"):
        with pytest.raises(FileError):
            build.detect_installer(bad)


def test_a_built_release_reads_back(workspace, tree):
    built = authoring.build_release(workspace, tree, "1.0")
    again = build.load_built(workspace.disk, built.directory)
    assert again == built
    made = again.manifest
    assert (made.sequence_number, made.installer, made.image.length_bytes) == (
        1,
        "bundle",
        made.payloads[0].length_bytes,
    )
    assert made.image.digest == made.payloads[0].digest == Digest.of(bundle.write(tree))
    assert made.payloads[0].target == "thermo/1.0/bundle.tar"
    sign.check_files(workspace, again)


def test_a_raw_image_is_taken_as_it_is(workspace, tmp_path):
    (tmp_path / "rootfs.img").write_bytes(os.urandom(3_000_001))
    built = authoring.build_release(workspace, tmp_path / "rootfs.img", "1.0")
    assert built.file_of("thermo/1.0/image.img").read_bytes() == (tmp_path / "rootfs.img").read_bytes()


def test_a_ready_made_bundle_is_checked(workspace, tmp_path, tree):
    good = tmp_path / "good.tar"
    good.write_bytes(b"".join(bundle.write(tree)))
    built = authoring.build_release(workspace, good, "1.0", installer="bundle")
    assert built.manifest.image.digest == Digest.of(good.read_bytes())
    bad = tmp_path / "bad.tar"
    bad.write_bytes(good.read_bytes()[:-512])
    with pytest.raises(UnsafeArchiveError):
        authoring.build_release(workspace, bad, "1.1", installer="bundle")


BAD_MCUBOOT = {
    "short": mcuboot_image()[:20],
    "truncated": mcuboot_image()[:60],
    "no-tlvs": mcuboot_image(tlvs=b""),
    "image-too-long": mcuboot_image(image=200),
    "image-huge": mcuboot_image(image=2**32 - 1),
    "image-empty": mcuboot_image(image=0),
    "protected-too-long": mcuboot_image(protected=60_000),
    "header-short": mcuboot_image()[:8] + b"\x10\x00" + mcuboot_image()[10:],
    "other-magic": mcuboot_image(magic=0x96F3B83C),
}


@pytest.mark.parametrize("name", BAD_MCUBOOT)
def test_an_mcuboot_image_that_is_not_whole_is_refused(workspace, tmp_path, name):
    (tmp_path / "mcu").write_bytes(BAD_MCUBOOT[name])
    with pytest.raises(MalformedError):
        authoring.build_release(workspace, tmp_path / "mcu", "1.0", installer="mcuboot")
    assert list((workspace.directory / "releases").iterdir()) == []


def test_sequence_numbers_go_up_over_built_drafted_published_and_withdrawn(workspace, tree):
    authoring.release(workspace, tree, "1.0")
    authoring.build_release(workspace, tree, "1.1")
    assert authoring.build_release(workspace, tree, "1.2").manifest.sequence_number == 3
    assert authoring.build_release(workspace, tree, "1.3", sequence_number=40).manifest.sequence_number == 40
    for number in (0, 3, 40):
        with pytest.raises(RollbackError):
            authoring.build_release(workspace, tree, "1.4", sequence_number=number)
    shutil.rmtree(workspace.directory / "releases")
    (workspace.directory / "releases").mkdir()
    authoring.build_release(workspace, tree, "2.0", sequence_number=60)
    authoring.sign_release(workspace, "thermo/2.0")
    authoring.publish_local(workspace)
    sign.withdraw_release(workspace, "thermo/2.0", keys=(), secrets=authoring.SECRETS, now=NOW)
    authoring.publish_local(workspace)
    shutil.rmtree(workspace.directory / "releases")
    (workspace.directory / "releases").mkdir()
    assert authoring.build_release(workspace, tree, "2.1").manifest.sequence_number == 61


def test_a_build_is_never_overwritten(workspace, tree):
    built = authoring.build_release(workspace, tree, "1.0")
    before = (built.directory / "bundle.tar").read_bytes()
    with pytest.raises(ConflictError):
        authoring.build_release(workspace, tree, "1.0")
    assert (built.directory / "bundle.tar").read_bytes() == before


@pytest.mark.parametrize(
    ("fault", "error"), [(DiskFull(), DiskFullError), (ReadOnlyDisk(), ReadOnlyError)], ids=["full", "read-only"]
)
def test_a_build_on_a_bad_disk_leaves_nothing(tree, fault, error, monkeypatch):
    disk = SimDisk()
    workspace = authoring.make_workspace("/ws", disk=disk)
    fault.from_operation = disk.operations + 4
    disk.faults.append(fault)
    with pytest.raises(error):
        authoring.build_release(workspace, tree, "1.0")
    disk.faults.clear()
    assert not [name for name in disk.list(Path("/ws/releases")) if not name.endswith(".new")]
    assert authoring.build_release(workspace, tree, "1.0").manifest.version == "1.0"


def test_what_a_device_would_refuse_is_not_built(workspace, tree, tmp_path):
    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    with pytest.raises(NotFoundError):
        authoring.build_release(workspace, tree, "1.0", product="other")
    for version in ("", "../x", "1 0", "-1"):
        with pytest.raises(MalformedError):
            authoring.build_release(workspace, tree, version)
    for options in ({"notes": {"ENGLISH!": "x"}}, {"notes": {"en": "x" * 3000}}, {"installer": "Bundle"}):
        with pytest.raises(FirmamentError):
            authoring.build_release(workspace, tree, "1.0", **options)
    assert list((workspace.directory / "releases").iterdir()) == []
    with pytest.raises(MalformedError):
        authoring.build_release(workspace, empty, "1.0", installer="image")


RELEASE_FILES = {
    "not-json": b"{",
    "other-version": b'{"v":2,"manifest":{},"files":{}}',
    "no-manifest": b'{"v":1,"files":{}}',
    "huge": b" " * 300_000,
}


@pytest.mark.parametrize("name", RELEASE_FILES)
def test_a_strange_release_file_is_refused(workspace, tree, name):
    built = authoring.build_release(workspace, tree, "1.0")
    (built.directory / "release.json").write_bytes(RELEASE_FILES[name])
    with pytest.raises(FirmamentError) as caught:
        sign.find_built(workspace, "thermo/1.0")
    assert caught.value.code.startswith("request/")


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", "", "/etc/passwd"])
def test_a_release_file_cannot_name_files_elsewhere(workspace, tree, name):
    built = authoring.build_release(workspace, tree, "1.0")
    value = json.loads((built.directory / "release.json").read_bytes())
    value["files"]["thermo/1.0/bundle.tar"] = name
    (built.directory / "release.json").write_text(json.dumps(value))
    with pytest.raises(MalformedError):
        build.load_built(RealDisk(), built.directory)


def test_every_option_lands_in_the_manifest(workspace, tree, tmp_path):
    (tmp_path / "bom").write_bytes(b"sbom")
    made = authoring.build_release(
        workspace,
        tree,
        "1.0",
        update_class="security",
        notes={"en": "Fixes.", "de": "Behebt."},
        min_sequence_number=0,
        min_agent=1,
        free_bytes=5,
        battery_percent=50,
        mains_power=True,
        unmetered_link=True,
        sbom=tmp_path / "bom",
        provenance=tmp_path / "bom",
        allow_downgrade=True,
    ).manifest
    assert decode(made.to_json()) == made
    assert made.sbom_digest == made.provenance_digest == Digest.of(b"sbom")
    assert (made.update_class, made.preconditions.battery_percent, made.allow_downgrade) == ("security", 50, True)
    assert isinstance(made.created_at, datetime)
    assert replace(made, allow_downgrade=False) != made
