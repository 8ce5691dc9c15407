import contextlib
import dataclasses
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmament.agent.compose import attributes_of, caches_of
from firmament.agent.fetch import TransferSettings
from firmament.agent.policy import Policy
from firmament.agent.service import skeleton
from firmament.agent.settings import (
    SETTINGS,
    HookSettings,
    parse_settings,
    read_settings,
    require_settings,
    settings_table,
)
from firmament.agent.share import ShareSettings
from firmament.agent.slots.settings import KINDS as SLOT_KINDS
from firmament.agent.storage import compose_storage
from firmament.core.clock import SystemClock
from firmament.core.consent import Mode
from firmament.durable import RealDisk
from firmament.errors import FileError, FirmamentError, SettingError

SMALL = """
[slots]
kind = "bundle"
directory = "/opt/app"
[boot]
kind = "supervisor"
command = ["python3", "main.py"]
"""


@pytest.fixture
def read(tmp_path):
    def write(text):
        path = tmp_path / "agent.toml"
        path.write_text(text)
        return read_settings(RealDisk(), path)

    return write


def test_little_is_enough_and_the_rest_has_defaults(read):
    settings = read(SMALL)
    assert settings.state_directory == Path("/var/lib/firmament")
    assert settings.transfer == TransferSettings()
    assert settings.policy.mode_for("feature") is Mode.AUTOMATIC
    assert (settings.health, settings.factory, settings.hooks) == ((), None, HookSettings())


def test_everything_can_be_set(read, tmp_path):
    settings = read(f"""
state_dir = "/data/firmament"
socket = "/run/x.sock"
socket_group = "ops"
log_level = "debug"
[device]
hardware = "rpi4"
attributes = {{ site = "roof 7" }}
[factory]
version = "1.0"
sequence_number = 7
digest = "sha256:{"ab" * 32}"
length_bytes = 5
slot = "b"
[slots]
kind = "image"
a = "{tmp_path}/a"
b = "{tmp_path}/b"
limit_bytes = 1000
[boot]
kind = "sim"
[[health]]
kind = "http"
url = "http://127.0.0.1:8080/health"
timeout_s = 3
expect = "ok"
[[health]]
kind = "command"
command = ["true"]
[trial]
deadline_s = 90
[policy]
mode = "ask"
security = "automatic"
[transfer]
max_rate_bytes_per_s = 100000
deadline_s = 3600
[hooks]
directory = "/etc/firmament/hooks"
timeout_s = 3
""")
    assert settings.factory.sequence_number == 7
    assert settings.policy == dataclasses.replace(
        Policy(), security=Mode.AUTOMATIC, feature=Mode.ASK, zone=settings.policy.zone
    )
    assert (settings.trial.deadline_s, settings.transfer.deadline_s) == (90, 3600)
    assert settings.hooks == HookSettings(Path("/etc/firmament/hooks"), 3)
    assert attributes_of(settings)["site"] == "roof 7"
    storage = compose_storage(settings, disk=RealDisk(), clock=SystemClock())
    assert [check.name for check in storage.checks] == ["http http://127.0.0.1:8080/health", "command true"]


def test_neighbours_are_asked_first_and_with_little_patience(read):
    text = SMALL + '[payload]\nneighbours = ["http://192.168.1.20:8735"]\nbase_urls = ["http://cdn/fw/"]\n'
    settings = read(text)
    assert settings.share is None, "nothing is given unless it is asked for"
    nearby, far = caches_of(settings, SystemClock())
    assert (nearby.url, far.url) == ("http://192.168.1.20:8735/", "http://cdn/fw/")
    assert far.transport._settings == settings.transfer
    how = nearby.transport._settings
    found = (how.connect_timeout_s, how.idle_timeout_s, how.min_rate_bytes_per_s, how.rate_window_s)
    assert found == (2, 5, 16 * 1024, 5)


def test_payloads_are_offered_at_a_local_address_only(read):
    shared = read(SMALL + '[share]\nlisten = "192.168.1.20:8735"\nmax_rate_bytes_per_s = 0\n').share
    assert shared == ShareSettings("192.168.1.20", 8735, 0, 256 * 1024**2)
    assert read(SMALL + '[share]\nlisten = "[fe80::1]:8735"\n').share.max_rate_bytes_per_s == 4 * 1024**2
    for wrong in ("0.0.0.0:8735", "[::]:8735", "8.8.8.8:8735", "192.168.1.20", "host:8735", "192.168.1.20:70000"):
        with pytest.raises(SettingError):
            read(SMALL + f'[share]\nlisten = "{wrong}"\n')


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("polcy = 1\n" + SMALL, "polcy"),
        (SMALL + "[policy]\npol_interval_s = 5\n", "policy.pol_interval_s"),
        (SMALL + '[[health]]\nkind = "http"\nurl = "http://127.0.0.1/"\ncommand = ["x"]\n', "health.command"),
        (SMALL.replace("directory", "a"), "slots.a"),
        ("[slots]\n", ""),
        (SMALL + '[policy]\nmode = "sometimes"\n', ""),
        (SMALL + '[policy]\nmode = "window"\n', ""),
        (SMALL + "[policy]\npoll_interval_s = 1\n", ""),
        (SMALL + "[transfer]\nmin_rate_bytes_per_s = 500\nmax_rate_bytes_per_s = 100\n", ""),
        (SMALL + "[transfer]\ndeadline_s = 1.5\n", ""),
        ('log_level = "loud"\n' + SMALL, ""),
        ('state_dir = "here"\n' + SMALL, ""),
        (SMALL + "[factory]\nversion = '1'\ndigest = 'md5:00'\n", ""),
        ("slots = 1\n", ""),
        ("[slots\n", ""),
        ("\x00", ""),
        (SMALL + "# " + "x" * 70_000, ""),
    ],
    ids=range(17),
)
def test_mistakes_are_said(read, text, names):
    with pytest.raises(SettingError) as caught:
        read(text)
    assert caught.value.facts.get("setting", "") == names or not names


def test_mistakes_in_kinds_are_said(read):
    for text in (
        SMALL.replace('"bundle"', '"card"'),
        SMALL.replace('"/opt/app"', '"opt/app"'),
        SMALL.replace('"supervisor"', '"lilo"'),
        SMALL + '[[health]]\nkind = "oracle"\n',
        SMALL + '[[health]]\nkind = "http"\nurl = "http://example.com/"\n',
        SMALL.replace('command = ["python3", "main.py"]', ""),
        SMALL.replace('command = ["python3", "main.py"]', "command = []"),
    ):
        with pytest.raises(SettingError):
            compose_storage(read(text), disk=RealDisk(), clock=SystemClock())


def test_no_file_says_how_to_make_one(tmp_path):
    with pytest.raises(FileError, match="install-service"):
        require_settings(RealDisk(), tmp_path / "absent")


@given(st.dictionaries(st.sampled_from([row.section or row.name for row in SETTINGS]), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([row.name for row in SETTINGS]), inner, max_size=4),
    max_leaves=9,
)))  # fmt: skip
def test_any_table_gives_settings_or_one_of_our_errors(table):
    with contextlib.suppress(FirmamentError):
        parse_settings(table, Path("/x"))


def test_the_table_knows_what_the_readers_know():
    """Every default of the table that TOML can read is accepted, and changes nothing."""
    names = [(row.section, row.name, row.only) for row in settings_table()]
    assert len(set(names)) == len(names)
    assert {word for row in SETTINGS if row.section == "slots" for word in row.only.split()} == set(SLOT_KINDS)
    for section in ("trial", "policy", "transfer", "hooks"):
        rows = [
            row
            for row in SETTINGS
            if row.section == section and (row.default[0] in '"0123456789' or row.default == "false")
        ]
        text = SMALL + f"[{section}]\n" + "\n".join(f"{row.name} = {row.default}" for row in rows)
        assert values(tomllib.loads(text), section) == values(tomllib.loads(SMALL), section)


def values(table, section):
    found = getattr(parse_settings(table, Path("/x")), section)
    names = {item.name for item in dataclasses.fields(found)} - {"zone"}  # read from the system, equals only itself
    return {name: getattr(found, name) for name in names}


def test_every_unit_is_said():
    units = {
        "_bytes_per_s": "bytes per second",
        "_s": "seconds",
        "_bytes": "bytes",
        "_percent": "percent",
        "_days": "days",
        "_ms": "milliseconds",
    }
    for row in SETTINGS:
        assert row.unit == next((unit for ending, unit in units.items() if row.name.endswith(ending)), ""), row


def test_the_skeleton_is_toml_and_works_once_filled_in():
    text = skeleton()
    assert set(tomllib.loads(text)) == {"slots", "boot"}
    for row in SETTINGS:
        assert f"#{row.name} = " in text
    filled = text.replace("\n[slots]", '\n[slots]\nkind = "bundle"\ndirectory = "/opt/app"').replace(
        "\n[boot]", '\n[boot]\nkind = "supervisor"\ncommand = ["true"]'
    )
    for section in ("trial", "policy", "transfer", "hooks"):
        assert values(tomllib.loads(filled), section) == values(tomllib.loads(SMALL), section)
