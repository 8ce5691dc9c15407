"""Reading the chain out, page by page: events with their hashes, and the checkpoints between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from firmament.core import canonical
from firmament.errors import NotFoundError
from firmament.server.audit import chain, checkpoints

if TYPE_CHECKING:
    from firmament.server.database.port import Connection
    from firmament.server.scope import Scope

PAGE: Final = 500


@dataclass(frozen=True, slots=True)
class Page:
    """Some events that follow each other, and the checkpoints on them."""

    events: list[tuple[dict[str, Any], bytes]]
    checkpoints: dict[int, dict[str, Any]]


def hash_before(connection: Connection, scope: Scope, first: int) -> bytes:
    """Return the hash of the event before `first`; raises NotFoundError."""
    scope.require_unlimited("Reading the audit chain")
    found = chain.hash_at(connection, scope.tenant_id, first - 1)
    if found is None:
        raise NotFoundError("There is no such event", number=first - 1)
    return found


def page(connection: Connection, scope: Scope, *, after: int, last: int) -> Page:
    """Return the events after number `after`, at most up to `last`."""
    scope.require_unlimited("Reading the audit chain")
    rows = connection.execute(
        "SELECT number, at, kind, actor, subject, facts, hash FROM event "
        "WHERE tenant_id = ? AND number > ? AND number <= ? ORDER BY number LIMIT ?",
        (scope.tenant_id, after, last, PAGE),
    ).fetchall()
    found = [
        (chain.value_of(row, tenant_id=scope.tenant_id, number=int(row["number"])), bytes(row["hash"])) for row in rows
    ]
    until = int(rows[-1]["number"]) if rows else after
    signed = checkpoints.list_checkpoints(connection, scope, after=after, last=until)
    return Page(found, {entry["number"]: entry["envelope"] for entry in signed})


class Exporter:
    """Writes the lines of docs/protocol/audit.md, one page at a time."""

    def __init__(self, header: dict[str, Any]) -> None:
        self._header = header
        self.number = int(header["first"]) - 1
        """Of the last event that was written."""
        self._hash = str(header["previous"])

    def begin(self) -> bytes:
        """Return the first line."""
        return canonical.encode(self._header) + b"\n"

    def lines(self, found: Page) -> bytes:
        """Return the lines of a page."""
        lines: list[bytes] = []
        for value, hash_bytes in found.events:
            self.number, self._hash = value["number"], hash_bytes.hex()
            lines.append(canonical.encode({"event": value, "hash": self._hash}))
            if (envelope := found.checkpoints.get(self.number)) is not None:
                lines.append(canonical.encode({"checkpoint": envelope}))
        return b"".join(line + b"\n" for line in lines)

    def end(self) -> bytes:
        """Return the last line."""
        return canonical.encode({"end": {"number": self.number, "hash": self._hash}}) + b"\n"
