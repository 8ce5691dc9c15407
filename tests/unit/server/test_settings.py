"""Settings: file, environment, and refusals that name the setting."""

import dataclasses

import pytest

from firmament.errors import FileError, SettingError
from firmament.server.settings import ServerSettings, read_settings


def read(tmp_path, text, **environment):
    (tmp_path / "firmament.toml").write_text(text)
    return read_settings(tmp_path / "firmament.toml", environment)


def test_defaults_then_file_then_environment(tmp_path):
    assert read(tmp_path, "") == ServerSettings()
    assert read(tmp_path, "[server]\nport = 1\nnames = ['a', 'b']\naddress_requests_per_s = 3").names == ("a", "b")
    found = read(tmp_path, "[server]\nport = 1", FIRMAMENT_SERVER_PORT="2", FIRMAMENT_SERVER_NAMES="x, y")
    assert (found.port, found.names) == (2, ("x", "y"))


@pytest.mark.parametrize(
    ("text", "environment"),
    [
        ("[server]\nprot = 1", {}),
        ("[server]\nport = '1'", {}),
        ("[server]\nport = true", {}),
        ("[server]\nport = -1", {}),
        ("[server]\nnames = 'a'", {}),
        ("[server]\nnames = [1]", {}),
        ("[server]\nrepository_access = 'all'", {}),
        ("[server]\ncertificate = 'x'", {}),
        ("[server]\nquiet_zone = 'Mars/Olympus'", {}),
        ("[server]\nquiet_zone = '../../etc/passwd'", {}),
        ("[server]\nfront_scheme = 'ftp'", {}),
        ("[server]\nfront_scheme = 'http'", {}),
        ("[server]\nfront_scheme = 'http'\nhost = '127.0.0.1'", {}),
        ("[server]\nfront_scheme = 'http'\nfront_secret_file = 'x'", {}),
        ("[server]\nfront_scheme = 'http'\nfront_secret_file = 'x'\nhost = '10.0.0.1'", {}),
        ("server = 1", {}),
        ("[server", {}),
        ("", {"FIRMAMENT_SERVER_PORT": "x"}),
        ("", {"FIRMAMENT_SERVER_PORT": "-1"}),
    ],
)
def test_what_is_wrong_is_refused(tmp_path, text, environment):
    with pytest.raises(SettingError):
        read(tmp_path, text, **environment)


def test_plain_http_is_for_a_front_server_on_this_machine(tmp_path):
    text = "[server]\nfront_secret_file = 'x'\nhost = '::1'\nfront_scheme = "
    assert read(tmp_path, text + "'http'").is_plain
    assert not read(tmp_path, text + "'https'").is_plain


def test_a_missing_file_says_how_to_make_one(tmp_path):
    with pytest.raises(FileError, match="firmament server init"):
        read_settings(tmp_path / "nothing.toml", {})


def test_every_setting_has_a_description():
    for setting in dataclasses.fields(ServerSettings):
        assert setting.metadata["description"].endswith(".")
