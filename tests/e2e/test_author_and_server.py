"""The author's commands against a real server over TLS: publish, refuse, rotate; processes as a person starts them."""

import pytest
from support import documents
from support.databases import fresh_database
from support.server_world import PASSWORD, Client, RunningServer, add_operator, make_server, run_command


@pytest.fixture(scope="module")
def bench(tmp_path_factory, database_kind):
    """A running server, a workspace made from its keys, a token."""
    directory = tmp_path_factory.mktemp("bench")
    server = RunningServer(make_server(directory / "server", fresh_database(database_kind))).start()
    add_operator(server.directory, "anna", "admin")
    with Client(server) as client:
        token = client.ask("POST", "/api/v1/login", {"name": "anna", "password": PASSWORD}).json["token"]
    secrets = {"token": token, "passphrase": "correct horse battery"}
    for name, text in secrets.items():
        (directory / name).write_text(f"{text}\n")
        (directory / name).chmod(0o600)
    (directory / "app").mkdir()
    (directory / "app" / "main.py").write_text("print(1)\n")
    yield Bench(directory, server)
    server.stop()


class Bench:
    def __init__(self, directory, server):
        self.directory, self.server = directory, server
        self.workspace = directory / "author"
        self.env = {
            "FIRMAMENT_PASSPHRASE_FILE": str(directory / "passphrase"),
            "FIRMAMENT_TOKEN_FILE": str(directory / "token"),
            "FIRMAMENT_SERVER": server.url,
            "FIRMAMENT_CA": str(server.ca),
            "FIRMAMENT_WORKSPACE": str(self.workspace),
            "FIRMAMENT_JSON": "1",
        }

    def run(self, *arguments, check=True, **env):
        done = run_command(*arguments, check=False, env=self.env | env)
        if check:
            assert done.returncode == 0, done.stderr
            return documents.loads(done.stdout)
        return done.returncode, documents.loads(done.stderr)

    def release(self, version):
        self.run("release", "build", self.directory / "app", "--version", version, "--hardware", "rpi4")
        self.run("release", "sign", f"thermo/{version}")


def test_publish_promote_withdraw_and_rotate_on_a_real_server(bench):
    online = bench.server.directory / "online-public.json"
    bench.run("init", bench.workspace, "--product", "thermo", "--online", online)
    bench.release("1.0")
    assert bench.run("release", "publish", "--dry-run")["to"] == ["server"]
    first = bench.run("release", "publish")
    assert first["releases"] == ["thermo/1.0"]
    bench.run("release", "promote", "thermo/1.0", "--channel", "stable")
    (listed,) = bench.run("release", "list", "--remote")["releases"]
    assert (listed["release"], listed["sequence_number"], listed["channels"]) == ("thermo/1.0", 1, ["stable"])

    for role in ("thermo", "targets", "root"):
        bench.run("key", "rotate", role)
        assert bench.run("release", "publish")["snapshot_version"] > first["snapshot_version"]
    bench.release("1.1")
    bench.run("release", "publish", "--channel", "testing")
    bench.run("release", "withdraw", "thermo/1.0")
    bench.run("release", "publish")
    remote = {item["release"]: item for item in bench.run("release", "list", "--remote")["releases"]}
    assert remote["thermo/1.0"]["withdrawn_at"] is not None
    assert remote["thermo/1.1"]["withdrawn_at"] is None
    assert bench.run("release", "verify", "thermo/1.1")["verified"] is True


def test_what_the_server_refuses_stays_a_draft(bench, tmp_path):
    stranger = tmp_path / "stranger"
    online = bench.server.directory / "online-public.json"
    bench.run("init", stranger, "--product", "thermo", "--online", online)
    env = {"FIRMAMENT_WORKSPACE": str(stranger)}
    bench.run("release", "build", bench.directory / "app", "--version", "6.6", "--hardware", "rpi4", **env)
    bench.run("release", "sign", "thermo/6.6", **env)
    code, error = bench.run("release", "publish", check=False, **env)
    assert (code != 0, error["code"].startswith(("trust/", "request/"))) == (True, True)
    assert (stranger / "drafts" / "thermo.json").exists()


def test_a_bad_token_and_a_bad_ca_are_told(bench, tmp_path):
    (tmp_path / "token").write_text("nonsense\n")
    (tmp_path / "token").chmod(0o600)
    assert bench.run("release", "list", "--remote", check=False, FIRMAMENT_TOKEN_FILE=str(tmp_path / "token"))[0] == 85
    code, error = bench.run(
        "release", "list", "--remote", check=False, FIRMAMENT_CA="/etc/ssl/certs/ca-certificates.crt"
    )
    assert (code, error["code"]) == (59, "transfer/tls")


def test_without_a_server_the_command_says_so(bench):
    code, error = bench.run("release", "list", "--remote", check=False, FIRMAMENT_SERVER="https://127.0.0.1:1")
    assert (code, error["code"]) == (51, "transfer/unreachable")
