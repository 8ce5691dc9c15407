"""Write the golden vectors that ship in src/firmament/protocol/vectors.

They let an agent in another language be tested without this code. The same input gives the same
bytes on every machine; tests/contract compares what is committed with what this script makes.
Add vectors; never change one that was released (docs/protocol/README.md).
"""

from __future__ import annotations

import base64
import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from firmament.core import canonical
from firmament.core.digest import Digest
from firmament.core.ids import AttemptId, DeviceId
from firmament.core.manifest import (
    Image,
    Manifest,
    Payload,
    Preconditions,
    Requires,
    UpdateClass,
)
from firmament.protocol.parcel import (
    RECEIPT_TYPE,
    Parcel,
    ParcelKind,
    Receipt,
    ReceiptFile,
    encode_beginning,
    member_of,
)
from firmament.protocol.status import AttemptStatus, ConsentAnswer
from firmament.protocol.v1 import messages, paths
from firmament.protocol.v1.envelope import CONSENT_TYPE, REPORT_TYPE, Envelope, pre_authentication_encoding
from firmament.trust import audit, merkle

HERE = Path(__file__).resolve().parent.parent
VECTORS = HERE / "src/firmament/protocol/vectors"
AT = datetime(2026, 11, 20, 12, tzinfo=UTC)
DEVICE = DeviceId("0a1b2c3d-4e5f-4a6b-8c7d-9e0f1a2b3c4d")
ATTEMPT = AttemptId("f0e1d2c3-b4a5-4968-8776-655443322110")
IMAGE = b"the bytes of an image\n"
PRIVATE_VALUE = int.from_bytes(hashlib.sha256(b"a key for test vectors, known to everybody").digest()) >> 1


def text(value: Any) -> str:
    return canonical.encode(value).decode()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def valid(name: str, value: Any) -> dict[str, Any]:
    data = canonical.encode(value)
    return {"name": name, "canonical": data.decode(), "sha256": hashlib.sha256(data).hexdigest()}


def refused(
    name: str, data: bytes | dict[str, Any], code: str = "request/malformed", *, times: int = 1
) -> dict[str, Any]:
    """Make one refused input: `data`, repeated `times`."""
    spelled = b64(data if isinstance(data, bytes) else canonical.encode(data))
    return {"name": name, "input_base64": spelled} | ({"times": times} if times > 1 else {}) | {"code": code}


def canonical_vectors() -> dict[str, Any]:
    return {
        "about": "Canonical JSON: keys sorted by code point, no white space, UTF-8, integers only. "
        "`spelled_base64` is another spelling of the same value. `refused` inputs (`input_base64`, repeated `times`) are read with a ceiling of 4096 bytes.",
        "valid": [
            valid("null", None),
            valid("empty object", {}),
            valid("keys sorted by code point", {"b": 1, "a": 2, "Z": 3, "é": 4, "z": 5}),
            valid("keys beyond the basic plane sort after U+FFFF", {"\U00010000": 1, "\uffff": 2}),
            valid("escapes", 'quote " backslash \\ slash / newline \n tab \t null \x00 delete \x7f'),
            valid("non-ASCII stays", {"de": "Größe", "ja": "更新", "emoji": "🛰"}),
            valid("largest and smallest integers", [9223372036854775807, -9223372036854775808, 0]),
            valid("nested 32 deep", _nested(32)),
        ],
        "same": [
            {
                "spelled_base64": b64(b'{ "b" : [ 1 , 2 ],\n "a" : "\\u00e9\\/" }'),
                "canonical": text({"a": "é/", "b": [1, 2]}),
            },
            {"spelled_base64": b64(b'"\\ud83d\\ude80"'), "canonical": text("🚀")},
            {"spelled_base64": b64(b"-0"), "canonical": "0"},
        ],
        "refused": [
            refused("empty", b""),
            refused("cut short", b'{"a":'),
            refused("something after the value", b"{}{}"),
            refused("duplicate key", b'{"a":1,"a":2}'),
            refused("duplicate key, spelled differently", b'{"a":1,"\\u0061":2}'),
            refused("duplicate key deep inside", b'[[{"a":{"b":1,"b":1}}]]'),
            refused("fraction", b"1.0"),
            refused("exponent", b"1e3"),
            refused("infinite by exponent", b"1e999"),
            refused("NaN", b"NaN"),
            refused("Infinity", b"Infinity"),
            refused("20 digits", b"10000000000000000000"),
            refused("leading zero", b"01"),
            refused("byte order mark", b"\xef\xbb\xbf{}"),
            refused("UTF-16", "{}".encode("utf-16-le")),
            refused("not UTF-8", b'"\xff"'),
            refused("half a surrogate pair", b'"\\ud800"'),
            refused("control character in text", b'"\n"'),
            refused("single quotes", b"{'a':1}"),
            refused("comma at the end", b"[1,]"),
            refused("comment", b"1 // one"),
            refused("nested 33 deep", b"[" * 33 + b"]" * 33),
            refused("nested 2000 deep and never closed", b"[", times=2000),
            refused("longer than the ceiling", b" ", "request/too-large", times=4097),
        ],
    }


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def digest_vectors() -> dict[str, Any]:
    data = b"firmware"
    good = Digest.of(data)
    return {
        "about": "Digests in TUF's form. The strongest of several counts; unknown algorithms beside it are ignored.",
        "valid": [
            {"value": good.to_json(), "shown": str(good)},
            {"value": Digest.of(data, "sha512").to_json(), "shown": str(Digest.of(data, "sha512"))},
            {"value": good.to_json() | {"md5": "00"}, "shown": str(good)},
            {
                "value": good.to_json() | Digest.of(data, "sha512").to_json(),
                "shown": str(Digest.of(data, "sha512")),
            },
        ],
        "refused": [
            {"name": name, "value": value, "code": "request/malformed"}
            for name, value in {
                "none": {},
                "MD5 only": {"md5": hashlib.md5(data).hexdigest()},
                "SHA-1 only": {"sha1": hashlib.sha1(data).hexdigest()},
                "unknown algorithm": {"blake3": good.hex},
                "too short": {"sha256": good.hex[:62]},
                "too long": {"sha256": good.hex + "00"},
                "capitals": {"sha256": good.hex.upper()},
                "white space": {"sha256": good.hex[:2] + " " + good.hex[2:]},
                "a number": {"sha256": 1},
                "the strongest is broken": {"sha512": "00", "sha256": good.hex},
                "text instead of an object": str(good),
            }.items()
        ],
    }


def manifests() -> dict[str, Manifest]:
    image = Image(Digest.of(IMAGE), len(IMAGE))
    whole = Payload("whole", 1, "thermo/1.1/app.tar", len(IMAGE), image.digest)
    least = Manifest(
        product="thermo",
        version="1.1",
        sequence_number=2,
        hardware=("rpi4",),
        installer="bundle",
        image=image,
        payloads=(whole,),
        created_at=AT,
    )
    delta = Payload(
        "refdelta",
        1,
        "thermo/2.0/1.1-2.0.delta",
        7,
        Digest.of(b"a delta"),
        precursor_digest=image.digest,
        facts={"window_bytes": 1_048_576},
    )
    full = Manifest(
        product="thermo-gateway",
        version="2.0.0-rc.1+b7",
        sequence_number=9_223_372_036_854_775_807,
        hardware=("rpi4", "rpi5", "STM32F4.rev-C_1"),
        installer="image",
        image=Image(Digest.of(IMAGE, "sha512"), 64 * 1024**3),
        payloads=(Payload("whole", 1, "thermo/2.0/root.img", len(IMAGE), image.digest), delta),
        created_at=AT,
        update_class=UpdateClass.SECURITY,
        requires=Requires(min_sequence_number=2, min_agent=1),
        preconditions=Preconditions(1_000_000, 50, mains_power=True, unmetered_link=True),
        notes={"en": "Closes a hole.", "de": "Schließt eine Lücke.", "pt-BR": "Fecha uma brecha."},
        sbom_digest=Digest.of(b"sbom"),
        provenance_digest=Digest.of(b"provenance"),
        allow_downgrade=True,
    )
    return {"least": least, "full": full}


def manifest_vectors() -> dict[str, Any]:
    made = manifests()
    least = made["least"].to_json()

    def broken(name: str, code: str = "request/malformed", **changes: Any) -> dict[str, Any]:
        value = {key: item for key, item in (least | changes).items() if item is not ...}
        return refused(name, value, code)

    payload = least["payloads"][0]
    return {
        "about": "Manifests (the `custom` value of a TUF target) in canonical form. JSON Schema: schemas/manifest-1.json.",
        "valid": [
            *(valid(name, manifest.to_json()) for name, manifest in made.items()),
            valid("unknown fields are ignored", least | {"x-colour": "blue", "zz": [{}]}),
            valid(
                "optional fields absent",
                {k: v for k, v in least.items() if k not in {"class", "requires", "preconditions", "notes"}},
            ),
            valid(
                "optional fields null", least | {"class": None, "requires": None, "sbom_digest": None, "notes": None}
            ),
        ],
        "refused": [
            broken("a later version", "applicability/unknown-manifest", v=2),
            broken(
                "a later version, whatever else is in it", "applicability/unknown-manifest", v=2, product=..., image=...
            ),
            broken("no version", v=...),
            broken("version as text", v="1"),
            broken("version true", v=True),
            broken("product climbs out", product="../thermo"),
            broken("product in capitals", product="Thermo"),
            broken("version label with a slash", version="1/1"),
            broken("sequence number 0", sequence_number=0),
            broken("sequence number below 0", sequence_number=-1),
            broken("sequence number of 64 bits", sequence_number=2**63),
            broken("sequence number as text", sequence_number="2"),
            broken("no hardware named: it must not mean any", hardware=[]),
            broken("no hardware field", hardware=...),
            broken("a pattern instead of hardware", hardware=["rpi*"]),
            broken("65 kinds of hardware", hardware=[f"h{n}" for n in range(65)]),
            broken("unknown class", **{"class": "urgent"}),
            broken("no image", image=...),
            broken("image digest MD5 only", image={"digest": {"md5": "00" * 16}, "length_bytes": 1}),
            broken("image above 64 GiB", image=least["image"] | {"length_bytes": 64 * 1024**3 + 1}),
            broken("image of negative length", image=least["image"] | {"length_bytes": -1}),
            broken("no payload", payloads=[]),
            broken("17 payloads", payloads=[payload] * 17),
            broken("target climbs out", payloads=[payload | {"target": "thermo/../../etc/passwd"}]),
            broken("target is absolute", payloads=[payload | {"target": "/thermo/1.1/app.tar"}]),
            broken("target with a backslash", payloads=[payload | {"target": "thermo\\app"}]),
            broken("method version 0", payloads=[payload | {"method_version": 0}]),
            broken("created at another time zone", created_at="2026-11-20T12:00:00+01:00"),
            broken("created on 30 February", created_at="2026-02-30T12:00:00Z"),
            broken("battery above 100", preconditions={"battery_percent": 101}),
            broken("mains power as 1", preconditions={"mains_power": 1}),
            broken("note of 2049 characters", notes={"en": "x" * 2049}),
            broken("note in no language", notes={"": "x"}),
            broken("downgrade as text", allow_downgrade="yes"),
            refused("not an object", b"[]"),
        ],
    }


def message_vectors() -> dict[str, Any]:
    csr = "-----BEGIN CERTIFICATE REQUEST-----\nMIIB\n-----END CERTIFICATE REQUEST-----\n"
    enrol = messages.EnrolRequest("one-time", "thermo", "rpi4", csr, bytes(range(256)) * 4 + bytes(192), "SN-0001")
    poll = messages.PollRequest(
        nonce=bytes(range(16)),
        version="1.0",
        sequence_number=1,
        image_digest=str(Digest.of(IMAGE)),
        boot_id="8b1d1f6e-2f57-4b0a-8a6c-5b8f3f0f4f11",
        attributes={"os": "debian 12", "Größe": "é"},
        methods=("whole/1", "refdelta/1"),
    )
    first = messages.PollRequest(nonce=bytes(16), version="", sequence_number=0)
    report = make_report()
    consent = make_consent_event()
    values: dict[str, list[tuple[str, Any]]] = {
        "enrol_request": [("with serial", enrol.to_json())],
        "enrol_reply": [("reply", messages.EnrolReply(DEVICE, "-----BEGIN CERTIFICATE-----\n...\n").to_json())],
        "poll_request": [
            ("poll", poll.to_json()),
            ("before the first release", first.to_json()),
            ("only what is required", {"nonce": "00" * 16, "sequence_number": 0}),
            ("from a later agent", poll.to_json() | {"v": 1, "x-later": {"a": [1]}}),
        ],
        "poll_reply": [("reply", messages.PollReply('{"signed":1}', "{}", "{}", 14_400).to_json())],
        "report": [
            ("confirmed", report.to_json()),
            (
                "reverted, with log",
                messages.Report(
                    DEVICE, 2, ATTEMPT, AttemptStatus.REVERTED, "1.0", 1, "b", AT,
                    code="slot/health", message="HTTP 500", log=("starting", "traceback"),
                ).to_json(),
            ),
        ],
        "report_batch": [("two", {"v": 1, "reports": [make_envelope().to_json(), make_envelope().to_json()]})],
        "report_reply": [("two", messages.ReportReply((1, 2)).to_json())],
        "consent_event": [
            ("tonight", consent.to_json()),
            ("opt-out", messages.ConsentEvent(DEVICE, 2, ConsentAnswer.OPT_OUT, AT, "owner", "page").to_json()),
            (
                "only what is required",
                {k: v for k, v in consent.to_json().items() if k in {"device_id", "consent_number", "answer", "at", "actor", "via"}},
            ),
            ("from a later agent", consent.to_json() | {"v": 1, "x-later": [1]}),
        ],
        "consent_batch": [("two", {"v": 1, "events": [make_consent_envelope().to_json()] * 2})],
        "consent_reply": [("two", messages.ConsentReply((1, 2)).to_json())],
    }  # fmt: skip
    wrong: dict[str, list[dict[str, Any]]] = {
        "enrol_request": [
            refused("key one byte short", enrol.to_json() | {"hpke_public_key": "00" * 1215}),
            refused("no request", {k: v for k, v in enrol.to_json().items() if k != "csr_pem"}),
            refused("product climbs out", enrol.to_json() | {"product": "../x"}),
            refused("above 64 KiB", b" ", "request/too-large", times=65_537),
        ],
        "enrol_reply": [refused("device id in capitals", {"device_id": DEVICE.upper(), "certificate_chain_pem": ""})],
        "poll_request": [
            refused("nonce of 15 bytes", poll.to_json() | {"nonce": "00" * 15}),
            refused("nonce in capitals", poll.to_json() | {"nonce": "AB" * 16}),
            refused("version climbs out", poll.to_json() | {"version": "../1"}),
            refused("65 attributes", poll.to_json() | {"attributes": {str(n): "" for n in range(65)}}),
            refused("attribute of 257 characters", poll.to_json() | {"attributes": {"a": "x" * 257}}),
            refused("attribute that is no text", poll.to_json() | {"attributes": {"a": 1}}),
            refused("not an object", b"[]"),
        ],
        "poll_reply": [
            refused("metadata as an object", {"timestamp": {}, "snapshot": "", "targets": ""}),
            refused("timestamp too long", {"timestamp": "x" * 16_385, "snapshot": "", "targets": ""}),
            refused("above 1 MiB", b" ", "request/too-large", times=1024 * 1024 + 1),
        ],
        "report": [
            refused("unknown status", report.to_json() | {"status": "success"}),
            refused("report number 0", report.to_json() | {"report_number": 0}),
            refused("time of another zone", report.to_json() | {"at": "2026-11-20T13:00:00+01:00"}),
            refused("21 lines of log", report.to_json() | {"log": [""] * 21}),
        ],
        "report_batch": [refused("33 reports", {"reports": [{}] * 33}), refused("text", {"reports": [""]})],
        "consent_event": [
            refused("unknown answer", consent.to_json() | {"answer": "yes"}),
            refused("consent number 0", consent.to_json() | {"consent_number": 0}),
            refused("no actor", {k: v for k, v in consent.to_json().items() if k != "actor"}),
            refused("an attempt that is no UUID", consent.to_json() | {"attempt_id": ""}),
            refused("unknown class", consent.to_json() | {"update_class": "urgent"}),
            refused("until another zone's time", consent.to_json() | {"until": "2026-11-21T03:00:00+01:00"}),
        ],
        "consent_batch": [refused("33 events", {"events": [{}] * 33}), refused("reports", {"reports": []})],
        "consent_reply": [refused("a number as text", {"accepted": ["1"]})],
        "report_reply": [refused("a number as text", {"accepted": ["1"]}), refused("a truth", {"accepted": [True]})],
    }
    return {
        "about": "Bodies of the device API, version 1, in canonical form (any JSON spelling may travel). "
        "JSON Schema: schemas/messages-1.json.",
        "paths": {name.lower(): value for name, value in sorted(vars(paths).items()) if name.isupper()},
        "messages": {
            name: {"valid": [valid(title, value) for title, value in values[name]], "refused": wrong[name]}
            for name in sorted(values)
        },
    }


def make_report() -> messages.Report:
    return messages.Report(DEVICE, 1, ATTEMPT, AttemptStatus.CONFIRMED, "1.1", 2, "b", AT)


def make_consent_event() -> messages.ConsentEvent:
    return messages.ConsentEvent(
        DEVICE,
        1,
        ConsentAnswer.TONIGHT,
        AT,
        actor="uid:1000",
        via="menu",
        attempt_id=ATTEMPT,
        release_id="thermo/1.1",
        update_class=UpdateClass.SECURITY,
        until=AT + timedelta(hours=14),
        text_digest=str(Digest.of(b"What it does ...")),
        language="de",
    )


def vector_key() -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(PRIVATE_VALUE, ec.SECP256R1())


def make_envelope() -> Envelope:
    return sealed(REPORT_TYPE, canonical.encode(make_report().to_json()))


def make_consent_envelope() -> Envelope:
    return sealed(CONSENT_TYPE, canonical.encode(make_consent_event().to_json()))


def sealed(kind: str, payload: bytes) -> Envelope:
    public = (
        vector_key()
        .public_key()
        .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    signature = vector_key().sign(
        pre_authentication_encoding(kind, payload), ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
    )
    return Envelope(payload, kind, hashlib.sha256(public).hexdigest(), signature)


def envelope_vectors() -> dict[str, Any]:
    envelope = make_envelope()
    value = envelope.to_json()
    public = (
        vector_key()
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    flipped = bytearray(envelope.payload)
    flipped[10] ^= 1
    return {
        "about": "A signed report. The signature is ECDSA P-256 with SHA-256 (DER) over the pre-authentication encoding; "
        "keyid is the SHA-256 of the public key in DER. The key is known to everybody: never trust it.",
        "pre_authentication_encoding": [
            {"payload_type": kind, "payload_base64": b64(data), "encoded_base64": b64(pre_authentication_encoding(kind, data))}
            for kind, data in [("http://example.com/HelloWorld", b"hello world"), (REPORT_TYPE, b"{}"), ("é", b"")]
        ],
        "public_key_pem": public.decode(),
        "valid": [{"name": "report", "envelope": value}],
        "consent": [{"name": "consent event", "envelope": make_consent_envelope().to_json()}],
        "refused": [
            {"name": name, "envelope": value | changes, "code": code}
            for name, code, changes in [
                ("another kind of message", "request/malformed", {"payload_type": "application/json"}),
                ("key id in capitals", "request/malformed", {"keyid": envelope.keyid.upper()}),
                ("payload without padding", "request/malformed", {"payload": "e30"}),
                ("signature too long", "request/malformed", {"signature": b64(bytes(129))}),
            ]
        ],
        "signature_refused": [
            {"name": "one bit of the payload changed", "envelope": value | {"payload": b64(bytes(flipped))}, "code": "trust/signature"},
            {"name": "another report's signature", "envelope": value | {"signature": b64(vector_key().sign(b"x", ec.ECDSA(hashes.SHA256(), deterministic_signing=True)))}, "code": "trust/signature"},
            {"name": "signature over the payload alone", "envelope": value | {"signature": b64(vector_key().sign(envelope.payload, ec.ECDSA(hashes.SHA256(), deterministic_signing=True)))}, "code": "trust/signature"},
        ],
    }  # fmt: skip


def audit_vectors() -> dict[str, Any]:
    """Make a chain, checkpoints and a release log, with what a verifier must say about each."""
    key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"an audit key for test vectors").digest())
    stranger = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"another audit key").digest())
    found, chain = audit.GENESIS, []
    for number, (kind, subject, facts) in enumerate(
        [
            ("product.added", "thermo", {}),
            ("release.published", "thermo/1.0", {"sequence_number": 1, "notes": "größer ≤ 2"}),
            ("device.enrolled", str(DEVICE), {"hardware": "rpi4", "again": False}),
            ("attempt.moved", str(DEVICE), {"code": "", "state": "confirmed", "was": None}),
        ],
        1,
    ):
        value = audit.event_value(
            tenant=1,
            number=number,
            at=1_795_176_000 + number,
            kind=kind,
            actor="person:alice",
            subject=subject,
            facts=facts,
        )
        digest = audit.event_digest(value)
        found = audit.extend(found, digest)
        chain.append({"canonical": text(value), "digest": digest.hex(), "hash": found.hex()})
    heads = [bytes.fromhex(entry["hash"]) for entry in chain]
    checkpoints = {n: audit.Checkpoint(1, n, heads[n - 1], 1_795_180_000) for n in (2, 4)}
    signed = {n: audit.sign_checkpoint(key, checkpoint).to_json() for n, checkpoint in checkpoints.items()}
    header = {
        "schema": audit.EXPORT_SCHEMA,
        "tenant": 1,
        "first": 1,
        "previous": audit.GENESIS.hex(),
        "keyid": signed[2]["keyid"],
    }
    lines = [text(header)]
    for number, entry in enumerate(chain, 1):
        lines.append(text({"event": json.loads(entry["canonical"]), "hash": entry["hash"]}))
        if number in signed:
            lines.append(text({"checkpoint": signed[number]}))
    lines.append(text({"end": {"number": 4, "hash": heads[3].hex()}}))
    cut = [*lines[:4], text({"end": {"number": 2, "hash": heads[1].hex()}})]
    foreign = audit.sign_checkpoint(stranger, checkpoints[2]).to_json()
    leaves = [f"leaf {number}".encode() for number in range(7)]
    hashed = [merkle.leaf_hash(leaf) for leaf in leaves]
    tree_head = merkle.TreeHead(1, 7, merkle.root(hashed), 1_795_180_000)
    return {
        "about": "docs/protocol/audit.md. The key is known to everybody: never trust it. `kept` are checkpoints that the auditor "
        "has from before; `broken_at` is the number of the first event that is wrong, null when nothing is.",
        "public_key": audit.raw_key(key.public_key()).hex(),
        "chain": chain,
        "exports": [
            {"name": "whole", "lines": lines, "kept": [signed[4]], "broken_at": None},
            {
                "name": "an actor changed",
                "lines": [line.replace("alice", "mallory", 1) if "device.enrolled" in line else line for line in lines],
                "kept": [],
                "broken_at": 3,
            },
            {
                "name": "an event removed",
                "lines": [line for line in lines if "device.enrolled" not in line],
                "kept": [],
                "broken_at": 3,
            },
            {"name": "cut off, nothing kept", "lines": cut, "kept": [], "broken_at": None},
            {"name": "cut off, a checkpoint was kept", "lines": cut, "kept": [signed[4]], "broken_at": 3},
            {"name": "no end", "lines": lines[:-1], "kept": [], "broken_at": 5},
            {
                "name": "a checkpoint of another key",
                "lines": [*lines[:3], text({"checkpoint": foreign}), *lines[4:]],
                "kept": [],
                "broken_at": 3,
            },
        ],
        "release_log": {
            "leaves": [leaf.decode() for leaf in leaves],
            "roots": [merkle.root(hashed[:size]).hex() for size in range(8)],
            "inclusion": [[part.hex() for part in merkle.inclusion_proof(hashed, index)] for index in range(7)],
            "consistency": {
                str(size): [part.hex() for part in merkle.consistency_proof(hashed, size)] for size in range(1, 8)
            },
            "tree_head": merkle.sign_tree_head(key, tree_head).to_json(),
        },
    }


def parcel_vectors() -> dict[str, Any]:
    members = {
        "director/1.root.json": b"{}",
        f"device/{DEVICE}": b"{}",
        "image/1.root.json": b"{}",
        "image/timestamp.json": b"{}",
        f"payload/{hashlib.sha256(b'image').hexdigest()}": b"image",
    }
    header = Parcel(
        parcel_id=ATTEMPT,
        kind=ParcelKind.DIRECTOR,
        product="thermo",
        target="thermo/1.1/image.bin",
        created_at=AT,
        expires_at=AT,
        members=tuple(member_of(name, (data,), len(data)) for name, data in members.items()),
    )
    good = encode_beginning(header) + b"".join(members.values())
    spelled = canonical.encode(header.to_json())

    def spell(name: str, old: bytes, new: bytes) -> dict[str, Any]:
        changed = spelled.replace(old, new)
        line = b"firmament-parcel/1 %d %s\n" % (len(changed), hashlib.sha256(changed).hexdigest().encode())
        return {
            "name": name,
            "input_base64": b64(line + changed + b"".join(members.values())),
            "code": "request/malformed",
        }

    report = make_envelope()
    receipt = Receipt(
        DEVICE, ATTEMPT, "thermo/1.1", AttemptStatus.CONFIRMED, 1, Digest.of(report.payload), "1.1", 2,
        str(Digest.of(b"image")), AT,
    )  # fmt: skip
    payload = canonical.encode(receipt.to_json())
    return {
        "about": "A parcel and what is refused when its header is read, and a receipt. The metadata in it says nothing: "
        "how it is verified is in docs/protocol/parcel.md. Signed with the key of envelope-1.json.",
        "valid": [{"name": "least", "input_base64": b64(good), "header": header.to_json()}],
        "refused": [
            {"name": "empty", "input_base64": "", "code": "request/malformed"},
            {"name": "one bit of the header changed", "input_base64": b64(good.replace(b"thermo", b"thermn", 1)), "code": "request/malformed"},
            {"name": "another version", "input_base64": b64(good.replace(b"parcel/1", b"parcel/2", 1)), "code": "request/malformed"},
            {"name": "a header that is too long", "input_base64": b64(b"firmament-parcel/1 1048577 " + b"0" * 64 + b"\n"), "code": "request/too-large"},
            spell("a path", b"image/timestamp.json", b"image/../evil.json"),
            spell("a member twice", b"image/timestamp.json", b"image/1.root.json"),
            spell("an unknown role", b"image/timestamp.json", b"images/timestamp.json"),
            spell("an unknown kind", b'"director"', b'"somebody"'),
            spell("a payload under another name", f"payload/{hashlib.sha256(b'image').hexdigest()}".encode(), b"payload/" + b"0" * 64),
        ],
        "receipt": [
            {
                "name": "confirmed",
                "file": ReceiptFile(DEVICE, sealed(RECEIPT_TYPE, payload).to_json(), report.to_json()).to_json(),
                "payload": payload.decode(),
            }
        ],
    }  # fmt: skip


def build() -> dict[str, bytes]:
    """Return every vector file by name; the same bytes on every machine."""
    made = {
        "canonical-1.json": canonical_vectors(),
        "digest-1.json": digest_vectors(),
        "manifest-1.json": manifest_vectors(),
        "messages-1.json": message_vectors(),
        "envelope-1.json": envelope_vectors(),
        "audit-1.json": audit_vectors(),
        "parcel-1.json": parcel_vectors(),
    }
    return {name: (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode() for name, value in made.items()}


def main() -> None:
    VECTORS.mkdir(exist_ok=True)
    for name, data in build().items():
        (VECTORS / name).write_bytes(data)
        print(f"{name} {len(data)} bytes sha256:{hashlib.sha256(data).hexdigest()}")


if __name__ == "__main__":
    main()
