"""One honest world per worker, put back as it was before each story; and a record of the evidence."""

import copy
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from attack.hostile import HostileServer, Ran, Victim

from firmament.errors import FirmamentError, error_for_code

REPORTS = ("POST /v1/report", "POST /v1/consent")
"""What a device tells; a story is about what it asks for."""
EVIDENCE = os.environ.get("FIRMAMENT_ATTACK_EVIDENCE", "")
"""File that run.py reads: one JSON line per story."""


@dataclass
class Stage:
    """The world of a story: version 1.0 is installed and confirmed, sequence number 1."""

    server: HostileServer
    victim: Victim
    told: list[dict] = field(default_factory=list)

    @property
    def world(self):
        return self.server.world

    @property
    def image(self):
        return self.server.world.image

    def refused(self, code: type[FirmamentError] | str, *arguments: str, still: str = "1.0", **options) -> Ran:
        """Run the agent once; it must refuse with this code and keep what it runs."""
        name = code if isinstance(code, str) else code.code
        self.server.asked.clear()
        ran = self.victim.run(*(arguments or ("all", "--yes")), **options)
        assert ran.code == name, (ran.exit_code, ran.out, ran.err)
        assert ran.exit_code == error_for_code(name).exit_code
        self.still(still)
        self.told.append({"code": name, "asked": list(self.server.asked)})
        return ran

    def still(self, version: str) -> None:
        """Whatever happened, this version is what starts and what the agent says it runs."""
        assert self.victim.installed == version
        status = self.victim.status()
        assert status["running"]["version"] == version
        assert status["state"] in {"idle", "offered", "fetching", "refused", "failed"}, status
        assert status["previous"] is None or status["previous"]["version"] != status["running"]["version"]

    def accepted(self, version: str) -> None:
        """The same device takes the honest release when it is assigned again: refusing has broken nothing."""
        self.world.assign(self.image.releases[version])
        ran = self.victim.run("all", "--yes")
        assert ran.exit_code == 0, ran.err
        assert self.victim.installed == version

    def asked_before_refusing(self) -> list[str]:
        """The paths of the last refused run, without reports."""
        return [line for line in self.told[-1]["asked"] if not line.startswith(REPORTS)]


@pytest.fixture(scope="session")
def _origin(tmp_path_factory):
    """Play the honest beginning once: enrol, install 1.0."""
    directory = tmp_path_factory.mktemp("attack")
    server = HostileServer(directory / "server")
    victim = Victim(directory / "device", server)
    victim.provision()
    server.release("1.0", 1)
    ran = victim.run("all", "--yes")
    assert ran.exit_code == 0, ran.err
    shutil.copytree(victim.directory, directory / "copy", symlinks=True)
    yield server, victim, directory / "copy", _world_of(server)
    server.close()


def _world_of(server):
    image = server.world.image
    return (
        dict(image.files),
        dict(image.blobs),
        dict(image.releases),
        dict(image.versions),
        dict(image.keys),
        dict(server.world.director),
        dict(server.world.director_files),
        server.world.clock.now(),
    )


@pytest.fixture
def stage(_origin, request):
    server, victim, copied, before = _origin
    _put_back(server, copy.deepcopy(before[3]), before)
    shutil.rmtree(victim.directory)
    shutil.copytree(copied, victim.directory, symlinks=True)
    made = Stage(server, victim)
    yield made
    server.world.tap = server.world.on_poll = server.send = None
    if EVIDENCE:
        line = {
            "story": request.node.name,
            "title": (request.function.__doc__ or "").strip().splitlines()[0],
            "told": made.told,
        }
        with Path(EVIDENCE).open("a") as file:
            file.write(json.dumps(line) + "\n")


def _put_back(server, versions, before):
    image, world = server.world.image, server.world
    image.files, image.blobs, image.releases = dict(before[0]), dict(before[1]), dict(before[2])
    image.versions, image.keys = versions, dict(before[4])
    world.director, world.director_files = dict(before[5]), dict(before[6])
    world.clock.set(before[7])
    world.tap = world.on_poll = server.send = None
    world.assignment = None
    server.asked.clear()
    server.reports.clear()


@pytest.fixture
def own_stage(tmp_path, request):
    """A world of its own, for stories that change certificates or the device's identity."""
    server = HostileServer(tmp_path / "server")
    victim = Victim(tmp_path / "device", server)
    victim.provision()
    server.release("1.0", 1)
    assert victim.run("all", "--yes").exit_code == 0
    server.asked.clear()
    made = Stage(server, victim)
    yield made
    server.close()
    if EVIDENCE:
        line = {
            "story": request.node.name,
            "title": (request.function.__doc__ or "").strip().splitlines()[0],
            "told": made.told,
        }
        with Path(EVIDENCE).open("a") as file:
            file.write(json.dumps(line) + "\n")
