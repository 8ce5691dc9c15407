"""The server as a process: start, stop, crash, keys that only the signer opens, doctor."""

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from support import documents
from support.databases import forget, fresh_database, kept
from support.server_world import (
    PASSWORD,
    Author,
    Client,
    RunningServer,
    World,
    add_operator,
    make_server,
    run_command,
    sha256,
)

from firmament.server.database.migrate import HEAD


@pytest.fixture
def directory(tmp_path, database_kind):
    """The directory of a server that has not run yet."""
    return make_server(tmp_path / "server", fresh_database(database_kind))


@pytest.mark.one_database("sqlite", because="`server init` begins there, and `server move` leads on")
def test_init_makes_no_account_and_says_who_comes_next(tmp_path):
    result = run_command("server", "init", tmp_path / "s")
    assert "firmament operator add NAME --role admin" in result.stderr
    doctor = documents.loads(run_command("server", "doctor", "-d", tmp_path / "s", "--json").stdout)
    assert {"check": "people", "verdict": "warning"}.items() <= next(
        finding for finding in doctor["findings"] if finding["check"] == "people"
    ).items()
    public = json.loads((tmp_path / "s" / "online-public.json").read_text())
    assert {name: set(roles) for name, roles in public.items() if name != "v"} == {
        "image": {"snapshot", "timestamp"},
        "director": {"targets", "snapshot", "timestamp"},
    }
    private = [
        path
        for path in (tmp_path / "s").rglob("*")
        if path.suffix in {".key", ".pem"} and b"PRIVATE" in path.read_bytes()
    ]
    assert len(private) == 9
    assert {path.stat().st_mode & 0o777 for path in private} == {0o600}
    again = run_command("server", "init", tmp_path / "s", check=False)
    assert (again.returncode, "request/conflict" in again.stderr) == (84, True)
    (tmp_path / "password").write_text(PASSWORD)
    (tmp_path / "password").chmod(0o600)
    arguments = ("add", "ada", "--role", "admin", "-d", tmp_path / "s", "--password-file", tmp_path / "password")
    added = documents.loads(run_command("operator", *arguments, "--json").stdout)
    assert (added["name"], added["role"]) == ("ada", "admin")


def test_a_port_in_use_is_an_error_with_a_code(directory):
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = run_command("server", "run", "-d", directory, "--port", port, check=False)
    assert (result.returncode, "local/address-in-use" in result.stderr) == (107, True)


def test_one_server_per_directory(directory):
    server = RunningServer(directory).start()
    try:
        result = run_command("server", "run", "-d", directory, check=False)
        assert (result.returncode, "state/locked" in result.stderr) == (72, True)
    finally:
        assert server.stop() == 0


def test_a_directory_that_is_no_server_and_settings_that_are_wrong(directory, tmp_path):
    assert "local/file" in run_command("server", "run", "-d", tmp_path / "nothing", check=False).stderr
    settings = directory / "firmament.toml"
    for text, code in (
        ("[server]\nprot = 1\n", "local/setting"),
        ("[server]\nport = 'x'\n", "local/setting"),
        ("[server", "local/setting"),
        ("[server]\nrepository_access = 'everyone'\n", "local/setting"),
    ):
        settings.write_text(text)
        assert code in run_command("server", "run", "-d", directory, check=False).stderr


def test_an_online_key_that_others_may_read_is_refused(directory):
    for path in (directory / "signer" / "timestamp.pem", directory / "director" / "targets.pem"):
        path.chmod(0o640)
        result = run_command("server", "run", "-d", directory, check=False)
        assert (result.returncode, "local/key" in result.stderr) == (103, True)
        doctor = run_command("server", "doctor", "-d", directory, check=False)
        assert doctor.returncode == 1
        assert f"chmod 600 {path}" in doctor.stdout
        path.chmod(0o600)


@pytest.mark.one_database("sqlite", because="`server init` begins there, and `server move` leads on")
def test_a_given_certificate_is_used(tmp_path, directory):
    tls = directory / "tls"
    made = run_command(
        "server", "init", tmp_path / "given", "--port", "0", "--json",
        "--certificate", tls / "server.pem", "--certificate-key", tls / "server.key",
    )  # fmt: skip
    assert documents.loads(made.stdout)["directory"] == str(tmp_path / "given")
    server = RunningServer(tmp_path / "given").start()
    try:
        shutil.copy(directory / "tls" / "ca.pem", tmp_path / "given" / "tls" / "ca.pem")
        with Client(server) as client:
            assert client.ask("GET", "/health").json["status"] == "ok"
    finally:
        server.stop()


AUDIT = """
import os, sys
def hook(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)) and os.environ["AUDITED"] in os.fsdecode(arguments[0]):
        line = f"{os.getpid()} {os.fsdecode(arguments[0])}\\n"
        descriptor = os.open(os.environ["AUDIT_FILE"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, line.encode())
        os.close(descriptor)
sys.addaudithook(hook)
"""


def test_only_the_signer_process_opens_the_signers_files(tmp_path, database_kind):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(AUDIT)
    env = {
        "PYTHONPATH": str(tmp_path / "site"),
        "AUDIT_FILE": str(tmp_path / "opened"),
        "AUDITED": str(tmp_path / "server" / "signer") + "/",
    }
    world = World(tmp_path, env=env, database=fresh_database(database_kind)).begin()
    try:
        world.publish_release("thermo", "1.0", 1, b"one")
        assert world.device().poll().status == 200
        started = [json.loads(line) for line in world.server.log.read_text().splitlines() if "signer.started" in line]
        opened = {tuple(line.split(" ", 1)) for line in (tmp_path / "opened").read_text().splitlines()}
        names = {Path(path).name for _, path in opened}
        assert {"snapshot.pem", "timestamp.pem", "state.json.new"} <= names
        assert {pid for pid, _ in opened} == {str(started[0]["pid"])}
        assert world.server.process.pid != started[0]["pid"]
    finally:
        world.close()


def test_a_signer_that_dies_is_started_again_and_still_remembers(tmp_path, database_kind):
    world = World(tmp_path, database=fresh_database(database_kind)).begin()
    try:
        pid = next(
            json.loads(line)["pid"] for line in world.server.log.read_text().splitlines() if "signer.started" in line
        )
        os.kill(pid, signal.SIGKILL)
        before = world.admin.ask("GET", "/api/v1/image/state").json
        world.publish_release("thermo", "1.0", 1, b"one")
        after = world.admin.ask("GET", "/api/v1/image/state").json
        assert after["timestamp_version"] > before["timestamp_version"]
    finally:
        world.close()


@pytest.mark.one_database("sqlite", because="`server init` begins there, and `server move` leads on")
@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_as_root_the_signer_runs_as_its_own_user():
    directory = Path(tempfile.mkdtemp(dir="/var/tmp"))
    directory.chmod(0o755)
    server = directory / "server"
    try:
        run_command("server", "init", server, "--name", "localhost", "--port", "0", "--signer-user", "nobody")
        password = directory / "password"
        password.write_text(PASSWORD)
        password.chmod(0o600)
        run_command("operator", "add", "admin", "--role", "admin", "-d", server, "--password-file", password)
        running = RunningServer(server).start()
        try:
            log = [json.loads(line) for line in running.log.read_text().splitlines() if "signer.started" in line]
            status = Path(f"/proc/{log[0]['pid']}/status").read_text()
            uid = str(pwd.getpwnam("nobody").pw_uid)
            assert next(line for line in status.splitlines() if line.startswith("Uid:")).split()[1:] == [uid] * 4
            assert "Groups:\t \n" in status
            author = Author(json.loads((server / "online-public.json").read_text()))
            with Client(running) as client:
                login = client.ask("POST", "/api/v1/login", {"name": "admin", "password": PASSWORD}).json
            with Client(running, token=login["token"]) as client:
                answer = client.ask("POST", "/api/v1/image/publish", author.first())
            assert answer.status == 200, answer.body
        finally:
            assert running.stop() == 0
        doctor = documents.loads(run_command("server", "doctor", "-d", server, "--json").stdout)
        assert {f["verdict"] for f in doctor["findings"] if f["check"] == "signer"} == {"good"}
    finally:
        shutil.rmtree(directory)


def test_after_kill_9_every_answered_report_is_there(tmp_path, database_kind):
    world = World(tmp_path, database=fresh_database(database_kind)).begin()
    try:
        world.publish_release("thermo", "1.0", 1, b"one")
        device = world.device()
        attempt_id = world.assign(device, "thermo/1.0")
        device.assignment()
        for status in ("fetching", "verified", "staged"):
            assert device.tell(attempt_id, status).json["accepted"] == [device.numbers]
        version = json.loads(device.poll().json["timestamp"])["signed"]["version"]
        assert world.restart(signal.SIGKILL) == -signal.SIGKILL
        assert world.attempt(device)["status"] == "staged"
        assert json.loads(device.poll().json["timestamp"])["signed"]["version"] > version
        repeated = device.envelope(attempt_id, "staged", number=device.numbers)
        assert device.report(repeated).json.get("accepted") == [device.numbers]
    finally:
        world.close()


def test_64_an_old_backup_of_the_database_is_no_rollback_for_devices(tmp_path, database_kind):
    world = World(tmp_path, database=fresh_database(database_kind)).begin()
    try:
        device = world.device()
        world.server.stop()
        put_back = kept(world.database, world.server.directory)
        world.server.start()
        device.connect(world.server)
        versions = [json.loads(device.poll().json["timestamp"])["signed"]["version"] for _ in range(3)]
        assert world.server.stop() == 0
        time.sleep(2)  # those three numbers were for this and the next two seconds
        put_back()
        world.server.start()
        device.connect(world.server)
        assert json.loads(device.poll().json["timestamp"])["signed"]["version"] > max(versions)
    finally:
        world.close()


def test_64_an_old_backup_of_the_signer_is_no_rollback_for_devices(tmp_path, database_kind):
    world = World(tmp_path, database=fresh_database(database_kind)).begin()
    try:
        signer = world.server.directory / "signer" / "state.json"
        old = signer.read_bytes()
        for number in (1, 2, 3):
            world.publish_release("thermo", f"1.{number}", number, b"%d" % number)
        before = world.admin.ask("GET", "/api/v1/image/state").json
        world.server.stop()
        signer.write_bytes(old)
        world.restart()
        refreshed = world.admin.ask("GET", "/api/v1/image/state").json
        assert refreshed["timestamp_version"] > before["timestamp_version"]
        world.publish_release("thermo", "1.4", 4, b"four")
        after = world.admin.ask("GET", "/api/v1/image/state").json
        assert after["timestamp_version"] > refreshed["timestamp_version"]
        assert after["snapshot_version"] > refreshed["snapshot_version"] > before["snapshot_version"]
    finally:
        world.close()


@pytest.mark.one_database(
    "sqlite", because="every write is cut off in a file system that is simulated, below the database too"
)
def test_a_publish_is_old_or_new_wherever_it_is_killed(tmp_path):
    script = Path(__file__).parents[1] / "support" / "publish_cuts.py"
    result = subprocess.run(
        [sys.executable, script, tmp_path], capture_output=True, text=True, timeout=200, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(result.stdout)
    assert found["cuts"] == found["operations"] >= 40
    assert found["old"] >= 30
    assert found["new"] >= 1


def test_trust_can_be_imported_offline(directory, tmp_path):
    author = Author(json.loads((directory / "online-public.json").read_text()))
    for name in ("image", "director"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.root.json").write_bytes(author.root(name))
    roots = ("--image", tmp_path / "image" / "1.root.json", "--director", tmp_path / "director" / "1.root.json")
    trusted = run_command("server", "trust", "-d", directory, *roots, "--json").stdout
    assert documents.loads(trusted)["trusted"] == {"image": 1, "director": 1}
    migrated = documents.loads(run_command("server", "migrate", "-d", directory, "--json").stdout)
    assert migrated["revision"] == HEAD
    other = Author(json.loads((directory / "online-public.json").read_text()))
    (tmp_path / "image" / "1.root.json").write_bytes(other.root("image"))
    assert "request/conflict" in run_command("server", "trust", "-d", directory, *roots, check=False).stderr
    add_operator(directory, "rita", "releaser")
    server = RunningServer(directory).start()
    try:
        with Client(server) as client:
            token = client.ask("POST", "/api/v1/login", {"name": "rita", "password": PASSWORD}).json["token"]
        with Client(server, token=token) as client:
            # A releaser may publish now, and only what the trusted keys signed.
            assert client.ask("POST", "/api/v1/image/publish", other.first()).code == "request/conflict"
            answer = client.ask("POST", "/api/v1/image/publish", author.first())
            assert answer.status == 200, answer.body
            assert client.ask("GET", "/api/v1/image/state").json["roles"]["root"] == 1
    finally:
        server.stop()


def test_the_first_root_is_an_administrators_decision(directory):
    add_operator(directory, "rita", "releaser")
    author = Author(json.loads((directory / "online-public.json").read_text()))
    server = RunningServer(directory).start()
    try:
        with Client(server) as client:
            token = client.ask("POST", "/api/v1/login", {"name": "rita", "password": PASSWORD}).json["token"]
        with Client(server, token=token) as client:
            assert client.ask("POST", "/api/v1/image/publish", author.first()).code == "request/forbidden"
    finally:
        server.stop()


def test_doctor_finds_what_is_wrong(tmp_path, database_kind):
    world = World(tmp_path, database=fresh_database(database_kind)).begin()
    try:
        data = b"payload"
        world.publish_release("thermo", "1.0", 1, data)
        world.server.stop()
        directory = world.server.directory
        good = run_command("server", "doctor", "-d", directory)
        assert "BAD" not in good.stdout
        (directory / "repository" / "targets" / "thermo" / "1.0" / f"{sha256(data)}.firmware.img").unlink()
        bad = run_command("server", "doctor", "-d", directory, check=False)
        assert (bad.returncode, "BAD   payloads" in bad.stdout) == (1, True)
        if database_kind == "sqlite":
            (directory / "database" / "firmament.db").write_bytes(b"not a database" * 1000)
        forget(world.database)
        bad = run_command("server", "doctor", "-d", directory, check=False)
        assert (bad.returncode, "BAD   database" in bad.stdout) == (1, True)
    finally:
        world.close()


def test_slow_readers_are_cut_and_downloads_are_bounded(tmp_path, database_kind):
    env = {
        "FIRMAMENT_SERVER_MAX_DOWNLOADS_PER_DEVICE": "1",
        "FIRMAMENT_SERVER_DEVICE_BURST": "15",
        "FIRMAMENT_SERVER_DEVICE_REQUESTS_PER_S": "0.01",
    }
    world = World(tmp_path, env=env, database=fresh_database(database_kind)).begin()
    try:
        data = os.urandom(8 * 2**20)
        world.publish_release("thermo", "1.0", 1, data)
        device = world.device()
        path = f"/v1/image/targets/thermo/1.0/{sha256(data)}.firmware.img"
        url = world.server.url + path
        slow = device.client.pool.request("GET", url, preload_content=False)
        assert slow.read(1000) == data[:1000]
        second = device.client.ask("GET", path)
        assert (second.status, second.code, second.headers["retry-after"]) == (503, "request/overloaded", "30")
        assert device.client.ask("HEAD", path).status == 200  # nothing is sent: not counted
        assert device.poll().status == 200  # a download under way starves nobody
        slow.close()
        codes = [device.poll().status for _ in range(20)]
        assert codes[-1] == 429
        limited = device.poll()
        assert (limited.code, limited.headers["retry-after"].isdigit()) == ("request/rate-limited", True)
    finally:
        world.close()
