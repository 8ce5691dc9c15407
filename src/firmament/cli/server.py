"""``firmament server``: set up, run and check a firmware server.

Only the commands themselves import the server: completing their options must be as quick as everything else.
"""

from __future__ import annotations

import getpass
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from firmament.cli.common import EXIT_FAILED, Output, output, output_options
from firmament.cli.program import LazyCommand, LazyGroup
from firmament.core.clock import SystemClock

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from firmament.core.clock import Clock
    from firmament.server.database.port import Connection
    from firmament.server.layout import Layout
    from firmament.server.payloads.store import ServerDisk
    from firmament.server.settings import ServerSettings

MARKS: Final = {"good": "ok  ", "warning": "warn", "bad": "BAD "}


def directory_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--directory``."""
    return click.option(
        "--directory",
        "-d",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path(),
        envvar="FIRMAMENT_SERVER_DIRECTORY",
        show_envvar=True,
        help="The server's directory. [default: .]",
    )(function)


def settings_of(directory: Path) -> tuple[Layout, ServerSettings]:
    """Return paths and settings of a server's directory; raises FileError, SettingError."""
    from firmament.server.layout import Layout
    from firmament.server.settings import read_settings

    layout = Layout(directory.absolute())
    return layout, read_settings(layout.settings, os.environ)


def who() -> str:
    """Name whoever sits at this console."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


KEEP: Final = "firmament.cli.server_keep"
COMMANDS: Final = {
    "backup": LazyCommand(f"{KEEP}:backup", "Write a server into one encrypted file; it may run."),
    "restore": LazyCommand(f"{KEEP}:restore", "Put a backup back into a new directory."),
    "migrate": LazyCommand(f"{KEEP}:migrate", "Bring the database to this release's schema."),
    "rotate-content-key": LazyCommand(f"{KEEP}:rotate_content_key", "Wrap all content keys for a new key."),
    "gc": LazyCommand(f"{KEEP}:gc", "Remove payloads that nothing refers to."),
    "move": LazyCommand(f"{KEEP}:move", "Move the rows to another database, each compared."),
    "move-payloads": LazyCommand(f"{KEEP}:move_payloads", "Copy the payloads to the object store."),
}


@click.group(name="server", cls=LazyGroup, lazy=COMMANDS)
def group() -> None:
    """Set up, run and check a firmware server."""


@group.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--name", "names", multiple=True, help="DNS name that devices will use; may be repeated.")
@click.option("--address", "addresses", multiple=True, help="IP address that devices will use; may be repeated.")
@click.option("--host", help="Address to listen on. [default: all]")
@click.option("--port", type=click.IntRange(0, 65535), help="TCP port. [default: 4443]")
@click.option("--certificate", type=click.Path(path_type=Path, exists=True), help="Use this PEM chain, not the own CA.")
@click.option("--certificate-key", type=click.Path(path_type=Path, exists=True), help="PEM key of --certificate.")
@click.option("--signer-user", help="System user for the isolated signer (needs root).")
@output_options
def init(
    directory: Path,
    names: tuple[str, ...],
    addresses: tuple[str, ...],
    host: str | None,
    port: int | None,
    certificate: Path | None,
    certificate_key: Path | None,
    signer_user: str | None,
) -> None:
    """Make a new server in DIRECTORY: keys, certificates, database, settings.

    There is no default account and no default password.
    """
    import socket

    from firmament.server.layout import Layout
    from firmament.server.payloads.store import ServerDisk
    from firmament.server.setup import initialise

    layout = Layout(directory.absolute())
    options: dict[str, str | int] = {}
    if host is not None:
        options["host"] = host
    if port is not None:
        options["port"] = port
    if certificate is not None:
        options["certificate"] = str(certificate.absolute())
    if certificate_key is not None:
        options["certificate_key"] = str(certificate_key.absolute())
    if signer_user is not None:
        options["signer_user"] = signer_user
    settings = initialise(
        ServerDisk(),
        layout,
        names=tuple(dict.fromkeys(names or ("localhost", socket.gethostname()))),
        addresses=tuple(dict.fromkeys(addresses or ("127.0.0.1",))),
        options=options,
        now=SystemClock().now(),
    )
    out = output()
    out.document(
        "server-init",
        {
            "directory": str(layout.directory),
            "ca": str(layout.ca),
            "online_public": str(layout.online_public),
            "names": list(settings.names),
            "addresses": list(settings.addresses),
            "port": settings.port,
        },
        lines=[
            f"Server made in {layout.directory}",
            f"  CA for devices and operators:  {layout.ca}",
            f"  online keys for the author:    {layout.online_public}",
            f"  answers for:                   {' '.join((*settings.names, *settings.addresses))}",
        ],
    )
    out.next_command(f"firmament operator add NAME --role admin --directory {layout.directory}")


@group.command()
@directory_option
@click.option("--host", help="Address to listen on, instead of the setting.")
@click.option("--port", type=click.IntRange(0, 65535), help="TCP port, instead of the setting; 0: any free one.")
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", help="What is logged."
)
@click.option(
    "--port-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the port to this file once connections are taken, for whoever starts the server.",
)
@output_options
def run(directory: Path, host: str | None, port: int | None, log_level: str, port_file: Path | None) -> None:
    """Serve until stopped."""
    import dataclasses

    from firmament import log
    from firmament.server.http.app import Server

    layout, settings = settings_of(directory)
    clock = SystemClock()
    if host is not None:
        settings = dataclasses.replace(settings, host=host)
    if port is not None:
        settings = dataclasses.replace(settings, port=port)
    log.configure(level=log_level)
    out = output()

    def on_ready(address: str, number: int) -> None:
        if port_file is not None:
            temporary = port_file.with_name(port_file.name + ".new")
            temporary.write_text(f"{number}\n")
            temporary.replace(port_file)
        out.note(f"Serving on {settings.front_scheme}://{address}:{number} (stop with Ctrl-C)")

    Server(layout, settings, clock, make_pages=_console(clock)).run(on_ready=on_ready)


def _console(clock: Clock) -> Callable[..., Any] | None:
    """Return what makes the console's pages, None when its extra is not installed."""
    try:
        from firmament.console.app import make_console
    except ModuleNotFoundError as error:
        if error.name != "jinja2":
            raise
        return None
    return make_console(clock)


@group.command()
@directory_option
@output_options
def doctor(directory: Path) -> int:
    """Check permissions, expiry, space, clock, signer and database; exit 1 if something is bad."""
    from firmament.core.finding import Verdict
    from firmament.server.doctor import Doctor
    from firmament.server.payloads.store import ServerDisk

    layout, settings = settings_of(directory)
    findings = list(Doctor(ServerDisk(), layout, settings, SystemClock()).findings())
    lines = []
    for finding in findings:
        lines.append(f"{MARKS[finding.verdict.value]}  {finding.check}: {finding.seen}")
        if finding.action:
            lines.append(f"      -> {finding.action}")
    is_bad = any(finding.verdict is Verdict.BAD for finding in findings)
    output().document(
        "server-doctor",
        {
            "ok": not is_bad,
            "findings": [
                {"check": f.check, "verdict": f.verdict.value, "seen": f.seen, "action": f.action} for f in findings
            ],
        },
        lines=lines,
    )
    return EXIT_FAILED if is_bad else 0


@group.command()
@directory_option
@click.option("--image", "image", multiple=True, type=click.Path(path_type=Path), help="Image root, N.root.json.")
@click.option(
    "--director", "director", multiple=True, type=click.Path(path_type=Path), help="Director root, N.root.json."
)
@output_options
def trust(directory: Path, image: tuple[Path, ...], director: tuple[Path, ...]) -> None:
    """Import root files offline, while the server is stopped: the first ones decide whom it believes."""
    from firmament.errors import MalformedError
    from firmament.server.database.opening import command_database
    from firmament.server.database.target import database_target
    from firmament.server.events import Event, append
    from firmament.server.keys import read_online_keyids
    from firmament.server.lock import locked
    from firmament.server.payloads.store import ServerDisk
    from firmament.server.releases import shared
    from firmament.server.releases.admission import Circumstances, trust_roots
    from firmament.server.releases.generations import Generations
    from firmament.server.releases.model import Submission
    from firmament.server.scope import console

    layout, settings = settings_of(directory)
    disk = ServerDisk()
    clock = SystemClock()
    if not image or not director:
        raise MalformedError("Both --image and --director roots are needed")
    generations, scope = Generations(disk, layout), console(who())
    submission = Submission(_read(disk, image), _read(disk, director))

    def write(writing: Connection) -> dict[str, int]:
        current = (shared.load(writing) if settings.database else None) or generations.load()
        circumstances = Circumstances(read_online_keyids(disk, layout.online_public), {}, clock.now())
        trusted = trust_roots(current, submission, scope, circumstances)
        if settings.database:
            shared.commit(writing, trusted, instead_of=shared.number(writing))
        else:
            generations.install(trusted)
        assert trusted.root is not None
        assert trusted.director_root is not None
        versions = {"image": trusted.root.signed.version, "director": trusted.director_root.signed.version}
        append(
            writing,
            scope,
            Event.ROOT_TRUSTED,
            clock.now(),
            image=versions["image"],
            director=versions["director"],
        )
        return versions

    with locked(layout), command_database(database_target(layout, settings)) as database:
        versions = database.transact(write)
    _say_trusted(output(), versions)


def _say_trusted(out: Output, versions: dict[str, int]) -> None:
    out.document(
        "server-trust",
        {"trusted": versions},
        lines=[f"The server trusts image root {versions['image']} and director root {versions['director']}."],
    )
    out.next_command("firmament server run")


def _read(disk: ServerDisk, files: tuple[Path, ...]) -> dict[str, bytes]:
    from firmament.durable import read_file
    from firmament.trust.repository import MAX_METADATA_LENGTH_BYTES

    return {path.name: read_file(disk, path, limit_bytes=MAX_METADATA_LENGTH_BYTES["root"]) for path in files}
