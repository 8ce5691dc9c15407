"""The served generation in a database that several servers share (ADR-0024).

There the rows are the truth and each server's directory is a copy of them. A generation is
changed by compare-and-set in one transaction together with the index of releases: whoever made
his from an older one has to begin again, so two servers never sign over each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from firmament.errors import CorruptStateError
from firmament.server.releases.generations import parse, pruned

if TYPE_CHECKING:
    from firmament.server.database.port import Connection
    from firmament.server.releases.model import Published

GENERATION: Final = "generation"
NUMBER_QUERY: Final = "SELECT name AS look_up_key, value FROM number WHERE name = ?"
"""For `Database.look_up` with the key `GENERATION`: what every fetch of a timestamp asks."""
IMAGE: Final = "image"
DIRECTOR: Final = "director"
# One statement sees one generation: number and files of the same moment.
_LOAD: Final = (
    "SELECT n.value AS generation, f.repository, f.name, f.data FROM number n "
    "LEFT JOIN repository_file f ON f.generation <= n.value WHERE n.name = ?"
)


def number(connection: Connection) -> int:
    """Return the number of the served generation, 0 before the first."""
    row = connection.execute("SELECT value FROM number WHERE name = ?", (GENERATION,)).fetchone()
    return 0 if row is None else int(row["value"])


def load(connection: Connection) -> Published | None:
    """Read the served generation, None before the first; raises CorruptStateError."""
    files: dict[str, dict[str, bytes]] = {IMAGE: {}, DIRECTOR: {}}
    generation = 0
    for row in connection.execute(_LOAD, (GENERATION,)):
        generation = int(row["generation"])
        if row["name"] is None:
            raise CorruptStateError("A generation is named that has no files", generation=generation)
        files[row["repository"]][row["name"]] = bytes(row["data"])
    return parse(generation, files[IMAGE], files[DIRECTOR]) if generation else None


def commit(connection: Connection, published: Published, *, instead_of: int) -> bool:
    """Make `published` the served generation if `instead_of` still is; return whether it was."""
    if number(connection) != instead_of:
        return False
    wanted = {
        **{(IMAGE, name): data for name, data in pruned(published).items()},
        **{(DIRECTOR, name): data for name, data in published.director_files.items()},
    }
    known = {
        (row["repository"], row["name"]): bytes(row["data"])
        for row in connection.execute("SELECT repository, name, data FROM repository_file")
    }
    for repository, name in sorted(known.keys() - wanted.keys()):
        connection.execute("DELETE FROM repository_file WHERE repository = ? AND name = ?", (repository, name))
    for (repository, name), data in sorted(wanted.items()):
        if known.get((repository, name)) != data:
            connection.execute(
                "INSERT INTO repository_file(repository, name, generation, data) VALUES (?, ?, ?, ?) "
                "ON CONFLICT(repository, name) DO UPDATE SET generation = excluded.generation, data = excluded.data",
                (repository, name, published.generation, data),
            )
    connection.execute(
        "INSERT INTO number(name, value) VALUES (?, ?) ON CONFLICT(name) DO UPDATE SET value = excluded.value",
        (GENERATION, published.generation),
    )
    return True
