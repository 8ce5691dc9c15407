"""Numbers that never go down on a device: role versions, sequence number, signed time.

TUF's own rollback protection lives in its metadata cache; a power cut or an attacker that
truncates the cache takes it away, and an old, correctly signed release is accepted again
(trust.md §1.3, case 9). So the numbers are kept apart from the cache, in two copies, each with a
checksum and each replaced durably: one damaged copy loses nothing, and two damaged copies are an
error, never zero.

When a floor may fall (fast-forward recovery, TUF specification 5.3.11): only when an offline key
holder *revoked* a key. A role's floor is dropped when a key that could have set it is no longer
trusted for it, the snapshot's also when a timestamp key was revoked, and that of targets and of
delegated roles also when a snapshot key was. Adding keys drops nothing: whoever could
fast-forward before still can. The time floor goes with the director's timestamp key.

The directory may be anything that `Disk` reaches; it must not be cleared by a factory reset of
the application (trust.md §8).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from firmament.core import canonical
from firmament.core.fields import Fields, format_time
from firmament.durable import make_directory_durably, read_file, replace_durably
from firmament.errors import CorruptStateError, FirmamentError, RollbackError, TooLargeError
from firmament.log import logger

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime
    from pathlib import Path

    from firmament.durable import Disk

log = logger("trust.floors")

COPIES: Final = ("floors.a", "floors.b")
"""Not ``*.json``: everything of that name in a metadata directory is read as TUF metadata."""
MAX_LENGTH_BYTES: Final = 256 * 1024
# 2 repositories x 512 roles x (64 B name + 3 keyids of 64 B) stay below it; a usual file is 2 KiB.
MAX_ROLES: Final = 512
MAX_KEYIDS: Final = 64
_HEADER: Final = b"firmament-floors/1 "
_ROOT: Final = "root"
_ALSO_RESET_BY: Final[dict[str, tuple[str, ...]]] = {"timestamp": (), "snapshot": ("timestamp",)}
_LOWER_ROLES_RESET_BY: Final = ("snapshot",)
DIRECTOR: Final = "director"
IMAGE: Final = "image"


@dataclass(frozen=True, slots=True)
class RoleFloors:
    """Lowest acceptable version per role of one repository, and the keys that could set it."""

    versions: Mapping[str, int] = field(default_factory=dict)
    keyids: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def lowest(self, role: str, keyids: Mapping[str, Iterable[str]]) -> int:
        """Return the lowest version of `role` that is acceptable while `keyids` are trusted.

        `keyids` are those of the root that is trusted now, and for a delegated role those its
        delegator lists. A role that `keyids` does not mention counts as unchanged.
        """
        if role != _ROOT:
            for watched in (role, *_ALSO_RESET_BY.get(role, _LOWER_ROLES_RESET_BY)):
                if self.is_revoked(watched, keyids):
                    return 0
        return self.versions.get(role, 0)

    def is_revoked(self, role: str, keyids: Mapping[str, Iterable[str]]) -> bool:
        """Whether a key that was trusted for `role` when its floor was set no longer is."""
        return role in keyids and not set(self.keyids.get(role, ())) <= set(keyids[role])

    def check(self, role: str, version: int, keyids: Mapping[str, Iterable[str]]) -> None:
        """Raise RollbackError when `version` is below the floor."""
        lowest = self.lowest(role, keyids)
        if version < lowest:
            raise RollbackError("Metadata is older than what was seen before", role=role, floor=lowest, got=version)


@dataclass(frozen=True, slots=True)
class FloorValues:
    """All floors at one moment."""

    sequence_number: int = 0
    """Of the newest image that was confirmed here."""
    time: datetime | None = None
    """The latest time the director signed for a nonce of ours; None before the first poll."""
    roles: Mapping[str, RoleFloors] = field(default_factory=dict)
    """By repository: ``image`` and ``director``."""
    generation: int = 0
    """Counts the writes; of two readable copies the higher one holds."""

    def of(self, repository: str) -> RoleFloors:
        """Return the role floors of a repository; empty before the first visit."""
        return self.roles.get(repository, RoleFloors())


class Floors:
    """The floors of one device, in two copies under `directory`."""

    def __init__(self, disk: Disk, directory: Path) -> None:
        self._disk = disk
        self._directory = directory

    def exist(self) -> bool:
        """Whether any copy is there; a provisioned device without one was tampered with."""
        return any(self._disk.exists(self._directory / name) for name in COPIES)

    def create(self) -> None:
        """Write both copies with nothing in them, unless there are some (provisioning)."""
        if not self.exist():
            self._store(FloorValues(), {})

    def load(self) -> FloorValues:
        """Read the floors; all zero when there is no copy at all.

        Raises CorruptStateError when there is a copy and none can be used: a guess would be a
        way to make a device go back.
        """
        return self._load()[0]

    def raise_sequence(self, sequence_number: int) -> None:
        """Record a confirmed image. Call it only after confirm (trust.md §9, 13).

        Raises RollbackError when the number is lower than the floor; the same number is fine.
        """
        values, unknown = self._load()
        if sequence_number < values.sequence_number:
            raise RollbackError(
                "The sequence number is lower than that of the confirmed image",
                floor=values.sequence_number,
                got=sequence_number,
            )
        if sequence_number > values.sequence_number:
            self._store(replace(values, sequence_number=sequence_number), unknown)

    def raise_time(self, moment: datetime) -> None:
        """Record a signed time; an earlier one changes nothing."""
        values, unknown = self._load()
        if values.time is None or moment > values.time:
            self._store(replace(values, time=moment), unknown)

    def store_roles(
        self,
        repository: str,
        *,
        versions: Mapping[str, int],
        keyids: Mapping[str, Iterable[str]],
        time: datetime | None = None,
    ) -> None:
        """Record verified role versions and their keys, and a signed time, in one write.

        Roles that are not mentioned keep their floors unless a key was revoked. Nothing is written
        when nothing changed.
        Raises RollbackError when a version is below its floor.
        """
        values, unknown = self._load()
        known = values.of(repository)
        for role, version in versions.items():
            known.check(role, version, keyids)
        # A freed floor is dropped together with the keys that freed it: were only the keys replaced
        # (the timestamp could not be fetched, say), the old floor would bind the new keys for ever.
        kept = {role: floor for role, floor in known.versions.items() if known.lowest(role, keyids) == floor}
        new = RoleFloors(
            versions={**kept, **versions},
            keyids={**known.keyids, **{role: tuple(sorted(ids)) for role, ids in keyids.items()}},
        )
        if len(new.versions) > MAX_ROLES:
            raise TooLargeError("The repository has more roles than a device remembers", limit=MAX_ROLES)
        held = None if repository == DIRECTOR and known.is_revoked("timestamp", keyids) else values.time
        later = max(filter(None, (held, time)), default=None)
        changed = replace(values, time=later, roles={**values.roles, repository: new})
        if changed != values:
            self._store(changed, unknown)

    def _load(self) -> tuple[FloorValues, dict[str, Any]]:
        found: list[tuple[FloorValues, dict[str, Any]]] = []
        damaged: list[str] = []
        for name in COPIES:
            path = self._directory / name
            if not self._disk.exists(path):
                continue
            try:
                found.append(_decode(read_file(self._disk, path, limit_bytes=MAX_LENGTH_BYTES)))
            except FirmamentError as error:
                damaged.append(name)
                log.warning("floors.copy-damaged", path=str(path), code=error.code, problem=error.problem)
        if found:
            return max(found, key=lambda item: item[0].generation)
        if damaged:
            raise CorruptStateError("The floors cannot be read", directory=self._directory, damaged=" ".join(damaged))
        return FloorValues(), {}

    def _store(self, values: FloorValues, unknown: dict[str, Any]) -> None:
        # Both copies get the same content, one after the other: while one is being replaced the
        # other is whole, and afterwards losing either loses nothing.
        data = _encode(replace(values, generation=values.generation + 1), unknown)
        if not self._disk.exists(self._directory):
            make_directory_durably(self._disk, self._directory)
            self._disk.sync_directory(self._directory.parent)
        for name in COPIES:
            replace_durably(self._disk, self._directory / name, data)


def _encode(values: FloorValues, unknown: dict[str, Any]) -> bytes:
    body = canonical.encode(
        {
            **unknown,
            "generation": values.generation,
            "sequence_number": values.sequence_number,
            "time": format_time(values.time) if values.time else None,
            "roles": {
                repository: {
                    "versions": dict(roles.versions),
                    "keyids": {role: list(ids) for role, ids in roles.keyids.items()},
                }
                for repository, roles in values.roles.items()
            },
        }
    )
    data = _HEADER + b"%08x\n" % zlib.crc32(body) + body
    if len(data) > MAX_LENGTH_BYTES:
        raise TooLargeError("The floors do not fit into their file", length_bytes=len(data), limit=MAX_LENGTH_BYTES)
    return data


def _decode(data: bytes) -> tuple[FloorValues, dict[str, Any]]:
    head, _, body = data.partition(b"\n")
    if head != _HEADER + b"%08x" % zlib.crc32(body):
        raise CorruptStateError("The checksum of a copy of the floors is wrong")
    value = canonical.decode_object(body, limit_bytes=MAX_LENGTH_BYTES, what="floors")
    fields = Fields(value, what="floors")
    repositories = fields.object("roles")
    values = FloorValues(
        sequence_number=fields.integer("sequence_number"),
        time=fields.maybe("time", fields.time),
        roles={name: _roles(repositories.object(name)) for name in repositories.value},
        generation=fields.integer("generation"),
    )
    # A later agent may have added fields; after a revert the older one must not lose them.
    unknown = {name: item for name, item in value.items() if name not in FloorValues.__dataclass_fields__}
    return values, unknown


def _roles(fields: Fields) -> RoleFloors:
    versions, keyids = fields.object("versions"), fields.object("keyids")
    return RoleFloors(
        versions={role: versions.integer(role) for role in versions.value},
        keyids={role: keyids.texts(role, max_items=MAX_KEYIDS) for role in keyids.value},
    )
