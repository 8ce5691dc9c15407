"""The demonstration's world: commands are judged by their exit code, and nothing outlives it."""

import json
import stat
import sys
from types import SimpleNamespace

import pytest

from firmament.core.clock import SystemClock
from firmament.sim import device
from firmament.sim.demo import fleet
from firmament.sim.demo import world as worlds
from firmament.sim.demo.world import Differs, Log, World


@pytest.fixture
def shown():
    return []


@pytest.fixture
def world(tmp_path, shown, monkeypatch):
    # The house's commands are stood in for by the interpreter: this is about the world, not about them.
    monkeypatch.setattr(worlds, "command_path", lambda name: sys.executable if name.startswith("firm") else name)
    with World(tmp_path / "world", SimpleNamespace(command=shown.append), SystemClock()) as found:
        yield found


def python(code: str) -> list[str]:
    return ["firmament", "-c", code]


def test_a_command_runs_in_the_world_and_is_shown_and_logged(world, shown):
    done = world.run(*python("import os, json; print(json.dumps({'at': os.getcwd()}))"))
    assert done.json() == {"at": str(world.directory)}
    assert shown[0].startswith("firmament -c ")
    assert "[exit 0 after " in (world.logs / "commands.log").read_text()


def test_another_exit_code_than_expected_is_told_with_what_was_said(world):
    with pytest.raises(Differs, match=r"ended with 3, not 0: no such luck"):
        world.run(*python("import sys; sys.stderr.write('no such luck'); sys.exit(3)"))
    assert world.run(*python("import sys; sys.exit(3)"), codes=(3,)).code == 3


def test_all_commands_end_before_the_first_failure_is_told(world):
    slow = python("import time, pathlib; time.sleep(0.3); pathlib.Path('done').touch()")
    with pytest.raises(Differs):
        world.run_all([python("raise SystemExit(1)"), slow])
    assert (world.directory / "done").exists()


def test_settings_of_the_person_do_not_leak_in_but_exported_ones_do(world, monkeypatch):
    monkeypatch.setenv("FIRMAMENT_TOKEN", "for a real server")
    world.export("FIRMAMENT_TOKEN_FILE", "token")
    code = "import os, json; print(json.dumps({k: v for k, v in os.environ.items() if k.startswith('FIRMAMENT_T')}))"
    assert world.run(*python(code)).json() == {"FIRMAMENT_TOKEN_FILE": "token"}


def test_secrets_are_random_and_readable_by_their_owner_only(world):
    one, two = world.secret_file("one"), world.secret_file("two")
    assert one.read_text() != two.read_text()
    assert len(one.read_text()) > 30
    assert stat.S_IMODE(one.stat().st_mode) == 0o600


def test_a_part_that_dies_ends_the_waiting_with_its_name(world):
    world.start("server", *python("raise SystemExit(7)"))
    with pytest.raises(Differs, match="server ended by itself with 7"):
        world.wait_until("never", lambda: False, timeout_s=20)


def test_waiting_ends_after_its_time(world):
    with pytest.raises(Differs, match="did not happen within 0 s: the moon falls"):
        world.wait_until("the moon falls", lambda: False, timeout_s=0.05)


def test_closing_ends_every_part_and_what_it_started(world):
    child = "import subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True)\n"
    world.start("device", *python(child + "open('up', 'w').close(); time.sleep(60)"))
    world.wait_until("it is up", (world.directory / "up").exists, timeout_s=10)
    plug = world.plug_of("device")
    assert len(device.on_plug(plug)) == 2
    world.close()
    assert device.on_plug(plug) == []


def test_a_power_cut_ends_one_part_only(world):
    for name in ("one", "two"):
        world.start(name, *python(f"import time; open('{name}', 'w').close(); time.sleep(60)"))
    world.wait_until("both are up", lambda: all((world.directory / n).exists() for n in ("one", "two")), timeout_s=10)
    assert world.cut_power("one") >= 1
    assert not world.is_running("one")
    assert world.is_running("two")


def test_a_log_is_read_line_by_line_and_only_once(tmp_path):
    log = Log(tmp_path / "x.log")
    assert list(log.new()) == []
    log.path.write_text('{"event": "a"}\nTraceback\n[1]\n{"event": ')
    assert list(log.new()) == [{"event": "a"}]
    with log.path.open("a") as file:
        file.write(json.dumps("b") + "}\n")
    assert list(log.new()) == [{"event": "b"}]


def test_what_was_kept_can_be_stopped_by_its_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(worlds, "command_path", lambda name: sys.executable)
    with World(tmp_path, SimpleNamespace(command=lambda line: None), SystemClock(), is_kept=True) as world:
        world.start("server", *python("import time; open('up', 'w').close(); time.sleep(60)"))
        world.wait_until("it is up", (tmp_path / "up").exists, timeout_s=10)
        world.write_running()
    assert world.is_running("server")
    assert worlds.stop_kept(tmp_path, SystemClock()) == 1
    world._parts["server"].wait(5)
    assert worlds.stop_kept(tmp_path, SystemClock()) == 0


def test_sockets_have_short_paths_even_in_a_deep_folder(tmp_path):
    deep = tmp_path / ("d" * 100)
    device_ = fleet.Device("gateway-1", "gateway", "gw-x2")
    with World(deep, SimpleNamespace(command=lambda line: None), SystemClock()) as world:
        path = fleet.socket_path(world, device_)
        assert len(bytes(path)) <= 107
        assert path.parent.is_dir()
    assert not path.parent.exists()
