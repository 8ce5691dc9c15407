"""The settings tables for slots, boot control and health, and the seam for other kinds."""

from datetime import UTC, datetime
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from firmament.agent import kinds
from firmament.agent.bootctl.choice import StoredBootControl
from firmament.agent.bootctl.machine import LinuxMachine
from firmament.agent.bootctl.settings import Around, boot_control_from_fields
from firmament.agent.bootctl.sim import SimBootControl
from firmament.agent.bootctl.supervisor import Supervisor
from firmament.agent.health.settings import checks_from_fields
from firmament.agent.slots.port import Label, Slots
from firmament.agent.slots.settings import slots_from_fields
from firmament.core.clock import FixedClock
from firmament.core.fields import Fields
from firmament.errors import BootControlError, FirmamentError, MalformedError, SettingError
from firmament.sim.disk import SimDisk

BUNDLE = {"kind": "bundle", "directory": "/opt/app"}
IMAGE = {"kind": "image", "a": "/dev/mmcblk0p2", "b": "/dev/mmcblk0p3"}


def slots(**table):
    return slots_from_fields(Fields(table, what="slots"), disk=SimDisk())


def around(table=BUNDLE, disk=None):
    disk = disk or SimDisk()
    return Around(disk, FixedClock(datetime(2026, 1, 1, tzinfo=UTC)), Path("/var/lib/firmament"), slots(**table))


def boot(*, given=None, **table):
    return boot_control_from_fields(Fields(table, what="boot"), around=given or around())


def test_slots():
    bundle, image = slots(**BUNDLE), slots(**IMAGE, limit_bytes=10)
    assert (bundle.kind, bundle.a.path, bundle.b.path) == ("bundle", Path("/opt/app/a"), Path("/opt/app/b"))
    assert (image.kind, image.a.path, image.b.path) == ("image", Path("/dev/mmcblk0p2"), Path("/dev/mmcblk0p3"))
    assert [bundle[label].label for label in Label] == list(Label)


@pytest.mark.parametrize(
    "table",
    [
        {},
        {"kind": "tape"},
        {"kind": 1},
        {"kind": "bundle"},
        {"kind": "bundle", "directory": "app"},
        {"kind": "image", "a": "/dev/x"},
        {"kind": "image", "a": "/dev/x", "b": "/dev/x"},
        {**IMAGE, "limit_bytes": 0},
        {**BUNDLE, "limit_bytes": "1 MB"},
    ],
)
def test_slots_that_cannot_be(table):
    with pytest.raises((SettingError, MalformedError)):
        slots(**table)


def test_boot_controls():
    disk = SimDisk()
    disk.put(Path("/etc/fw_env.config"), b"/dev/mmcblk0 0x400000 0x4000\n/dev/mmcblk0 0x404000 0x4000\n")
    disk.put(Path("/etc/one"), b"/dev/mmcblk0 0x400000 0x4000\n")
    given = around(disk=disk)
    assert isinstance(boot(kind="supervisor", command=["main"]), Supervisor)
    assert isinstance(boot(kind="sim"), SimBootControl)
    assert isinstance(boot(kind="grub", parameter="rauc.slot", restart=["reboot"]), StoredBootControl)
    assert isinstance(boot(kind="uboot", given=given), StoredBootControl)
    assert isinstance(boot(kind="uboot", config="/etc/one", accept_single_copy=True, given=given), StoredBootControl)
    with pytest.raises(SettingError):
        boot(kind="uboot", config="/etc/one", given=given)


@pytest.mark.parametrize(
    "table",
    [
        {"kind": "lilo"},
        {"kind": "supervisor"},
        {"kind": "supervisor", "command": []},
        {"kind": "supervisor", "command": [""]},
        {"kind": "supervisor", "command": "main"},
        {"kind": "supervisor", "command": ["x"], "stop_timeout_s": 0},
        {"kind": "supervisor", "command": ["x"], "user": "; rm"},
        {"kind": "grub", "path": "grubenv"},
        {"kind": "grub", "parameter": "a b"},
        {"kind": "grub", "restart": []},
        {"kind": "uboot", "config": "/etc/none"},
    ],
)
def test_boot_controls_that_cannot_be(table):
    with pytest.raises(FirmamentError):
        boot(**table)


def test_the_supervisor_needs_bundles():
    with pytest.raises(SettingError):
        boot(kind="supervisor", command=["x"], given=around(IMAGE))


def test_health():
    checks = checks_from_fields(
        Fields(table, what="health")
        for table in (
            {"kind": "command", "command": ["/bin/true"]},
            {"kind": "http", "url": "http://127.0.0.1:8080/health", "timeout_s": 9, "expect": "ok"},
            {"kind": "systemd", "unit": "thermo@1.service"},
        )
    )
    assert [check.name for check in checks] == [
        "command /bin/true",
        "http http://127.0.0.1:8080/health",
        "systemd thermo@1.service",
    ]


@pytest.mark.parametrize(
    "table",
    [
        {"kind": "smell"},
        {"kind": "command"},
        {"kind": "http", "url": "http://example.com/"},
        {"kind": "http", "url": "http://127.0.0.1/", "timeout_s": 0},
        {"kind": "systemd", "unit": "a b"},
        {"kind": "systemd", "unit": ""},
    ],
)
def test_health_that_cannot_be(table):
    with pytest.raises((SettingError, MalformedError)):
        checks_from_fields([Fields(table, what="health")])


def read_plugin(fields, *, disk):
    del disk
    return Slots(fields.text("kind"), None, None)


def test_another_kind_comes_by_entry_point(monkeypatch):
    def points(*, group):
        return [
            EntryPoint("mtd", f"{__name__}:read_plugin", group),
            EntryPoint("broken", "no.such.module:read", group),
            EntryPoint("bundle", "no.such.module:read", group),
        ]

    monkeypatch.setattr(kinds, "entry_points", points)
    monkeypatch.setattr(EntryPoint, "load", lambda point: read_plugin if point.name == "mtd" else 1 / 0)
    assert slots(kind="mtd").kind == "mtd"
    assert slots(**BUNDLE).a.path == Path("/opt/app/a")  # ours are not replaced
    with pytest.raises(SettingError, match="plug-in"):
        slots(kind="broken")
    with pytest.raises(SettingError, match="mtd"):
        slots(kind="unknown")


# --- the facts of a Linux machine ------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "label"),
    [
        ("console=ttyS0 firmament.slot=a ro", Label.A),
        ("firmament.slot=B", Label.B),
        ('firmament.slot="b" quiet', Label.B),
        ("firmament.slot=a firmament.slot=b", Label.B),
        ("xfirmament.slot=b firmament.slot=a", Label.A),
    ],
)
def test_the_command_line_says_what_is_booted(tmp_path, line, label):
    (tmp_path / "cmdline").write_text(line + "\n")
    assert LinuxMachine(command_line=tmp_path / "cmdline").booted() is label


@pytest.mark.parametrize("line", ["", "quiet", "firmament.slot", "firmament.slot=", "firmament.slot=c", "rauc.slot=A"])
def test_a_command_line_that_does_not_say_is_an_error(tmp_path, line):
    (tmp_path / "cmdline").write_text(line)
    with pytest.raises(BootControlError):
        LinuxMachine(command_line=tmp_path / "cmdline").booted()


def test_another_parameter(tmp_path):
    (tmp_path / "cmdline").write_text("rauc.slot=A")
    assert LinuxMachine(parameter="rauc.slot", command_line=tmp_path / "cmdline").booted() is Label.A


def test_boot_id_and_restart(tmp_path):
    (tmp_path / "id").write_text("1b2c\n")
    machine = LinuxMachine(
        boot_id=tmp_path / "id", command_line=tmp_path / "none", restart=["touch", str(tmp_path / "down")]
    )
    assert machine.boot_id() == "1b2c"
    machine.restart()
    assert (tmp_path / "down").exists()
    with pytest.raises(BootControlError):
        machine.booted()
    for command in (["false"], ["/no/such/reboot"]):
        with pytest.raises(BootControlError):
            LinuxMachine(restart=command).restart()
    assert len(LinuxMachine().boot_id()) == 36
