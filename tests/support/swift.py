"""A real object store for the tests: OpenStack Swift, whose proxy speaks the S3 API.

Processes of Debian's packages on loopback ports: proxy (with `s3api`), account, container and
object server, and memcached for the proxy. The three keep their things on disk, below one directory. Nothing of it is a stand-in:
requests are checked by signature (version 4), parts of a multipart upload are objects, listings
come from the container server's database.
"""

import contextlib
import os
import pwd
import signal
import socket
import subprocess
import time
import urllib.request
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
from support.life import die_with_parent

from firmament.server.payloads.s3_account import S3Account

ACCESS_KEY = "test:tester"
SECRET_KEY = "a-secret-of-the-tests"
BUCKET = "firmament"
START_S = 60
_SERVERS = ("memcached", "account", "container", "object", "proxy")

_RINGS = """
import sys
from swift.common.ring import RingBuilder
for spec in sys.argv[2:]:
    name, port = spec.split(":")
    builder = RingBuilder(1, 1, 0)
    builder.add_dev({"id": 0, "region": 1, "zone": 1, "ip": "127.0.0.1", "port": int(port), "device": "d1", "weight": 1})
    builder.rebalance()
    builder.get_ring().save(f"{sys.argv[1]}/{name}.ring.gz")
"""

_STORAGE = """[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
user = {user}
swift_dir = {directory}
devices = {directory}/devices
mount_check = false
workers = 0
fallocate_reserve = 0
[pipeline:main]
pipeline = {name}-server
[app:{name}-server]
use = egg:swift#{name}
"""

_PROXY = """[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
user = {user}
swift_dir = {directory}
workers = 0
[pipeline:main]
pipeline = catch_errors gatekeeper healthcheck listing_formats cache bulk s3api tempauth copy dlo slo versioned_writes proxy-server
[app:proxy-server]
use = egg:swift#proxy
allow_account_management = true
account_autocreate = true
conn_timeout = 1
node_timeout = 5
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:healthcheck]
use = egg:swift#healthcheck
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:{memcached}
[filter:bulk]
use = egg:swift#bulk
[filter:copy]
use = egg:swift#copy
[filter:dlo]
use = egg:swift#dlo
[filter:versioned_writes]
use = egg:swift#versioned_writes
[filter:slo]
use = egg:swift#slo
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = {secret} .admin
"""


@pytest.fixture(scope="session")
def swift(tmp_path_factory):
    """One store for the whole run; tests that kill a server of it start it again."""
    running = make_swift(tmp_path_factory.mktemp("swift"))
    yield running
    running.kill()


@dataclass
class Swift:
    """The processes, and where they keep their things."""

    directory: Path
    ports: dict[str, int]
    processes: dict[str, subprocess.Popen] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """The address of the S3 API."""
        return f"http://127.0.0.1:{self.ports['proxy']}"

    def settings(self, directory: Path, prefix: str) -> dict[str, str]:
        """Write the keys to files; return a server's settings for a place of its own in the bucket."""
        directory.mkdir(exist_ok=True)
        for name, key in (("access", ACCESS_KEY), ("secret", SECRET_KEY)):
            (directory / f"s3-{name}").write_text(key + "\n")
            (directory / f"s3-{name}").chmod(0o600)
        return {
            "s3_bucket": BUCKET,
            "s3_endpoint": self.url,
            "s3_prefix": prefix,
            "s3_access_key_file": "s3-access",
            "s3_secret_key_file": "s3-secret",
        }

    def make_bucket(self) -> None:
        account = S3Account(self.url, BUCKET, "", "us-east-1", False, ACCESS_KEY, SECRET_KEY)
        url = account.signed_url("PUT", "", {}, datetime.now(UTC), life_s=60)
        with urllib.request.urlopen(urllib.request.Request(url, method="PUT", data=b""), timeout=START_S) as answer:
            assert answer.status == 200

    def start(self, *names: str) -> None:
        """Start these servers, or all; returns when they take connections."""
        for name in names or _SERVERS:
            with (self.directory / f"{name}.log").open("ab") as log:
                self.processes[name] = subprocess.Popen(
                    self._command(name),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    preexec_fn=die_with_parent,  # noqa: PLW1509 - one C call, before any thread of ours
                )
        for name in names or _SERVERS:
            self._await(name)

    def kill(self, *names: str) -> None:
        """End these servers as a power cut would, or all."""
        for name in names or _SERVERS:
            process = self.processes.pop(name, None)
            if process is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)

    def _command(self, name: str) -> list[str]:
        if name == "memcached":
            return ["/usr/bin/memcached", "-l", "127.0.0.1", "-p", str(self.ports[name]), "-U", "0", "-u", _user()]
        return [f"/usr/bin/swift-{name}-server", str(self.directory / f"{name}.conf"), "-v"]

    def _await(self, name: str) -> None:
        for _ in range(START_S * 20):
            if self.processes[name].poll() is not None:
                raise RuntimeError((self.directory / f"{name}.log").read_text()[-2000:])
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.ports[name]), 1):
                break
            time.sleep(0.05)
        if name == "proxy":
            with urllib.request.urlopen(f"{self.url}/healthcheck", timeout=START_S) as answer:
                assert answer.read() == b"OK"


def make_swift(directory: Path) -> Swift:
    """Configure a store and start it."""
    ports = {name: free_port() for name in _SERVERS}
    swift = Swift(directory, ports)
    (directory / "devices" / "d1").mkdir(parents=True)
    (directory / "swift.conf").write_text("[swift-hash]\nswift_hash_path_suffix = tests\n")
    for name in _SERVERS[1:]:
        text = (_PROXY if name == "proxy" else _STORAGE).format(
            name=name,
            port=ports[name],
            user=_user(),
            directory=directory,
            secret=SECRET_KEY,
            memcached=ports["memcached"],
        )
        (directory / f"{name}.conf").write_text(text)
    rings = [f"{name}:{ports[name]}" for name in ("account", "container", "object")]
    subprocess.run(["/usr/bin/python3", "-c", _RINGS, str(directory), *rings], check=True, timeout=START_S)
    swift.start()
    swift.make_bucket()
    return swift


def _user() -> str:
    return pwd.getpwuid(os.getuid()).pw_name


def free_port() -> int:
    """Ask the system for a port; nobody else takes it so soon."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
