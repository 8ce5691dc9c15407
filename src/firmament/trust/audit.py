r"""The audit chain: each event is bound to all before it, and an Ed25519 key vouches for where it stands.

    digest(n) = SHA-256(canonical JSON of event n)
    hash(n)   = SHA-256("firmament-audit-v1\n" | hash(n - 1) | digest(n)),   hash(0) = 32 zero bytes

An event names its tenant and its number, so it fits into one place of one chain. A checkpoint is a
signed ``{tenant, number, hash, at}``. Whoever holds the database can write a new chain, but not
make it agree with a checkpoint that somebody kept (docs/protocol/audit.md).

Pure, and small enough to be written again elsewhere: an auditor needs this file, the public key
and an export. Nothing here reads a clock, a file or a database.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from firmament.core import canonical
from firmament.core.fields import Fields
from firmament.errors import ChainBrokenError, FirmamentError, MalformedError, SignatureError
from firmament.protocol.v1.envelope import Envelope, open_envelope, pre_authentication_encoding

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

CHAIN_LABEL: Final = b"firmament-audit-v1\n"
GENESIS: Final = bytes(32)
"""What stands before event 1."""
CHECKPOINT_TYPE: Final = "application/vnd.firmament.audit-checkpoint+json;v=1"
EXPORT_SCHEMA: Final = "firmament.audit-export/1"
HASH_LENGTH_BYTES: Final = 32
MAX_LINE_LENGTH_BYTES: Final = 1024 * 1024 + 64 * 1024
# One event: facts of at most 1 MiB (server/events.py) and the fields around them.


def event_value(
    *, tenant: int, number: int, at: int, kind: str, actor: str, subject: str, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the value whose canonical form is digested; `at` is in unix seconds."""
    return {
        "v": 1,
        "tenant": tenant,
        "number": number,
        "at": at,
        "kind": kind,
        "actor": actor,
        "subject": subject,
        "facts": dict(facts),
    }


def event_digest(value: Mapping[str, Any]) -> bytes:
    """Return the digest of one event; raises MalformedError for what has no canonical form."""
    return hashlib.sha256(canonical.encode(dict(value))).digest()


def extend(previous: bytes, digest: bytes) -> bytes:
    """Return the hash that binds an event's digest to all before it."""
    return hashlib.sha256(CHAIN_LABEL + previous + digest).digest()


def keyid_of(key: Ed25519PublicKey) -> str:
    """Name an audit key: SHA-256 of its 32 raw bytes, in hexadecimal."""
    return hashlib.sha256(raw_key(key)).hexdigest()


def raw_key(key: Ed25519PublicKey) -> bytes:
    """Return the 32 bytes of a public key."""
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)


def read_key(text: str) -> Ed25519PublicKey:
    """Read a public key from 64 hexadecimal digits; raises MalformedError."""
    return Ed25519PublicKey.from_public_bytes(
        Fields({"key": text.strip()}, what="audit").hex_bytes("key", length=HASH_LENGTH_BYTES)
    )


# --- checkpoints ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a chain stood: event `number` of `tenant` had this hash at this time (unix seconds)."""

    tenant: int
    number: int
    hash: bytes
    at: int

    def to_json(self) -> dict[str, Any]:
        """Write the signed value."""
        return {"v": 1, "tenant": self.tenant, "number": self.number, "hash": self.hash.hex(), "at": self.at}


def sign_checkpoint(key: Ed25519PrivateKey, checkpoint: Checkpoint) -> Envelope:
    """Return the signed checkpoint."""
    return sign(key, CHECKPOINT_TYPE, checkpoint.to_json())


def sign(key: Ed25519PrivateKey, payload_type: str, value: dict[str, Any]) -> Envelope:
    """Sign a value as its canonical form, under its type."""
    payload = canonical.encode(value)
    signature = key.sign(pre_authentication_encoding(payload_type, payload))
    return Envelope(payload, payload_type, keyid_of(key.public_key()), signature)


def open_signed(value: object, key: Ed25519PublicKey, payload_type: str, *, what: str) -> Fields:
    """Return what `key` signed under this type; raises SignatureError, MalformedError."""
    envelope = open_envelope(value, expected_type=payload_type)
    if envelope.keyid != keyid_of(key):
        raise SignatureError(f"{what} is signed by another key", keyid=envelope.keyid[:16], expected=keyid_of(key)[:16])
    try:
        key.verify(envelope.signature, pre_authentication_encoding(payload_type, envelope.payload))
    except InvalidSignature as error:
        raise SignatureError(f"{what} has a wrong signature", keyid=envelope.keyid[:16]) from error
    return Fields(canonical.decode_object(envelope.payload, limit_bytes=4096, what=what), what=what)


def open_checkpoint(value: object, key: Ed25519PublicKey) -> Checkpoint:
    """Verify and read a checkpoint; raises SignatureError, MalformedError."""
    fields = open_signed(value, key, CHECKPOINT_TYPE, what="The checkpoint")
    return Checkpoint(
        tenant=fields.integer("tenant", minimum=1),
        number=fields.integer("number", minimum=1),
        hash=fields.hex_bytes("hash", length=HASH_LENGTH_BYTES),
        at=fields.integer("at"),
    )


# --- verifying -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Break:
    """The first thing that is wrong."""

    number: int
    """The event at which it shows; for a truncation the last one that is there."""
    what: str
    """One sentence."""


@dataclass(slots=True)
class Verification:
    """What was found in an export."""

    tenant: int = 0
    first: int = 0
    last: int = 0
    events: int = 0
    hash: bytes = GENESIS
    checkpoints: int = 0
    """Verified signatures inside the export."""
    vouched_up_to: int = 0
    """Number of the newest event that a verified checkpoint covers."""
    kept: int = 0
    """Earlier checkpoints, kept by the auditor, that agree."""
    broken: Break | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return self.broken is None

    def require(self) -> None:
        """Raise ChainBrokenError if something is wrong."""
        if self.broken is not None:
            raise ChainBrokenError("The audit chain is broken", event=self.broken.number, reason=self.broken.what)


@dataclass(slots=True)
class ChainVerifier:
    """Takes an export line by line in constant memory; `finish` says what was found.

    `kept` are checkpoints from outside: what they say counts more than anything in the export.
    """

    key: Ed25519PublicKey
    kept: tuple[Checkpoint, ...] = ()
    found: Verification = field(default_factory=Verification)
    _started: bool = False
    _ended: bool = False
    _pending: dict[int, list[bytes]] = field(default_factory=dict)

    def feed(self, line: bytes) -> bool:
        """Take one line of JSON; whether it is worth to go on. Never raises for bad content."""
        if self.found.broken is not None:
            return False
        try:
            self._feed(canonical.decode_object(line, limit_bytes=MAX_LINE_LENGTH_BYTES, what="The line"))
        except FirmamentError as error:
            self._fail(error.problem)
        return self.found.broken is None

    def _feed(self, value: dict[str, Any]) -> None:
        if not self._started:
            self._header(Fields(value, what="header"))
        elif self._ended:
            self._fail("There is something after the end")
        elif "event" in value:
            self._event(Fields(value, what="line"))
        elif "checkpoint" in value:
            self._checkpoint(open_checkpoint(value["checkpoint"], self.key))
        elif "end" in value:
            self._end(Fields(value["end"], what="end"))
        else:
            self._fail("A line is neither event, checkpoint nor end")

    def _header(self, fields: Fields) -> None:
        if fields.text("schema") != EXPORT_SCHEMA:
            raise MalformedError("This is not an audit export of a version this program knows")
        found = self.found
        found.tenant = fields.integer("tenant", minimum=1)
        found.first = fields.integer("first", minimum=1)
        found.last = found.first - 1
        found.hash = fields.hex_bytes("previous", length=HASH_LENGTH_BYTES)
        if found.first == 1 and found.hash != GENESIS:
            raise MalformedError("The chain does not begin at its beginning")
        for checkpoint in self.kept:
            if checkpoint.tenant == found.tenant:
                self._pending.setdefault(checkpoint.number, []).append(checkpoint.hash)
        self._started = True
        self._compare_kept()

    def _event(self, line: Fields) -> None:
        found = self.found
        event = line.object("event")
        number = event.integer("number", minimum=1)
        if number != found.last + 1:
            self._fail(f"Event {found.last + 1} should follow, event {number} does", number=found.last + 1)
            return
        if event.integer("tenant", minimum=1) != found.tenant:
            self._fail("The event is of another tenant", number=number)
            return
        expected = extend(found.hash, event_digest(event.value))
        if line.hex_bytes("hash", length=HASH_LENGTH_BYTES) != expected:
            self._fail("The event is not the one that was written, or one before it is missing", number=number)
            return
        found.last, found.hash = number, expected
        found.events += 1
        self._compare_kept()

    def _checkpoint(self, checkpoint: Checkpoint) -> None:
        found = self.found
        if checkpoint.tenant != found.tenant or checkpoint.number != found.last:
            self._fail("A checkpoint stands in the wrong place")
        elif checkpoint.hash != found.hash:
            self._fail("The signed checkpoint names another hash: the chain was written anew")
        else:
            found.checkpoints += 1
            found.vouched_up_to = checkpoint.number

    def _compare_kept(self) -> None:
        for hash_then in self._pending.pop(self.found.last, ()):
            if hash_then != self.found.hash:
                self._fail("A checkpoint that was kept names another hash: the chain was written anew")
                return
            self.found.kept += 1
            self.found.vouched_up_to = max(self.found.vouched_up_to, self.found.last)

    def _end(self, fields: Fields) -> None:
        found = self.found
        if fields.integer("number") != found.last or fields.hex_bytes("hash", length=32) != found.hash:
            self._fail("The export ends elsewhere than it says: lines are missing at its end")
        self._ended = True

    def finish(self, *, is_whole: bool = True) -> Verification:
        """Say what was found; with `is_whole` a kept checkpoint beyond the last event is a truncation."""
        found = self.found
        if found.broken is None and not self._started:
            self._fail("The export is empty")
        elif found.broken is None and not self._ended:
            self._fail("The export was cut short: it has no end line")
        elif found.broken is None and is_whole and (beyond := max(self._pending, default=0)) > found.last:
            self._fail(f"A checkpoint that was kept knows event {beyond}; the chain ends before: it was cut off")
        return found

    def _fail(self, what: str, *, number: int | None = None) -> None:
        self.found.broken = Break(self.found.last + 1 if number is None else number, what)


def verify_export(
    lines: Iterable[bytes], key: Ed25519PublicKey, *, kept: Iterable[Checkpoint] = (), is_whole: bool = True
) -> Verification:
    """Verify an export with nothing but the public key, and checkpoints from before if there are any.

    `is_whole` says that the export goes up to the newest event, so that a kept checkpoint beyond
    its end means that events were cut off.
    """
    verifier = ChainVerifier(key, tuple(kept))
    for line in lines:
        if line.strip() and not verifier.feed(line):
            break
    return verifier.finish(is_whole=is_whole)


# --- exporting -----------------------------------------------------------------------------


def export_header(*, tenant: int, first: int, previous: bytes, keyid: str) -> dict[str, Any]:
    """Return the first line."""
    return {"schema": EXPORT_SCHEMA, "tenant": tenant, "first": first, "previous": previous.hex(), "keyid": keyid}
