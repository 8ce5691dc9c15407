"""A server that keeps its payloads in a real object store: publish, download, outage, collecting, moving in."""

import contextlib
import os
from datetime import timedelta

import pytest
import urllib3
from support import documents
from support.databases import fresh_database
from support.server_world import World, run_command, sha256, submission

from firmament.core.clock import SystemClock
from firmament.core.digest import Digest
from firmament.server.database.opening import command_database
from firmament.server.database.target import database_target
from firmament.server.layout import Layout
from firmament.server.payloads.collect import Collector
from firmament.server.payloads.opening import open_blobs
from firmament.server.payloads.store import ServerDisk
from firmament.server.releases.generations import Generations
from firmament.server.scope import console
from firmament.server.settings import read_settings

DATA = os.urandom(12 * 1024 * 1024)
"""More than one part, and more than sockets hold."""
PATH = f"/v1/image/targets/thermo/1.1/{sha256(DATA)}.firmware.img"
HALF = 5_000_000


@pytest.fixture(scope="module")
def world(tmp_path_factory, swift, database_kind):
    directory = tmp_path_factory.mktemp("store")
    settings = fresh_database(database_kind) | swift.settings(directory / "server", f"{database_kind}/")
    made = World(directory, database=settings).begin()
    made.publish_release("thermo", "1.1", 2, DATA)
    yield made
    made.close()


@pytest.fixture(scope="module")
def device(world):
    return world.device()


def test_a_device_downloads_whole_and_in_parts(world, device):
    whole = device.client.ask("GET", PATH)
    assert (whole.status, whole.body == DATA) == (200, True)
    assert whole.headers["cache-control"] == "public, max-age=31536000, immutable"
    part = device.client.ask("GET", PATH, headers={"range": f"bytes={HALF}-", "if-range": whole.headers["etag"]})
    assert (part.status, part.body == DATA[HALF:]) == (206, True)
    assert part.headers["content-range"] == f"bytes {HALF}-{len(DATA) - 1}/{len(DATA)}"
    assert device.client.ask("GET", PATH, headers={"range": f"bytes={len(DATA)}-"}).status == 416
    assert device.client.ask("GET", PATH, headers={"if-none-match": whole.headers["etag"]}).status == 304
    head = device.client.ask("HEAD", PATH)
    assert (head.status, head.headers["content-length"]) == (200, str(len(DATA)))
    assert not any((world.server.directory / "blobs").rglob("*")) or not list(
        (world.server.directory / "blobs" / "incoming").iterdir()
    )


def test_what_is_not_published_is_not_there_for_devices(world, device):
    data = b"sent, not published"
    assert world.admin.ask("PUT", f"/api/v1/blobs/{sha256(data)}", data).status == 201
    assert world.admin.ask("HEAD", f"/api/v1/blobs/{sha256(data)}").status == 200
    assert device.client.ask("GET", f"/v1/image/targets/thermo/1.1/{sha256(data)}.firmware.img").status == 404


def test_an_outage_in_the_middle_is_told_and_a_download_goes_on_after_it(world, device, swift):
    response = device.client.pool.request("GET", world.server.url + PATH, preload_content=False)
    got = response.read(HALF)
    swift.kill("object", "proxy")
    try:
        with contextlib.suppress(urllib3.exceptions.HTTPError):
            while more := response.read(65536):
                got += more
        assert HALF <= len(got) < len(DATA)
        assert got == DATA[: len(got)]
        again = device.client.ask("GET", PATH, headers={"range": f"bytes={len(got)}-"})
        assert (again.status, again.code, again.headers["retry-after"]) == (503, "request/overloaded", "5")
        assert str(swift.ports["proxy"]) not in again.body.decode()
        data = os.urandom(10)
        refused = world.admin.ask("PUT", f"/api/v1/blobs/{sha256(data)}", data)
        assert (refused.status, refused.code) == (503, "request/overloaded")
        assert device.poll().status == 200  # everything else goes on
        doctor = run_command("server", "doctor", "-d", world.server.directory, "--json", check=False)
        bad = [one for one in documents.loads(doctor.stdout)["findings"] if one["verdict"] == "bad"]
        assert doctor.returncode == 1
        assert {one["check"] for one in bad} == {"store", "repository"}
    finally:
        swift.start("object", "proxy")
    rest = device.client.ask("GET", PATH, headers={"range": f"bytes={len(got)}-"})
    assert (rest.status, got + rest.body == DATA) == (206, True)
    assert world.admin.ask("PUT", f"/api/v1/blobs/{sha256(data)}", data).status == 201
    doctor = run_command("server", "doctor", "-d", world.server.directory, "--json", check=False)
    (store,) = [one for one in documents.loads(doctor.stdout)["findings"] if one["check"] == "store"]
    assert (store["verdict"], "without TLS" in store["seen"]) == ("warning", True)


def test_keys_never_show_up_in_the_log(world, swift):
    log = world.server.log.read_text()
    assert "a-secret-of-the-tests" not in log
    assert "X-Amz-Signature" not in log


def test_wrong_settings_end_the_start(world):
    env = {"FIRMAMENT_SERVER_S3_SECRET_KEY_FILE": "s3-access"}
    world.server.stop()
    try:
        refused = run_command("server", "run", "-d", world.server.directory, "--port", "0", check=False, env=env)
        assert "local/setting" in refused.stderr
        assert "refuses the given keys" in refused.stderr
    finally:
        world.server.start()


def test_what_nothing_refers_to_is_collected_and_what_is_released_stays(world, swift):
    old, new = os.urandom(1000), os.urandom(1000)
    world.publish_release("pump", "1.0", 1, old)
    world.author.targets["pump"].clear()
    world.publish_release("pump", "1.1", 2, new)  # 1.0 is withdrawn with it
    path = f"/v1/image/targets/pump/1.0/{sha256(old)}.firmware.img"
    pump = world.device(product="pump")
    assert pump.client.ask("GET", path).status == 200
    world.publish(submission(world.author.product("pump")))  # two versions of metadata are kept: none names 1.0 now

    layout = Layout(world.server.directory)
    settings = read_settings(layout.settings, {})
    blobs = open_blobs(ServerDisk(), layout, settings, SystemClock())
    command = ("server", "gc", "-d", layout.directory, "--json")
    assert documents.loads(run_command(*command).stdout)["blobs"] == 0  # all of it is too young
    with command_database(database_target(layout, settings)) as database:
        collector = Collector(blobs, lambda _: Generations(ServerDisk(), layout).load(), grace=timedelta(days=7))
        later = SystemClock().now() + timedelta(days=8)
        said = collector.collect(database, console("test"), later, pretend=True)
        done = collector.collect(database, console("test"), later, pretend=False)
    assert said == done
    assert done.blobs >= 1
    world.admin.close()
    left = {blob.digest for blob in blobs.blobs()}
    assert Digest.of(old) not in left
    assert {Digest.of(new), Digest.of(DATA)} <= left
    (event,) = world.server.events("blobs.removed")
    assert str(Digest.of(old)) in event["facts"]["digests"]
    assert world.admin.ask("HEAD", f"/api/v1/blobs/{sha256(old)}").status == 404
    refused = world.publish(submission(world.author.product("pump")))
    assert refused.status == 200  # nothing of it needs what is gone


def test_a_server_moves_its_payloads_into_a_bucket(tmp_path, swift, database_kind):
    world = World(tmp_path / "world", database=fresh_database(database_kind)).begin()
    data = os.urandom(100_000)
    try:
        world.publish_release("thermo", "1.1", 2, data)
        device = world.device()
        directory = world.server.directory
        command = ("server", "move-payloads", "-d", directory, "--json")
        assert "local/setting" in run_command(*command, check=False).stderr
        lines = "".join(
            f'{name} = "{value}"\n' for name, value in swift.settings(directory, f"moved-{database_kind}/").items()
        )
        text = (directory / "firmament.toml").read_text()
        (directory / "firmament.toml").write_text(text.replace("[server]\n", f"[server]\n{lines}"))
        assert "state/locked" in run_command(*command, check=False).stderr
        world.server.stop()
        first, second = (documents.loads(run_command(*command).stdout) for _ in range(2))
        assert (first["copied"], first["length_bytes"], first["published"]) == (1, len(data), 1)
        assert (second["copied"], second["there_already"]) == (0, 1)
        for path in sorted((directory / "blobs").glob("*/*")):
            path.unlink()  # the directory is not needed any more
        world.server.start()
        device.connect(world.server)
        got = device.client.ask("GET", f"/v1/image/targets/thermo/1.1/{sha256(data)}.firmware.img")
        assert (got.status, got.body) == (200, data)
        passphrase = tmp_path / "passphrase"
        passphrase.write_text("only for this backup")
        passphrase.chmod(0o600)
        made = run_command(
            "server", "backup", tmp_path / "b", "-d", directory, "--passphrase-file", passphrase, "--json"
        )
        assert documents.loads(made.stdout)["payloads"] == "the bucket firmament"
    finally:
        world.close()
