"""`firmament release delta` against a real server: the fleet says from where, the release carries the deltas."""

import random

import pytest
from support import documents
from support.agent_device import Device as Agent
from support.agent_device import until
from support.databases import fresh_database
from support.server_world import World, run_command


@pytest.fixture(scope="module")
def bench(tmp_path_factory, database_kind):
    directory = tmp_path_factory.mktemp("delta")
    world = World(directory / "world", database=fresh_database(database_kind))
    steady = random.Random(1).randbytes(120_000)
    for version, data in (("1.0", steady), ("1.1", steady[:60_000] + b"changed" + steady[60_000:])):
        (directory / version).write_bytes(data)
    yield Bench(directory, world)
    world.close()


class Bench:
    def __init__(self, directory, world):
        self.directory, self.world, server = directory, world, world.server
        (directory / "passphrase").write_text("correct horse battery\n")
        (directory / "token").write_text(f"{world.sign_in('admin').token}\n")
        for name in ("passphrase", "token"):
            (directory / name).chmod(0o600)
        self.env = {
            "FIRMAMENT_PASSPHRASE_FILE": str(directory / "passphrase"),
            "FIRMAMENT_TOKEN_FILE": str(directory / "token"),
            "FIRMAMENT_SERVER": server.url,
            "FIRMAMENT_CA": str(server.ca),
            "FIRMAMENT_WORKSPACE": str(directory / "author"),
            "FIRMAMENT_JSON": "1",
        }

    def run(self, *arguments, check=True, **env):
        done = run_command(*arguments, check=False, env=self.env | env)
        if check:
            assert done.returncode == 0, done.stderr
            return documents.loads(done.stdout)
        return done.returncode, documents.loads(done.stderr.splitlines()[-1])

    def build(self, version):
        self.run("release", "build", self.directory / version, "--version", version, "--hardware", "rpi4")


def test_the_fleet_says_from_where_and_the_release_carries_the_deltas(bench):
    world = bench.world
    bench.run(
        "init",
        bench.env["FIRMAMENT_WORKSPACE"],
        "--product",
        "thermo",
        "--online",
        world.server.directory / "online-public.json",
    )
    bench.build("1.0")
    bench.run("release", "sign", "thermo/1.0")
    bench.run("release", "publish")
    digest = bench.run("release", "show", "thermo/1.0")["manifest"]["image"]["digest"]["sha256"]
    devices = [world.device() for _ in range(3)]
    for device, runs in zip(devices, (f"sha256:{digest}", f"sha256:{digest}", "sha256:" + "0" * 64), strict=True):
        assert device.poll(image_digest=runs).status == 200
    alive = world.admin.ask("GET", "/api/v1/products/thermo/images")
    assert [(image["image_digest"][:15], image["devices"]) for image in alive.json["images"]] == [
        (f"sha256:{digest[:8]}", 2),
        ("sha256:00000000", 1),
    ]

    bench.build("1.1")
    made = bench.run("release", "delta", "thermo", "1.1", "--method", "refdelta/1", "--workers", "2")
    (row,) = made["deltas"]
    assert (row["from"], row["method"], row["devices"]) == ("1.0", "refdelta/1", 2)
    assert row["length_bytes"] < 300
    assert [(one["image_digest"], one["devices"]) for one in made["missing"]] == [("sha256:" + "0" * 64, 1)]
    bench.run("release", "sign", "thermo/1.1")
    published = bench.run("release", "publish")
    assert published["length_bytes"] == 120_007 + row["length_bytes"]
    payloads = bench.run("release", "show", "thermo/1.1")["manifest"]["payloads"]
    delta = next(payload for payload in payloads if payload["method"] == "refdelta")
    assert world.admin.ask("HEAD", f"/api/v1/blobs/{delta['digest']['sha256']}").status == 200
    assert delta["facts"]["from_version"] == "1.0"
    code, problem = bench.run("release", "delta", "thermo", "1.1", "--from", "1.0", check=False)
    assert (code, problem["code"]) == (84, "request/conflict")

    world.assign(devices[0], "thermo/1.1")
    taken = devices[0].assignment(image_digest=f"sha256:{digest}", methods=("refdelta/1",))
    assert taken["payload"] == delta["target"]
    install_by_delta(bench, bench.directory / "device")


def install_by_delta(bench, directory):
    """A real agent goes to 1.0 whole and to 1.1 by the delta: the whole image of 1.1 is not to be had any more."""
    world, agent = bench.world, Agent(directory, bench.world)
    provisioning = bench.run(
        "device", "provision-file", "--product", "thermo", "--hardware", "rpi4", "--out", directory / "d"
    )
    agent.device_id = agent.run("provision", provisioning["file"], code=0)["device_id"]
    for version in ("1.0", "1.1"):
        world.assign(agent, f"thermo/{version}")
        agent.run("check", code=0)
        agent.run("download", code=0)
        agent.run("apply", code=10)
        with agent.daemon():  # the machine comes back
            until(lambda: world.attempt(agent)["status"] == "confirmed")
        for whole in world.server.directory.rglob("*.image.img"):
            whole.unlink()
    assert (directory / "a.img").read_bytes().startswith((bench.directory / "1.1").read_bytes())


def test_the_images_of_a_product_are_for_those_who_may_read_it(bench):
    world = bench.world
    path = "/api/v1/products/thermo/images"
    assert world.token("viewer", "thermo").ask("GET", path).status == 200
    assert world.token("viewer", "boiler").ask("GET", path).status == 403
    assert world.client("nobody").ask("GET", path).status == 401
    assert world.admin.ask("GET", "/api/v1/products/boiler/images").json == {"images": []}
    assert world.admin.ask("GET", "/api/v1/products/No!/images").status == 400
