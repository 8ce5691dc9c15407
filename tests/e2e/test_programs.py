"""What tests start by support/programs.py is what a shell would start."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import programs
from support.databases import fresh_database
from support.server_world import RunningServer, make_server

BIN = Path(sys.executable).parent


@pytest.mark.parametrize(
    ("words", "typed"),
    [
        (("firmament", "config", "list", "--json"), None),
        (("firmament", "whoami"), None),
        (("firmament", "no-such-command"), None),
        (("firmament-agent", "--config", "agent.toml", "status", "--json"), None),
        (("firmament-agent", "--config", "agent.toml", "run"), None),
        (("firmament", "device", "list", "--server", "https://localhost:1", "--token-file", "-"), "secret\n"),
    ],
)
def test_it_says_and_returns_the_same(tmp_path, words, typed):
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LANG": "C.UTF-8", "COLUMNS": "70"}
    program, *arguments = words
    started = subprocess.run(
        [BIN / program, *arguments],
        input=typed, stdin=None if typed else subprocess.DEVNULL, capture_output=True, text=True, check=False, env=env, cwd=tmp_path,
    )  # fmt: skip
    options = {"typed": typed} if typed else {"stdin": subprocess.DEVNULL}
    born = programs.run(words, env=env, cwd=tmp_path, **options)
    assert (born.returncode, born.stdout, born.stderr) == (started.returncode, started.stdout, started.stderr)
    assert started.stdout or started.stderr


@pytest.mark.one_database("sqlite", because="it is about processes, and asks the server nothing")
def test_it_is_a_process_of_its_own_that_ends_by_its_signal(tmp_path, database_kind):
    server = RunningServer(make_server(tmp_path / "server", fresh_database(database_kind))).start()
    process = server.process
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.01)
    assert process.poll() is None
    assert Path(f"/proc/{process.pid}/cwd").resolve() == Path.cwd()
    assert server.stop(signal.SIGKILL) == process.poll() == -signal.SIGKILL
    assert not Path(f"/proc/{process.pid}").exists()
