"""The agent's TUF client as an executable, driven from outside in the manner of tuf-conformance.

Each story: a repository over HTTP, a client that is a process of its own, and what can be seen of
it: exit code, the requests it made in their order, and the files it kept.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from support.tuf_repository import TufRepository
from tuf.api.metadata import MetaFile

EXECUTABLE = Path(__file__).parent / "tuf-client"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        repository = self.server.repository
        if self.path.startswith("/metadata/"):
            data = repository.metadata(self.path.removeprefix("/metadata/"))
        else:
            data = repository.target(self.path.removeprefix("/targets/"))
        self.send_response(404 if data is None else 200)
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(data or b"")

    def log_message(self, *arguments):
        pass


class Client:
    def __init__(self, directory, repository, port):
        self.metadata = directory / "metadata"
        self.targets = directory / "targets"
        self.root = directory / "trusted.root"
        self.repository = repository
        self.url = f"http://127.0.0.1:{port}"
        self.root.write_bytes(repository.roots[0])

    def call(self, *arguments, at=None):
        self.repository.requests.clear()
        self.repository.fetched.clear()
        argv = [str(EXECUTABLE), "--metadata-dir", str(self.metadata), *arguments]
        done = subprocess.run(
            (["faketime", at] if at else []) + argv,
            env={**os.environ, "FIRMAMENT_PYTHON": sys.executable},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        self.said = done.stderr
        assert done.returncode in {0, 1}, done.stderr
        assert "Traceback" not in done.stderr
        return done.returncode

    def init(self):
        return self.call("init", str(self.root))

    def refresh(self, **options):
        return self.call("--metadata-url", f"{self.url}/metadata", "refresh", **options)

    def download(self, *names):
        wanted = [word for name in names for word in ("--target-name", name)]
        return self.call(
            *("--metadata-url", f"{self.url}/metadata"),
            *wanted,
            *("--target-dir", str(self.targets), "--target-base-url", f"{self.url}/targets"),
            "download",
        )

    def roles(self):
        """Every *.json in the directory must be metadata, as the suite reads them."""
        found = {}
        for path in self.metadata.glob("*.json"):
            found[path.name.removesuffix(".json")] = json.loads(path.read_bytes())["signed"]["version"]
        return found

    def files(self):
        return {path.name: path.read_bytes() for path in self.targets.glob("*")} if self.targets.exists() else {}


@pytest.fixture
def repo():
    return TufRepository()


@pytest.fixture
def client(tmp_path, repo):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.repository = repo
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    found = Client(tmp_path, repo, server.server_port)
    assert found.init() == 0
    yield found
    server.shutdown()
    server.server_close()
    thread.join()


FIRST = [("root", 2), ("timestamp", None), ("snapshot", 1), ("targets", 1)]


def test_init_asks_nobody_and_refresh_asks_in_order(client, repo):
    assert repo.requests == []
    assert client.roles() == {"root": 1}
    assert client.refresh() == 0
    assert repo.requests == FIRST
    assert client.roles() == {"root": 1, "timestamp": 1, "snapshot": 1, "targets": 1}
    assert client.refresh() == 0
    assert repo.requests == FIRST[:2]


def test_a_command_without_init_fails(client):
    shutil.rmtree(client.metadata)
    assert client.refresh() == 1
    assert "trust/anchor-missing" in client.said


def test_only_what_changed_is_asked_for(client, repo):
    client.refresh()
    repo.publish(targets=False)
    assert client.refresh() == 0
    assert repo.requests == [("root", 2), ("timestamp", None), ("snapshot", 2)]


def test_root_rotation_is_followed_step_by_step(client, repo):
    for role in ("timestamp", "root", "targets"):
        repo.rotate(role, count=2)
    repo.publish()
    assert client.refresh() == 0
    assert repo.requests[:4] == [("root", 2), ("root", 3), ("root", 4), ("root", 5)]
    history = sorted(path.name for path in (client.metadata / "root_history").iterdir())
    assert history == ["1.root.json", "2.root.json", "3.root.json", "4.root.json"]
    assert client.roles()["root"] == 4


def test_a_root_of_an_attacker_stops_everything(client, repo):
    repo.signers["root"] = [CryptoSigner.generate_ed25519()]
    repo.publish_root()
    assert client.refresh() == 1
    assert repo.requests == [("root", 2)]
    assert client.roles() == {"root": 1}


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_rollback(client, repo, role):
    getattr(repo, role).signed.version = 5
    repo.publish(targets=False)
    assert client.refresh() == 0
    getattr(repo, role).signed.version = 3
    repo.timestamp.signed.version += role != "timestamp"
    repo.snapshot.signed.version += role == "targets"
    repo.publish(bump=False)
    before = client.roles()
    assert client.refresh() == 1
    assert client.roles()[role] == before[role]


def test_rollback_after_the_cache_was_lost(client, repo):
    """What python-tuf alone accepts; the floors remember."""
    old = repo.save()
    repo.publish()
    client.refresh()
    for path in client.metadata.glob("*.json"):
        path.unlink() if not path.is_symlink() else None
    repo.kept = old
    assert client.refresh() == 1
    assert "trust/rollback" in client.said
    assert repo.requests == [("root", 2), ("timestamp", None)]


@pytest.mark.parametrize("rotated", ["timestamp", "snapshot"])
def test_fast_forward_recovery(client, repo, rotated):
    role = {"timestamp": "snapshot", "snapshot": "targets"}[rotated]
    getattr(repo, role).signed.version = 99_999
    repo.publish(targets=False)
    assert client.refresh() == 0
    getattr(repo, role).signed.version = 1
    repo.rotate(rotated)
    repo.timestamp.signed.version += 1
    repo.snapshot.signed.version += role != "snapshot"
    repo.publish(bump=False)
    assert client.refresh() == 0
    assert client.roles()[role] == 1


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_expired_metadata(client, repo, role):
    getattr(repo, role).signed.expires = repo.made_at - timedelta(days=1)
    repo.publish()
    assert client.refresh() == 1
    assert "trust/expired" in client.said
    assert role not in client.roles()


def test_an_expired_root_is_kept_but_nothing_after_it(client, repo):
    repo.root.signed.expires = repo.made_at - timedelta(days=1)
    repo.publish_root()
    assert client.refresh() == 1
    assert client.roles() == {"root": 2}
    repo.root.signed.expires = repo.made_at + timedelta(days=30)
    repo.publish_root()
    assert client.refresh() == 0
    assert client.roles()["root"] == 3


@pytest.mark.skipif(shutil.which("faketime") is None, reason="Debian's faketime is not installed (make packages)")
def test_metadata_that_expired_while_the_client_slept(client, repo):
    assert client.refresh() == 0
    later = (repo.made_at + timedelta(days=31)).strftime("%Y-%m-%d %H:%M:%S")
    assert client.refresh(at=later) == 1
    assert "trust/expired" in client.said
    assert client.refresh() == 0


def test_a_failed_refresh_keeps_what_was_valid(client, repo):
    client.refresh()
    repo.publish()
    repo.broken["2.snapshot.json"] = None
    assert client.refresh() == 1
    assert client.roles() == {"root": 1, "timestamp": 2, "snapshot": 1, "targets": 1}


def test_mix_and_match(client, repo):
    client.refresh()
    repo.publish()
    repo.broken["2.targets.json"] = repo.kept["1.targets.json"]
    assert client.refresh() == 1
    assert client.roles()["targets"] == 1


def test_metadata_removed_from_the_snapshot(client, repo):
    repo.delegate("thermo", ["thermo/*"])
    repo.publish()
    client.refresh()
    repo.delegated.clear()
    del repo.snapshot.signed.meta["thermo.json"]
    repo.publish()
    assert client.refresh() == 1


@pytest.mark.parametrize("broken", [b"{", b"[" * 10_000])
def test_bytes_that_are_no_metadata(client, repo, broken):
    repo.broken["timestamp.json"] = broken
    assert client.refresh() == 1
    assert client.roles() == {"root": 1}


# --- targets -------------------------------------------------------------------------------


def test_targets_are_fetched_once_and_again_when_they_change(client, repo):
    repo.add_target("a", b"one")
    repo.add_target("b", b"two")
    repo.publish()
    assert client.download("a", "b") == 0
    assert client.files() == {"a": b"one", "b": b"two"}
    assert len(repo.fetched) == 2
    assert client.download("a", "b") == 0
    assert repo.fetched == []
    repo.add_target("a", b"three")
    repo.publish()
    assert client.download("a") == 0
    assert client.files() == {"a": b"three", "b": b"two"}


def test_the_first_failure_ends_a_download(client, repo):
    repo.add_target("a", b"one")
    repo.publish()
    assert client.download("absent", "a") == 1
    assert client.files() == {}


@pytest.mark.parametrize(
    "change",
    [lambda d: b"evil", lambda d: d + b"x", lambda d: b"x" + d[1:], lambda d: b""],
    ids=["other", "longer", "flipped", "empty"],
)
def test_other_bytes_are_not_kept(client, repo, change):
    repo.add_target("a", b"firmware")
    repo.publish()
    (name,) = repo.files
    repo.files[name] = change(repo.files[name])
    assert client.download("a") == 1
    assert "a" not in client.files()


@pytest.mark.parametrize(("algorithm", "code"), [("sha512", 0), ("md5", 1)])
def test_hash_algorithms(client, repo, algorithm, code):
    repo.add_target("a", b"firmware", algorithm=algorithm)
    repo.publish()
    assert client.download("a") == code


# --- delegations ---------------------------------------------------------------------------


def test_delegations_are_walked_in_order(client, repo):
    for role, parent in (("a", "targets"), ("b", "targets"), ("c", "a")):
        repo.delegate(role, ["x*"], parent=parent)
    repo.add_target("x1", b"deep", role="c")
    repo.add_target("x1", b"late", role="b")
    repo.publish()
    assert client.download("x1") == 0
    assert client.files() == {"x1": b"deep"}
    assert [role for role, _ in repo.requests[4:]] == ["a", "c"]


def test_a_terminating_delegation_ends_the_walk(client, repo):
    repo.delegate("a", ["x*"], terminating=True)
    repo.delegate("b", ["x*"])
    repo.add_target("x1", b"late", role="b")
    repo.publish()
    assert client.download("x1") == 1
    assert [role for role, _ in repo.requests[4:]] == ["a"]


def test_a_delegation_is_verified_for_each_delegator(client, repo):
    repo.delegate("a", ["x*"])
    repo.publish()
    repo.signers["a"] = [CryptoSigner.generate_ed25519()]
    repo.delegated["a"].signed.version += 1
    repo.publish()
    assert client.download("x1") == 1
    assert "trust/threshold-not-met" in client.said


@pytest.mark.parametrize("role", ["?", "#", "../x", "%2F"])
def test_unusual_role_names(client, repo, role):
    repo.delegate(role, ["*"])
    repo.add_target("x", b"firmware", role=role)
    repo.publish()
    assert client.download("x") == 0
    assert repo.requests[-1] == (role, 1)
    assert {path.parent for path in client.metadata.rglob("*") if path.is_file()} <= {
        client.metadata,
        client.metadata / "root_history",
    }
    assert not (client.metadata.parent / "x.json").exists()


def test_a_stolen_delegation_cannot_go_back(client, repo):
    repo.delegate("a", ["*"])
    repo.add_target("x", b"new", role="a")
    repo.delegated["a"].signed.version = 7
    repo.publish()
    assert client.download("x") == 0
    repo.delegated["a"].signed.version = 6
    repo.snapshot.signed.meta["a.json"] = MetaFile(6)
    repo.publish()
    assert client.download("x") == 1
