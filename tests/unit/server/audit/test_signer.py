"""The audit key signs continuations, never another past."""

import hashlib
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from firmament.core import canonical
from firmament.core.clock import FixedClock
from firmament.core.fields import Fields
from firmament.durable import RealDisk
from firmament.errors import ChainBrokenError, CorruptStateError, LogProofError, MalformedError
from firmament.server.audit.signer import AuditSigner, decode_audit_state
from firmament.server.keys import make_key
from firmament.server.signer import OnlineSigner, answer
from firmament.trust import audit, merkle

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
DIGESTS = [hashlib.sha256(bytes([number])).digest() for number in range(10)]


@pytest.fixture
def signer(tmp_path):
    return AuditSigner(RealDisk(), tmp_path, FixedClock(NOW))


def key_of(signer):
    return Ed25519PublicKey.from_public_bytes(bytes.fromhex(signer.public()["key"]))


def test_it_computes_the_hash_itself_and_signs(signer):
    made = signer.checkpoint(1, 0, DIGESTS[:3])
    found = audit.GENESIS
    for digest in DIGESTS[:3]:
        found = audit.extend(found, digest)
    checkpoint = audit.open_checkpoint(made["envelope"], key_of(signer))
    assert checkpoint == audit.Checkpoint(1, 3, found, int(NOW.timestamp()))
    assert signer.checkpoint(1, 3, DIGESTS[3:4])["number"] == 4
    assert signer.checkpoint(2, 0, DIGESTS[:1])["number"] == 1


@pytest.mark.parametrize("after", [0, 2, 4])
def test_it_never_signs_from_elsewhere_not_even_after_a_restart(signer, tmp_path, after):
    signer.checkpoint(1, 0, DIGESTS[:3])
    again = AuditSigner(RealDisk(), tmp_path, FixedClock(NOW))
    assert again.public() == signer.public()
    with pytest.raises(ChainBrokenError):
        again.checkpoint(1, after, DIGESTS[:3])
    with pytest.raises(ChainBrokenError):
        again.checkpoint(1, 3, [])
    assert again.checkpoint(1, 3, DIGESTS[3:])["number"] == 10


def test_tree_heads_only_grow_out_of_what_was_signed(signer):
    leaves = [merkle.leaf_hash(digest) for digest in DIGESTS]
    signer.tree_head(1, 3, merkle.root(leaves[:3]), [])
    made = signer.tree_head(1, 7, merkle.root(leaves[:7]), merkle.consistency_proof(leaves[:7], 3))
    assert merkle.open_tree_head(made["envelope"], key_of(signer)).size == 7
    assert signer.tree_head(1, 7, merkle.root(leaves[:7]), [])["size"] == 7, "the same again is harmless"
    other = [leaves[1], leaves[0], *leaves[2:]]
    for size, root, proof in (
        (9, merkle.root(other[:9]), merkle.consistency_proof(other[:9], 7)),
        (7, merkle.root(other[:7]), []),
        (3, merkle.root(leaves[:3]), []),
    ):
        with pytest.raises(LogProofError):
            signer.tree_head(1, size, root, proof)


def test_it_answers_over_the_signers_protocol(tmp_path):
    for role in ("snapshot", "timestamp"):
        make_key(RealDisk(), tmp_path / f"{role}.pem")
    online = OnlineSigner(RealDisk(), tmp_path, FixedClock(NOW))
    signer = AuditSigner(RealDisk(), tmp_path, FixedClock(NOW))

    def ask(**question):
        return answer(online, canonical.encode(question), signer)

    assert ask(op="audit-public") == signer.public()
    assert ask(op="audit-state", tenant=1)["number"] == 0
    assert ask(op="checkpoint", tenant=1, after=0, digests=DIGESTS[0].hex())["number"] == 1
    assert ask(op="checkpoint", tenant=1, after=0, digests=DIGESTS[0].hex())["error"] == "trust/chain-broken"
    root = merkle.root([merkle.leaf_hash(b"x")]).hex()
    assert ask(op="tree-head", tenant=1, size=1, root=root, proof=[])["size"] == 1
    for digests in ("zz", "00", DIGESTS[0].hex().upper()):
        assert ask(op="checkpoint", tenant=1, after=1, digests=digests)["error"] == "request/malformed"
    assert ask(op="other")["error"] == "request/malformed"


@pytest.mark.parametrize("data", [b"", b"[]", b'{"tenants":{"x":{}}}', b'{"tenants":{"1":{"number":1}}}'])
def test_a_damaged_memory_is_not_a_new_beginning(data):
    with pytest.raises(CorruptStateError):
        decode_audit_state(data)


def test_a_tenant_is_a_number(signer):
    with pytest.raises(MalformedError):
        signer.answer("audit-state", Fields({"tenant": "x"}, what="request"))
