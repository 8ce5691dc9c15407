"""Where a setting comes from: flag, environment, project, user, system, default (console.md §4.2)."""

import pytest
from click.testing import CliRunner
from support import documents

from firmament.cli import config
from firmament.cli.main import program


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Files of every level, a project directory to stand in, and no variable set."""
    for setting in config.SETTINGS:
        monkeypatch.delenv(setting.variable, raising=False)
    monkeypatch.setenv(config.USER_FILE_VARIABLE, str(tmp_path / "user" / "config.toml"))
    monkeypatch.setenv(config.SYSTEM_FILE_VARIABLE, str(tmp_path / "system.toml"))
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    return tmp_path


def run(*arguments, exit_code=0):
    done = CliRunner().invoke(program, list(arguments))
    assert done.exit_code == exit_code, done.stderr
    return done


def server():
    found = documents.loads(run("config", "list", "--json").stdout)["settings"]
    return next((row["value"], row["origin"]) for row in found if row["name"] == "server")


def test_each_level_wins_over_those_below(world, monkeypatch):
    assert server() == ("", "default")
    run("config", "set", "server", "https://system", "--system")
    assert server() == ("https://system", f"system {world}/system.toml")
    run("config", "set", "server", "https://user")
    assert server() == ("https://user", f"user {world}/user/config.toml")
    run("config", "set", "server", "https://profile", "--profile", "lab")
    assert server()[0] == "https://user"
    run("config", "use", "lab")
    assert server() == ("https://profile", f"profile lab in {world}/user/config.toml")
    (world / "project" / "firmament.toml").write_text('[server]\nurl = "https://project"\n')
    assert server() == ("https://project", "project firmament.toml")
    monkeypatch.setenv("FIRMAMENT_SERVER", "https://environment")
    assert server() == ("https://environment", "environment FIRMAMENT_SERVER")
    assert config.lookup("server", given="https://flag") == config.Found("server", "https://flag", "flag")


def test_a_profile_is_chosen_by_flag_environment_or_file(world, monkeypatch):
    run("config", "set", "server", "https://a", "--profile", "a")
    run("config", "set", "server", "https://b", "--profile", "b")
    run("config", "use", "a")
    monkeypatch.setenv("FIRMAMENT_PROFILE", "b")
    assert server()[0] == "https://b"
    assert run("--profile", "a", "config", "get", "server").stdout == "https://a\n"
    monkeypatch.delenv("FIRMAMENT_PROFILE")
    run("config", "use")
    assert server() == ("", "default")
    assert "known=a b" in run("config", "use", "c", exit_code=83).stderr


def test_a_profile_that_no_file_has_is_an_error(world, monkeypatch):
    monkeypatch.setenv("FIRMAMENT_PROFILE", "gone")
    done = CliRunner().invoke(program, ["config", "get", "server"])
    assert done.exit_code != 0
    assert "request/not-found" in done.stderr


def test_setting_keeps_every_other_line(world):
    path = world / "user" / "config.toml"
    path.parent.mkdir()
    path.write_text('# mine\nserver = "https://old"  # why\n\n[profile.lab]\n# of the lab\nca = "lab.pem"\n')
    run("config", "set", "server", "https://new")
    run("config", "set", "server", "https://lab", "--profile", "lab")
    run("config", "set", "color", "never")
    assert path.read_text() == (
        '# mine\nserver = "https://new"\ncolor = "never"\n\n'
        '[profile.lab]\n# of the lab\nca = "lab.pem"\nserver = "https://lab"\n'
    )
    run("config", "set", "server", "")
    assert "https://new" not in path.read_text()
    assert config.read(path)["profile_settings"]["lab"]["server"] == "https://lab"


def test_a_relative_path_is_meant_from_its_file(world, monkeypatch):
    path = world / "user" / "config.toml"
    path.parent.mkdir()
    path.write_text('ca = "ca.pem"\n')
    assert config.lookup("ca").value == f"{world}/user/ca.pem"


@pytest.mark.parametrize(
    "text", ["server = 1\n", "sever = 'https://x'\n", "[profile.a]\nsever = ''\n", "profile = 'a'\n", "["]
)
def test_a_file_that_is_not_settings_is_refused(world, text):
    path = world / "user" / "config.toml"
    path.parent.mkdir()
    path.write_text(text)
    done = CliRunner().invoke(program, ["config", "get", "server"])
    assert "local/setting" in done.stderr
    assert str(path) in done.stderr


def test_each_profile_has_its_own_token(world, monkeypatch):
    from firmament.cli.common import session_file

    everywhere = session_file()
    run("config", "set", "server", "https://a", "--profile", "a")
    run("config", "use", "a")
    assert session_file() != everywhere
    assert session_file().name == "token-a"
