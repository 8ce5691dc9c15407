"""The golden vectors that ship: made by scripts/vectors.py, and true for this code."""

import base64
import hashlib
import importlib.util
import json
from importlib import resources
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from firmament.core import canonical, manifest
from firmament.core.digest import Digest
from firmament.core.fields import Fields
from firmament.errors import FirmamentError
from firmament.protocol import parcel
from firmament.protocol.v1 import messages, paths
from firmament.protocol.v1.envelope import REPORT_TYPE, open_envelope, pre_authentication_encoding
from firmament.trust import audit, merkle

SCRIPT = Path(__file__).parents[2] / "scripts/vectors.py"
VECTORS = resources.files("firmament.protocol") / "vectors"
LIMIT_BYTES = 4096


def load(name):
    return json.loads((VECTORS / f"{name}-1.json").read_bytes())


def cases(name, *path):
    found = load(name)
    for step in path:
        found = found[step]
    return [pytest.param(case, id=case.get("name")) for case in found]


def input_of(case):
    return base64.b64decode(case["input_base64"]) * case.get("times", 1)


def refused_with(code, call, *args, **options):
    with pytest.raises(FirmamentError) as caught:
        call(*args, **options)
    assert caught.value.code == code


def read_json(data, limit_bytes=LIMIT_BYTES):
    return canonical.decode(data, limit_bytes=limit_bytes, what="input")


def test_the_script_makes_what_is_committed():
    spec = importlib.util.spec_from_file_location("vectors_script", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    made = script.build()
    assert script.build() == made, "twice the same bytes"
    assert made == {entry.name: entry.read_bytes() for entry in VECTORS.iterdir()}, "run scripts/vectors.py"


@pytest.mark.parametrize("case", cases("canonical", "valid"))
def test_canonical_valid(case):
    value = read_json(case["canonical"].encode())
    assert canonical.encode(value) == case["canonical"].encode()
    assert hashlib.sha256(case["canonical"].encode()).hexdigest() == case["sha256"]


@pytest.mark.parametrize("case", cases("canonical", "same"))
def test_canonical_same(case):
    assert canonical.encode(read_json(base64.b64decode(case["spelled_base64"]))).decode() == case["canonical"]


@pytest.mark.parametrize("case", cases("canonical", "refused"))
def test_canonical_refused(case):
    refused_with(case["code"], read_json, input_of(case))


@pytest.mark.parametrize("case", cases("digest", "valid"))
def test_digest_valid(case):
    assert str(Digest.from_json(case["value"], what="digest")) == case["shown"]


@pytest.mark.parametrize("case", cases("digest", "refused"))
def test_digest_refused(case):
    refused_with(case["code"], Digest.from_json, case["value"], what="digest")


@pytest.mark.parametrize("case", cases("manifest", "valid"))
def test_manifest_valid(case):
    found = manifest.decode(read_json(case["canonical"].encode(), 65_536))
    assert manifest.decode(found.to_json()) == found
    assert hashlib.sha256(case["canonical"].encode()).hexdigest() == case["sha256"]
    if case["name"] in {"least", "full"}:
        assert canonical.encode(found.to_json()).decode() == case["canonical"]


@pytest.mark.parametrize("case", cases("manifest", "refused"))
def test_manifest_refused(case):
    refused_with(case["code"], lambda: manifest.decode(read_json(input_of(case), 1_000_000)))


@pytest.mark.parametrize("kind", sorted(load("messages")["messages"]))
def test_messages(kind):
    decode = getattr(messages, f"decode_{kind}")
    vectors = load("messages")["messages"][kind]
    assert vectors["valid"]
    for case in vectors["valid"]:
        message = decode(case["canonical"].encode())
        assert decode(canonical.encode(message.to_json())) == message, case["name"]
    for case in vectors["refused"]:
        refused_with(case["code"], decode, input_of(case))


def test_paths():
    assert load("messages")["paths"] == {name.lower(): value for name, value in vars(paths).items() if name.isupper()}


@pytest.mark.parametrize("case", load("envelope")["pre_authentication_encoding"])
def test_pre_authentication_encoding(case):
    encoded = pre_authentication_encoding(case["payload_type"], base64.b64decode(case["payload_base64"]))
    assert base64.b64encode(encoded).decode() == case["encoded_base64"]


REPORT = "application/vnd.firmament.report+json;v=1"


def verify(envelope):
    public = serialization.load_pem_public_key(load("envelope")["public_key_pem"].encode())
    der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert hashlib.sha256(der).hexdigest() == envelope.keyid
    signed = pre_authentication_encoding(envelope.payload_type, envelope.payload)
    public.verify(envelope.signature, signed, ec.ECDSA(hashes.SHA256()))


@pytest.mark.parametrize("case", cases("envelope", "valid"))
def test_envelope_valid(case):
    envelope = open_envelope(case["envelope"], expected_type=REPORT)
    verify(envelope)
    messages.decode_report(envelope.payload)


@pytest.mark.parametrize("case", cases("envelope", "consent"))
def test_consent_envelope(case):
    """A consent event is signed as such: read as a report it is refused."""
    envelope = open_envelope(case["envelope"], expected_type="application/vnd.firmament.consent+json;v=1")
    verify(envelope)
    messages.decode_consent_event(envelope.payload)
    refused_with("request/malformed", open_envelope, case["envelope"], expected_type=REPORT)


@pytest.mark.parametrize("case", cases("envelope", "refused"))
def test_envelope_refused(case):
    refused_with(case["code"], open_envelope, case["envelope"], expected_type=REPORT)


@pytest.mark.parametrize("case", cases("envelope", "signature_refused"))
def test_envelope_signature_refused(case):
    assert case["code"] == "trust/signature"
    with pytest.raises(InvalidSignature):
        verify(open_envelope(case["envelope"], expected_type=REPORT))


@pytest.mark.parametrize("case", cases("audit", "exports"))
def test_audit_exports(case):
    key = audit.read_key(load("audit")["public_key"])
    kept = [audit.open_checkpoint(envelope, key) for envelope in case["kept"]]
    found = audit.verify_export([line.encode() for line in case["lines"]], key, kept=kept)
    assert (found.broken.number if found.broken else None) == case["broken_at"]


def test_audit_chain_by_the_formula():
    found = bytes(32)
    for entry in load("audit")["chain"]:
        digest = hashlib.sha256(entry["canonical"].encode()).digest()
        found = hashlib.sha256(b"firmament-audit-v1\n" + found + digest).digest()
        assert (entry["digest"], entry["hash"]) == (digest.hex(), found.hex())


def test_release_log():
    log, key = load("audit")["release_log"], audit.read_key(load("audit")["public_key"])
    leaves = [merkle.leaf_hash(leaf.encode()) for leaf in log["leaves"]]
    head = merkle.open_tree_head(log["tree_head"], key)
    assert [merkle.root(leaves[:size]).hex() for size in range(8)] == log["roots"]
    for index, proof in enumerate(log["inclusion"]):
        path = [bytes.fromhex(part) for part in proof]
        merkle.verify_inclusion(leaves[index], index=index, size=head.size, proof=path, root_hash=head.root)
    for size, proof in log["consistency"].items():
        path = [bytes.fromhex(part) for part in proof]
        old = bytes.fromhex(log["roots"][int(size)])
        merkle.verify_consistency(old_size=int(size), old_root=old, new_size=head.size, new_root=head.root, proof=path)


# --- parcels -------------------------------------------------------------------------------


def read_parcel(data):
    begin, length, digest = parcel.decode_first_line(data)
    return parcel.decode_header(data[begin : begin + length], digest)


@pytest.mark.parametrize("case", cases("parcel", "valid"))
def test_parcels_are_read_and_spelled_like_this(case):
    data = input_of(case)
    header = read_parcel(data)
    assert header.to_json() == case["header"]
    beginning = parcel.encode_beginning(header)
    assert data.startswith(beginning)
    assert len(data) == len(beginning) + header.content_length_bytes
    for place in header.places(len(beginning)).values():
        member = data[place.offset : place.offset + place.member.length_bytes]
        assert Digest.of(member) == place.member.digest


@pytest.mark.parametrize("case", cases("parcel", "refused"))
def test_parcels_that_are_refused(case):
    refused_with(case["code"], read_parcel, input_of(case))


@pytest.mark.parametrize("case", cases("parcel", "receipt"))
def test_receipts(case):
    file = parcel.ReceiptFile.from_fields(Fields(case["file"], what="receipt"))
    envelope = open_envelope(file.receipt, expected_type=parcel.RECEIPT_TYPE)
    assert envelope.payload.decode() == case["payload"]
    receipt = parcel.decode_receipt(envelope.payload)
    assert canonical.encode(receipt.to_json()) == envelope.payload
    report = open_envelope(file.report, expected_type=REPORT_TYPE)
    assert Digest.of(report.payload) == receipt.report_digest
    key = serialization.load_pem_public_key(load("envelope")["public_key_pem"].encode())
    for one in (envelope, report):
        signed = pre_authentication_encoding(one.payload_type, one.payload)
        key.verify(one.signature, signed, ec.ECDSA(hashes.SHA256()))
