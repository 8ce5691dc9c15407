"""Which devices still run what has a CVE, and the report, against a real server by the commands."""

import json

import pytest
from support import documents
from support.databases import fresh_database
from support.server_world import World, run_command, sha256

from firmament.core.digest import Digest


def bill(version):
    return json.dumps(
        {
            "bomFormat": "CycloneDX",
            "specVersion": "1.6",
            "components": [
                {"name": "openssl", "version": version, "purl": f"pkg:deb/debian/openssl@{version}"},
                {"name": "busybox", "version": "1.36"},
            ],
        }
    ).encode()


OLD, NEW = bill("3.0.1"), bill("3.0.12")
STATEMENT = {
    "id": "CVE-2026-1",
    "summary": "Overflow",
    "affected": [
        {
            "package": {"ecosystem": "Debian", "name": "openssl"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "3.0.12"}]}],
        }
    ],
}


@pytest.fixture(scope="module")
def world(tmp_path_factory, database_kind):
    world = World(tmp_path_factory.mktemp("evidence"), database=fresh_database(database_kind)).begin()
    world.publish_release("thermo", "1.0", 1, b"one" * 100, sbom_digest=Digest.of(OLD))
    world.publish_release("thermo", "1.1", 2, b"two" * 100, sbom_digest=Digest.of(NEW))
    world.publish_release("thermo", "1.2", 3, b"three" * 100)
    yield world
    world.close()


@pytest.fixture(scope="module")
def run(world, tmp_path_factory):
    directory = tmp_path_factory.mktemp("operator")
    token = directory / "token"
    token.write_text(world.admin.token + "\n")
    token.chmod(0o600)
    where = ["--server", world.server.url, "--ca", world.server.ca, "--token-file", token, "--json"]

    def command(*arguments, files=()):
        paths = []
        for number, data in enumerate(files):
            path = directory / f"file-{number}"
            path.write_bytes(data)
            paths.append(path)
        done = run_command(*arguments, *paths, *where, check=False)
        return done.returncode, documents.loads(done.stdout or done.stderr)

    return command


def test_who_still_runs_it_and_how_long_the_fleet_took(world, run):
    device, other = world.device(), world.device()
    for each in (device, other):
        each.poll(version="1.0")
    # 1. Only the bytes that were signed are taken; once.
    code, answer = run("release", "sbom", "thermo/1.0", "--add", files=[NEW])
    assert answer["code"] == "trust/digest-mismatch"
    code, answer = run("release", "sbom", "thermo/1.2", "--add", files=[NEW])
    assert answer["code"] == "request/conflict"
    for release, data in (("thermo/1.0", OLD), ("thermo/1.1", NEW), ("thermo/1.0", OLD)):
        code, answer = run("release", "sbom", release, "--add", files=[data])
        assert (code, answer["components"]) == (0, 2)
    assert world.admin.ask("HEAD", f"/api/v1/blobs/{sha256(OLD)}").status == 200
    code, answer = run("release", "sbom", "thermo/1.1", "--diff", "1.0")
    assert answer["changes"] == [{"name": "openssl", "old": "3.0.1", "new": "3.0.12"}]
    assert len(run("release", "sbom", "thermo/1.0")[1]["components"]) == 2

    # 2. A statement finds the release and the devices.
    code, answer = run("vulnerability", "import", files=[json.dumps(STATEMENT).encode()])
    assert (code, answer) == (0, {"schema": answer["schema"], "vulnerabilities": ["CVE-2026-1"], "findings": 1})
    code, answer = run("vulnerability", "show", "CVE-2026-1")
    assert [(each["release"], each["devices"]) for each in answer["releases"]] == [("thermo/1.0", 2)]
    assert (answer["devices"], answer["fixed_in"]) == (2, ["thermo/1.1"])
    assert answer["time_to_patch"]["devices_fixed"] == 0

    # 3. One device gets the fix.
    attempt = world.assign(device, "thermo/1.1")
    for status in ("fetching", "verified", "staged"):
        device.tell(attempt, status)
    for status in ("trial", "confirmed"):
        device.tell(attempt, status, boot_id="boot-b", version="1.1", sequence_number=2)
    device.poll(version="1.1", sequence_number=2, boot_id="boot-b")
    code, answer = run("vulnerability", "show", "CVE-2026-1")
    assert answer["devices"] == 1
    assert answer["time_to_patch"]["devices_fixed"] == 1
    assert answer["time_to_patch"]["half_after_s"] >= 0
    [listed] = run("vulnerability", "list")[1]["vulnerabilities"]
    assert (listed["name"], listed["devices"], listed["releases"]) == ("CVE-2026-1", 1, 1)

    # 4. The report says so from the chain, and names a signed checkpoint over it.
    code, answer = run("compliance", "report")
    assert code == 0
    by_release = {each["release"]: each for each in answer["releases"]}
    assert by_release["thermo/1.1"]["confirmed"] == 1
    assert by_release["thermo/1.0"]["sbom_components"] == 2
    assert answer["chain"]["checkpoint"]["payload_type"].startswith("application/vnd.firmament.audit-checkpoint")
    assert {(each["version"], each["devices"]) for each in answer["running"]} == {("1.0", 1), ("1.1", 1)}
    assert answer["vulnerabilities"][0]["name"] == "CVE-2026-1"


def test_the_report_is_readable_and_a_wrong_statement_is_forgotten(world, run, tmp_path):
    for kind, begins in (("markdown", "# Compliance report"), ("html", "<!doctype html>")):
        out = tmp_path / kind
        assert run("compliance", "report", "--format", kind, "--out", out)[0] == 0
        assert out.read_text().startswith(begins)
        assert "CVE-2026-1" in out.read_text()
    assert run("vulnerability", "drop", "CVE-2026-1")[0] == 0
    assert run("vulnerability", "show", "CVE-2026-1")[1]["code"] == "request/not-found"
    assert world.token("viewer").ask("POST", "/api/v1/vulnerabilities", STATEMENT).status == 403
    assert world.token("viewer").ask("GET", "/api/v1/evidence/compliance").status == 403
