"""The audit part of the isolated signer: signs where chain and release log stand, and only continuations.

It keeps, durably, what it signed last for each tenant. A request brings the digests of the events
since, or a consistency proof: the hash is computed here, so that whoever holds the database and
the server's process can have a *continuation* signed, but never another past.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from firmament.core import canonical
from firmament.core.fields import Fields
from firmament.durable import read_file, replace_durably
from firmament.errors import ChainBrokenError, CorruptStateError, FirmamentError, LogProofError, MalformedError
from firmament.server.keys import load_signer, make_key
from firmament.trust import audit, merkle

if TYPE_CHECKING:
    from pathlib import Path

    from firmament.core.clock import Clock
    from firmament.durable import Disk

KEY: Final = "audit.pem"
STATE: Final = "audit-state.json"
MAX_STATE_LENGTH_BYTES: Final = 4 * 1024 * 1024
# 10 000 tenants of 250 bytes each.
MAX_DIGESTS: Final = 20_000
"""Events bound by one request: 1.3 MB of hexadecimal, below the signer's ceiling of 4 MiB."""


@dataclass(frozen=True, slots=True)
class Signed:
    """What was signed last for a tenant."""

    number: int = 0
    hash: bytes = audit.GENESIS
    size: int = 0
    root: bytes = merkle.EMPTY_ROOT

    def to_json(self) -> dict[str, Any]:
        """Write for the state file, and for the server to know where to go on."""
        return {"number": self.number, "hash": self.hash.hex(), "size": self.size, "root": self.root.hex()}


def read_signed(fields: Fields) -> Signed:
    """Read one tenant's entry; raises MalformedError."""
    return Signed(
        number=fields.integer("number"),
        hash=fields.hex_bytes("hash", length=32),
        size=fields.integer("size"),
        root=fields.hex_bytes("root", length=32),
    )


def decode_audit_state(data: bytes) -> dict[int, Signed]:
    """Read the state file; raises CorruptStateError: a signer that forgot must not sign another past."""
    try:
        tenants = Fields(
            canonical.decode_object(data, limit_bytes=MAX_STATE_LENGTH_BYTES, what="state"), what="state"
        ).object("tenants")
        return {_tenant(name): read_signed(tenants.object(name)) for name in tenants.value}
    except FirmamentError as error:
        raise CorruptStateError("The signer's audit state cannot be read", reason=error.problem) from error


def encode_audit_state(state: dict[int, Signed]) -> bytes:
    """Write the state file."""
    return canonical.encode({"v": 1, "tenants": {str(tenant): signed.to_json() for tenant, signed in state.items()}})


def _tenant(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 10:  # noqa: PLR2004 - digits of 2^31
        raise MalformedError("A tenant is a whole number", found=text[:20])
    return int(text)


class AuditSigner:
    """The audit key and the memory of what it signed."""

    def __init__(self, disk: Disk, directory: Path, clock: Clock) -> None:
        self._disk = disk
        self._path = directory / STATE
        self._clock = clock
        if not disk.exists(directory / KEY):  # a server of an earlier release
            make_key(disk, directory / KEY)
        self._key = load_key(disk, directory / KEY)
        self._state = (
            decode_audit_state(read_file(disk, self._path, limit_bytes=MAX_STATE_LENGTH_BYTES))
            if disk.exists(self._path)
            else {}
        )

    def public(self) -> dict[str, Any]:
        """Return the public key and its name."""
        public = self._key.public_key()
        return {"keyid": audit.keyid_of(public), "key": audit.raw_key(public).hex()}

    def answer(self, op: str, fields: Fields) -> dict[str, Any] | None:
        """Answer an operation of this part, None for another's; raises what the operation raises."""
        match op:
            case "audit-public":
                return self.public()
            case "audit-state":
                return self._signed(fields.integer("tenant", minimum=1)).to_json()
            case "checkpoint":
                return self.checkpoint(
                    fields.integer("tenant", minimum=1), fields.integer("after"), _digests(fields, "digests")
                )
            case "tree-head":
                return self.tree_head(
                    fields.integer("tenant", minimum=1),
                    fields.integer("size", minimum=1),
                    fields.hex_bytes("root", length=32),
                    merkle.read_proof(fields, "proof"),
                )
            case _:
                return None

    def _signed(self, tenant: int) -> Signed:
        return self._state.get(tenant, Signed())

    def checkpoint(self, tenant: int, after: int, digests: list[bytes]) -> dict[str, Any]:
        """Sign the chain `digests` further on; raises ChainBrokenError unless it goes on from what was signed."""
        signed = self._signed(tenant)
        if after != signed.number or not digests:
            raise ChainBrokenError(
                "The signer signed a chain that stood elsewhere", tenant=tenant, signed=signed.number, asked=after
            )
        found = signed.hash
        for digest in digests:
            found = audit.extend(found, digest)
        number = after + len(digests)
        checkpoint = audit.Checkpoint(tenant, number, found, int(self._clock.now().timestamp()))
        self._remember(tenant, replace(signed, number=number, hash=found))
        return {
            "number": number,
            "hash": found.hex(),
            "at": checkpoint.at,
            "envelope": audit.sign_checkpoint(self._key, checkpoint).to_json(),
        }

    def tree_head(self, tenant: int, size: int, root: bytes, proof: list[bytes]) -> dict[str, Any]:
        """Sign a tree head; raises LogProofError unless the log it signed before is a beginning of this one."""
        signed = self._signed(tenant)
        if size <= signed.size and root != signed.root:
            raise LogProofError("The signer signed a longer log", tenant=tenant, signed=signed.size, asked=size)
        merkle.verify_consistency(old_size=signed.size, old_root=signed.root, new_size=size, new_root=root, proof=proof)
        head = merkle.TreeHead(tenant, size, root, int(self._clock.now().timestamp()))
        self._remember(tenant, replace(signed, size=size, root=root))
        return {"size": size, "at": head.at, "envelope": merkle.sign_tree_head(self._key, head).to_json()}

    def _remember(self, tenant: int, signed: Signed) -> None:
        # Before the answer leaves: signed and forgotten would allow two pasts.
        state = {**self._state, tenant: signed}
        replace_durably(self._disk, self._path, encode_audit_state(state))
        self._state = state


def load_key(disk: Disk, path: Path) -> Ed25519PrivateKey:
    """Read the audit key; raises KeyFileError if others may read it or it is not Ed25519."""
    load_signer(disk, path)  # the same checks as every online key
    key = serialization.load_pem_private_key(read_file(disk, path, limit_bytes=4096), None)
    assert isinstance(key, Ed25519PrivateKey)
    return key


def _digests(fields: Fields, name: str) -> list[bytes]:
    text = fields.text(name, max_length=64 * MAX_DIGESTS)
    try:
        data = bytes.fromhex(text)
    except ValueError as error:
        raise MalformedError(f"{fields.what}.{name} is not hexadecimal") from error
    if len(data) % 32 or text != data.hex():
        raise MalformedError(f"{fields.what}.{name} is not a row of digests", length_bytes=len(data))
    return [data[index : index + 32] for index in range(0, len(data), 32)]
