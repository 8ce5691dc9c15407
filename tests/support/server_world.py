"""A real server process on loopback, an author with keys, and devices; tests break one thing each."""

import hashlib
import json
import os
import shutil
import signal
import ssl
import time
import urllib.parse
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

import urllib3
from argon2 import PasswordHasher
from securesystemslib.signer import CryptoSigner, SSlibKey
from support import programs
from support.databases import forget, fresh_target

from firmament.core.clock import SystemClock
from firmament.core.digest import Digest
from firmament.core.ids import AttemptId, DeviceId
from firmament.core.manifest import Image, Manifest, Payload
from firmament.protocol.status import AttemptStatus
from firmament.protocol.v1.envelope import REPORT_TYPE, Envelope, pre_authentication_encoding
from firmament.protocol.v1.messages import HPKE_PUBLIC_KEY_LENGTH_BYTES, PollRequest, Report
from firmament.server.database.opening import command_database
from firmament.server.database.target import Target, database_target
from firmament.server.layout import Layout
from firmament.server.payloads.store import ServerDisk
from firmament.server.people.service import add_person
from firmament.server.scope import Role, console
from firmament.server.settings import read_settings
from firmament.server.setup import initialise
from firmament.trust import repository
from firmament.trust.device_keys import IdentityKey
from firmament.trust.roles import RoleKeys

PASSWORD = "correct horse battery"
HASHED = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1).hash(PASSWORD)
"""A hash says itself what it costs: this one is verified in no time. What `hash_password` asks for is in a unit test."""
START_DEADLINE_S = 120
PATIENCE = {"FIRMAMENT_SERVER_ROLLOUT_INTERVAL_S": "0.5"}
"""Tests wait for rollouts again and again, and few rows cost a server little."""


def run_command(*arguments: object, check: bool = True, env: dict[str, str] | None = None):
    return programs.run(["firmament", *arguments], check=check, env={**os.environ, **(env or {})})


def make_server(directory: Path, database: dict[str, str]) -> Path:
    """As `firmament server init` does, but for a copied database; `database` as `fresh_database` returns it."""
    layout = Layout(directory)
    if "database" not in database:
        layout.database.parent.mkdir(mode=0o700, parents=True)
        fresh_target("sqlite", layout.database.parent)
    initialise(
        ServerDisk(),
        layout,
        names=["localhost"],
        addresses=["127.0.0.1"],
        options={"port": 0, **database},
        now=SystemClock().now(),
    )
    return directory


def add_operator(directory: Path, name: str, role: str) -> None:
    """As `firmament operator add` does, with a password that is hashed once."""
    now = SystemClock().now()
    with command_database(target_of(directory)) as database:
        database.transact(
            lambda writing: add_person(
                writing, console("test"), name=name, role=Role(role), password_hash=HASHED, now=now
            )
        )


def target_of(directory: Path) -> Target:
    """The database that a server's settings name."""
    layout = Layout(directory)
    return database_target(layout, read_settings(layout.settings, os.environ))


class RunningServer:
    """`firmament server run` in a process of its own."""

    def __init__(self, directory: Path, *, env: dict[str, str] | None = None, address: str = "127.0.0.1") -> None:
        self.directory = directory
        self.env = env or {}
        self.address = address
        self.port = 0
        self.process: programs.Program | None = None
        self.log = directory / "server.log"

    def start(self) -> "RunningServer":
        port_file = self.directory / "port"
        port_file.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self.process = programs.Program(
                [
                    "firmament",
                    "server",
                    "run",
                    "--directory",
                    self.directory,
                    "--port",
                    self.port,
                    "--port-file",
                    port_file,
                    "--log-level",
                    "debug",
                ],
                stdout=log,
                stderr=log,
                env={**os.environ, **PATIENCE, **self.env},
            )
        deadline = time.monotonic() + START_DEADLINE_S
        while not port_file.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the server did not start:\n{self.log.read_text()}")
            time.sleep(0.02)
        self.port = int(port_file.read_text())
        return self

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process is None:
            return 0
        self.process.send_signal(number)
        code = self.process.wait(timeout=20)
        self.process = None
        return code

    @property
    def url(self) -> str:
        scheme = self.env.get("FIRMAMENT_SERVER_FRONT_SCHEME", "https")
        return f"{scheme}://localhost:{self.port}"

    @property
    def ca(self) -> Path:
        return self.directory / "tls" / "ca.pem"

    def rows(self, query: str, *arguments: object) -> list[dict]:
        with command_database(target_of(self.directory), read_only=True) as database:
            return database.read(lambda reading: [dict(row) for row in reading.execute(query, arguments)])

    def change(self, statement: str, *arguments: object) -> None:
        """Do behind the server's back what no request can."""
        with command_database(target_of(self.directory)) as database:
            database.transact(lambda writing: writing.execute(statement, arguments))

    def events(self, kind: str) -> list[dict]:
        return [
            {**row, "facts": json.loads(row["facts"])}
            for row in self.rows("SELECT * FROM event WHERE kind = ? ORDER BY number", kind)
        ]


@dataclass
class Answer:
    """An HTTP answer, read whole."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return self.json["type"] if self.status >= 400 else ""


EVERY_REPLICA = ("firmament.toml", "online-public.json", "tls", "device-ca", "director", "signer", "people", "content")
"""What docs/operate/scale.md says to copy, ..."""
SHARED = (Path("blobs"), Path("repository/targets"))
"""... and what it says to share."""


def replica_of(server: RunningServer, directory: Path) -> RunningServer:
    """Make the directory of another server on the same database, as docs/operate/scale.md tells."""
    directory.mkdir(parents=True)
    for name in EVERY_REPLICA:
        source = server.directory / name
        if source.is_dir():
            shutil.copytree(source, directory / name)
        elif source.exists():
            shutil.copy2(source, directory / name)
    (directory / "repository" / "generations").mkdir(parents=True)
    for name in SHARED:
        (directory / name).symlink_to(server.directory / name, target_is_directory=True)
    return RunningServer(directory, env=server.env)


class Client:
    """HTTP over TLS with an optional client certificate and an optional token."""

    def __init__(self, server: RunningServer, *, certificate: tuple[Path, Path] | None = None, token: str = "") -> None:
        self.server = server
        context = ssl.create_default_context(cafile=str(server.ca))
        if certificate is not None:
            context.load_cert_chain(*map(str, certificate))
        self.token = token
        self.pool = urllib3.PoolManager(ssl_context=context, retries=False, timeout=30)

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        headers: dict[str, str] | None = None,
        fields: dict[str, str] | None = None,
    ) -> Answer:
        sent = dict(headers or {})
        path += f"?{urllib.parse.urlencode(fields)}" if fields else ""
        if self.token:
            sent["authorization"] = f"Bearer {self.token}"
        data = json.dumps(body).encode() if body is not None and not isinstance(body, bytes) else body
        response = self.pool.request(method, self.server.url + path, body=data, headers=sent, redirect=False)
        return Answer(response.status, {k.lower(): v for k, v in response.headers.items()}, response.data)

    def close(self) -> None:
        self.pool.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass
class Author:
    """Offline keys, role versions, and what is published next."""

    online: dict
    products: tuple[str, ...] = ("thermo", "pump")
    now: datetime = field(default_factory=lambda: datetime.now(UTC))
    versions: dict[str, int] = field(default_factory=dict)
    targets: dict[str, dict] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    root_version: int = 1

    def __post_init__(self) -> None:
        self.root_keys = [CryptoSigner.generate_ed25519() for _ in range(3)]
        self.targets_key = CryptoSigner.generate_ed25519()
        self.product_keys = {name: [CryptoSigner.generate_ed25519() for _ in range(2)] for name in self.products}
        self.targets = {name: {} for name in self.products}

    def _online(self, repo: str, role: str) -> RoleKeys:
        entry = self.online[repo][role]
        return RoleKeys((SSlibKey.from_dict(entry["keyid"], dict(entry["key"])),), 1)

    def root(self, repo: str, *, version: int = 1, signers=None, expires_at=None, root_keys=None) -> bytes:
        keys = root_keys or self.root_keys
        offline = RoleKeys((self.targets_key.public_key,), 1)
        made = repository.make_root(
            version=version,
            expires_at=expires_at or self.now + timedelta(days=365),
            roles={
                "root": RoleKeys(tuple(key.public_key for key in keys), 2),
                "targets": offline if repo == "image" else self._online(repo, "targets"),
                "snapshot": self._online(repo, "snapshot"),
                "timestamp": self._online(repo, "timestamp"),
            },
        )
        return repository.encode(repository.sign(made, *(signers if signers is not None else keys[:2])))

    def top_targets(self, *, version: int | None = None, expires_at=None) -> dict[str, bytes]:
        number = version or self.versions.get("targets", 0) + 1
        made = repository.make_targets(
            version=number,
            expires_at=expires_at or self.now + timedelta(days=180),
            products={
                name: RoleKeys(tuple(key.public_key for key in keys), 2) for name, keys in self.product_keys.items()
            },
        )
        self.versions["targets"] = number
        return {f"{number}.targets.json": repository.encode(repository.sign(made, self.targets_key))}

    def product(self, name: str, *, version: int | None = None, signers=None, expires_at=None) -> dict[str, bytes]:
        number = version or self.versions.get(name, 0) + 1
        made = repository.make_product(
            version=number, expires_at=expires_at or self.now + timedelta(days=90), targets=self.targets[name]
        )
        self.versions[name] = number
        keys = self.product_keys[name] if signers is None else signers
        return {f"{number}.{name}.json": repository.encode(repository.sign(made, *keys))}

    def release(self, product: str, version: str, sequence_number: int, data: bytes, **changes) -> Manifest:
        digest = Digest.of(data)
        target = f"{product}/{version}/firmware.img"
        given = {
            "product": product,
            "version": version,
            "sequence_number": sequence_number,
            "hardware": ("rpi4",),
            "installer": "image",
            "image": Image(digest, len(data)),
            "payloads": (Payload("whole", 1, target, len(data), digest),),
            "created_at": self.now.replace(microsecond=0),
        }
        manifest = Manifest(**{**given, **changes})
        self.targets[product].update(repository.release_targets(manifest))
        self.blobs[digest.hex] = data
        return manifest

    def first(self) -> dict:
        metadata = {"1.root.json": self.root("image"), **self.top_targets()}
        for name in self.products:
            metadata.update(self.product(name))
        return submission(metadata, {"1.root.json": self.root("director")})


def submission(metadata: dict[str, bytes], director_roots: dict[str, bytes] | None = None) -> dict:
    value = {"metadata": {name: data.decode() for name, data in metadata.items()}}
    if director_roots:
        value["director_roots"] = {name: data.decode() for name, data in director_roots.items()}
    return value


class Device:
    """One device's identity and what it says."""

    def __init__(self, directory: Path, *, product: str = "thermo", hardware: str = "rpi4") -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.key = IdentityKey.generate()
        self.product = product
        self.hardware = hardware
        self.hpke_public_key = os.urandom(HPKE_PUBLIC_KEY_LENGTH_BYTES)
        self.device_id = DeviceId("")
        self.numbers = 0
        self.director_version = 0
        self.client: Client | None = None
        (directory / "key.pem").write_bytes(self.key.pem)

    def request(self, **changes) -> dict:
        given = {
            "v": 1,
            "product": self.product,
            "hardware": self.hardware,
            "csr_pem": self.key.request_pem(product=self.product, hardware=self.hardware),
            "hpke_public_key": self.hpke_public_key.hex(),
        }
        return {**given, **changes}

    def enrol(self, server: RunningServer, token: str) -> Answer:
        with Client(server) as client:
            answer = client.ask("POST", "/v1/enrol", self.request(token=token))
        if answer.status == 200:
            self.take(server, answer.json)
        return answer

    def take(self, server: RunningServer, reply: dict) -> None:
        self.device_id = DeviceId(reply["device_id"])
        (self.directory / "chain.pem").write_text(reply["certificate_chain_pem"])
        self.connect(server)

    def connect(self, server: RunningServer) -> None:
        self.close()
        self.client = Client(server, certificate=(self.directory / "chain.pem", self.directory / "key.pem"))

    def close(self) -> None:
        if self.client is not None:
            self.client.close()
            self.client = None

    def poll(self, **changes) -> Answer:
        given = {
            "nonce": os.urandom(16),
            "version": "1.0",
            "sequence_number": 1,
            "boot_id": "boot-a",
            "director_version": self.director_version,
        }
        request = PollRequest(**{**given, **changes})
        answer = self.client.ask("POST", "/v1/poll", request.to_json())
        if answer.status == 200:  # as a device does: what it verified is its floor
            found = json.loads(answer.json["timestamp"])["signed"]["version"]
            assert found > self.director_version, "a device would refuse this as a rollback"
            self.director_version = found
        return answer

    def assignment(self, **changes) -> dict | None:
        answer = self.poll(**changes)
        assert answer.status == 200, answer.body
        targets = json.loads(answer.json["targets"])["signed"]["targets"]
        return next(iter(targets.values()))["custom"] if targets else None

    def envelope(self, attempt_id: str, status: AttemptStatus | str, *, key=None, number=None, **changes) -> dict:
        if number is None:
            self.numbers += 1
            number = self.numbers
        given = {
            "device_id": self.device_id,
            "report_number": number,
            "attempt_id": AttemptId(attempt_id),
            "status": AttemptStatus(status),
            "version": "1.0",
            "sequence_number": 1,
            "boot_id": "boot-a",
            "at": datetime(2026, 11, 20, tzinfo=UTC),
        }
        report = Report(**{**given, **changes})
        payload = json.dumps(report.to_json()).encode()
        signer = key or self.key
        signature = signer.sign(pre_authentication_encoding(REPORT_TYPE, payload))
        return Envelope(payload, REPORT_TYPE, signer.keyid, signature).to_json()

    def report(self, *envelopes: dict) -> Answer:
        return self.client.ask("POST", "/v1/report", {"v": 1, "reports": list(envelopes)})

    def tell(self, attempt_id: str, status: str, **changes) -> Answer:
        return self.report(self.envelope(attempt_id, status, **changes))


class World:
    """A server, its author and its operators; `database` as `fresh_database` returns it, with more settings or not."""

    def __init__(self, directory: Path, *, database: dict[str, str], env: dict[str, str] | None = None) -> None:
        self.directory = directory
        self.database = database
        server = directory / "server"
        make_server(server, database)
        self.password_file = directory / "password"
        self.password_file.write_text(PASSWORD + "\n")
        self.password_file.chmod(0o600)
        self.add_person("admin", "admin", server)
        self.server = RunningServer(server, env=env).start()
        self.author = Author(json.loads((server / "online-public.json").read_text()))
        self.devices: list[Device] = []
        self.clients: list[Client] = []
        self.admin = self.sign_in("admin")

    def add_person(self, name: str, role: str, server: Path | None = None) -> None:
        add_operator(server or self.server.directory, name, role)

    def sign_in(self, name: str) -> Client:
        with Client(self.server) as client:
            answer = client.ask("POST", "/api/v1/login", {"name": name, "password": PASSWORD})
        assert answer.status == 200, answer.body
        return self.client(answer.json["token"])

    def client(self, token: str) -> Client:
        client = Client(self.server, token=token)
        self.clients.append(client)
        return client

    def token(self, role: str, product: str | None = None) -> Client:
        body = {"role": role, "expires_in_s": 3600, **({"product": product} if product else {})}
        answer = self.admin.ask("POST", "/api/v1/tokens", body)
        assert answer.status == 201, answer.body
        return self.client(answer.json["token"])

    def upload(self, client: Client | None = None) -> None:
        for sha256, data in self.author.blobs.items():
            answer = (client or self.admin).ask("PUT", f"/api/v1/blobs/{sha256}", data)
            assert answer.status in {200, 201}, answer.body
        self.author.blobs.clear()

    def publish(self, value: dict, client: Client | None = None) -> Answer:
        return (client or self.admin).ask("POST", "/api/v1/image/publish", value)

    def publish_release(self, product: str, version: str, sequence_number: int, data: bytes, **changes) -> Manifest:
        manifest = self.author.release(product, version, sequence_number, data, **changes)
        self.upload()
        answer = self.publish(submission(self.author.product(product)))
        assert answer.status == 200, answer.body
        return manifest

    def begin(self) -> "World":
        answer = self.publish(self.author.first())
        assert answer.status == 200, answer.body
        return self

    def enrolment_token(self, product: str = "thermo", **changes) -> str:
        body = {"product": product, "expires_in_s": 3600, **changes}
        answer = self.admin.ask("POST", "/api/v1/enrolment-tokens", body)
        assert answer.status == 201, answer.body
        return answer.json["token"]

    def device(self, **changes) -> Device:
        device = self.new_device(**changes)
        answer = device.enrol(self.server, self.enrolment_token(device.product))
        assert answer.status == 200, answer.body
        return device

    def new_device(self, **changes) -> Device:
        device = Device(self.directory / f"device-{uuid.uuid4()}", **changes)
        self.devices.append(device)
        return device

    def assign(self, device: Device, release: str) -> str:
        answer = self.admin.ask("POST", f"/api/v1/devices/{device.device_id}/assign", {"release": release})
        assert answer.status == 200, answer.body
        return answer.json["attempt_id"]

    def attempt(self, device: Device) -> dict:
        return self.admin.ask("GET", f"/api/v1/devices/{device.device_id}/attempts").json["attempts"][0]

    def restart(self, number: int = signal.SIGTERM) -> int:
        code = self.server.stop(number)
        for client in (*self.clients, *(device.client for device in self.devices if device.client)):
            client.pool.clear()
        self.server.start()
        return code

    def close(self) -> None:
        for device in self.devices:
            device.close()
        for client in self.clients:
            client.close()
        self.server.stop()
        forget(self.database)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
