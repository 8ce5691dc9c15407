"""A whole server in one encrypted file, taken while it runs, and put back on another machine.

First the database in one consistent view, then the directory: keys, certificates, repository and
payloads. What is published between the two is more in the repository than the rows know, which
the next start mends; the other way round would be a row without its files. A restored server
never goes back for a device: all its version numbers are at least the clock's second (case 64).
"""

from __future__ import annotations

import json
import os
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from firmament.errors import ConflictError, FileError, MalformedError
from firmament.server.database.migrate import revision
from firmament.server.database.target import database_target
from firmament.server.keep import tables
from firmament.server.keep.sealed_file import SealedReader, SealedWriter
from firmament.server.layout import Layout
from firmament.server.payloads.store import INCOMING
from firmament.server.settings import read_settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from firmament.server.settings import ServerSettings

ROWS: Final = "rows"
TREE: Final = "tree"
_NOT_KEPT: Final = frozenset({Path("database"), Path("server.lock"), Path("blobs") / INCOMING})


def back_up(layout: Layout, settings: ServerSettings, file: Path, passphrase: bytes) -> dict[str, int]:
    """Write a backup; returns rows, files and bytes. The file appears whole or not at all."""
    target = database_target(layout, settings)
    tables.require_schema(revision(target))
    counts = {"rows": 0, "files": 0}
    descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    partial = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as out:
            sealed = SealedWriter(out, passphrase)
            with tarfile.open(mode="w|", fileobj=cast("Any", sealed), format=tarfile.PAX_FORMAT) as archive:
                counts["rows"] = _add_rows(archive, target)
                counts["files"] = _add_tree(archive, layout.directory)
            sealed.finish()
            out.flush()
            os.fsync(out.fileno())
        partial.replace(file)
    except OSError as error:
        raise FileError("The backup cannot be written", path=file, reason=error.strerror or error) from error
    finally:
        partial.unlink(missing_ok=True)
    return {**counts, "length_bytes": file.stat().st_size}


def restore(file: Path, directory: Path, passphrase: bytes, environment: Mapping[str, str]) -> dict[str, int]:
    """Put a server back into a directory that is not there yet; returns rows and files.

    The database is the one that the settings in the backup name; `environment` may name another
    (``FIRMAMENT_SERVER_DATABASE``). It must be empty. Raises ConflictError, PassphraseError,
    MalformedError, FileError.
    """
    if directory.exists() and any(directory.iterdir()):
        raise ConflictError("Something is in this directory already", path=directory)
    staged = directory.with_name(f"{directory.name}.restoring")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(mode=0o755, parents=True)
    try:
        counts = _read(file, staged, passphrase)
        layout = Layout(staged)
        settings = read_settings(layout.settings, environment)
        rows = staged / ROWS
        counts["rows"] = _fill(layout, settings, rows)
        shutil.rmtree(rows)
        if directory.exists():
            directory.rmdir()
        staged.replace(directory)
    except OSError as error:
        raise FileError("The backup cannot be put back", path=directory, reason=error.strerror or error) from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return counts


def _add_rows(archive: tarfile.TarFile, target: Any) -> int:
    count = 0
    with tables.snapshot(target) as connection:
        for table, columns in tables.table_columns().items():
            # A table is spooled: a tar member's length comes before its bytes.
            with tempfile.TemporaryFile() as spool:
                spool.write(json.dumps(columns).encode() + b"\n")
                for row in tables.read_rows(connection, table, columns):
                    spool.write(tables.encode_row(row) + b"\n")
                    count += 1
                member = tarfile.TarInfo(f"{ROWS}/{table}.jsonl")
                member.size = spool.tell()
                member.mode = 0o600
                spool.seek(0)
                archive.addfile(member, spool)
    return count


def _add_tree(archive: tarfile.TarFile, directory: Path) -> int:
    count = 0
    for path in _walk(directory, directory):
        relative = path.relative_to(directory)
        archive.add(path, f"{TREE}/{relative}", recursive=False)
        count += not path.is_dir()
    return count


def _walk(top: Path, directory: Path) -> Iterator[Path]:
    # Blobs come before the targets that are links to them.
    for path in sorted(directory.iterdir()):
        if path.relative_to(top) in _NOT_KEPT or path.is_socket() or path.is_fifo():
            continue
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _walk(top, path)


def _read(file: Path, staged: Path, passphrase: bytes) -> dict[str, int]:
    count = 0
    with file.open("rb") as source:
        sealed = SealedReader(source, passphrase)
        try:
            with tarfile.open(mode="r|", fileobj=cast("Any", sealed)) as archive:
                for member in archive:
                    count += _extract(archive, member, staged)
        except tarfile.TarError as error:
            raise MalformedError("The backup cannot be read", reason=error) from error
        while sealed.read(1024 * 1024):
            pass  # to the last frame: a file that was cut off must not pass
    return {"files": count}


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo, staged: Path) -> int:
    top, _, rest = member.name.partition("/")
    if top not in {ROWS, TREE} or not rest or ".." in Path(rest).parts or rest.startswith("/"):
        raise MalformedError("The backup names a path it must not", name=member.name)
    path = staged / ROWS / rest if top == ROWS else staged / rest
    if member.isdir():
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(member.mode)
        _own(path, member)
        return 0
    path.parent.mkdir(parents=True, exist_ok=True)
    if member.issym():
        path.symlink_to(member.linkname)
        return 1
    if member.islnk():
        path.hardlink_to(staged / member.linkname.partition("/")[2])
        return 1
    stream = archive.extractfile(member)
    if stream is None:
        raise MalformedError("The backup holds something that is no file", name=member.name)
    with stream, os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        shutil.copyfileobj(stream, out)
        out.flush()
        os.fsync(out.fileno())
    path.chmod(member.mode)
    _own(path, member)
    return int(top == TREE)


def _own(path: Path, member: tarfile.TarInfo) -> None:
    # The signer's directory may be another user's; by name, as numbers differ between machines.
    if os.geteuid() == 0 and member.uname not in {"", "root"}:
        try:
            shutil.chown(path, member.uname)
        except LookupError as error:
            raise FileError("A file's owner is not known here; make that user first", user=member.uname) from error


def _fill(layout: Layout, settings: ServerSettings, rows: Path) -> int:
    target = database_target(layout, settings)
    tables.require_empty(target)
    count = 0
    with tables.filling(target) as connection:
        for table, columns in tables.table_columns().items():
            with (rows / f"{table}.jsonl").open("rb") as file:
                if tuple(json.loads(file.readline())) != columns:
                    raise ConflictError("The rows are of another schema; use the release that wrote them", table=table)
                count += tables.write_rows(
                    connection, table, columns, (tables.decode_row(line, columns) for line in file)
                )
    return count
