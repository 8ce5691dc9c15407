"""``firmament server migrate|backup|restore|move|gc|rotate-content-key``: keep a server's data."""

from __future__ import annotations

import dataclasses
import os
import re
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from firmament.cli.common import output, output_options, passphrase_option, read_passphrase
from firmament.cli.server import directory_option, settings_of, who

if TYPE_CHECKING:
    from firmament.server.settings import ServerSettings


@click.command()
@directory_option
@output_options
def migrate(directory: Path) -> None:
    """Bring the database to this release's schema; `server run` does the same at its start."""
    from firmament.server.database.migrate import HEAD
    from firmament.server.database.migrate import migrate as bring_to_head
    from firmament.server.database.target import database_target

    layout, settings = settings_of(directory)
    target = database_target(layout, settings)
    bring_to_head(target)
    output().document(
        "server-migrate", {"database": str(target), "revision": HEAD}, lines=[f"{target} is at schema {HEAD}."]
    )


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@directory_option
@passphrase_option
@output_options
def backup(file: Path, directory: Path, passphrase_file: Path | None) -> None:
    """Write database, keys, repository and payloads into one encrypted FILE; the server may run."""
    from firmament.server.keep.backup import back_up

    layout, settings = settings_of(directory)
    passphrase = read_passphrase(passphrase_file, prompt="Passphrase for the backup", confirm=True)
    counts = back_up(layout, settings, file.absolute(), passphrase)
    output().document(
        "server-backup",
        {"file": str(file), **counts, "payloads": _where_payloads_are(settings)},
        lines=[
            f"{counts['rows']} rows and {counts['files']} files are in {file} ({counts['length_bytes']} bytes).",
            *(
                [f"The payloads stay in the bucket {settings.s3_bucket}: keep it safe too."]
                if settings.s3_bucket
                else []
            ),
        ],
    )


@click.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@passphrase_option
@output_options
def restore(file: Path, directory: Path, passphrase_file: Path | None) -> None:
    """Put a backup back into a new DIRECTORY. FIRMAMENT_SERVER_DATABASE may name another empty database."""
    from firmament.server.keep.backup import restore as put_back

    passphrase = read_passphrase(passphrase_file, prompt="Passphrase of the backup")
    counts = put_back(file, directory.absolute(), passphrase, os.environ)
    _, settings = settings_of(directory)
    out = output()
    out.document(
        "server-restore",
        {"directory": str(directory), **counts, "payloads": _where_payloads_are(settings)},
        lines=[f"{counts['rows']} rows and {counts['files']} files are back in {directory}."],
    )
    out.next_command(f"firmament server doctor --directory {directory}")


@click.command("rotate-content-key")
@directory_option
@output_options
def rotate_content_key(directory: Path) -> None:
    """Wrap all content keys for a new key of this server and remove the old one; stop the server first."""
    from firmament.core.clock import SystemClock
    from firmament.server.database.opening import command_database
    from firmament.server.database.target import database_target
    from firmament.server.keep.content_keys import rotate
    from firmament.server.lock import locked
    from firmament.server.payloads.store import ServerDisk
    from firmament.server.scope import console

    layout, settings = settings_of(directory)
    with locked(layout), command_database(database_target(layout, settings)) as database:
        done = rotate(ServerDisk(), layout, database, console(who()), SystemClock().now())
    lines = [f"{done['content_keys']} content keys are wrapped for the new key {done['keyid']}."]
    out = output()
    out.document("server-content-key", done, lines=lines)
    out.next_command("firmament server run")


@click.command()
@click.argument("database")
@click.option("--password-file", type=click.Path(path_type=Path, exists=True), help="File with its password.")
@directory_option
@output_options
def move(database: str, password_file: Path | None, directory: Path) -> None:
    """Copy every row to an empty DATABASE (postgresql://...), compare, and use it; stop the server first."""
    from firmament.durable import PUBLIC_MODE, replace_durably
    from firmament.errors import ConflictError
    from firmament.server.database.target import database_target
    from firmament.server.keep.tables import copy
    from firmament.server.lock import locked
    from firmament.server.payloads.store import ServerDisk

    layout, settings = settings_of(directory)
    wanted = {"database": database}
    if password_file is not None:
        wanted["database_password_file"] = str(password_file.absolute())
    source = database_target(layout, settings)
    destination = database_target(layout, dataclasses.replace(settings, **wanted))  # type: ignore[arg-type]  # names of fields
    if source == destination:
        raise ConflictError("This is the database that the server uses already", database=database)
    with locked(layout):
        counts = copy(source, destination)
        text = layout.settings.read_text()
        for name, value in wanted.items():
            text = re.sub(rf"(?m)^{name}\s*=.*\n", "", text)
            text = text.replace("[server]\n", f'[server]\n{name} = "{value}"\n', 1)
        replace_durably(ServerDisk(), layout.settings, text.encode(), mode=PUBLIC_MODE)
    rows = sum(counts.values())
    output().document(
        "server-move",
        {"database": database, "rows": rows, "tables": counts},
        lines=[f"{rows} rows are in {database}, each compared; the server uses it from its next start."],
    )


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@directory_option
@output_options
def gc(directory: Path, *, dry_run: bool) -> None:
    """Remove payloads that nothing refers to: never released, or withdrawn long ago. The server may run."""
    from firmament.core.clock import SystemClock
    from firmament.server.database.opening import command_database
    from firmament.server.database.target import database_target
    from firmament.server.payloads.collect import Collector
    from firmament.server.payloads.opening import open_blobs
    from firmament.server.payloads.store import ServerDisk
    from firmament.server.releases.serving import served_by
    from firmament.server.scope import console

    layout, settings = settings_of(directory)
    disk, clock = ServerDisk(), SystemClock()

    with command_database(database_target(layout, settings)) as database:
        found = Collector(
            open_blobs(disk, layout, settings, clock),
            served_by(disk, layout, settings),
            grace=timedelta(hours=settings.blob_grace_hours),
        ).collect(database, console(who()), clock.now(), pretend=dry_run)
    verb = "would go" if dry_run else "removed"
    output().document(
        "server-gc",
        {"dry_run": dry_run, **dataclasses.asdict(found)},
        lines=[f"{found.blobs} payloads ({found.length_bytes} bytes) and {found.uploads} cut-short uploads {verb}."],
    )


@click.command("move-payloads")
@directory_option
@output_options
def move_payloads(directory: Path) -> None:
    """Copy the payloads of DIRECTORY into the bucket of the settings `s3_*`; stop the server first."""
    from firmament.core.clock import SystemClock
    from firmament.errors import SettingError
    from firmament.server.keep.payloads import copy_payloads
    from firmament.server.lock import locked
    from firmament.server.payloads.opening import directory_blobs, open_blobs
    from firmament.server.payloads.store import ServerDisk

    layout, settings = settings_of(directory)
    if not settings.s3_bucket:
        raise SettingError("Set s3_bucket and what belongs to it first", path=layout.settings)
    disk = ServerDisk()
    with locked(layout):
        bucket = open_blobs(disk, layout, settings, SystemClock())
        bucket.check()
        counts = copy_payloads(disk, directory_blobs(disk, layout, settings), bucket)
    output().document(
        "server-move-payloads",
        {"bucket": settings.s3_bucket, **counts},
        lines=[
            f"{counts['copied']} payloads ({counts['length_bytes']} bytes) were copied.",
            f"{counts['there_already']} were there already. The server uses the bucket from its next start.",
        ],
    )


def _where_payloads_are(settings: ServerSettings) -> str:
    return f"the bucket {settings.s3_bucket}" if settings.s3_bucket else "this file"
