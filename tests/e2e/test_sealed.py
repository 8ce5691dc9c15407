"""Sealed releases through the public commands, a real server process and a real agent process (cases 51 to 58)."""

import json
import random
import re
import shutil
import sqlite3

import pytest
from support.agent_device import Device as Agent
from support.agent_device import until
from support.server_world import World, run_command

from firmament.agent.identity import CURRENT, HPKE_KEY
from firmament.core.digest import Digest
from firmament.core.ids import ReleaseId
from firmament.durable import RealDisk
from firmament.errors import KeyWrapError, SealedError
from firmament.payload import wrap
from firmament.payload.readers import FileReader
from firmament.payload.sealed import Opener
from firmament.payload.wrap import Custody, Purpose
from firmament.release import content_keys
from firmament.release.workspace import Workspace
from firmament.trust.signers import GivenSecrets

SECRET = b"the recipe that nobody may read "
PASSPHRASE = "correct horse battery"
LENGTH = 700_000
"""Three pieces of the chunk list."""


class Bench:
    """An author's workspace, an operator's token, and the commands."""

    def __init__(self, directory, world):
        self.directory, self.world, server = directory, world, world.server
        (directory / "passphrase").write_text(f"{PASSPHRASE}\n")
        (directory / "token").write_text(f"{world.sign_in('admin').token}\n")
        for name in ("passphrase", "token"):
            (directory / name).chmod(0o600)
        self.env = {
            "FIRMAMENT_PASSPHRASE_FILE": str(directory / "passphrase"),
            "FIRMAMENT_TOKEN_FILE": str(directory / "token"),
            "FIRMAMENT_SERVER": server.url,
            "FIRMAMENT_CA": str(server.ca),
            "FIRMAMENT_WORKSPACE": str(directory / "author"),
            "FIRMAMENT_SERVER_DIRECTORY": str(server.directory),
            "FIRMAMENT_JSON": "1",
        }

    def run(self, *arguments):
        done = run_command(*arguments, check=False, env=self.env)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def refused(self, *arguments):
        done = run_command(*arguments, check=False, env=self.env)
        assert done.returncode != 0, done.stdout
        return json.loads(done.stderr.splitlines()[-1])

    def image(self, version):
        return self.directory / version

    def release(self, version, *, delta_from="", publish=(), suite="aes-256-gcm"):
        self.run(
            "release", "build", self.image(version), "--version", version, "--hardware", "rpi4", "--seal",
            "--suite", suite,
        )  # fmt: skip
        if delta_from:
            self.run("release", "delta", "thermo", version, "--from", delta_from, "--method", "refdelta/1")
        self.run("release", "sign", f"thermo/{version}")
        return self.run("release", "publish", *publish)

    def device(self, name):
        agent = Agent(self.directory / name, self.world)
        file = self.directory / f"{name}.json"
        self.run("device", "provision-file", "--product", "thermo", "--hardware", "rpi4", "--out", file)
        agent.device_id = agent.run("provision", str(file), code=0)["device_id"]
        return agent

    def why(self, agent, release):
        rules = self.run("device", "why", agent.device_id, "--release", release)["rules"]
        return next(rule for rule in rules if rule["rule"] == "content-key")

    def keys(self, release):
        workspace = Workspace(RealDisk(), self.directory / "author")
        return content_keys.load(workspace, ReleaseId(release), GivenSecrets(PASSPHRASE.encode()))


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sealed")
    world = World(directory / "world")
    noise = bytearray(random.Random(1).randbytes(LENGTH))
    for number in range(4):
        noise[1000 * number : 1000 * number + len(SECRET)] = SECRET
        (directory / f"1.{number}").write_bytes(noise)
    made = Bench(directory, world)
    made.run("init", made.env["FIRMAMENT_WORKSPACE"], "--product", "thermo", "--online", world.server.directory / "online-public.json")
    made.release("1.0")
    made.release("1.1", delta_from="1.0", suite="chacha20-poly1305")
    yield made
    world.close()


@pytest.fixture(scope="module")
def agent(bench):
    return bench.device("device-a")


def install(bench, agent, version):
    bench.world.assign(agent, f"thermo/{version}")
    agent.run("check", code=0)
    agent.run("download", code=0)
    agent.run("apply", code=10)
    with agent.daemon():  # the machine comes back
        until(lambda: bench.world.attempt(agent)["status"] == "confirmed")


def slot(agent, name):
    return (agent.directory / f"{name}.img").read_bytes()[:LENGTH]


def test_a_device_installs_sealed_whole_and_then_by_a_sealed_delta(bench, agent):
    install(bench, agent, "1.0")
    assert slot(agent, "b") == bench.image("1.0").read_bytes()
    for whole in bench.world.server.directory.rglob("*/1.1/*.image.img.sealed"):
        whole.unlink()  # only the delta is to be had
    install(bench, agent, "1.1")
    assert slot(agent, "a") == bench.image("1.1").read_bytes()
    shown = bench.run("release", "show", "thermo/1.1")["manifest"]
    assert shown["confidential"]
    assert [payload["facts"]["inner"]["method"] for payload in shown["payloads"]] == ["whole", "refdelta"]
    assert {payload["facts"]["suite"] for payload in shown["payloads"]} == {2}
    opened = bench.run("release", "verify", "thermo/1.1")["opened"]
    assert [(one["method"], one["suite"], one["gives_the_image"]) for one in opened] == [
        ("whole/1", "chacha20-poly1305", True),
        ("refdelta/1", "chacha20-poly1305", True),
    ]
