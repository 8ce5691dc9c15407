"""``firmament audit``: read, export and verify the chain of what happened."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

import click

from firmament.cli.common import output, output_options
from firmament.cli.operator_client import connect, server_options
from firmament.core import canonical
from firmament.core.fields import Fields, format_time, parse_time
from firmament.durable import PUBLIC_MODE, RealDisk, read_file, replace_durably
from firmament.errors import FileError, FirmamentError, MalformedError, SettingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    from firmament.trust.audit import Checkpoint, Verification

MAX_KEY_FILE_LENGTH_BYTES: Final = 4096
MAX_CHECKPOINT_FILE_LENGTH_BYTES: Final = 64 * 1024 * 1024
MAX_LINE_LENGTH_BYTES: Final = 2 * 1024 * 1024
PAGE: Final = 500

Connection = dict[str, Any]


@click.group(name="audit")
def group() -> None:
    """Read, export and verify the chain of what happened."""


def what_and_where(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a command that asks a server."""
    return server_options(output_options(function))


def _filters(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--kind", help="E.g. release.published, or `rollout.` for all of them."),
        click.option("--subject", help="What it is about: a device, a release, a rollout, a person."),
        click.option("--actor", help="Who did it, e.g. person:alice."),
        click.option("--since", help="UTC time, e.g. 2026-11-20T12:00:00Z."),
        click.option("--until", help="UTC time, exclusive."),
    ):
        function = option(function)
    return function


def _query(filters: dict[str, str | None]) -> str:
    named = {name: value for name, value in filters.items() if value is not None and name not in {"since", "until"}}
    for name in ("since", "until"):
        if (text := filters[name]) is not None:
            named[name] = str(int(parse_time(text, what=f"--{name}").timestamp()))
    return urlencode(named)


def _line(event: dict[str, Any]) -> str:
    facts = " ".join(f"{name}={value}" for name, value in event["facts"].items())
    moment = format_time(datetime.fromtimestamp(event["at"], UTC))
    return f"{event['id']:>7}  {moment}  {event['kind']:<24} {event['actor']:<20} {event['subject']}  {facts}".rstrip()


@group.command()
@what_and_where
@_filters
@click.option("-n", "--lines", "count", type=click.IntRange(1, PAGE), default=20, show_default=True, help="How many.")
def tail(
    server_url: str | None, ca: Path | None, workspace: Path | None, token_file: Path | None, count: int, **filters: Any
) -> None:
    """Show the newest events."""
    with connect(server_url, ca, workspace, token_file) as client:
        answer = client.call("GET", f"/api/v1/audit/events?newest=1&limit={count}&{_query(filters)}")
    events = list(reversed(answer["events"]))
    output().document("audit-events", {"events": events}, lines=[_line(event) for event in events])


@group.command()
@what_and_where
@_filters
@click.option("--limit", type=click.IntRange(1, 100_000), default=1000, show_default=True, help="At most so many.")
def search(
    server_url: str | None, ca: Path | None, workspace: Path | None, token_file: Path | None, limit: int, **filters: Any
) -> None:
    """Find events, oldest first."""
    found: list[dict[str, Any]] = []
    query = _query(filters)
    with connect(server_url, ca, workspace, token_file) as client:
        cursor: int | None = 0
        while cursor is not None and len(found) < limit:
            size = min(PAGE, limit - len(found))
            page = client.call("GET", f"/api/v1/audit/events?cursor={cursor}&limit={size}&{query}")
            found += page["events"]
            cursor = page["next"]
    output().document("audit-events", {"events": found}, lines=[_line(event) for event in found])


@group.command()
@what_and_where
@click.option("--out", type=click.Path(path_type=Path), help="Keep it in this file.")
def key(
    server_url: str | None, ca: Path | None, workspace: Path | None, token_file: Path | None, out: Path | None
) -> None:
    """Get the public audit key; keep it where the server's administrators cannot change it."""
    with connect(server_url, ca, workspace, token_file) as client:
        answer = client.call("GET", "/api/v1/audit/key")
    if out is not None:
        replace_durably(RealDisk(), out.absolute(), answer["key"].encode() + b"\n", mode=PUBLIC_MODE)
    output().document("audit-key", answer, lines=[answer["key"]])


@group.command()
@what_and_where
@click.option("--after", type=click.IntRange(0), default=0, help="Only those beyond this event.")
def checkpoints(
    server_url: str | None, ca: Path | None, workspace: Path | None, token_file: Path | None, after: int
) -> None:
    """List signed checkpoints; keep one, and what came before it can never be changed unseen."""
    found: list[dict[str, Any]] = []
    with connect(server_url, ca, workspace, token_file) as client:
        cursor: int | None = after
        while cursor is not None:
            page = client.call("GET", f"/api/v1/audit/checkpoints?cursor={cursor}")
            found += page["checkpoints"]
            cursor = page["next"]
    lines = [canonical.encode({"checkpoint": entry["envelope"]}).decode() for entry in found]
    output().document("audit-checkpoints", {"checkpoints": found}, lines=lines)


@group.command()
@what_and_where
@click.option("--first", type=click.IntRange(1), default=1, show_default=True, help="Number of the first event.")
@click.option("--last", type=click.IntRange(1), help="Number of the last event. [default: the newest]")
@click.option("--out", type=click.Path(path_type=Path), help="File to write instead of stdout.")
def export(
    server_url: str | None,
    ca: Path | None,
    workspace: Path | None,
    token_file: Path | None,
    first: int,
    last: int | None,
    out: Path | None,
) -> None:
    """Export the chain as JSON lines that anybody can verify with the public key."""
    from firmament.trust.audit import MAX_LINE_LENGTH_BYTES as LIMIT

    path = f"/api/v1/audit/export?first={first}" + (f"&last={last}" if last is not None else "")
    say = output()
    count = 0
    with connect(server_url, ca, workspace, token_file) as client:
        lines = client.lines(path, limit_bytes=LIMIT)
        if out is None:
            for line in lines:
                click.echo(line)
            return
        temporary = out.with_name(out.name + ".new")
        try:
            with temporary.open("wb") as file:
                for line in lines:
                    file.write(line + b"\n")
                    count += 1
            temporary.replace(out)
        except OSError as error:
            raise FileError("The export cannot be written", path=out, reason=error.strerror or error) from error
        finally:
            temporary.unlink(missing_ok=True)
    say.document("audit-export", {"file": str(out), "lines": count}, lines=[f"{count} lines: {out}"])
    say.next_command(f"firmament audit verify {out} --key KEY")


@group.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False), required=False)
@what_and_where
@click.option("--key", "key_file", type=click.Path(path_type=Path), help="File with the public audit key.")
@click.option(
    "--checkpoint",
    "kept",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Checkpoints kept from before: an earlier export, or what `audit checkpoints` printed.",
)
@click.option("--part", is_flag=True, help="The file ends before the newest event on purpose.")
def verify(
    file: Path | None,
    server_url: str | None,
    ca: Path | None,
    workspace: Path | None,
    token_file: Path | None,
    key_file: Path | None,
    kept: tuple[Path, ...],
    part: bool,  # noqa: FBT001 - click's shape
) -> None:
    """Verify an exported FILE without a server, or the server's chain; says which event breaks.

    Without a checkpoint that was kept elsewhere, a chain that was written anew as a whole cannot be told from
    the true one by the events alone.
    """
    from firmament.trust.audit import MAX_LINE_LENGTH_BYTES as LIMIT
    from firmament.trust.audit import read_key, verify_export

    if file is not None:
        if key_file is None:
            raise SettingError("A file is verified with the public key: give --key")
        public = _read_key(key_file)
        found = verify_export(_lines_of(file, LIMIT), public, kept=_kept(kept, public), is_whole=not part)
    else:
        with connect(server_url, ca, workspace, token_file) as client:
            if key_file is None:
                public = read_key(client.call("GET", "/api/v1/audit/key")["key"])
                output().note("The key is the server's own word; keep it (`audit key --out`) and give --key.")
            else:
                public = _read_key(key_file)
            lines = client.lines("/api/v1/audit/export", limit_bytes=LIMIT)
            found = verify_export(lines, public, kept=_kept(kept, public))
    found.require()
    _say_verified(found)


def _say_verified(found: Verification) -> None:
    output().document(
        "audit-verification",
        {
            "tenant": found.tenant,
            "first": found.first,
            "last": found.last,
            "events": found.events,
            "hash": found.hash.hex(),
            "checkpoints": found.checkpoints,
            "kept": found.kept,
            "vouched_up_to": found.vouched_up_to,
        },
        lines=[
            f"Events {found.first} to {found.last} are whole and in order (hash {found.hash.hex()[:16]}).",
            f"{found.checkpoints} signed checkpoints agree, the newest at event {found.vouched_up_to}.",
            f"{found.kept} checkpoints kept from before agree.",
        ],
    )


def _read_key(path: Path) -> Ed25519PublicKey:
    from firmament.trust.audit import read_key

    return read_key(read_file(RealDisk(), path, limit_bytes=MAX_KEY_FILE_LENGTH_BYTES).decode(errors="replace"))


def _lines_of(path: Path, limit_bytes: int) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while line := file.readline(limit_bytes + 2):
                yield line
    except OSError as error:
        raise FileError("The export cannot be read", path=path, reason=error.strerror or error) from error


def _kept(paths: tuple[Path, ...], public: Ed25519PublicKey) -> list[Checkpoint]:
    from firmament.trust.audit import open_checkpoint

    found: list[Checkpoint] = []
    for path in paths:
        before = len(found)
        for value in _values(path):
            if isinstance(value.get("checkpoints"), list):  # what --json printed
                envelopes = [Fields(item, what="checkpoint").object("envelope").value for item in value["checkpoints"]]
            elif "checkpoint" in value:
                envelopes = [value["checkpoint"]]
            else:
                envelopes = [value] if "payload" in value else []
            found += [open_checkpoint(envelope, public) for envelope in envelopes]
        if len(found) == before:
            raise MalformedError("There is no checkpoint in this file", path=path)
    return found


def _values(path: Path) -> Iterator[dict[str, Any]]:
    data = read_file(RealDisk(), path, limit_bytes=MAX_CHECKPOINT_FILE_LENGTH_BYTES)
    try:
        yield canonical.decode_object(data, limit_bytes=MAX_CHECKPOINT_FILE_LENGTH_BYTES, what="The file")
    except FirmamentError:
        for line in data.splitlines():
            if line.strip():
                yield canonical.decode_object(line, limit_bytes=MAX_LINE_LENGTH_BYTES, what="A line of the file")


@group.command()
@click.option(
    "--directory",
    "-d",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    envvar="FIRMAMENT_SERVER_DIRECTORY",
    show_envvar=True,
    help="The server's directory: this command works on the server's own machine. [default: .]",
)
@click.option(
    "--tenant", type=click.IntRange(1), default=1, show_default=True, help="Number of the tenant whose chain it is."
)
@click.option("--reason", required=True, help="Why the chain ends before what the signer knows.")
@output_options
def restart(directory: Path, tenant: int, reason: str) -> None:
    """Let the signer go on from a restored database; the cut is written down (server stopped)."""
    from firmament.cli.server import settings_of, who
    from firmament.core.clock import SystemClock
    from firmament.server.audit.restart import restart as go_on
    from firmament.server.lock import locked
    from firmament.server.payloads.store import ServerDisk
    from firmament.server.scope import console

    layout, settings = settings_of(directory)
    with locked(layout):
        was = go_on(
            ServerDisk(), layout, settings, console(who()), tenant_id=tenant, reason=reason, now=SystemClock().now()
        )
    output().document(
        "audit-restart",
        {"tenant": tenant, "number": was.number, "hash": was.hash.hex()},
        lines=[f"The signer knew event {was.number} ({was.hash.hex()[:16]}); it goes on from what is there now."],
    )
