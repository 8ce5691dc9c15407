"""The release log's tree: RFC 9162 (and 6962) section 2.1, SHA-256.

A tree head commits to every leaf and their order. An inclusion proof shows that a leaf is under a
head, a consistency proof that one head's log is a beginning of another's: a log that forgot or
changed a release cannot show one. Both verify with a few dozen hashes, without the log.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from firmament.core.fields import Fields
from firmament.errors import LogProofError
from firmament.trust.audit import open_signed, sign

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

    from firmament.protocol.v1.envelope import Envelope

TREE_HEAD_TYPE: Final = "application/vnd.firmament.release-tree-head+json;v=1"
HASH_LENGTH_BYTES: Final = 32
MAX_PROOF_LENGTH: Final = 64
"""Hashes in a proof; a tree of 2^63 leaves needs no more."""
EMPTY_ROOT: Final = hashlib.sha256(b"").digest()


def leaf_hash(data: bytes) -> bytes:
    """Return the hash of a leaf (RFC 9162 2.1.1)."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def root(leaves: Sequence[bytes]) -> bytes:
    """Return the root over leaf hashes (RFC 9162 2.1.1)."""
    if not leaves:
        return EMPTY_ROOT
    level = list(leaves)
    # Level by level: a last node without a partner goes up as it is, which is the same tree.
    while len(level) > 1:
        pairs = [node_hash(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
        level = pairs + level[len(pairs) * 2 :]
    return level[0]


def inclusion_proof(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """Return the path from leaf `index` to the root (RFC 9162 2.1.3.1)."""
    if not 0 <= index < len(leaves):
        raise LogProofError("The log has no such leaf", index=index, size=len(leaves))
    proof: list[bytes] = []
    level = list(leaves)
    while len(level) > 1:
        partner = index ^ 1
        if partner < len(level):
            proof.append(level[partner])
        pairs = [node_hash(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
        level = pairs + level[len(pairs) * 2 :]
        index //= 2
    return proof


def verify_inclusion(leaf: bytes, *, index: int, size: int, proof: Sequence[bytes], root_hash: bytes) -> None:
    """Check that `leaf` is number `index` of a log with this root; raises LogProofError (RFC 9162 2.1.3.2)."""
    if not 0 <= index < size or len(proof) > MAX_PROOF_LENGTH:
        raise LogProofError("The proof is not for this log", index=index, size=size)
    number, last, found = index, size - 1, leaf
    for part in proof:
        if last == 0:
            raise LogProofError("The inclusion proof is too long", index=index, size=size)
        if number & 1 or number == last:
            found = node_hash(part, found)
            while not number & 1 and number:
                number, last = number >> 1, last >> 1
        else:
            found = node_hash(found, part)
        number, last = number >> 1, last >> 1
    if last != 0 or found != root_hash:
        raise LogProofError("The release is not in the log that this tree head commits to", index=index, size=size)


def consistency_proof(leaves: Sequence[bytes], size: int) -> list[bytes]:
    """Return the proof that the first `size` leaves are a beginning of all (RFC 9162 2.1.4.1)."""
    if not 0 < size <= len(leaves):
        raise LogProofError("The log was never of this size", asked=size, size=len(leaves))
    return _subproof(leaves, size, is_whole=True)


def _subproof(leaves: Sequence[bytes], size: int, *, is_whole: bool) -> list[bytes]:
    if size == len(leaves):
        return [] if is_whole else [root(leaves)]
    split = _split(len(leaves))
    if size <= split:
        return [*_subproof(leaves[:split], size, is_whole=is_whole), root(leaves[split:])]
    return [*_subproof(leaves[split:], size - split, is_whole=False), root(leaves[:split])]


def _split(size: int) -> int:
    """Return the largest power of two below `size`."""
    return 1 << (size - 1).bit_length() - 1


def verify_consistency(
    *, old_size: int, old_root: bytes, new_size: int, new_root: bytes, proof: Sequence[bytes]
) -> None:
    """Check that the old log is a beginning of the new one; raises LogProofError (RFC 9162 2.1.4.2)."""
    if not 0 <= old_size <= new_size or len(proof) > 2 * MAX_PROOF_LENGTH:
        raise LogProofError("The log has become shorter", old=old_size, new=new_size)
    if old_size == 0:
        if old_root != EMPTY_ROOT or proof:
            raise LogProofError("An empty log has another root", old=old_size, new=new_size)
        return
    if old_size == new_size:
        if proof or old_root != new_root:
            raise LogProofError("A log of the same size has another root", old=old_size, new=new_size)
        return
    path = list(proof)
    if old_size & (old_size - 1) == 0:
        path.insert(0, old_root)
    if not path:
        raise LogProofError("The consistency proof is empty", old=old_size, new=new_size)
    number, last = old_size - 1, new_size - 1
    while number & 1:
        number, last = number >> 1, last >> 1
    first = second = path[0]
    for part in path[1:]:
        if last == 0:
            raise LogProofError("The consistency proof is too long", old=old_size, new=new_size)
        if number & 1 or number == last:
            first, second = node_hash(part, first), node_hash(part, second)
            while not number & 1 and number:
                number, last = number >> 1, last >> 1
        else:
            second = node_hash(second, part)
        number, last = number >> 1, last >> 1
    if last != 0 or first != old_root or second != new_root:
        raise LogProofError(
            "The log is not a continuation of the earlier one: a release was changed or removed",
            old=old_size,
            new=new_size,
        )


# --- tree heads ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TreeHead:
    """A log of `size` leaves had this root at this time (unix seconds)."""

    tenant: int
    size: int
    root: bytes
    at: int

    def to_json(self) -> dict[str, Any]:
        """Write the signed value."""
        return {"v": 1, "tenant": self.tenant, "size": self.size, "root": self.root.hex(), "at": self.at}


def sign_tree_head(key: Ed25519PrivateKey, head: TreeHead) -> Envelope:
    """Return the signed tree head."""
    return sign(key, TREE_HEAD_TYPE, head.to_json())


def open_tree_head(value: object, key: Ed25519PublicKey) -> TreeHead:
    """Verify and read a tree head; raises SignatureError, MalformedError."""
    fields = open_signed(value, key, TREE_HEAD_TYPE, what="The tree head")
    return TreeHead(
        tenant=fields.integer("tenant", minimum=1),
        size=fields.integer("size"),
        root=fields.hex_bytes("root", length=HASH_LENGTH_BYTES),
        at=fields.integer("at"),
    )


def read_proof(fields: Fields, name: str) -> list[bytes]:
    """Read a list of hashes; raises MalformedError."""
    texts = fields.texts(name, max_items=2 * MAX_PROOF_LENGTH, max_length=2 * HASH_LENGTH_BYTES)
    return [
        Fields({"hash": text}, what=f"{fields.what}.{name}").hex_bytes("hash", length=HASH_LENGTH_BYTES)
        for text in texts
    ]
