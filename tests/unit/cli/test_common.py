"""What every command shares: lazy start, one sentence per error, exit codes, secrets that stay secret."""

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from support import documents

from firmament import __version__
from firmament.cli import common
from firmament.cli.common import output, output_options
from firmament.cli.main import COMMANDS, program
from firmament.cli.program import LazyCommand, LazyGroup, Program
from firmament.errors import (
    DependencyMissingError,
    FileError,
    PassphraseError,
    RollbackError,
    SettingError,
    UnauthenticatedError,
)


@click.group(cls=Program)
@output_options
def sample():
    """A program with one command for each way to end."""


@sample.command()
@output_options
def refused():
    raise RollbackError("Manifest is older", installed=42, got=41) from ValueError("the cause")


@sample.command()
@output_options
def broken():
    raise ZeroDivisionError("no")


@sample.command()
@output_options
def vanished():
    raise FileNotFoundError(2, "No such file or directory", "/absent")


@sample.command()
@output_options
def interrupted():
    raise KeyboardInterrupt


@sample.command()
@output_options
def fine():
    output().document("sample", {"answer": 42, "path": os.fspath("x")}, lines=["forty-two"])
    output().next_command("sample more")


def run(*arguments, env=None):
    return CliRunner().invoke(sample, arguments, env=env)


def test_an_error_is_a_sentence_a_code_and_its_exit_code():
    result = run("refused")
    assert result.exit_code == RollbackError.exit_code == 22
    assert result.stdout == ""
    assert result.stderr == (
        "error: Manifest is older (installed=42, got=41). Publish the release under a higher sequence number; "
        "devices never go back.\ncode: trust/rollback\n"
    )


@pytest.mark.parametrize("arguments", [("--json", "refused"), ("refused", "--json")])
def test_an_error_is_one_json_object_for_programs(arguments):
    result = run(*arguments)
    assert result.exit_code == 22
    found = documents.loads(result.stderr)
    assert found["schema"] == "firmament.error/1"
    assert (found["code"], found["facts"], found["retry"]) == ("trust/rollback", {"installed": 42, "got": 41}, "never")


def test_verbose_shows_the_chain_of_causes():
    assert "cause: ValueError: the cause" in run("refused", "-v").stderr
    assert "cause" not in run("refused").stderr


def test_what_nobody_expected_is_a_sentence_too():
    result = run("broken")
    assert (result.exit_code, "Traceback" in result.stderr) == (1, False)
    assert "ZeroDivisionError" in result.stderr
    assert "Traceback" in run("-v", "broken").stderr


def test_an_operating_system_error_names_the_file():
    result = run("vanished")
    assert (result.exit_code, FileError.code in result.stderr, "/absent" in result.stderr) == (102, True, True)


def test_usage_errors_and_interrupts_have_their_own_codes():
    assert run("fine", "--nothing").exit_code == 2
    assert run("nothing").exit_code == 2
    assert run("interrupted").exit_code == 130
    assert run("--help").exit_code == 0


def test_data_goes_to_stdout_and_talk_to_stderr():
    result = run("fine")
    assert (result.stdout, result.stderr, result.exit_code) == ("forty-two\n", "Next: sample more\n", 0)
    as_json = run("fine", env={"FIRMAMENT_JSON": "1"})
    assert json.loads(as_json.stdout) == {"schema": "firmament.sample/1", "answer": 42, "path": "x"}
    assert as_json.stderr == ""


def test_piped_tables_have_tabs():
    assert common.Output().table([("a", 1)], header=("X", "Y")) == ["X\tY", "a\t1"]


def test_a_missing_extra_is_named():
    with pytest.raises(DependencyMissingError) as caught:
        LazyCommand("firmament.cli.nothing:group", "", "server").load()
    assert caught.value.facts["install"] == "firmament[server]"


def test_a_lazy_group_lists_without_importing():
    group = LazyGroup("g", lazy={"x": LazyCommand("no.such.module:x", "Says x.")})
    result = CliRunner().invoke(group, ["--help"])
    assert "Says x." in result.stdout
    assert CliRunner().invoke(group, ["x"]).exit_code == DependencyMissingError.exit_code


HEAVY = ["rich", "cryptography", "tuf", "securesystemslib", "sqlalchemy", "fastapi", "urllib3", "firmament.server"]


@pytest.mark.parametrize("arguments", [["--version"], ["--help"]])
def test_the_command_starts_without_anything_heavy(arguments):
    """console.md §4.1: completion runs the program at every key press."""
    code = (
        "import sys\nfrom firmament.cli.main import program\n"
        f"try: program.main({arguments!r})\nexcept SystemExit as e: assert e.code == 0, e.code\n"
        f"print('loaded:', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "loaded: []"
    if arguments == ["--version"]:
        assert done.stdout.splitlines()[0] == f"firmament {__version__}"


def test_the_installed_command_runs():
    code = "from firmament.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert done.returncode == 2  # help, as click does without a command
    assert b"release" in done.stderr + done.stdout


def test_every_command_of_the_table_has_a_module_or_an_extra():
    assert {"init", "key", "product", "release"} <= set(COMMANDS)
    for name in ("init", "key", "product", "release"):
        assert isinstance(program.get_command(click.Context(program), name), click.Command)


# --- secrets -------------------------------------------------------------------------------


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret"
    path.write_text("correct horse\nsecond line\n")
    path.chmod(0o600)
    return path


def test_a_passphrase_is_the_first_line_of_its_file(secret):
    assert common.read_passphrase(secret, prompt="?") == b"correct horse"


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_secret_that_others_may_read_is_refused(secret, mode):
    secret.chmod(mode)
    with pytest.raises(SettingError, match="chmod 600"):
        common.read_passphrase(secret, prompt="?")


def test_secrets_that_are_none_are_refused(secret):
    for content in (b"", b"\n", b"x" * 5000, b"\xff\xfe"):
        secret.write_bytes(content)
        with pytest.raises(SettingError):
            common.read_secret_file(secret, what="The file")
    secret.unlink()
    with pytest.raises(FileError):
        common.read_secret_file(secret, what="The file")


def test_a_secret_comes_from_a_descriptor():
    read, write = os.pipe()
    os.write(write, b"from a pipe\n")
    os.close(write)
    assert common.read_secret_file(Path(f"/dev/fd/{read}"), what="The file") == "from a pipe"
    os.close(read)


def test_without_a_terminal_a_passphrase_is_not_asked_for(monkeypatch):
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: SIM115, PTH123 - closed below
    with pytest.raises(PassphraseError):
        common.read_passphrase(None, prompt="?")
    sys.stdin.close()


def test_no_input_means_that_nobody_is_asked(monkeypatch):
    """At a terminal too; before and after the sub-command, or by the environment."""
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)

    @click.command()
    @common.output_options
    def ask():
        click.echo(common.may_ask())

    said = {}
    for name, arguments, env in (
        ("plain", [], {}),
        ("flag", ["--no-input"], {}),
        ("env", [], {"FIRMAMENT_NO_INPUT": "1"}),
    ):
        with CliRunner().isolation(env=env) as (out, *_):
            monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
            ask.main(arguments, standalone_mode=False)
            said[name] = out.getvalue().decode().strip()
    assert said == {"plain": "True", "flag": "False", "env": "False"}


def test_the_token_comes_from_file_or_environment(secret, monkeypatch):
    monkeypatch.delenv("FIRMAMENT_TOKEN", raising=False)
    monkeypatch.delenv("FIRMAMENT_TOKEN_FILE", raising=False)
    with pytest.raises(UnauthenticatedError):
        common.read_token()
    monkeypatch.setenv("FIRMAMENT_TOKEN", "from the environment")
    assert common.read_token() == "from the environment"
    monkeypatch.setenv("FIRMAMENT_TOKEN_FILE", str(secret))
    assert common.read_token() == "correct horse"
