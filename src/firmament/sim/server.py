"""A server and an author in memory, behind the agent's own `Transport` port.

Everything is signed with real keys and made by the functions that the release tool and the
server use (trust/repository.py, trust/director.py), so the device's whole verification runs. The
server stores reports as the real one does: each number once, only with a valid signature.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from firmament.core import canonical
from firmament.core.digest import Digest
from firmament.core.manifest import CHUNKS_SUFFIX, Image, Manifest, Payload
from firmament.errors import UnreachableError
from firmament.payload.readers import BytesReader
from firmament.payload.sealed import Suite, new_key
from firmament.payload.sealing import seal_payload
from firmament.payload.wrap import Purpose, wrap
from firmament.protocol.parcel import Parcel, ParcelKind, encode_beginning, member_of
from firmament.protocol.status import FINAL_STATUSES
from firmament.protocol.v1 import paths
from firmament.protocol.v1.envelope import CONSENT_TYPE, REPORT_TYPE, open_envelope
from firmament.protocol.v1.messages import (
    ConsentEvent,
    ConsentReply,
    Report,
    ReportReply,
    decode_consent_batch,
    decode_consent_event,
    decode_poll_request,
    decode_report,
    decode_report_batch,
)
from firmament.trust import repository
from firmament.trust.director import Assignment, DirectorKeys, make_carried, make_reply
from firmament.trust.keys import KeyKind, generate
from firmament.trust.roles import ROOT, SNAPSHOT, TARGETS, TIMESTAMP, RoleKeys

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from securesystemslib.signer import Signer

    from firmament.core.clock import Clock
    from firmament.core.ids import AttemptId, DeviceId

BASE_URL: Final = "https://server.sim"
PRODUCT: Final = "thermo"
HARDWARE: Final = "sim1"
OK: Final = 200
PARTIAL: Final = 206
NOT_FOUND: Final = 404
NOT_MODIFIED: Final = 304
LIFETIME: Final = timedelta(days=365)
PARCEL_ID: Final = "5eed5eed-0000-4000-8000-000000000001"
PARCEL_LIFETIME: Final = timedelta(days=14)
MAX_BODY_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Packed:
    """The payloads of one release, with the bytes of every target."""

    payloads: tuple[Payload, ...]
    files: Mapping[str, bytes]
    keys: Mapping[str, bytes] = field(default_factory=dict)
    """Content key by target path of a sealed payload."""

    def __add__(self, other: Packed) -> Packed:
        """Return both together, these first."""
        return Packed(self.payloads + other.payloads, {**self.files, **other.files}, {**self.keys, **other.keys})


def whole(product: str, version: str, image: bytes) -> Packed:
    """Return the image itself as a payload."""
    payload = Payload("whole", 1, f"{product}/{version}/image.bin", len(image), Digest.of(image))
    return Packed((payload,), {payload.target: image})


def delta(product: str, version: str, old: bytes, image: bytes, *, method: str = "refdelta/1") -> Packed:
    """Return a delta; making one needs the extra ``delta``."""
    from firmament.payload.methods import METHODS

    row = METHODS[method]
    data = row.encode(old, image)
    target = f"{product}/{version}/{Digest.of(old).hex[:12]}.{row.name}"
    payload = Payload(row.name, row.version, target, len(data), Digest.of(data), precursor_digest=Digest.of(old))
    return Packed((payload,), {target: data})


def sealed(packed: Packed, *, suite: Suite = Suite.AES_256_GCM) -> Packed:
    """Return the sealed forms of payloads, each with a content key of its own."""
    made = Packed((), {})
    for payload in packed.payloads:
        key, out = new_key(), bytearray()
        plain = BytesReader(packed.files[payload.target])
        described, chunk_list = seal_payload(plain, payload, key, out.extend, suite=suite, log2_chunk=12)
        files = {described.target: bytes(out), described.target + CHUNKS_SUFFIX: chunk_list}
        made += Packed((described,), files, {described.target: key})
    return made


class SimAuthor:
    """Holds the offline keys and the image repository of one product."""

    def __init__(self, clock: Clock, *, product: str = PRODUCT) -> None:
        self.product = product
        self.files: dict[str, bytes] = {}
        """Path below the repository -> bytes."""
        self._clock = clock
        self._keys: dict[str, tuple[Signer, ...]] = {
            # One key of each class, both needed: a hybrid role, as `firmament init` makes it.
            name: (generate(KeyKind.ED25519), generate(KeyKind.ML_DSA_65))
            for name in (ROOT, TARGETS, product)
        }
        self._keys |= {name: (generate(KeyKind.ED25519),) for name in (SNAPSHOT, TIMESTAMP)}
        self._releases: dict[str, Any] = {}
        self._version = 0
        roles = {name: self._role(name) for name in (ROOT, TARGETS, SNAPSHOT, TIMESTAMP)}
        self.root = self._put(ROOT, repository.make_root(version=1, expires_at=self._expires(), roles=roles))
        products = {product: self._role(product)}
        self._put(TARGETS, repository.make_targets(version=1, expires_at=self._expires(), products=products))

    def publish(
        self,
        image: bytes,
        *,
        version: str,
        sequence_number: int,
        installer: str,
        packed: Packed | None = None,
        **changes: Any,
    ) -> Manifest:
        """Sign a release and publish it; its only payload is the whole image unless `packed` says otherwise."""
        packed = packed or whole(self.product, version, image)
        manifest = Manifest(
            product=self.product,
            version=version,
            sequence_number=sequence_number,
            hardware=(HARDWARE,),
            installer=installer,
            image=Image(Digest.of(image), len(image)),
            payloads=packed.payloads,
            created_at=self._clock.now(),
            **changes,
        )
        targets = repository.release_targets(manifest)
        self._releases |= targets
        for path, target in targets.items():
            self.files[f"targets/{repository.target_file_name(target)}"] = packed.files[path]
        self._version += 1
        number = self._version
        self._put(
            self.product,
            repository.make_product(version=number, expires_at=self._expires(), targets=self._releases),
        )
        versions = {TARGETS: 1, self.product: number}
        self._put(SNAPSHOT, repository.make_snapshot(version=number, expires_at=self._expires(), versions=versions))
        self._put(
            TIMESTAMP,
            repository.make_timestamp(version=number, expires_at=self._expires(), snapshot_version=number),
        )
        return manifest

    def _role(self, name: str) -> RoleKeys:
        keys = tuple(signer.public_key for signer in self._keys[name])
        return RoleKeys(keys, threshold=len(keys))

    def _put(self, role: str, metadata: Any) -> bytes:
        data = repository.encode(repository.sign(metadata, *self._keys[role]))
        self.files[f"metadata/{repository.file_name(role, metadata)}"] = data
        return data

    def _expires(self) -> Any:
        return self._clock.now() + LIFETIME


@dataclass
class SimServer:
    """`Transport` that answers as firmware server and status tracker for one device."""

    author: SimAuthor
    clock: Clock
    device_id: DeviceId
    chunk_bytes: int = 1000
    """How the network cuts a payload into pieces."""
    assignment: Assignment | None = None
    reports: list[Report] = field(default_factory=list)
    """Stored for good, in the order they came."""
    consents: list[ConsentEvent] = field(default_factory=list)
    knows_consent: bool = True
    """Servers before consent events answer 404."""
    requests: list[str] = field(default_factory=list)
    is_reachable: bool = True
    tag: str = "sim-1"
    """Of "nothing to do"; servers before conditional polls have none."""
    says_nothing_changed: bool = False
    """Whether it lies to those who only ask."""
    hears_only: bool = False
    """Takes reports and answers nothing else: what is installed was carried there by hand."""

    def __post_init__(self) -> None:
        """Make the director's keys and its root."""
        online = [generate(KeyKind.ED25519) for _ in range(3)]
        self._director = DirectorKeys(*online)
        root = generate(KeyKind.ED25519)
        roles = {ROOT: root, **dict(zip((TARGETS, SNAPSHOT, TIMESTAMP), online, strict=True))}
        metadata = repository.make_root(
            version=1,
            expires_at=self.clock.now() + LIFETIME,
            roles={name: RoleKeys((signer.public_key,), 1) for name, signer in roles.items()},
        )
        self.director_root = repository.encode(repository.sign(metadata, root))
        self._polls = 0

    def assign(
        self,
        manifest: Manifest,
        attempt_id: AttemptId,
        *,
        packed: Packed | None = None,
        hpke_public_key: bytes = b"",
        takes_back: AttemptId | None = None,
    ) -> None:
        """Offer a release to the device until it reports how that ended; with `takes_back`, ask it back.

        Of `packed` the last payload is named.
        """
        primary = manifest.payloads[0]
        payload = packed.payloads[-1] if packed is not None else primary

        def wrapped(one: Payload) -> bytes | None:
            key = packed.keys.get(one.target) if packed is not None else None
            if key is None:
                return None
            return wrap(key, hpke_public_key, Purpose(self.device_id, manifest.release_id, one.digest.value))

        self.assignment = Assignment(
            attempt_id=attempt_id,
            target=primary.target,
            length_bytes=primary.length_bytes,
            digest=primary.digest,
            payload=payload.target,
            takes_back=takes_back,
            key_wrap=wrapped(payload),
            fallback=primary.target if primary.is_sealed else "",
            fallback_wrap=wrapped(primary),
        )

    def parcel(self, files: Mapping[str, bytes]) -> bytes:
        """Return a parcel with the assignment and these payloads, by digest (protocol/parcel.py)."""
        assert self.assignment is not None
        self._polls += 1
        now = self.clock.now()
        made = make_carried(
            self._director,
            device_id=self.device_id,
            parcel_id=PARCEL_ID,
            assignment=self.assignment,
            now=now,
            expires_at=now + PARCEL_LIFETIME,
            version=int(now.timestamp()) + self._polls,
        )
        members = {
            "director/1.root.json": self.director_root,
            f"device/{self.device_id}": canonical.encode(made.to_json()),
            **{
                f"image/{name.removeprefix('metadata/')}": data
                for name, data in self.author.files.items()
                if name.startswith("metadata/")
            },
            **{f"payload/{Digest.of(data).hex}": data for data in files.values()},
        }
        header = Parcel(
            parcel_id=PARCEL_ID,
            kind=ParcelKind.DIRECTOR,
            product=self.author.product,
            target=self.assignment.target,
            created_at=now,
            expires_at=now + PARCEL_LIFETIME,
            members=tuple(member_of(name, (data,), len(data)) for name, data in members.items()),
        )
        return encode_beginning(header) + b"".join(members.values())

    def copy_state(self) -> tuple[object, ...]:
        """Return what the server has stored, as a value; `restore` takes it back."""
        return self.assignment, tuple(self.reports), self._polls

    def restore(self, state: tuple[Any, ...]) -> None:
        """Go back to an earlier `copy_state`."""
        self.assignment, reports, self._polls = state
        self.reports = list(reports)

    def request(
        self,
        method: str,
        url: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        deadline_s: float | None = None,
    ) -> SimResponse:
        """Answer one request; see `agent.ports.Transport`."""
        del deadline_s
        if not self.is_reachable or (self.hears_only and not url.endswith(paths.REPORT)):
            raise UnreachableError("The server cannot be reached", url=url)
        path = url.removeprefix(BASE_URL)
        self.requests.append(f"{method} {path}")
        if (method, path) == ("POST", paths.POLL):
            return self._json(self._poll(body or b""))
        if (method, path) == ("GET", paths.POLL):
            return self._glance((headers or {}).get("If-None-Match", ""))
        if (method, path) == ("POST", paths.REPORT):
            return self._json(self._report(body or b""))
        if (method, path) == ("POST", paths.CONSENT) and self.knows_consent:
            return self._json(self._consent(body or b""))
        image_path = path.removeprefix("/v1/image/")
        if method == "GET" and image_path in self.author.files:
            return self._file(self.author.files[image_path], (headers or {}).get("Range", ""))
        if method == "GET" and path == f"{paths.DIRECTOR_METADATA}1.root.json":
            return self._file(self.director_root, "")
        return SimResponse(NOT_FOUND, {"content-length": "0"}, b"", self.chunk_bytes)

    def _glance(self, tag: str) -> SimResponse:
        if tag == f'"{self.tag}"' and (self.assignment is None or self.says_nothing_changed):
            return SimResponse(NOT_MODIFIED, {}, b"", self.chunk_bytes)
        return self._json({"v": 1})

    def _poll(self, body: bytes) -> dict[str, Any]:
        question = decode_poll_request(body)
        self._polls += 1
        reply = make_reply(
            self._director,
            device_id=self.device_id,
            nonce=question.nonce,
            assignment=self.assignment,
            now=self.clock.now(),
            version=int(self.clock.now().timestamp()) + self._polls,
            poll_after_s=0,
        )
        if self.assignment is None:
            reply = replace(reply, tag=self.tag)
        return reply.to_json()

    def _report(self, body: bytes) -> dict[str, Any]:
        accepted = []
        for item in decode_report_batch(body).envelopes:
            report = decode_report(open_envelope(item, expected_type=REPORT_TYPE).payload)
            accepted.append(report.report_number)
            if all(known.report_number != report.report_number for known in self.reports):
                self.reports.append(report)
            if (
                self.assignment is not None
                and report.attempt_id == self.assignment.attempt_id
                and report.status in FINAL_STATUSES
            ):
                self.assignment = None
        return ReportReply(tuple(accepted)).to_json()

    def _consent(self, body: bytes) -> dict[str, Any]:
        accepted = []
        for item in decode_consent_batch(body).envelopes:
            event = decode_consent_event(open_envelope(item, expected_type=CONSENT_TYPE).payload)
            accepted.append(event.consent_number)
            if all(known.consent_number != event.consent_number for known in self.consents):
                self.consents.append(event)
        return ConsentReply(tuple(accepted)).to_json()

    def _json(self, value: dict[str, Any]) -> SimResponse:
        data = canonical.encode(value)
        headers = {"content-length": str(len(data)), "content-type": "application/json"}
        return SimResponse(OK, headers, data, self.chunk_bytes)

    def _file(self, data: bytes, wanted: str) -> SimResponse:
        etag = f'"{Digest.of(data).hex}"'
        if not wanted:
            return SimResponse(OK, {"content-length": str(len(data)), "etag": etag}, data, self.chunk_bytes)
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start, end = int(first), int(last) + 1 if last else len(data)
        headers = {
            "content-length": str(end - start),
            "content-range": f"bytes {start}-{end - 1}/{len(data)}",
            "etag": etag,
        }
        return SimResponse(PARTIAL, headers, data[start:end], self.chunk_bytes)


@dataclass(frozen=True, slots=True)
class SimResponse:
    """See `agent.ports.Response`."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    chunk_bytes: int

    def chunks(self) -> Iterator[bytes]:
        """Yield the body in pieces of `chunk_bytes`."""
        for start in range(0, len(self.body), self.chunk_bytes):
            yield self.body[start : start + self.chunk_bytes]

    def close(self) -> None:
        """Nothing is held."""
