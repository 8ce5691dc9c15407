"""RFC 6962 / 9162 trees: published vectors, and proofs of every size against each other."""

import base64
import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from firmament.core.fields import Fields
from firmament.errors import LogProofError, MalformedError, SignatureError
from firmament.trust import merkle
from firmament.trust.merkle import TreeHead, open_tree_head, read_proof, sign_tree_head

# The leaves and roots of the certificate-transparency reference implementation (merkletree tests).
LEAVES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
SIZE = 33
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def leaves(size):
    return [merkle.leaf_hash(f"leaf {number}".encode()) for number in range(size)]


@pytest.mark.parametrize("size", range(len(ROOTS)))
def test_roots_are_those_of_the_reference_implementation(size):
    assert merkle.root([merkle.leaf_hash(data) for data in LEAVES[:size]]).hex() == ROOTS[size]


def test_proofs_are_those_of_the_reference_implementation():
    hashed = [merkle.leaf_hash(data) for data in LEAVES]
    assert [part.hex() for part in merkle.inclusion_proof(hashed, 5)] == [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]
    assert [part.hex() for part in merkle.consistency_proof(hashed, 6)] == [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]


def test_every_inclusion_proof_verifies_and_no_other_does():
    for size in range(1, SIZE):
        log = leaves(size)
        top = merkle.root(log)
        for index in range(size):
            proof = merkle.inclusion_proof(log, index)
            merkle.verify_inclusion(log[index], index=index, size=size, proof=proof, root_hash=top)
            wrong = [
                {"index": (index + 1) % size, "proof": proof} if size > 1 else {"index": 1, "proof": proof},
                {"index": index, "proof": [*proof, bytes(32)]},
                {"index": index, "proof": [bytes(32), *proof[1:]]},
            ] + ([{"index": index, "proof": proof[:-1]}] if proof else [])
            for changes in wrong:
                with pytest.raises(LogProofError):
                    merkle.verify_inclusion(log[index], size=size, root_hash=top, **changes)


def test_every_consistency_proof_verifies_and_a_changed_leaf_has_none():
    for new in range(1, SIZE):
        log = leaves(new)
        top = merkle.root(log)
        for old in range(new + 1):
            proof = merkle.consistency_proof(log, old) if old else []
            before = merkle.root(log[:old])
            merkle.verify_consistency(old_size=old, old_root=before, new_size=new, new_root=top, proof=proof)
            if old:
                other = merkle.root([hashlib.sha256(b"x").digest(), *log[1:old]])
                with pytest.raises(LogProofError):
                    merkle.verify_consistency(old_size=old, old_root=other, new_size=new, new_root=top, proof=proof)
            with pytest.raises(LogProofError):
                merkle.verify_consistency(
                    old_size=old, old_root=before, new_size=new, new_root=top, proof=[*proof, bytes(32)]
                )
            if proof:
                with pytest.raises(LogProofError):
                    merkle.verify_consistency(
                        old_size=old, old_root=before, new_size=new, new_root=top, proof=proof[:-1]
                    )


def test_a_shorter_log_is_no_continuation():
    with pytest.raises(LogProofError):
        merkle.verify_consistency(old_size=3, old_root=bytes(32), new_size=2, new_root=bytes(32), proof=[])
    with pytest.raises(LogProofError):
        merkle.inclusion_proof(leaves(3), 3)
    with pytest.raises(LogProofError):
        merkle.consistency_proof(leaves(3), 4)


def test_a_tree_head_is_signed_under_its_own_type():
    head = TreeHead(tenant=1, size=3, root=merkle.root(leaves(3)), at=1_800_000_000)
    envelope = sign_tree_head(KEY, head).to_json()
    assert open_tree_head(envelope, KEY.public_key()) == head
    changed = {**envelope, "payload": base64.b64encode(b'{"v":1}').decode()}
    with pytest.raises(SignatureError):
        open_tree_head(changed, KEY.public_key())


def test_a_proof_is_read_with_a_ceiling():
    assert read_proof(Fields({"p": [bytes(32).hex()]}, what="x"), "p") == [bytes(32)]
    for wrong in ([bytes(32).hex()] * 200, ["zz"], "text"):
        with pytest.raises(MalformedError):
            read_proof(Fields({"p": wrong}, what="x"), "p")
