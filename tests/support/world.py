"""One device, one server, both repositories, in memory: whole and valid until a test breaks one thing.

Image repository by trust/repository.py, director by trust/director.py, the device's own
`ServerLink` in between; `Wire` is the transport, and `tap` is whoever sits on it.
"""

import base64
import itertools
import json
import uuid
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from securesystemslib.signer import CryptoSigner

from firmament.agent.link import Relation, ServerLink
from firmament.agent.ports import Running
from firmament.core.clock import FixedClock
from firmament.core.digest import Digest
from firmament.core.manifest import Image, Manifest, Payload
from firmament.durable import RealDisk
from firmament.protocol.v1.messages import EnrolReply, ReportReply, decode_poll_request, decode_report_batch
from firmament.trust import repository
from firmament.trust.device_keys import IdentityKey
from firmament.trust.director import Assignment, DirectorKeys, make_reply
from firmament.trust.floors import Floors
from firmament.trust.roles import RoleKeys

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
SERVER = "https://server:4443"
PRODUCT = "thermo"
HARDWARE = "rpi4"


def ed25519():
    return CryptoSigner.generate_ed25519()


def role(*signers, threshold=None):
    return RoleKeys(tuple(signer.public_key for signer in signers), threshold or len(signers))


@dataclass
class Answer:
    """`ports.Response` from memory."""

    status: int
    body: bytes = b""
    headers: dict = field(default_factory=dict)
    is_closed: bool = False

    def chunks(self):
        for start in range(0, len(self.body), 1000):
            yield self.body[start : start + 1000]

    def close(self):
        self.is_closed = True


class ImageRepository:
    def __init__(self, clock):
        self.clock = clock
        self.keys = {name: ed25519() for name in ("root", "targets", "snapshot", "timestamp", PRODUCT)}
        self.releases = {}
        self.files = {}
        self.blobs = {}
        self.versions = dict.fromkeys(("targets", "snapshot", "timestamp", PRODUCT), 0)
        self.put_root(1)
        self.publish()

    def until(self, days):
        return self.clock.now() + timedelta(days=days)

    def put_root(self, version):
        root = repository.make_root(
            version=version,
            expires_at=self.until(365),
            roles={name: role(self.keys[name]) for name in ("root", "targets", "snapshot", "timestamp")},
        )
        self.files[f"{version}.root.json"] = repository.encode(repository.sign(root, self.keys["root"]))

    def publish(self):
        version = {name: number + 1 for name, number in self.versions.items()}
        self.versions = version
        targets = {}
        for manifest in self.releases.values():
            targets |= repository.release_targets(manifest)
        made = {
            "targets": repository.make_targets(
                version=version["targets"], expires_at=self.until(180), products={PRODUCT: role(self.keys[PRODUCT])}
            ),
            PRODUCT: repository.make_product(version=version[PRODUCT], expires_at=self.until(180), targets=targets),
            "snapshot": repository.make_snapshot(
                version=version["snapshot"],
                expires_at=self.until(14),
                versions={name: version[name] for name in ("targets", PRODUCT)},
            ),
            "timestamp": repository.make_timestamp(
                version=version["timestamp"], expires_at=self.until(3), snapshot_version=version["snapshot"]
            ),
        }
        for name, metadata in made.items():
            self.files[repository.file_name(name, metadata)] = repository.encode(
                repository.sign(metadata, self.keys[name])
            )


class World:
    """`clock` is the server's time; `device_clock` the device's."""

    def __init__(self, directory: Path):
        self.clock = FixedClock(NOON)
        self.device_clock = FixedClock(NOON)
        self.image = ImageRepository(self.clock)
        self.director = {name: ed25519() for name in ("root", "targets", "snapshot", "timestamp")}
        self.director_files = {}
        self.put_director_root(1)
        self.assignment = None
        self.version = itertools.count(int(NOON.timestamp()))
        self.reports = []
        self.requests = []
        self.tap = None
        """`tap(method, url, answer) -> answer`: whoever sits between device and server."""
        self.on_poll = None
        """`on_poll(request, make) -> PollReply`: a server that lies."""
        self.running = Running("1.0", 1, "", "boot-1", {"os": "test"})
        self.disk = RealDisk()
        self.directory = directory
        self.floors = Floors(self.disk, directory / "floors")
        self.key = IdentityKey.generate()
        self.device_id = str(uuid.uuid4())
        self.nonces = (number.to_bytes(16, "big") for number in itertools.count(1))
        self.link = self.make_link()

    def make_link(self, **changes):
        relation = Relation(
            device_id=self.device_id,
            product=PRODUCT,
            hardware=HARDWARE,
            server_url=SERVER,
            repository_url=f"{SERVER}/v1/image",
            image_root=self.image.files["1.root.json"],
            director_root=self.director_files["1.root.json"],
            metadata_directory=self.directory / "metadata",
        )
        return ServerLink(
            relation=replace(relation, **changes),
            key=self.key,
            transport=self,
            disk=self.disk,
            clock=self.device_clock,
            floors=self.floors,
            nonce=lambda: next(self.nonces),
        )

    # --- author and operator ---------------------------------------------------------------

    def put_director_root(self, version, *, expires_at=None):
        root = repository.make_root(
            version=version,
            expires_at=expires_at or self.clock.now() + timedelta(days=365),
            roles={name: role(self.director[name]) for name in ("root", "targets", "snapshot", "timestamp")},
        )
        self.director_files[f"{version}.root.json"] = repository.encode(repository.sign(root, self.director["root"]))

    def release(self, version, sequence_number, data=b"image", *, assign=True, **changes):
        """Publish a release and assign it."""
        digest = Digest.of(data)
        target = f"{PRODUCT}/{version}/image.bin"
        manifest = Manifest(
            product=PRODUCT,
            version=version,
            sequence_number=sequence_number,
            hardware=(HARDWARE,),
            installer="bundle",
            image=Image(digest, len(data)),
            payloads=(Payload("whole", 1, target, len(data), digest),),
            created_at=NOON,
        )
        manifest = replace(manifest, **changes)
        self.image.releases[version] = manifest
        self.image.blobs[f"{PRODUCT}/{version}/{digest.hex}.image.bin"] = data
        self.image.publish()
        if assign:
            self.assign(manifest)
        return manifest

    def assign(self, manifest, **changes):
        primary = manifest.payloads[0]
        self.assignment = replace(
            Assignment(
                attempt_id=str(uuid.uuid4()),
                target=primary.target,
                length_bytes=primary.length_bytes,
                digest=primary.digest,
                payload=primary.target,
            ),
            **changes,
        )
        return self.assignment

    # --- device ----------------------------------------------------------------------------

    def poll(self):
        self.requests.clear()
        return self.link.poll(self.running)

    def director_keys(self):
        return DirectorKeys(*(self.director[name] for name in ("targets", "snapshot", "timestamp")))

    def make(self, *, nonce, **changes):
        facts = {
            "device_id": self.device_id,
            "nonce": nonce,
            "assignment": self.assignment,
            "now": self.clock.now(),
            "version": next(self.version),
            "poll_after_s": 300,
        }
        return make_reply(self.director_keys(), **{**facts, **changes})

    # --- ports.Transport -------------------------------------------------------------------

    def request(self, method, url, *, body=None, headers=None, deadline_s=None):
        assert url.startswith(SERVER), url
        path = url.removeprefix(SERVER)
        self.requests.append(f"{method} {path}")
        answer = self.answer(path, body, headers or {})
        return self.tap(method, path, answer) if self.tap else answer

    def answer(self, path, body, headers):
        if path == "/v1/poll":
            request = decode_poll_request(body)
            self.polled = request
            reply = (
                self.on_poll(request, lambda **changes: self.make(nonce=changes.pop("nonce", request.nonce), **changes))
                if self.on_poll
                else self.make(nonce=request.nonce)
            )
            return Answer(200, json.dumps(reply.to_json()).encode())
        if path == "/v1/report":
            self.reports += decode_report_batch(body).envelopes
            numbers = [
                json.loads(base64.b64decode(item["payload"]))["report_number"]
                for item in decode_report_batch(body).envelopes
            ]
            return Answer(200, json.dumps(ReportReply(tuple(numbers)).to_json()).encode())
        if path == "/v1/enrol":
            return Answer(200, json.dumps(EnrolReply(self.device_id, "").to_json()).encode())
        for prefix, files in (
            ("/v1/director/", self.director_files),
            ("/v1/image/metadata/", self.image.files),
            ("/v1/image/targets/", self.image.blobs),
        ):
            name = path.removeprefix(prefix)
            if name != path and name in files:
                return _file(files[name], headers)
        return Answer(404, b'{"type":"request/not-found","detail":"no such file"}')


def _file(data, headers):
    start = headers.get("Range")
    if start is None:
        return Answer(200, data, {"content-length": str(len(data))})
    first, _, last = start.removeprefix("bytes=").partition("-")
    offset, end = int(first), int(last) + 1 if last else len(data)
    return Answer(206, data[offset:end], {"content-range": f"bytes {offset}-{end - 1}/{len(data)}"})
