"""The root ceremony: one file carried from custodian to custodian (trust.md §8).

A `Ceremony` holds the draft of the next root and the root before it. Each custodian sees what
changes, signs, and carries the file on; it is finished when the thresholds of both the old and
the new root are met. Pure: reading, showing and signing only; files are the caller's.

    ceremony = start(previous, roles=..., expires_at=..., repository="image")
    for change in ceremony.changes(): print(change)
    ceremony.sign(signer)
    data = ceremony.finish()            # ThresholdNotMetError says who is missing
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from tuf.api.metadata import Metadata, Root

from firmament.core import canonical
from firmament.core.digest import Digest
from firmament.core.fields import Fields, format_time
from firmament.errors import ConflictError, KeyFileError, MalformedMetadataError, SignatureError, ThresholdNotMetError
from firmament.trust import repository
from firmament.trust.keys import kind_of
from firmament.trust.roles import ROOT, TARGETS, TOP_LEVEL, RoleKeys, require_hybrid

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from securesystemslib.signer import Key, Signer

CEREMONY_VERSION: Final = 1
MAX_CEREMONY_LENGTH_BYTES: Final = 3 * 512_000
# Two roots of at most 512 kB each as JSON text in JSON: quotes take a byte more each.


class Which(StrEnum):
    """Each repository has a root chain of its own, under the same custodians."""

    IMAGE = "image"
    DIRECTOR = "director"


@dataclass(frozen=True, slots=True)
class Progress:
    """Who has signed and who is missing, by keyid."""

    old_threshold: int
    old_signed: tuple[Key, ...]
    old_unsigned: tuple[Key, ...]
    new_threshold: int
    new_signed: tuple[Key, ...]
    new_unsigned: tuple[Key, ...]

    @property
    def is_complete(self) -> bool:
        """Whether both thresholds are met."""
        return len(self.old_signed) >= self.old_threshold and len(self.new_signed) >= self.new_threshold

    @property
    def missing(self) -> tuple[Key, ...]:
        """Keys whose signature would still help."""
        found: dict[str, Key] = {}
        if len(self.old_signed) < self.old_threshold:
            found.update({key.keyid: key for key in self.old_unsigned})
        if len(self.new_signed) < self.new_threshold:
            found.update({key.keyid: key for key in self.new_unsigned})
        return tuple(found.values())


@dataclass(frozen=True, slots=True)
class Ceremony:
    """A root on its way through the custodians' hands."""

    which: Which
    draft: Metadata[Root]
    previous_text: str | None
    """The root before, as its file; None for the first root."""

    @property
    def previous(self) -> Metadata[Root] | None:
        """The root before."""
        if self.previous_text is None:
            return None
        return repository.read(self.previous_text.encode(), Root, what="The previous root")

    def to_bytes(self) -> bytes:
        """Return the file that is carried by hand; `read` is the inverse."""
        value: dict[str, Any] = {
            "v": CEREMONY_VERSION,
            "repository": self.which.value,
            "draft": repository.encode(self.draft).decode(),
            "previous": self.previous_text,
        }
        return canonical.encode(value)

    def progress(self) -> Progress:
        """Count valid signatures against the old and the new threshold."""
        previous = self.previous
        result = self.draft.signed.get_root_verification_result(
            previous.signed if previous is not None else None, self.draft.signed_bytes, self.draft.signatures
        )
        return Progress(
            old_threshold=result.first.threshold,
            old_signed=tuple(result.first.signed.values()),
            old_unsigned=tuple(result.first.unsigned.values()),
            new_threshold=result.second.threshold,
            new_signed=tuple(result.second.signed.values()),
            new_unsigned=tuple(result.second.unsigned.values()),
        )

    def require_previous(self, trusted: Metadata[Root]) -> None:
        """Raise ConflictError unless this ceremony continues from the root that the custodian trusts.

        Whoever carries the file could have exchanged both roots in it; only a custodian's own
        copy of the previous root shows that.
        """
        previous = self.previous
        if previous is None or previous.signed_bytes != trusted.signed_bytes:
            raise ConflictError(
                "The ceremony does not continue from the root you trust",
                trusted_version=trusted.signed.version,
                trusted=fingerprint(trusted)[:16],
                found=fingerprint(previous)[:16] if previous is not None else "a first root",
            )

    def sign(self, signer: Signer) -> None:
        """Add one custodian's signature; raises KeyFileError for a key that has no say here."""
        key = signer.public_key
        holders = {found.keyid for found in repository.role_keys(self.draft.signed, ROOT).keys}
        previous = self.previous
        if previous is not None:
            holders |= {found.keyid for found in repository.role_keys(previous.signed, ROOT).keys}
        if key.keyid not in holders:
            raise KeyFileError("This key is no root key, neither before nor after", keyid=key.keyid)
        repository.sign(self.draft, signer)
        signed = {found.keyid for found in (*self.progress().old_signed, *self.progress().new_signed)}
        if key.keyid not in signed:
            del self.draft.signatures[key.keyid]
            raise SignatureError("The signature does not verify under its own public key", keyid=key.keyid)

    def finish(self) -> bytes:
        """Return the finished root file; raises ThresholdNotMetError naming the keys that are missing."""
        progress = self.progress()
        if not progress.is_complete:
            raise ThresholdNotMetError(
                "The ceremony is not finished",
                old=f"{len(progress.old_signed)} of {progress.old_threshold}",
                new=f"{len(progress.new_signed)} of {progress.new_threshold}",
                missing=" ".join(sorted(key.keyid[:12] for key in progress.missing)),
            )
        repository.verify_root(self.draft, self.previous)
        return repository.encode(self.draft)

    def changes(self, names: Mapping[str, str] | None = None) -> list[str]:
        """Say for people what this root changes, one line each; `names` gives keyids a name."""
        return changes(self.draft.signed, self.previous.signed if self.previous is not None else None, names or {})


def start(previous: bytes | None, *, which: Which, roles: Mapping[str, RoleKeys], expires_at: datetime) -> Ceremony:
    """Draft the root that follows `previous`, or the first one."""
    version = 1
    if previous is not None:
        version = repository.read(previous, Root, what="The previous root").signed.version + 1
    draft = repository.make_root(version=version, expires_at=expires_at, roles=roles)
    return Ceremony(which, draft, previous.decode() if previous is not None else None)


def read(data: bytes) -> Ceremony:
    """Read a file that was carried here; raises MalformedMetadataError.

    The previous root must meet its own threshold and the draft must be its successor; whether it
    is the root this custodian trusts is `require_previous`'s question.
    """
    what = "The ceremony file"
    fields = Fields(canonical.decode_object(data, limit_bytes=MAX_CEREMONY_LENGTH_BYTES, what=what), what=what)
    version = fields.integer("v")
    if version != CEREMONY_VERSION:
        raise MalformedMetadataError(f"{what} is of another version", found=version, known=CEREMONY_VERSION)
    limit = repository.MAX_METADATA_LENGTH_BYTES[ROOT]
    draft = repository.read(fields.text("draft", max_length=limit).encode(), Root, what="The draft")
    previous = fields.maybe("previous", lambda name: fields.text(name, max_length=limit))
    ceremony = Ceremony(fields.one_of("repository", Which), draft, previous)
    before = ceremony.previous
    if before is not None:
        repository.verify(before.signed, ROOT, before)
    expected = before.signed.version + 1 if before is not None else 1
    if draft.signed.version != expected:
        raise MalformedMetadataError(
            "The draft does not follow the previous root", expected=expected, got=draft.signed.version
        )
    return ceremony


def require_hybrid_root(ceremony: Ceremony) -> None:
    """Raise ThresholdNotMetError when root, or the image repository's targets, is not hybrid any more."""
    roles = (ROOT, TARGETS) if ceremony.which is Which.IMAGE else (ROOT,)
    for role in roles:
        require_hybrid(role, repository.role_keys(ceremony.draft.signed, role))


def fingerprint(root: Metadata[Root]) -> str:
    """Return what custodians compare on paper: the SHA-256 of what is signed."""
    return Digest.of(root.signed_bytes).hex


def changes(new: Root, previous: Root | None, names: Mapping[str, str]) -> list[str]:
    """Compare two roots line by line, or describe the first one."""

    def name(key: Key) -> str:
        label = names.get(key.keyid)
        return f"{label + ' ' if label else ''}{kind_of(key)} {key.keyid[:12]}"

    lines = [
        f"version {previous.version} -> {new.version}" if previous is not None else f"version {new.version}, first root"
    ]
    expires = format_time(new.expires)
    if previous is None:
        lines.append(f"expires {expires}")
    elif previous.expires != new.expires:
        lines.append(f"expires {format_time(previous.expires)} -> {expires}")
    for role in TOP_LEVEL:
        after = repository.role_keys(new, role)
        before = repository.role_keys(previous, role) if previous is not None else None
        old = {key.keyid: key for key in before.keys} if before is not None else {}
        current = {key.keyid: key for key in after.keys}
        lines += [f"{role}: + {name(key)}" for keyid, key in current.items() if keyid not in old]
        lines += [f"{role}: - {name(key)}" for keyid, key in old.items() if keyid not in current]
        if before is None or before.threshold != after.threshold or old.keys() != current.keys():
            was = f"{before.threshold} of {len(before.keys)} -> " if before is not None else ""
            lines.append(f"{role}: threshold {was}{after.threshold} of {len(after.keys)}{_hybrid_remark(role, after)}")
    lines += [f"field that this tool does not know: {field}" for field in sorted(new.unrecognized_fields)]
    if len(lines) == 1:
        lines.append("nothing else: no key, threshold or expiry")
    return lines


def _hybrid_remark(role: str, keys: RoleKeys) -> str:
    if role not in {ROOT, TARGETS}:
        return ""
    if keys.is_hybrid:
        return f" (hybrid: at least {keys.hybrid_minimum} of each class)"
    return " (NOT hybrid: one class of keys alone is enough)"
