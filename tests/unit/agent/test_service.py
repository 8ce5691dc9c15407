"""The shipped units: systemd reads them without a word, and they expose little."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import firmament
from firmament.agent.service import PROGRAM, SHIPPED_PROGRAM, install, program_path, unit
from firmament.durable import RealDisk
from firmament.errors import FileError

SOURCE = Path(firmament.__file__).parent
UNITS = [SOURCE / "agent/units/firmament-agent.service", SOURCE / "server/units/firmament-server.service"]
MAX_EXPOSURE = 3.0

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="Debian's systemd is not installed (make packages)"
)


def by_name(path):
    return path.name


@needs_systemd
@pytest.mark.parametrize("path", UNITS, ids=by_name)
def test_systemd_reads_it_without_a_word(tmp_path, path):
    """Unknown keys only warn, with exit code 0: so nothing may be said at all."""
    program = Path(sys.executable).with_name("firmament")
    text = re.sub(r"/usr/bin/firmament(-agent)?", lambda match: f"{program}{match[1] or ''}", path.read_text())
    copy = tmp_path / path.name
    copy.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "--man=no", "verify", f"./{path.name}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr.strip()) == (0, "")


@needs_systemd
def test_the_check_above_would_notice(tmp_path):
    (tmp_path / "x.service").write_text("[Service]\nExecStart=/bin/true\nProtectEverything=yes\n")
    done = subprocess.run(
        ["systemd-analyze", "--man=no", "verify", "./x.service"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "ProtectEverything" in done.stderr


@needs_systemd
@pytest.mark.parametrize("path", UNITS, ids=by_name)
def test_it_exposes_little(path):
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert found, done.stdout + done.stderr
    assert float(found[1]) <= MAX_EXPOSURE


def test_the_agents_unit_has_a_watchdog_and_never_gives_up():
    text = unit("firmament-agent.service")
    for line in ("Type=notify", "WatchdogSec=30min", "Restart=always", "StartLimitIntervalSec=0"):
        assert f"\n{line}\n" in text


def test_install_writes_once_and_keeps_the_owners_settings(tmp_path):
    assert {step.did for step in install(tmp_path, program="/opt/venv/bin/firmament-agent")} == {"wrote"}
    service = tmp_path / "etc/systemd/system/firmament-agent.service"
    settings = tmp_path / "etc/firmament/agent.toml"
    assert "ExecStart=/opt/venv/bin/firmament-agent run\n" in service.read_text()
    assert settings.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "var/lib/firmament").stat().st_mode & 0o777 == 0o700
    settings.write_text("mine")
    service.write_text("old")
    did = {step.path: step.did for step in install(tmp_path, program="/opt/venv/bin/firmament-agent")}
    assert (did.pop(service), did.pop(settings)) == ("updated", "kept")
    assert set(did.values()) == {"unchanged"}
    assert settings.read_text() == "mine"


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "etc").write_text("a file")
    with pytest.raises(FileError):
        install(tmp_path)


def test_the_program_is_named_as_the_target_sees_it(tmp_path, monkeypatch):
    assert program_path(Path("/")) == str(Path(sys.executable).with_name(PROGRAM))
    assert program_path(tmp_path) == SHIPPED_PROGRAM
    inside = tmp_path / "opt/venv/bin"
    inside.mkdir(parents=True)
    (inside / PROGRAM).touch()
    monkeypatch.setattr(sys, "executable", str(inside / "python"))
    assert program_path(tmp_path) == f"/opt/venv/bin/{PROGRAM}"
    assert RealDisk().exists(inside)
