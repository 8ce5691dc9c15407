"""What the README says to type exists, and its story by hand works as written."""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import textwrap
from contextlib import closing
from pathlib import Path

import click
import pytest

from firmament.cli.agent import program as agent
from firmament.cli.main import program as firmament
from firmament.core.clock import SystemClock
from firmament.sim import device

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
STORY = next(block for block in BLOCKS if "firmament server init" in block)


def typed() -> list[str]:
    """Every command line of ours: in blocks, and in backticks within the text."""
    lines = [line for block in BLOCKS for line in block.splitlines()]
    lines += re.findall(r"`((?:\.venv/bin/)?firmament(?:-agent)? [^`…]+)`", README)
    lines = [re.sub(r"^.*\$\(|\).*$|^\.venv/bin/", "", line) for line in lines]
    return sorted({line for line in lines if re.match(r"firmament(-agent)? ", line)})


def resolve(line: str) -> None:
    """Follow a line through the tree of commands; raises what click raises for what does not exist."""
    words = shlex.split(re.split(r" (?:\||2>|&|#)", line)[0].replace("…", ""))
    command = agent if words[0] == "firmament-agent" else firmament
    context = click.Context(command, info_name=words[0])
    for number, word in enumerate(words[1:], 1):
        if isinstance(command, click.Group) and not word.startswith("-"):
            found = command.get_command(context, word)
            assert found is not None, f"{line!r}: there is no {word}"
            command, context = found, click.Context(found, info_name=word, parent=context)
        elif word.startswith("-"):
            known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
            assert word in known, f"{line!r}: {command.name} has no {word} (word {number})"


@pytest.mark.parametrize("line", typed())
def test_every_command_exists_with_its_options(line):
    resolve(line)


def test_the_check_above_sees_what_is_missing():
    assert len(typed()) > 12
    for line in ("firmament release bild x", "firmament server init x --adress 1", "firmament-agent status --wach"):
        with pytest.raises(AssertionError):
            resolve(line)


def test_every_target_of_make_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"^make ([a-z-]+)|`make ([a-z-]+)`", README, re.MULTILINE))
    assert {first or second for first, second in named} <= targets


def test_every_link_leads_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


@pytest.mark.slow
def test_the_story_by_hand_works_as_written(tmp_path):
    """Typed into a shell as it stands, but for the ports and the questions, which files answer."""
    for name in ("password", "passphrase"):
        (tmp_path / name).write_text(f"{name} of a test, long enough\n")
        (tmp_path / name).chmod(0o600)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    here = tmp_path / "try"
    here.mkdir()
    server, app = free_port(), free_port()
    story = STORY.replace("4443", str(server)).replace("8080", str(app))
    story = story.replace("server init server", f"server init server --port {server} --host 127.0.0.1")
    story = story.replace("2> server.log &", "2> server.log & await server")
    story = story.replace("2> agent.log &", "2> agent.log & await agent")
    plug = f"readme:{tmp_path}"
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "FIRMAMENT_PASSPHRASE_FILE": str(tmp_path / "passphrase"),
        "FIRMAMENT_PASSWORD_FILE": str(tmp_path / "password"),
        device.POWER: plug,
    }
    script = textwrap.dedent(
        f"""\
        set -eu
        await() {{  # what a person does by looking: go on when it runs
            for _ in $(seq 600); do
                if [ $1 = server ]; then curl -sk https://127.0.0.1:{server}/health >/dev/null && return
                else [ -S device/agent.sock ] && return; fi
                sleep 0.1
            done
            return 1
        }}
        """
    )
    said = tmp_path / "said"  # a file: the server in the background would hold a pipe open
    try:
        with said.open("w") as file:
            done = subprocess.run(
                ["bash", "-c", script + story],
                cwd=here,
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                check=False,
                timeout=200,
            )
    finally:
        device.cut_power(plug, SystemClock())
    text = said.read_text()
    assert done.returncode == 0, text
    page = json.loads(re.search(r'\{"status".*?\}', text).group())
    assert (page["status"], page["version"]) == ("ok", "1.0")
    assert re.search(r"thermo/1\.0\s+confirmed", text)


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
