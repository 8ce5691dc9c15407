"""Attacks inside what an author signed, and on what lies on the device (trust.md §10, 56 and 57)."""

import io
import os
import re
import stat
import tarfile

import pytest
from attack.hostile import make_bundle

from firmament.errors import UnsafeArchiveError

BUNDLE_TIME = 315_532_800


def tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """What a careless or bribed author could have signed: any tar at all."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for info, data in members:
            info.size, info.mtime = len(data), BUNDLE_TIME
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644, data: bytes = b""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, mode
    return info, data


ARCHIVES = {
    "parent": tar(member("../escaped", data=b"evil")),
    "deep-parent": tar(member("a", tarfile.DIRTYPE, mode=0o755), member("a/../../escaped", data=b"evil")),
    "absolute": tar(member("/escaped", data=b"evil")),
    "symlink-out": tar(member("link", tarfile.SYMTYPE, "../../escaped", 0o777)),
    "symlink-absolute": tar(member("link", tarfile.SYMTYPE, "/etc/passwd", 0o777)),
    "below-symlink": tar(member("link", tarfile.SYMTYPE, "other", 0o777), member("link/escaped", data=b"evil")),
    "hard-link": tar(member("main.py", data=b""), member("other", tarfile.LNKTYPE, "main.py")),
    "device-node": tar(member("null", tarfile.CHRTYPE)),
    "fifo": tar(member("pipe", tarfile.FIFOTYPE)),
    "setuid": tar(member("program", mode=0o4755, data=b"evil")),
    "duplicate": tar(member("main.py", data=b"one"), member("main.py", data=b"two")),
    "case-fold": tar(member("Main.py", data=b"one"), member("main.py", data=b"two")),
    "trailing": make_bundle("1.1") + b"evil",
    "not-an-archive": b"evil" * 1000,
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_56_archives_that_reach_out(stage, kind):
    """A bundle, correctly signed, tries to write where it must not, or to bring what it must not."""
    stage.server.release("1.1", 2, ARCHIVES[kind])
    before = {path for path in stage.victim.directory.parent.rglob("*") if "escaped" in path.name}
    stage.refused(UnsafeArchiveError)
    assert {path for path in stage.victim.directory.parent.rglob("*") if "escaped" in path.name} == before
    assert any(report.code == UnsafeArchiveError.code for report in stage.server.reports)


def test_57_nothing_secret_is_readable_or_logged(own_stage):
    """With the laxest umask and the chattiest log: keys stay 0600 in closed folders, and out of every word said."""
    stage = own_stage
    config = stage.victim.config
    config.write_text('log_level = "debug"\n' + config.read_text())
    stage.server.release("1.1", 2)
    before = os.umask(0)
    try:
        ran = stage.victim.run("all", "--yes", "-v")
    finally:
        os.umask(before)
    assert ran.exit_code == 0, ran.err
    for path in stage.victim.state.rglob("*"):
        if path.is_symlink():
            continue
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode & 0o077 == 0, (path, oct(mode))
    secrets = [
        path.read_text(errors="replace") for path in stage.victim.state.rglob("*") if b"PRIVATE KEY" in _start(path)
    ]
    assert secrets, "the identity key is kept as PEM"
    said = ran.out + ran.err
    for secret in secrets:
        body = re.sub(r"-----[^-]+-----|\s", "", secret)
        assert body[:40] not in said
    assert "one-time" not in said
    assert "one-time" not in "".join(stage.server.asked)
    stage.told.append(
        {"code": "(no secret readable by others, none in a log or URL)", "asked": stage.server.asked[-2:]}
    )


def _start(path) -> bytes:
    return path.read_bytes()[:100] if path.is_file() and not path.is_symlink() else b""
