"""Peak memory of `firmament-agent check`, with a real network: TLS, both repositories, an offer."""

import json
import subprocess
import sys

import pytest
from support import base_install, documents
from support.databases import fresh_database
from support.server_world import World

MIB = 1024 * 1024
MAX_PEAK_BYTES = 48 * MIB

CODE = (
    base_install.CODE
    + """
import atexit, pathlib, sys

def say():
    status = pathlib.Path("/proc/self/status").read_text()
    heavy = sorted({"fastapi", "sqlalchemy", "uvicorn", "rich", "asyncio", "firmament.agent.wake", "firmament.server"} & set(sys.modules))
    print(int(status.partition("VmHWM:")[2].split()[0]) * 1024, *heavy, file=sys.stderr)

atexit.register(say)
from firmament.cli.agent import main
main()
"""
)


pytestmark = pytest.mark.one_database("sqlite", because="what an agent takes does not hang on a database elsewhere")


@pytest.fixture(scope="module")
def world(tmp_path_factory, database_kind):
    made = World(tmp_path_factory.mktemp("world"), database=fresh_database(database_kind)).begin()
    yield made
    made.close()


@pytest.fixture(scope="module")
def config(world, tmp_path_factory):
    directory = tmp_path_factory.mktemp("device")
    (directory / "a.img").write_bytes(b"factory")
    path = directory / "agent.toml"
    path.write_text(
        f'state_dir = "{directory}/state"\nsocket = "{directory}/agent.sock"\n'
        f'[slots]\nkind = "image"\na = "{directory}/a.img"\nb = "{directory}/b.img"\n[boot]\nkind = "sim"\n'
    )
    file = directory / "provisioning.json"
    file.write_text(
        json.dumps(
            {
                "v": 1,
                "server_url": world.server.url,
                "ca_pem": world.server.ca.read_text(),
                "token": world.enrolment_token(),
                "product": "thermo",
                "hardware": "rpi4",
                "image_root": world.author.root("image").decode(),
                "director_root": world.author.root("director").decode(),
            }
        )
    )
    done = agent(path, "provision", str(file), "--json")
    device_id = documents.loads(done.stdout)["device_id"]
    world.publish_release("thermo", "1.1", 2, b"x" * 1000)
    answer = world.admin.ask("POST", f"/api/v1/devices/{device_id}/assign", {"release": "thermo/1.1"})
    assert answer.status == 200, answer.body
    return path


def agent(config, *arguments):
    done = subprocess.run(
        [sys.executable, "-I", "-c", CODE, "--config", str(config), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_check_stays_within_48_mib_and_imports_nothing_of_a_server(config):
    done = agent(config, "check", "--json")
    assert documents.loads(done.stdout)["attempt"]["release_id"] == "thermo/1.1"  # it did the whole walk
    peak_bytes, *heavy = done.stderr.split()
    assert heavy == []
    assert int(peak_bytes) <= MAX_PEAK_BYTES, f"{int(peak_bytes) / MIB:.1f} MiB"


def test_looking_costs_less_than_asking(config):
    """`status` and `--version` load neither TUF nor TLS: they run often, on small processors."""
    for arguments in (("--version",), ("status",)):
        peak_bytes = int(agent(config, *arguments).stderr.split()[0])
        assert peak_bytes <= MAX_PEAK_BYTES * 0.75, f"{arguments}: {peak_bytes / MIB:.1f} MiB"
