"""`firmament key`: generate, list, import, export, rotate, revoke keys and watch their expiry."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from firmament.cli.ceremony import group as ceremony_group
from firmament.cli.common import output, output_options, read_passphrase
from firmament.cli.workspace import TerminalSecrets, days, now, open_workspace, secret_options, workspace_option
from firmament.core.fields import format_time
from firmament.durable import RealDisk, read_file

if TYPE_CHECKING:
    from datetime import datetime

    from firmament.release.workspace import Workspace
    from firmament.trust.keys import KeyRecord

EXIT_EXPIRING: Final = 3
_KINDS: Final = ("ed25519", "ecdsa-p256", "rsa-pss", "ml-dsa-65")


@click.group("key")
def group() -> None:
    """Generate, list, rotate keys; hold the root ceremony."""


group.add_command(ceremony_group)


@group.command("generate")
@click.argument("name")
@click.option("--kind", type=click.Choice(_KINDS), default="ed25519", show_default=True, help="Algorithm.")
@click.option("--rsa-bits", type=int, default=3072, show_default=True, help="Length, for rsa-pss.")
@click.option("--expires", metavar="DAYS", help="Remind to replace it after so many days, e.g. 365d.")
@click.option("--token", help="Make it on the PKCS#11 token of this label (ecdsa-p256); needs PYKCS11LIB.")
@workspace_option
@secret_options
@output_options
def generate(
    name: str,
    kind: str,
    rsa_bits: int,
    expires: str | None,
    token: str | None,
    workspace: Path,
    passphrase_file: Path | None,
    pin_file: Path | None,
) -> None:
    """Make a key pair NAME, in an encrypted file or on a hardware token."""
    from firmament.trust import keys

    out, opened, secrets = output(), open_workspace(workspace), TerminalSecrets(passphrase_file, pin_file)
    keys.check_name(name)
    expires_at = now() + days(expires) if expires else None
    if token is not None:
        from firmament.trust import hsm

        if kind not in {"ecdsa-p256", "ed25519"}:
            raise click.BadParameter("a token makes ecdsa-p256 keys", param_hint="--kind")
        where = hsm.TokenKey(name, token)
        record = keys.KeyRecord(name, hsm.generate(where, secrets.pin(name)), where.uri, now(), expires_at)
        opened.add_record(record)
    else:
        signer = keys.generate(keys.KeyKind(kind), rsa_bits=rsa_bits)
        record = opened.add_key(name, signer, secrets.new_passphrase(), now=now(), expires_at=expires_at)
    out.document("key", _facts(record), lines=[f"Made {record.kind} key {name}, keyid {record.key.keyid}."])
    out.next_command(f"firmament key ceremony start --add root={name} --out root.ceremony")


@group.command("list")
@workspace_option
@output_options
def list_(workspace: Path) -> None:
    """List the keys of the workspace and the roles they hold."""
    out, opened = output(), open_workspace(workspace, is_changing=False)
    roles = roles_by_keyid(opened)
    records = sorted(opened.key_records().values(), key=lambda record: record.name)
    rows = [
        (record.name, record.kind, record.key.keyid[:12], " ".join(roles.get(record.key.keyid, ())) or "-", record.uri)
        for record in records
    ]
    out.document(
        "keys",
        {"keys": [_facts(record) | {"roles": roles.get(record.key.keyid, [])} for record in records]},
        lines=out.table(rows, header=("NAME", "KIND", "KEYID", "ROLES", "URI")),
    )


@group.command("import")
@click.argument("name")
@click.argument("source")
@click.option("--unencrypted", is_flag=True, help="SOURCE is not encrypted; the copy in the workspace will be.")
@click.option(
    "--source-passphrase-file",
    type=click.Path(path_type=Path),
    help="File (mode 0600) with SOURCE's passphrase, if it differs.",
)
@workspace_option
@secret_options
@output_options
def import_(
    name: str,
    source: str,
    unencrypted: bool,  # noqa: FBT001 - click's shape
    source_passphrase_file: Path | None,
    workspace: Path,
    passphrase_file: Path | None,
    pin_file: Path | None,
) -> None:
    """Take a key into the workspace as NAME.

    SOURCE is a PEM private key, a public record (NAME.pub.json), or hsm:label=KEY;token=TOKEN.
    """
    from firmament.trust import key_files, keys

    out, opened, secrets = output(), open_workspace(workspace), TerminalSecrets(passphrase_file, pin_file)
    keys.check_name(name)
    path = Path(source.removeprefix("file:"))
    if source.startswith("hsm:"):
        from firmament.trust import hsm

        where = hsm.parse_uri(source)
        record = keys.KeyRecord(name, hsm.public_key(where), where.uri, now())
        opened.add_record(record)
    elif path.name.endswith(".pub.json"):
        data = read_file(RealDisk(), path, limit_bytes=keys.MAX_RECORD_LENGTH_BYTES)
        found = keys.read_record(data, what=str(path))
        record = keys.KeyRecord(name, found.key, f"file:{name}.pem", found.created_at, found.expires_at)
        opened.add_record(record)
    else:
        pem = key_files.read_private_file(path)
        old = None
        if key_files.is_encrypted(pem):
            old = read_passphrase(source_passphrase_file or passphrase_file, prompt=f"Passphrase of {path}")
        private = key_files.decrypt(pem, old, what=str(path), allow_plain=unencrypted)
        record = opened.add_key(name, keys.signer_of(private), secrets.new_passphrase(), now=now())
    out.document("key", _facts(record), lines=[f"Imported {record.kind} key {name}, keyid {record.key.keyid}."])
    if unencrypted:
        out.note(f"The original {path} is still not encrypted; destroy it.")


@group.command("export-public")
@click.argument("name")
@click.option("--out", "destination", type=click.Path(path_type=Path, dir_okay=False), help="Default: print it.")
@click.option("--pem", is_flag=True, help="As PEM, for openssl.")
@workspace_option
@output_options
def export_public(name: str, destination: Path | None, pem: bool, workspace: Path) -> None:  # noqa: FBT001 - click
    """Write the public half of NAME, to give to other custodians."""
    from firmament.durable import PUBLIC_MODE, replace_durably
    from firmament.trust import repository
    from firmament.trust.keys import public_pem

    out, record = output(), open_workspace(workspace, is_changing=False).key_record(name)
    data = public_pem(record.key) if pem else repository.json_text(record.to_json())
    if destination is None:
        click.echo(data.decode(), nl=False)
        return
    replace_durably(RealDisk(), destination.absolute(), data, mode=PUBLIC_MODE)
    out.document("key", _facts(record) | {"path": str(destination)}, lines=[f"Wrote {destination}."])


@group.command("rotate")
@click.argument("role")
@click.option("--old", help="Key (name or keyid) to take out; default: all of this workspace's keys of the role.")
@click.option("--new", help="Key of this workspace to put in; default: make one of the same kind.")
@click.option("--online", type=click.Path(path_type=Path, dir_okay=False), help="ROLE `online`: online-public.json.")
@workspace_option
@secret_options
@output_options
def rotate(
    role: str,
    old: str | None,
    new: str | None,
    online: Path | None,
    workspace: Path,
    passphrase_file: Path | None,
    pin_file: Path | None,
) -> None:
    """Replace the keys of ROLE: root, targets, snapshot, timestamp, a product, or `online`.

    Needs the old and the new threshold of root (or of targets, for a product). When keys are held
    elsewhere, a ceremony file is written for the other custodians instead.
    """
    from firmament.release import rotation

    opened, secrets = open_workspace(workspace), TerminalSecrets(passphrase_file, pin_file)
    if role == "online":
        if online is None:
            raise click.UsageError("`rotate online` needs --online online-public.json")
        data = read_file(RealDisk(), online, limit_bytes=64 * 1024)
        result = rotation.use_online(opened, data, secrets=secrets, now=now())
    else:
        passphrase = secrets.new_passphrase() if new is None else b""
        result = rotation.replace(opened, role, old=old, new=new, passphrase=passphrase, secrets=secrets, now=now())
    _show_rotation(opened, result)


@group.command("revoke")
@click.argument("role")
@click.argument("name")
@click.option("--threshold", type=int, help="The role's new threshold; default: unchanged.")
@workspace_option
@secret_options
@output_options
def revoke(
    role: str, name: str, threshold: int | None, workspace: Path, passphrase_file: Path | None, pin_file: Path | None
) -> None:
    """Take key NAME out of ROLE without a replacement, e.g. because it was lost or stolen."""
    from firmament.release import rotation

    opened, secrets = open_workspace(workspace), TerminalSecrets(passphrase_file, pin_file)
    result = rotation.revoke(opened, role, name, threshold=threshold, secrets=secrets, now=now())
    _show_rotation(opened, result)


@group.command("expiry")
@click.option("--within", default="14d", show_default=True, metavar="DAYS", help="Also what expires so soon.")
@workspace_option
@output_options
@click.pass_context
def expiry(context: click.Context, within: str, workspace: Path) -> None:
    """Say which keys and roles expire soon; exits with 3 if any does, for a timer."""
    out, opened, moment = output(), open_workspace(workspace, is_changing=False), now()
    found = expiries(opened)
    soon = [(name, at) for name, at in found if at <= moment + days(within)]
    rows = [(name, format_time(at), "EXPIRED" if at <= moment else f"{(at - moment).days} days") for name, at in found]
    out.document(
        "expiry",
        {
            "within_days": days(within).days,
            "expiries": [{"name": name, "expires_at": format_time(at)} for name, at in found],
            "soon": [name for name, _ in soon],
        },
        lines=out.table(rows, header=("WHAT", "EXPIRES", "LEFT")),
    )
    if soon:
        out.note(f"{len(soon)} expire within {days(within).days} days.")
        context.exit(EXIT_EXPIRING)


def expiries(workspace: Workspace) -> list[tuple[str, datetime]]:
    """Return everything that expires, soonest first."""
    from firmament.trust.ceremony import Which

    found: list[tuple[str, datetime]] = []
    for which in Which:
        chain = workspace.roots(which)
        if chain:
            found.append((f"{which} root", chain[-1][0].signed.expires))
    found.append(("targets", workspace.targets().signed.expires))
    for name in workspace.products():
        product = workspace.product(name)
        if product is not None:
            found.append((name, product.signed.expires))
    for role, metadata in (("snapshot", workspace.snapshot()), ("timestamp", workspace.timestamp())):
        if metadata is not None:
            found.append((role, metadata.signed.expires))
    found += [
        (f"key {record.name}", record.expires_at)
        for record in workspace.key_records().values()
        if record.expires_at is not None
    ]
    return sorted(found, key=lambda item: item[1])


def roles_by_keyid(workspace: Workspace) -> dict[str, list[str]]:
    """Return the roles each key holds."""
    from firmament.trust import repository
    from firmament.trust.ceremony import Which
    from firmament.trust.roles import TOP_LEVEL

    found: dict[str, list[str]] = {}
    for which in Which:
        chain = workspace.roots(which)
        for role in TOP_LEVEL if chain else ():
            for key in repository.role_keys(chain[-1][0].signed, role).keys:
                found.setdefault(key.keyid, []).append(role if which is Which.IMAGE else f"{which}-{role}")
    if workspace.roots(Which.IMAGE):
        for name, product in workspace.products().items():
            for key in product.keys:
                found.setdefault(key.keyid, []).append(name)
    return found


def _show_rotation(workspace: Workspace, result: Any) -> None:
    out = output()
    out.document("rotation", result.to_json(), lines=result.lines())
    if result.pending:
        out.next_command(f"firmament key ceremony sign {result.pending[0]}")
    else:
        out.next_command(
            "firmament release publish" if workspace.server.url else "firmament release publish --directory DIR"
        )


def _facts(record: KeyRecord) -> dict[str, Any]:
    return record.to_json() | {"kind": record.kind.value}
