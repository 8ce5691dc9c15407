"""Sealed releases through the public commands, a real server process and a real agent process (cases 51 to 58)."""

import base64
import json
import random
import re
import shutil
import subprocess

import pytest
from click.testing import CliRunner
from support import documents
from support.agent_device import AGENT, until
from support.agent_device import Device as Agent
from support.authoring import cheap_scrypt
from support.databases import fresh_database
from support.programs import Program
from support.server_world import World

from firmament.agent.identity import CURRENT, HPKE_KEY
from firmament.cli.main import program
from firmament.core.digest import Digest
from firmament.core.ids import ReleaseId
from firmament.durable import RealDisk
from firmament.errors import KeyWrapError, SealedError
from firmament.payload import wrap
from firmament.payload.readers import BytesReader, FileReader
from firmament.payload.sealed import Opener, seal
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
        """The JSON document of a command; in this process, which starts none."""
        done = CliRunner(env=self.env).invoke(program, [*map(str, arguments)])
        assert done.exit_code == 0, done.stderr
        return documents.loads(done.stdout)

    def refused(self, *arguments):
        done = CliRunner(env=self.env).invoke(program, [*map(str, arguments)])
        assert done.exit_code not in {0, 1, 2}, done.stdout
        return documents.loads(done.stderr.splitlines()[-1])

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

    def device(self, name, **more):
        agent = Agent(self.directory / name, self.world, **more)
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
def bench(tmp_path_factory, database_kind):
    with pytest.MonkeyPatch.context() as patch:
        cheap_scrypt(patch)  # of the author's files; what they cost is tested where they are made
        yield from make_bench(tmp_path_factory, fresh_database(database_kind))


def make_bench(tmp_path_factory, database):
    directory = tmp_path_factory.mktemp("sealed")
    world = World(directory / "world", database=database)
    noise = bytearray(random.Random(1).randbytes(LENGTH))
    for number in range(4):
        noise[1000 * number : 1000 * number + len(SECRET)] = SECRET
        (directory / f"1.{number}").write_bytes(noise)
    made = Bench(directory, world)
    made.run(
        "init",
        made.env["FIRMAMENT_WORKSPACE"],
        "--product",
        "thermo",
        "--online",
        world.server.directory / "online-public.json",
    )
    made.release("1.0")
    made.release("1.1", delta_from="1.0", suite="chacha20-poly1305")
    yield made
    world.close()


@pytest.fixture(scope="module")
def agent(bench):
    return bench.device("device-a")


def install(bench, agent, version):
    bench.world.assign(agent, f"thermo/{version}")
    finish(bench, agent)


def finish(bench, agent):
    """Let the daemon fetch and stage what it is offered; return its log. Then the machine comes back."""
    with agent.daemon():
        until(lambda: bench.world.attempt(agent)["status"] == "staged")
    log = agent.log
    with agent.daemon():
        until(lambda: bench.world.attempt(agent)["status"] == "confirmed")
    return log


@pytest.fixture(scope="module")
def next_release(bench):
    bench.release("1.2")


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


def test_the_server_knows_how_many_keys_it_holds_and_no_log_or_event_says_one(bench):
    server, given = bench.world.server.directory, bench.keys("thermo/1.1")
    assert [
        (row["release"], row["n"])
        for row in bench.world.server.rows(
            "SELECT release, COUNT(*) AS n FROM content_key GROUP BY release ORDER BY release"
        )
    ] == [("thermo/1.0", 1), ("thermo/1.1", 2)]
    assert [event["subject"] for event in bench.world.server.events("content-key.added")] == [
        "thermo/1.0",
        "thermo/1.1",
        "thermo/1.1",
    ]
    log = (server / "server.log").read_text()
    assert "/api/v1/content-keys/" in log
    for one in given.values():
        assert one.key.hex() not in log
        assert one.key.hex() not in repr(one)
    # Not in clear anywhere: database, its log, blobs, whatever else lies there (case 57).
    keys = [form for one in given.values() for form in (one.key, one.key.hex().encode())]
    for path in server.rglob("*"):
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            assert not any(form in data for form in keys), path
            assert SECRET not in data, path
    for path in (server / "content").iterdir():
        assert path.stat().st_mode & 0o777 == 0o600


def test_a_captured_server_or_cdn_reads_nothing_without_the_key_file(bench, tmp_path):
    """Whoever has database, blobs and the published repository, but not content/, reads nothing (case 52)."""
    server = bench.world.server
    captured = tmp_path / "captured"
    shutil.copytree(server.directory, captured, ignore=shutil.ignore_patterns("content", "*.sock"), symlinks=True)
    rows = [
        (row["digest"], row["release"], bytes(row["wrapped"]))
        for row in server.rows("SELECT digest, release, wrapped FROM content_key")
    ]
    assert len(rows) == 3
    private, _ = wrap.generate()
    for digest, release, wrapped in rows:
        custody = Custody(release, bytes.fromhex(digest.partition(":")[2]))
        with pytest.raises(KeyWrapError):
            wrap.unwrap(wrapped, private, custody)
        # The key file is what it is about: with it the row opens, and the container with the key.
        key = wrap.unwrap(wrapped, (server.directory / "content" / "1.key").read_bytes(), custody)
        blob = FileReader(captured / "blobs" / custody.sealed_sha256.hex()[:2] / custody.sealed_sha256.hex())
        assert Opener(blob, blob.length_bytes, key, max_plain_length_bytes=LENGTH).chunk(0)
        with pytest.raises(SealedError):
            Opener(blob, blob.length_bytes, bytes(32), max_plain_length_bytes=LENGTH).chunk(0)
        blob.close()


def test_no_device_opens_what_was_wrapped_for_another(bench):
    """The real director wraps for A; B, with A's whole reply, its own key and its own wrap, reads only its own (case 52)."""
    world = bench.world
    devices, replies = [], []
    for _ in range(2):
        private, public = wrap.generate()
        device = world.new_device()
        device.hpke_public_key, device.private = public, private
        assert device.enrol(world.server, world.enrolment_token()).status == 200
        world.assign(device, "thermo/1.1")
        devices.append(device)
        replies.append(device.assignment(methods=("whole/1", "sealed/1")))
    keys = bench.keys("thermo/1.1")
    digest = keys["thermo/1.1/image.img.sealed"].digest
    purposes = [Purpose(device.device_id, "thermo/1.1", digest.value) for device in devices]
    wraps = [wrapped(reply) for reply in replies]
    for device, purpose, one in zip(devices, purposes, wraps, strict=True):
        assert wrap.unwrap(one, device.private, purpose) == keys["thermo/1.1/image.img.sealed"].key
    a, b = devices
    for private, purpose in ((b.private, purposes[0]), (b.private, purposes[1]), (a.private, purposes[1])):
        with pytest.raises(KeyWrapError):
            wrap.unwrap(wraps[0], private, purpose)
    other = Purpose(a.device_id, "thermo/1.0", digest.value)
    with pytest.raises(KeyWrapError):
        wrap.unwrap(wraps[0], a.private, other)
    # A device with a precursor is named the delta, and the whole image's key goes along.
    old = bench.run("release", "show", "thermo/1.0")["manifest"]["image"]["digest"]["sha256"]
    told = a.assignment(methods=("whole/1", "refdelta/1", "sealed/1"), image_digest=f"sha256:{old}")
    assert re.fullmatch(r"thermo/1\.1/from-1\.0\.[0-9a-f]{8}\.refdelta-1\.sealed", told["payload"])
    assert told["fallback"]["payload"] == "thermo/1.1/image.img.sealed"
    assert wrap.unwrap(wrapped(told["fallback"]), a.private, purposes[0]) == keys["thermo/1.1/image.img.sealed"].key
    # One that cannot open sealed payloads is named none.
    assert b.assignment(methods=("whole/1", "refdelta/1")) is None
    assert world.attempt(b)["code"] == "applicability/no-installer"


def wrapped(custom):
    return base64.b64decode(custom["key_wrap"])


@pytest.mark.parametrize("kind", ["flipped", "forged"])
def test_51_53_what_a_cdn_or_another_device_made_of_a_container_is_refused(bench, agent, next_release, kind):
    """Someone changes the file that the server gives out; one knows the content key as well and makes chunks that open."""
    bench.world.assign(agent, "thermo/1.2")
    (path,) = bench.world.server.directory.rglob("targets/thermo/1.2/*.image.img.sealed")
    whole, one = path.read_bytes(), bench.keys("thermo/1.2")["thermo/1.2/image.img.sealed"]
    path.unlink()  # a name of its own: the upload is another
    out = bytearray()
    if kind == "flipped":
        out += whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:]
    else:
        seal(BytesReader(bytes(LENGTH)), LENGTH, one.key, out.extend)
        assert len(out) == len(whole)
    path.write_bytes(out)
    agent.run("check", code=0)
    assert agent.error("download")["code"] == "trust/digest-mismatch"
    assert slot(agent, "a") == bench.image("1.1").read_bytes(), "what runs stays"
    path.write_bytes(whole)


def test_a_poisoned_piece_is_found_and_only_that_is_fetched_again(bench, agent, next_release):
    """What lay on the device for a while was changed: the signed list says which piece (case 34)."""
    bench.world.assign(agent, "thermo/1.2")
    text = agent.config.read_text()
    agent.config.write_text(text + "\n[transfer]\nmax_rate_bytes_per_s = 300000\n")
    stored = agent.directory / "state" / "journal" / "payload"
    daemon = Program([AGENT, "--config", agent.config, "run"], stderr=subprocess.PIPE)
    until(lambda: stored.exists() and stored.stat().st_size > 300_000)
    daemon.terminate()
    daemon.communicate(timeout=30)
    agent.config.write_text(text)
    with stored.open("r+b") as file:
        file.seek(1000)
        file.write(b"poison")
    log = finish(bench, agent)
    bad = [json.loads(line) for line in log.splitlines() if "payload.piece-bad" in line]
    assert [(line["piece"], line["offset"]) for line in bad] == [(0, 0)]
    assert slot(agent, "b") == bench.image("1.2").read_bytes()


def test_keys_can_be_withheld_and_given_later(bench, agent):
    published = bench.release("1.3", publish=["--withhold-keys"])
    assert published["content_keys"] == 0
    bench.world.assign(agent, "thermo/1.3")
    agent.run("check")
    assert bench.world.attempt(agent)["code"] == "policy/no-content-key"
    rule = bench.why(agent, "thermo/1.3")
    assert (rule["verdict"], rule["sentence"]) == (
        "block",
        "The release is sealed, and the server was not given the content keys.",
    )
    assert "give-keys" in rule["hint"]
    plan = bench.world.admin.ask("POST", "/api/v1/rollouts/plan", {"release": "thermo/1.3"}).json
    assert "keys-withheld" in [warning["code"] for warning in plan["warnings"]]
    assert bench.run("release", "give-keys", "thermo/1.3")["content_keys"] == 1
    assert bench.why(agent, "thermo/1.3")["verdict"] == "pass"
    agent.run("check", code=0)
    assert bench.world.attempt(agent)["status"] == "offered"


def test_a_revoked_device_is_given_no_key_until_a_new_one_is_registered(bench, agent, tmp_path):
    bench.run("device", "revoke-key", agent.device_id, "--reason", "stolen in Porto")
    agent.run("check")
    assert bench.world.attempt(agent)["code"] == "policy/no-content-key"
    assert "revoked" in bench.why(agent, "thermo/1.3")["sentence"]
    shown = bench.run("device", "show", agent.device_id)["device"]
    assert shown["wrapping_key_revoked"] == "stolen in Porto"
    before = (agent.directory / "state" / CURRENT / HPKE_KEY).read_bytes()
    agent.run("wrapping-key", str(tmp_path / "request.json"), code=0)
    request = json.loads((tmp_path / "request.json").read_text())
    # The operator's server takes only what this device's identity key signed, for this device.
    forged = json.loads((tmp_path / "request.json").read_text())
    forged["envelope"]["signature"] = base64.b64encode(b"x" * 70).decode()
    (tmp_path / "forged.json").write_text(json.dumps(forged))
    assert bench.refused("device", "register-key", tmp_path / "forged.json")["code"] == "trust/signature"
    other = bench.world.device()
    (tmp_path / "other.json").write_text(json.dumps({**request, "device_id": other.device_id}))
    assert bench.refused("device", "register-key", tmp_path / "other.json")["code"] == "trust/signature"
    bench.run("device", "register-key", tmp_path / "request.json")
    assert bench.refused("device", "register-key", tmp_path / "request.json")["code"] == "request/conflict"
    assert bench.run("device", "show", agent.device_id)["device"]["wrapping_key_revoked"] is None
    assert (agent.directory / "state" / CURRENT / HPKE_KEY).read_bytes() != before
    install(bench, agent, "1.3")
    assert slot(agent, "a") == bench.image("1.3").read_bytes()
    kinds = [bench.world.server.events(f"wrapping-key.{kind}")[0]["facts"] for kind in ("revoked", "registered")]
    assert kinds[0]["keyid"] == kinds[1]["before"]


def test_the_servers_key_is_rotated_while_it_stands_still(bench, agent):
    world, directory = bench.world, bench.world.server.directory
    assert bench.refused("server", "rotate-content-key")["code"] == "state/locked"
    world.server.stop()
    old = (directory / "content" / "1.key").read_bytes()
    done = bench.run("server", "rotate-content-key")
    assert done["content_keys"] == 5
    assert [path.name for path in (directory / "content").iterdir()] == ["2.key"]
    for row in world.server.rows("SELECT release, digest, keyid, wrapped FROM content_key"):
        assert row["keyid"] == done["keyid"]
        custody = Custody(row["release"], bytes.fromhex(row["digest"].partition(":")[2]))
        with pytest.raises(KeyWrapError):
            wrap.unwrap(bytes(row["wrapped"]), old, custody)
    # Without its key file the server says so, and devices still poll.
    (directory / "content" / "2.key").rename(directory / "kept.key")
    found = CliRunner(env=bench.env).invoke(program, ["server", "doctor"])
    assert "5 are wrapped for a key file that is not here" in found.stdout
    (directory / "kept.key").replace(directory / "content" / "2.key")
    world.server.start()
    device = world.new_device()
    private, device.hpke_public_key = wrap.generate()
    assert device.enrol(world.server, world.enrolment_token()).status == 200
    world.assign(device, "thermo/1.1")
    told = device.assignment(methods=("whole/1", "sealed/1"))
    one = bench.keys("thermo/1.1")["thermo/1.1/image.img.sealed"]
    assert wrap.unwrap(wrapped(told), private, Purpose(device.device_id, "thermo/1.1", one.digest.value)) == one.key


def test_what_is_not_the_key_of_a_payload_is_refused(bench):
    client, one = bench.world.admin, bench.keys("thermo/1.1")["thermo/1.1/image.img.sealed"]
    recipient = client.ask("GET", "/api/v1/content-keys/recipient").json
    public = bytes.fromhex(recipient["public_key"])

    def give(key, *, release="thermo/1.1", made_for="thermo/1.1", keyid=recipient["keyid"], digest=one.digest):
        body = base64.b64encode(wrap.wrap(key, public, Custody(made_for, digest.value))).decode()
        path = f"/api/v1/content-keys/{digest.hex}"
        answer = client.ask("PUT", path, {"release": release, "keyid": keyid, "wrap": body})
        return answer.status, answer.status == 200 or answer.code

    assert give(one.key) == (200, True)
    assert give(bytes(32))[1] == "trust/sealed"
    assert give(one.key, made_for="thermo/1.0")[1] == "trust/key-wrap"
    assert give(one.key, keyid="0" * 32)[1] == "trust/key-wrap"
    assert give(one.key, digest=Digest.of(b"nobody sent this"))[1] == "trust/digest-mismatch"
    assert give(one.key, release="thermo/1.0", made_for="thermo/1.0")[1] == "request/conflict"


def test_a_built_release_is_sealed_later(bench):
    bench.run("release", "build", bench.image("1.1"), "--version", "9.0", "--hardware", "rpi4")
    sealed = bench.run("release", "seal", "thermo/9.0")
    assert [payload["method"] for payload in sealed["payloads"]] == ["sealed"]


def test_a_sealed_release_is_not_for_clients_without_an_agent(bench):
    problem = bench.refused("release", "legacy", "thermo/1.1", "--out", bench.directory / "legacy", "--key", "any")
    assert problem["code"] == "request/conflict"
    assert not (bench.directory / "legacy").exists()


def test_a_sealed_release_travels_in_a_parcel_and_only_its_device_opens_it(bench, tmp_path):
    """The stick holds the container, its chunk list and one wrap: whoever finds it reads nothing."""
    device, parcel = bench.device("device-p"), tmp_path / "site.parcel"
    bench.run("parcel", "export", "thermo/1.1", "--device", device.device_id, "-o", parcel)
    data, one = parcel.read_bytes(), bench.keys("thermo/1.1")["thermo/1.1/image.img.sealed"]
    assert SECRET not in data
    assert one.key not in data
    assert one.key.hex().encode() not in data
    device.cut_off()
    device.run("install", str(parcel), "--yes", code=10)
    with device.daemon():
        until(lambda: list(tmp_path.glob("*.receipt")))
    assert slot(device, "b") == bench.image("1.1").read_bytes()
    bench.run("parcel", "receipt", "import", *tmp_path.glob("*.receipt"))
    assert bench.world.attempt(device)["status"] == "confirmed"
    refused = bench.refused("parcel", "export", "thermo/1.1", "--any-device", "-o", tmp_path / "any.parcel")
    assert refused["code"] == "policy/no-content-key"
