"""What `make fuzz` fuzzes: every decoder of bytes from outside, with seeds and repair of checksums.

A target is a function that takes bytes. It may return, or raise an error of this house's tree;
everything else is a finding. Where the code promises more (what was read can be written and read
again), the target asserts it.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import lzma
import re
import struct
import tempfile
import zlib
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, x25519
from tuf.api.metadata import Root, Snapshot, Targets, Timestamp

from firmament.agent import compose, provision, wake_packets
from firmament.agent import settings as agent_settings
from firmament.agent.bootctl import grub_env, record, uboot_env
from firmament.agent.bootctl.choice import Choice
from firmament.agent.journal import COPY_LENGTH_BYTES, Journal
from firmament.agent.policy import Policy
from firmament.agent.record import Record
from firmament.agent.resume import TransportSource
from firmament.core import bundle, canonical, manifest, toml
from firmament.core.clock import FixedClock
from firmament.core.digest import Digest
from firmament.core.fields import Fields
from firmament.core.ids import DeviceId
from firmament.errors import FirmamentError, KeyWrapError
from firmament.payload import mcuboot, wrap
from firmament.payload.inplace.applier import Maker
from firmament.payload.inplace.applier import image as in_place_image
from firmament.payload.inplace.wire import MAX_RAM_BYTES
from firmament.payload.readers import BytesReader
from firmament.payload.refdelta.applier import Applier
from firmament.payload.refdelta.container import ViewApplier
from firmament.payload.sealed import Header, Opener, seal
from firmament.protocol.parcel import (
    MAX_RECEIPT_LENGTH_BYTES,
    RECEIPT_TYPE,
    ReceiptFile,
    decode_first_line,
    decode_header,
    decode_receipt,
)
from firmament.protocol.v1 import envelope, messages
from firmament.protocol.v1.wake import Wake, decode_wake
from firmament.protocol.v1.wrapping_key import WrappingKey, decode_wrapping_key
from firmament.release import build, mcuboot_build, setup
from firmament.server import authority, signer
from firmament.server.audit.signer import Signed, decode_audit_state
from firmament.server.evidence.sbom import read_sbom
from firmament.server.evidence.statements import read_statements
from firmament.server.http import ranges
from firmament.server.outbox.guard import judge
from firmament.server.settings import read_settings
from firmament.sim.disk import SimDisk
from firmament.trust import audit, ceremony, device_keys, hsm, keys, legacy, merkle, repository, secret_file
from firmament.trust.floors import Floors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

VECTORS: Final = Path(__file__).resolve().parent.parent / "src/firmament/protocol/vectors"
STATE: Final = Path("/state")
LIMIT_BYTES: Final = 64 * 1024


@dataclass(frozen=True)
class Target:
    """A decoder under test."""

    name: str
    run: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    tokens: tuple[bytes, ...] = ()
    """What this format's inputs are made of."""
    repair: Callable[[bytes], bytes] | None = None
    """Make a mutated input pass its checksum, so that what lies behind is reached."""
    allowed: tuple[type[BaseException], ...] = field(default=())
    """Exceptions that this decoder's contract names beside the tree."""


# --- seeds ---------------------------------------------------------------------------------


def vector(name: str) -> Any:
    return json.loads((VECTORS / f"{name}-1.json").read_bytes())


def inputs(cases: list[dict[str, Any]]) -> Iterator[bytes]:
    for case in cases:
        if "canonical" in case:
            yield case["canonical"].encode()
        elif "input_base64" in case and case.get("times", 1) == 1:
            yield base64.b64decode(case["input_base64"])


def seeds_of(*groups: list[dict[str, Any]]) -> tuple[bytes, ...]:
    return tuple(data for group in groups for data in inputs(group))


JSON_TOKENS: Final = (
    b"null", b"true", b"-1", b"0", b"1e9", b"1.5", b"9223372036854775807", b"9223372036854775808", b'""', b"[]",
    b"{}", b'"\\ud800"', b"\\u0000", b'"sha256"', b'"v":2', b"\xef\xbb\xbf", b"[[[[[[[[", b'"a":1,"a":2', b"NaN",
)  # fmt: skip


TOML_TOKENS: Final = (
    b"= -1", b"= 1e400", b"= nan", b"= []", b"[server]", b"= true", b"= 1979-05-27", b'"25:00-04:00"', b'"../../etc"',
    b"= " + b"1" * 5000, b"= " + b"[" * 3000, b"[" + b"a." * 3000 + b"a]", b'"\\u0000"', b"[[health]]", b'= "\x1b"',
)  # fmt: skip
AT: Final = datetime(2026, 11, 20, tzinfo=UTC)


# --- decoders ------------------------------------------------------------------------------


def run_canonical(data: bytes) -> None:
    value = canonical.decode(data, limit_bytes=LIMIT_BYTES, what="input")
    again = canonical.encode(value)
    assert canonical.decode(again, limit_bytes=2 * LIMIT_BYTES, what="again") == value


def run_manifest(data: bytes) -> None:
    found = manifest.decode(canonical.decode(data, limit_bytes=LIMIT_BYTES, what="input"))
    assert manifest.decode(found.to_json()) == found


def run_message(decode: Callable[[bytes], Any], data: bytes) -> None:
    found = decode(data)
    assert decode(canonical.encode(found.to_json())) == found


MQTT_SEED = bytes.fromhex("20020000900300010030") + b'\x0a\x00\x03a/b{"v":'


def run_mqtt(data: bytes) -> None:
    """Whole and byte by byte must say the same."""
    found = []
    for step in (len(data) or 1, 1):
        reader, packets = wake_packets.Reader(), []
        with contextlib.suppress(FirmamentError):
            for at in range(0, len(data), step):
                packets += reader.feed(data[at : at + step])
        found.append(packets)
    assert found[1][: len(found[0])] == found[0] or found[0][: len(found[1])] == found[1]
    for packet in found[1]:
        if packet.kind is wake_packets.Kind.PUBLISH:
            decode_wake(wake_packets.published(packet).payload)


def run_envelope(data: bytes) -> None:
    value = canonical.decode(data, limit_bytes=LIMIT_BYTES, what="input")
    found = envelope.open_envelope(value, expected_type=envelope.REPORT_TYPE)
    assert envelope.open_envelope(found.to_json(), expected_type=envelope.REPORT_TYPE) == found


def run_bundle(data: bytes) -> None:
    """Whole and in pieces must say the same, and what is accepted must be what we would write."""
    whole = list(_bundle(data, len(data) or 1))
    in_pieces = list(_bundle(data, 100))
    assert [e for e in whole if isinstance(e, bundle.Entry)] == [e for e in in_pieces if isinstance(e, bundle.Entry)]
    written = b""
    content = b""
    for found in [*whole, None]:
        if isinstance(found, bytes):
            content += found
            continue
        if content:
            written += content + bundle.padding(len(content))
            content = b""
        if found is not None:
            written += bundle.header(found)
    assert written + bundle.END == data, "accepted a bundle that is not canonical"


def _bundle(data: bytes, step: int) -> Iterator[bundle.Entry | bytes]:
    reader = bundle.Reader()
    for start in range(0, len(data), step):
        yield from reader.feed(data[start : start + step])
    reader.finish()


def bundle_seed() -> bytes:
    kind = bundle.EntryKind
    entries = [
        bundle.Entry("app", kind.DIRECTORY),
        bundle.Entry("app/main.py", kind.FILE, is_executable=True, length_bytes=5),
        bundle.Entry("current", kind.SYMLINK, link="app/main.py"),
        bundle.Entry("é" * 60, kind.FILE, length_bytes=0),
    ]
    data = b""
    for entry in entries:
        data += bundle.header(entry)
        if entry.length_bytes:
            data += b"hello" + bundle.padding(5)
    return data + bundle.END


def repair_bundle(data: bytes) -> bytes:
    """Recompute the checksum of each header-like block."""
    out = bytearray(data)
    for start in range(0, len(out) - 511, 512):
        block = out[start : start + 512]
        if block[257:262] == b"ustar":
            block[148:156] = b"        "
            out[start + 148 : start + 156] = b"%06o\0 " % (sum(block) & 0o777777)
    return bytes(out)


def run_uboot(data: bytes) -> None:
    """Two copies on a device, each half of the input."""
    disk = SimDisk()
    half = max(uboot_env.MIN_ENVIRONMENT_BYTES, len(data) // 2)
    path = Path("/dev/env")
    disk.put(path, data, is_device=True)
    places = (uboot_env.Place(path, 0, half), uboot_env.Place(path, half, half))
    found = uboot_env.UBootEnvironment(disk, places).read()
    assert all(isinstance(value, bytes) for value in found.values())


def uboot_seed() -> bytes:
    variables = {"BOOT_ORDER": b"A B", "BOOT_A_LEFT": b"3", "BOOT_B_LEFT": b"0", "bootcmd": b"run x; boot"}
    return b"".join(uboot_env.encode_copy(variables, length_bytes=256, flags=flags) for flags in (1, 2))


def repair_uboot(data: bytes) -> bytes:
    half = len(data) // 2
    copies = (data[:half], data[half:])
    return b"".join(struct.pack("<I", zlib.crc32(copy[5:])) + copy[4:] for copy in copies)


def run_grub(data: bytes) -> None:
    grub_env.decode(data)
    # As in GRUB, a variable set in a block with a damaged rest may end up inside a comment.
    grub_env.decode(grub_env.set_variable(data, "firmament_a", b"1"))


def run_boot_record(data: bytes) -> None:
    label, after = record.decide_bytes(data)
    assert record.decode(after)
    assert label


def repair_boot_record(data: bytes) -> bytes:
    head, newline, body = data.partition(b"\n")
    return re.sub(rb"[0-9a-f]{8}$", b"%08x" % zlib.crc32(body), head) + newline + body


def run_journal(data: bytes) -> None:
    disk = SimDisk()
    disk.put(STATE / "journal.a", data[:COPY_LENGTH_BYTES])
    Journal(disk, STATE).load()


def journal_seed() -> bytes:
    disk = SimDisk()
    disk.make_directory(STATE)
    Journal(disk, STATE).store(Record())
    return next(disk.get(STATE / name) for name in disk.list(STATE)).rstrip(b"\n")


def repair_journal(data: bytes) -> bytes:
    head, newline, body = data.partition(b"\n")
    words = head.split(b" ")
    if len(words) == 4:
        words[2:] = [b"%d" % len(body), hashlib.sha256(body).hexdigest().encode()]
    return b" ".join(words) + newline + body


def run_floors(data: bytes) -> None:
    disk = SimDisk()
    for name in ("floors.a", "floors.b"):
        disk.put(STATE / name, data)
    Floors(disk, STATE).load()


def floors_seed() -> bytes:
    disk = SimDisk()
    disk.make_directory(STATE)
    floors = Floors(disk, STATE)
    floors.create()
    floors.raise_sequence(7)
    floors.raise_time(datetime(2026, 11, 20, tzinfo=UTC))
    return disk.get(STATE / "floors.a")


def repair_floors(data: bytes) -> bytes:
    head, newline, body = data.partition(b"\n")
    return re.sub(rb"[0-9a-f]{8}$", b"%08x" % zlib.crc32(body), head) + newline + body


def run_ranges(data: bytes) -> None:
    text = data.decode("latin-1")
    for total in (0, 1, 1000, 2**40):
        try:
            found = ranges.parse_range(text, total)
        except ranges.Unsatisfiable:
            continue
        assert found is None or (
            found.length_bytes > 0 and found.offset >= 0 and found.offset + found.length_bytes <= total
        )
    ranges.names_etag(text, '"x"')
    ranges.allows_range(text, '"x"')


class OneAnswer:
    """A transport whose every answer is made of the input: status line, headers, body."""

    def __init__(self, data: bytes) -> None:
        head, _, self.body = data.partition(b"\n\n")
        lines = head.decode("latin-1").split("\n")
        self.status = int(lines[0]) if re.fullmatch(r"[0-9]{3}", lines[0]) else 206
        self.headers = dict(line.lower().partition(": ")[::2] for line in lines[1:])

    def request(
        self,
        _method: str,
        _url: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        deadline_s: float | None = None,
    ) -> OneAnswer:
        del body, headers, deadline_s
        return self

    def chunks(self) -> Iterator[bytes]:
        yield from (self.body[start : start + 7] for start in range(0, len(self.body), 7))

    def close(self) -> None:
        """Nothing to close."""


def run_resume(data: bytes) -> None:
    clock = FixedClock(datetime(2026, 11, 20, tzinfo=UTC))
    source = TransportSource(OneAnswer(data), clock, payload_deadline_s=60)
    for offset in (0, 5):
        try:
            got = b"".join(source.stream("https://host/x", offset=offset, length_bytes=20))
        except FirmamentError:
            continue
        assert len(got) == 20 - offset


def run_settings(data: bytes) -> None:
    SETTINGS_FILE.write_bytes(data)
    read_settings(SETTINGS_FILE, {})


SETTINGS_DIRECTORY: Final = tempfile.TemporaryDirectory(prefix="firmament-fuzz-")
SETTINGS_FILE: Final = Path(SETTINGS_DIRECTORY.name) / "firmament.toml"


def run_policy(data: bytes) -> None:
    Policy.from_fields(Fields(toml.decode(data, limit_bytes=LIMIT_BYTES, what="policy"), what="policy"))


def run_fw_env_config(data: bytes) -> None:
    uboot_env.parse_config(data.decode("latin-1"))


def run_secret_file(data: bytes) -> None:
    secret_file.decode(data, what="input")


def run_wrap(data: bytes) -> None:
    """Read a wrap, and a public key: what a device and a server take from others."""
    private = bytes(range(96))
    with contextlib.suppress(KeyWrapError):
        wrap.unwrap(data, private, wrap.Purpose("device", "thermo/1.1", bytes(32)))
    wrap.is_usable(data)
    wrap.is_usable(data.ljust(wrap.PUBLIC_KEY_LENGTH_BYTES, b"\0")[: wrap.PUBLIC_KEY_LENGTH_BYTES])
    wrap.unwrap(data.ljust(wrap.WRAP_LENGTH_BYTES, b"\0")[: wrap.WRAP_LENGTH_BYTES], private, wrap.Custody("r", b""))


def run_sealed(data: bytes) -> None:
    """Open every chunk of a container."""
    opener = Opener(BytesReader(data), len(data), bytes(32), max_plain_length_bytes=2**20)
    for _ in opener.chunks():
        pass


def run_sealed_header(data: bytes) -> None:
    header = Header.decode(data, max_plain_length_bytes=2**40)
    assert header.encode() == data[:64]


MCUBOOT_SIGNING_KEY: Final = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
MCUBOOT_KEY: Final = MCUBOOT_SIGNING_KEY.public_key()
MCUBOOT_DEVICE_KEY: Final = x25519.X25519PrivateKey.from_private_bytes(bytes(range(32)))


def run_mcuboot(data: bytes) -> None:
    found = mcuboot.read_image(BytesReader(data), len(data))
    with contextlib.suppress(FirmamentError):
        mcuboot.verify(found, BytesReader(data), MCUBOOT_KEY)
    if found.is_encrypted:
        mcuboot.unwrap_content_key(found, BytesReader(data), MCUBOOT_DEVICE_KEY)


def run_metadata(kind: type[Any], data: bytes) -> None:
    found = repository.read(data, kind, what="metadata")
    repository.read(repository.encode(found), kind, what="again")


def run_parcel(data: bytes) -> None:
    begin, length, digest = decode_first_line(data)
    decode_header(data[begin : begin + length], digest)


def repair_parcel(data: bytes) -> bytes:
    """Give a changed header its right length and digest, so that it is read."""
    header = data.partition(b"\n")[2].partition(b"]}")[0] + b"]}"
    return b"firmament-parcel/1 %d %s\n" % (len(header), Digest.of(header).hex.encode()) + header


def run_receipt(data: bytes) -> None:
    value = canonical.decode_object(data, limit_bytes=MAX_RECEIPT_LENGTH_BYTES, what="receipt")
    file = ReceiptFile.from_fields(Fields(value, what="receipt"))
    decode_receipt(envelope.open_envelope(file.receipt, expected_type=RECEIPT_TYPE).payload)


def run_digest(data: bytes) -> None:
    Digest.from_json(canonical.decode(data, limit_bytes=LIMIT_BYTES, what="input"), what="digest")


def metadata_seeds() -> dict[type[Any], tuple[bytes, ...]]:
    from securesystemslib.signer import CryptoSigner

    signers = [CryptoSigner.generate_ed25519(), CryptoSigner.generate_mldsa()]
    roles = {
        name: repository.RoleKeys(keys=tuple(signer.public_key for signer in signers), threshold=2)
        for name in ("root", "targets", "snapshot", "timestamp")
    }
    at = datetime(2036, 11, 20, tzinfo=UTC)
    root = repository.make_root(version=1, expires_at=at, roles=roles)
    targets = repository.make_targets(version=1, expires_at=at, products={"thermo": roles["targets"]})
    snapshot = repository.make_snapshot(version=1, expires_at=at, versions={"targets": 1, "thermo": 1})
    timestamp = repository.make_timestamp(version=1, expires_at=at, snapshot_version=1)
    made = {Root: root, Targets: targets, Snapshot: snapshot, Timestamp: timestamp}
    for metadata in made.values():
        repository.sign(metadata, *signers)
    return {kind: (repository.encode(metadata),) for kind, metadata in made.items()}


def key_record_seed() -> bytes:
    from securesystemslib.signer import CryptoSigner

    key = CryptoSigner.generate_ed25519().public_key
    value = {
        "keyid": key.keyid,
        "key": key.to_dict(),
        "name": "release",
        "uri": "file:keys/release.pem",
        "created_at": "2026-11-20T12:00:00Z",
    }
    return canonical.encode(value)


def provisioning_seed(root: bytes) -> bytes:
    return canonical.encode(
        {
            "v": 1,
            "server_url": "https://updates.example:4443",
            "ca_pem": "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
            "token": "one-time",
            "product": "thermo",
            "hardware": "rpi4",
            "image_root": root.decode(),
            "director_root": root.decode(),
        }
    )


def run_agent_settings(data: bytes) -> None:
    disk = SimDisk()
    disk.put(STATE / "agent.toml", data)
    settings = agent_settings.read_settings(disk, STATE / "agent.toml")
    compose.compose_storage(settings, disk=disk, clock=FixedClock(AT))


AGENT_SETTINGS: Final = b"""state_dir = "/state"
log_level = "debug"
[device]
hardware = "rpi4"
attributes = {site = "cellar"}
[slots]
kind = "image"
a = "/a.img"
b = "/b.img"
[boot]
kind = "uboot"
config = "/etc/fw_env.config"
[[health]]
kind = "http"
url = "http://127.0.0.1:8080/health"
timeout_s = 5
[trial]
deadline_s = 60
[policy]
mode = "window"
window = "02:00-04:00"
timezone = "UTC"
[transfer]
min_rate_bytes_per_s = 256
[hooks]
directory = "/hooks"
"""


def run_ceremony(data: bytes) -> None:
    found = ceremony.read(data)
    found.progress()
    found.changes()
    ceremony.read(found.to_bytes())


def ceremony_seed() -> bytes:
    from securesystemslib.signer import CryptoSigner

    signers = [CryptoSigner.generate_ed25519(), CryptoSigner.generate_mldsa()]
    role = repository.RoleKeys(keys=tuple(signer.public_key for signer in signers), threshold=2)
    roles = dict.fromkeys(("root", "targets", "snapshot", "timestamp"), role)
    held = ceremony.start(None, which=ceremony.Which.IMAGE, roles=roles, expires_at=datetime(2036, 1, 1, tzinfo=UTC))
    for each in signers:
        held.sign(each)
    return held.to_bytes()


def online_seed() -> bytes:
    from securesystemslib.signer import CryptoSigner

    key = CryptoSigner.generate_ed25519().public_key
    entry = {"keyid": key.keyid, "key": key.to_dict()}
    image = {"snapshot": entry, "timestamp": entry}
    return canonical.encode({"v": 1, "image": image, "director": image | {"targets": entry}})


def run_version_file(data: bytes) -> None:
    found = legacy.read_version_file(data)
    assert legacy.read_version_file(found.to_bytes()) == found


def run_built(data: bytes) -> None:
    disk = SimDisk()
    disk.put(STATE / "release.json", data)
    build.load_built(disk, STATE)


def run_csr(data: bytes) -> None:
    authority.read_request(data.decode("latin-1"))


def csr_seed() -> bytes:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .sign(ec.derive_private_key(7, ec.SECP256R1()), hashes.SHA256())
    )
    return request.public_bytes(serialization.Encoding.PEM)


def run_certificate(data: bytes) -> None:
    authority.peer_identity(data)
    device_keys.certificate_name(data.decode("latin-1"))


def run_refdelta(old: bytes, new: bytes, data: bytes) -> None:
    """Whatever the payload says, at most the image's length comes out, in order."""
    applier = Applier(
        Memory(data), len(data), Memory(old), precursor_length_bytes=len(old), image_length_bytes=len(new)
    )
    made = 0
    for offset, piece in applier.pieces():
        assert offset == made
        made += len(piece)
        assert made <= len(new)


def run_views(old: bytes, new: bytes, data: bytes) -> None:
    """Make what version 2 of a payload says; see `run_refdelta`."""
    applier = ViewApplier(
        Memory(data), len(data), Memory(old), precursor_length_bytes=len(old), image_length_bytes=len(new)
    )
    made = 0
    for offset, piece in applier.pieces():
        assert offset == made
        made += len(piece)
        assert made <= len(new)


def refdelta_targets() -> Iterator[Target]:
    for version, run in ((1, run_refdelta), (2, run_views)):
        yield from _refdelta_targets(version, run)


def _refdelta_targets(version: int, run: Callable[[bytes, bytes, bytes], None]) -> Iterator[Target]:
    vectors = json.loads((VECTORS.parents[1] / f"payload/vectors/refdelta-{version}.json").read_bytes())
    for case in vectors["payloads"]:
        old, new, payload = (
            lzma.decompress(base64.b64decode(case[f"{name}_xz"])) for name in ("old", "new", "payload")
        )
        if len(old) + len(new) < MAX_REFDELTA_BYTES:
            yield Target(
                f"refdelta {version} {case['name']}", partial(run, old, new), (payload,), (b"\xff" * 9, b"\x80")
            )


def run_in_place(old: bytes, new: bytes, data: bytes) -> None:
    """Whatever the payload says, nothing outside the image is made, and no more memory is held than it says."""
    made = Maker(Memory(data), len(data))
    assert made.header.ram_bytes <= MAX_RAM_BYTES
    image = in_place_image(Memory(data), len(data), Memory(old), image_length_bytes=len(new))
    assert len(image) == len(new)


def in_place_targets() -> Iterator[Target]:
    vectors = json.loads((VECTORS.parents[1] / "payload/vectors/inplace-1.json").read_bytes())
    for case in vectors["cases"]:
        if "error" not in case:
            old, new, payload = (base64.b64decode(case[name]) for name in ("precursor", "image", "payload"))
            yield Target(
                f"in place {case['name']}", partial(run_in_place, old, new), (payload,), (b"\xff" * 9, b"\x80")
            )


class Memory:
    """A `Reader` over bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read_at(self, offset: int, length_bytes: int) -> bytes:
        assert offset >= 0
        assert length_bytes >= 0
        return self._data[offset : offset + length_bytes]

    def close(self) -> None:
        """Nothing to close."""


MAX_REFDELTA_BYTES: Final = 400_000


SBOM_SEED: Final = canonical.encode(
    {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "components": [
            {
                "name": "openssl",
                "version": "3.0.11-1",
                "purl": "pkg:deb/debian/openssl@3.0.11-1",
                "licenses": [{"license": {"id": "MIT"}}],
            },
            {"name": "a", "group": "b", "components": [{"name": "c", "licenses": [{"expression": "MIT OR BSD"}]}]},
        ],
    }
)
STATEMENT_SEEDS: Final = tuple(
    json.dumps(value).encode()
    for value in (
        {
            "id": "O-1",
            "aliases": ["CVE-1"],
            "severity": [{"score": 9.8}],
            "affected": [
                {
                    "package": {"ecosystem": "Debian", "name": "a"},
                    "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "1.2"}]}],
                },
                {"package": {"name": "b"}, "versions": ["1"]},
            ],
        },
        {
            "bomFormat": "CycloneDX",
            "components": [{"bom-ref": "r", "name": "z"}],
            "vulnerabilities": [
                {
                    "id": "CVE-2",
                    "ratings": [{"severity": "high"}],
                    "affects": [{"ref": "r"}, {"ref": "pkg:pypi/x@1", "versions": [{"version": "1"}]}],
                }
            ],
        },
        {"name": "CVE-3", "affects": [{"name": "a", "introduced": "1", "fixed": "2"}]},
    )
)


def run_audit_export(data: bytes) -> None:
    key = audit.read_key(vector("audit")["public_key"])
    audit.verify_export(data.splitlines(), key)


def run_proof(data: bytes) -> None:
    value = canonical.decode_object(data, limit_bytes=LIMIT_BYTES, what="input")
    head = merkle.open_tree_head(value.get("tree_head"), audit.read_key(vector("audit")["public_key"]))
    proof = merkle.read_proof(Fields(value, what="input"), "proof")
    merkle.verify_inclusion(merkle.leaf_hash(b"leaf 3"), index=3, size=head.size, proof=proof, root_hash=head.root)


def run_webhook_address(data: bytes) -> None:
    judge(data.decode("latin-1"), allowed=[], look_up=lambda host, _port: [host])


def targets() -> list[Target]:
    """Every decoder with its seeds."""
    canon, mani, mess, enve = vector("canonical"), vector("manifest"), vector("messages"), vector("envelope")
    made = metadata_seeds()
    return [
        Target("canonical", run_canonical, seeds_of(canon["valid"], canon["refused"]), JSON_TOKENS),
        Target("manifest", run_manifest, seeds_of(mani["valid"]), JSON_TOKENS),
        Target("parcel", run_parcel, seeds_of(vector("parcel")["valid"], vector("parcel")["refused"]), (b"payload/", b"image/", b"device/"), repair_parcel),
        Target("receipt", run_receipt, tuple(canonical.encode(c["file"]) for c in vector("parcel")["receipt"]), JSON_TOKENS),
        Target("digest", run_digest, tuple(canonical.encode(c["value"]) for c in vector("digest")["valid"]), JSON_TOKENS),
        Target(
            "envelope", run_envelope, tuple(canonical.encode(case["envelope"]) for case in enve["valid"]), JSON_TOKENS
        ),
        *[
            Target(
                f"message {name}",
                partial(run_message, getattr(messages, f"decode_{name}")),
                seeds_of(group["valid"]),
                JSON_TOKENS,
            )
            for name, group in mess["messages"].items()
        ],
        *[
            Target(f"metadata {kind.type}", partial(run_metadata, kind), seeds, JSON_TOKENS)
            for kind, seeds in made.items()
        ],
        Target("key record", lambda data: keys.read_record(data, what="record"), (key_record_seed(),), JSON_TOKENS),
        Target("provisioning file", provision.read_provisioning, (provisioning_seed(made[Root][0]),), JSON_TOKENS),
        Target("bundle", run_bundle, (bundle_seed(),), (b"ustar\x0000", b"../", b"/etc", b"x" * 155, bytes(512)), repair_bundle),
        Target("U-Boot environment", run_uboot, (uboot_seed(),), (b"BOOT_ORDER=", b"\0\0", b"="), repair_uboot),
        Target("fw_env.config", run_fw_env_config, (b"/dev/mmcblk0 0x400000 0x4000\n/dev/mmcblk0 0x404000 0x4000\n",), (b"#", b"0x", b"-1")),
        Target("GRUB environment", run_grub, (grub_env.set_variable(grub_env.empty(), "saved", b"0"),), (b"\\\n", b"#", b"=")),
        Target("boot record", run_boot_record, (record.encode(Choice(), 3),), JSON_TOKENS, repair_boot_record),
        Target("journal", run_journal, (journal_seed(),), JSON_TOKENS, repair_journal),
        Target("floors", run_floors, (floors_seed(),), JSON_TOKENS, repair_floors),
        Target("Range", run_ranges, (b"bytes=0-499", b"bytes=-5", b"bytes=10-", b'W/"x", "y"', b"*"), (b"bytes=", b"-", b",", b"99999999999999999999")),
        Target("resumed body", run_resume, (b'206\ncontent-range: bytes 5-19/20\netag: "x"\n\n' + b"a" * 15, b"200\ncontent-length: 20\n\n" + b"b" * 20), (b"206\n", b"416\n", b"bytes 5-19/*", b"content-length: ", b"content-encoding: gzip\n")),
        Target("server settings", run_settings, (b'[server]\nport = 4443\nnames = ["a"]\nrepository_access = "public"\n',), TOML_TOKENS),
        Target("policy settings", run_policy, (b'mode = "window"\nwindow = "02:00-04:00"\npoll_interval_s = 60\ntime_zone = "Europe/Berlin"\n',), TOML_TOKENS),
        Target("agent settings", run_agent_settings, (AGENT_SETTINGS,), TOML_TOKENS),
        Target("ceremony file", run_ceremony, (ceremony_seed(),), JSON_TOKENS),
        Target("online-public.json", setup.read_online, (online_seed(),), JSON_TOKENS),
        Target("version.json", run_version_file, (legacy.VersionFile("1.0", "app.bin", "app.bin.sig", 1, 7, Digest.of(b"x")).to_bytes(),), JSON_TOKENS),
        Target("release.json", run_built, (canonical.encode({"v": 1, "files": {"thermo/1.1/app.tar": "app.tar"}, "manifest": json.loads(mani["valid"][0]["canonical"])}),), JSON_TOKENS),
        Target("signer state", signer.decode_state, (canonical.encode({"versions": {"thermo": 1}, "snapshot": 1, "timestamp": 2, "snapshot_at": "2026-11-20T12:00:00Z", "timestamp_at": "2026-11-20T12:00:00Z"}),), JSON_TOKENS),
        Target("certificate request", run_csr, (csr_seed(),), (b"-----BEGIN CERTIFICATE REQUEST-----\n", b"A" * 64)),
        Target("certificate", run_certificate, (b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n", bytes.fromhex("3082000030")), (b"\x30\x82", b"\x06\x03\x55\x04\x03")),
        Target("token URI", lambda data: hsm.parse_uri(data.decode("latin-1")), (b"hsm:label=root;token=custodian%201",), (b";", b"=", b"%", b"label=")),
        Target("audit export", run_audit_export, tuple("\n".join(case["lines"]).encode() for case in vector("audit")["exports"]), JSON_TOKENS),
        Target("tree head and proof", run_proof, (canonical.encode({"tree_head": vector("audit")["release_log"]["tree_head"], "proof": vector("audit")["release_log"]["inclusion"][3]}),), JSON_TOKENS),
        Target("signer audit state", decode_audit_state, (canonical.encode({"tenants": {"1": Signed().to_json()}, "v": 1}),), JSON_TOKENS),
        Target("bill of materials", read_sbom, (SBOM_SEED,), JSON_TOKENS),
        Target("vulnerability statement", read_statements, STATEMENT_SEEDS, JSON_TOKENS),
        Target("webhook address", run_webhook_address, (b"https://host.example:8443/a?b=c", b"https://[::1]/"), (b"https://", b"@", b"[", b"]:", b"#")),
        *refdelta_targets(),
        Target("sealed payload", run_sealed, (sealed_seed(), sealed_seed(length=9000)), (b"OTAE", bytes(16))),
        Target("key wrap", run_wrap, wrap_seeds(), (bytes(32), b"\xff" * 32)),
        Target("content key file", run_secret_file, (secret_file_seed(),), JSON_TOKENS),
        Target("wrapping key", decode_wrapping_key, (canonical.encode(WrappingKey(DeviceId("11111111-2222-4333-8444-555555555555"), bytes(1216)).to_json()),), JSON_TOKENS),
        *in_place_targets(),
        Target("sealed header", run_sealed_header, (sealed_header_seed(),), (b"OTAE", b"\xff" * 8)),
        Target("MQTT packets", run_mqtt, (MQTT_SEED, wake_packets.PINGREQ), (b"\x30", b"\xff\xff\xff\x7f", b"\x90\x03")),
        Target("wake hint", lambda data: run_message(decode_wake, data), (canonical.encode(Wake(7, 60).to_json()),), JSON_TOKENS),
        Target("MCUboot image", run_mcuboot, mcuboot_seeds(), (b"\x3d\xb8\xf3\x96", b"\xff" * 4)),
    ]  # fmt: skip


def sealed_seed(*, length: int = 100) -> bytes:
    out = bytearray()
    seal(BytesReader(bytes(length)), length, bytes(32), out.extend, log2_chunk=12, identity=(bytes(16), bytes(32)))
    return bytes(out)


def wrap_seeds() -> tuple[bytes, ...]:
    public = wrap.public_of(bytes(range(96)))
    return (wrap.wrap(bytes(32), public, wrap.Purpose("device", "thermo/1.1", bytes(32))), public)


def secret_file_seed() -> bytes:
    value = {"v": 1, "scrypt": {"n": 2**14, "r": 8, "p": 5, "salt": "00" * 16}, "nonce": "00" * 12, "sealed": "AAAA"}
    return canonical.encode(value)


def sealed_header_seed() -> bytes:
    sealed = json.loads((Path(VECTORS).parents[1] / "payload/vectors/sealed-1.json").read_bytes())
    text = json.dumps(sealed)
    match = re.search(r'"(4f544145[0-9a-f]{120,})"', text)
    return bytes.fromhex(match[1])[:80] if match else b"OTAE\x01\x01\x10\x00" + bytes(56)


def mcuboot_seeds() -> tuple[bytes, ...]:
    recipe = mcuboot_build.Recipe("1.2.3+4", 7, dependencies=("1:2.0.0",), vendor="example.com", class_name="sensor")
    encrypted = replace(recipe, encrypt_for=pem_of(MCUBOOT_DEVICE_KEY.public_key()))
    key = MCUBOOT_SIGNING_KEY.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return tuple(mcuboot_build.make(bytes(64), each, key=key) for each in (recipe, encrypted))


def pem_of(key: Any) -> bytes:
    pem: bytes = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return pem
