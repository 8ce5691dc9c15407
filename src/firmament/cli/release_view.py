"""`firmament release list|show|inspect|verify|diff|legacy`: look at releases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from firmament.cli.common import output, output_options, passphrase_option
from firmament.cli.workspace import (
    TerminalSecrets,
    connect,
    now,
    open_workspace,
    secret_options,
    server_options,
    size,
    workspace_option,
)
from firmament.durable import RealDisk, read_file
from firmament.errors import NotFoundError

if TYPE_CHECKING:
    from firmament.core.manifest import Manifest
    from firmament.release.seal import OpenedPayload
    from firmament.release.workspace import Workspace

_FILE = click.Path(path_type=Path, dir_okay=False)
_SHOWN_MEMBERS = 20


@click.command("list")
@click.option("--product", help="Only this product.")
@click.option("--remote", is_flag=True, help="Ask the server instead of the workspace.")
@server_options
@workspace_option
@output_options
def list_(
    product: str | None,
    remote: bool,  # noqa: FBT001 - click's shape
    server: str | None,
    ca: Path | None,
    token_file: Path | None,
    workspace: Path,
) -> None:
    """List releases: built, signed, published."""
    out = output()
    if remote or server:
        opened = None if server else open_workspace(workspace, is_changing=False)
        with connect(opened, server=server, ca=ca, token_file=token_file) as api:
            answer = api.call("GET", "/api/v1/releases" + (f"?product={product}" if product else ""))
        columns = ("release", "sequence_number", "installer", "length_bytes", "channels", "withdrawn_at")
        listed = [[_cell(item.get(name)) for name in columns] for item in answer.get("releases", [])]
        header = ("RELEASE", "NUMBER", "INSTALLER", "SIZE", "CHANNELS", "WITHDRAWN")
        out.document("releases", answer, lines=out.table(listed, header=header))
        return
    found = _releases(open_workspace(workspace, is_changing=False))
    shown = [item for item in found if product in {None, item[0].product}]
    rows = [
        (made.release_id, made.sequence_number, made.installer, made.update_class, size(made.image.length_bytes), state)
        for made, state in shown
    ]
    out.document(
        "releases",
        {
            "releases": [
                {"release": made.release_id, "state": state, "manifest": made.to_json()} for made, state in shown
            ]
        },
        lines=out.table(rows, header=("RELEASE", "NUMBER", "INSTALLER", "CLASS", "SIZE", "STATE")),
    )


@click.command("show")
@click.argument("release")
@workspace_option
@output_options
def show(release: str, workspace: Path) -> None:
    """Show everything that is signed, or will be, about RELEASE."""
    from firmament.release.seal import describe

    made, state = _find(open_workspace(workspace, is_changing=False), release)
    lines = [f"{release}: {state}", *_facts(made)]
    lines += [f"payload {payload.target}: {describe(payload)}" for payload in made.payloads]
    output().document("release", {"release": release, "state": state, "manifest": made.to_json()}, lines=lines)


@click.command("inspect")
@click.argument("file", type=_FILE)
@output_options
def inspect(file: Path) -> None:
    """Say what FILE is: metadata, a release, a bundle, an MCUboot image or just bytes. Verifies nothing."""
    from firmament.release import inspect as inspector

    facts = inspector.inspect(RealDisk(), file.absolute())
    lines = [f"{name}: {value}" for name, value in facts.items() if name != "listing"]
    listing = facts.get("listing", [])
    lines += [f"  {line}" for line in listing[:_SHOWN_MEMBERS]]
    if len(listing) > _SHOWN_MEMBERS:
        lines.append(f"  ... {len(listing) - _SHOWN_MEMBERS} more (--json lists all)")
    output().document("file", facts, lines=lines)


@click.command("verify")
@click.argument("what", metavar="RELEASE|FILE")
@click.option("--offline", "root", type=_FILE, help="root.json that you trust; default: the workspace's first root.")
@click.option("--directory", type=click.Path(path_type=Path, file_okay=False), help="Static repository to verify.")
@click.option("--digests-only", is_flag=True, help="Do not open sealed payloads, though their keys are here.")
@workspace_option
@passphrase_option
@output_options
def verify(
    what: str,
    root: Path | None,
    directory: Path | None,
    digests_only: bool,  # noqa: FBT001 - click's shape
    workspace: Path,
    passphrase_file: Path | None,
) -> None:
    """Verify RELEASE with its payloads, or find the signed release that FILE belongs to.

    Sealed payloads whose content keys are in this workspace are opened and applied, and what comes
    out is compared with the signed image.

    Walks from the trusted root as a device does: root chain, timestamp, snapshot, targets, product. Needs
    no network. Exits with 20-39 when something is not as it was signed.
    """
    from firmament.release.seal import describe
    from firmament.release.store import RepositoryStore
    from firmament.release.verify import find_file, verify_release, verify_repository
    from firmament.trust.repository import MAX_METADATA_LENGTH_BYTES

    out, disk = output(), RealDisk()
    store = (
        RepositoryStore(disk, directory.absolute())
        if directory is not None
        else open_workspace(workspace, is_changing=False).images
    )
    files = store.files()
    if root is not None:
        trusted = read_file(disk, root, limit_bytes=MAX_METADATA_LENGTH_BYTES["root"])
    elif "1.root.json" in files and directory is None:
        trusted = files["1.root.json"]
    else:
        raise click.UsageError("Name the root you trust with --offline ROOT; a repository cannot vouch for itself")
    view = verify_repository(files, trusted, now=now())
    path, opened_payloads = Path(what), []
    if path.is_file():
        made, target = find_file(view, disk, path.absolute())
        lines = [f"{path} is {target} of {made.release_id}, as signed."]
    else:
        made = verify_release(view, store, disk, what)
        target = made.payloads[0].target
        lines = [f"{what} is as signed: {len(made.payloads)} payload, {made.image.digest}."]
        if directory is None and not digests_only:
            opened_payloads = _open(open_workspace(workspace, is_changing=False), made, passphrase_file)
        elif made.confidential:
            lines.append("It is sealed; what is inside was not looked at.")
        lines += [
            f"{one.payload.target} opens, {one.problem or 'and gives the signed image'} ({describe(one.payload)})."
            for one in opened_payloads
        ]
    facts = {
        "release": made.release_id,
        "target": target,
        "root_version": view.root.signed.version,
        "timestamp_version": view.timestamp_version,
        "verified": True,
        "opened": [one.to_json() for one in opened_payloads],
    }
    if not view.timestamp_version:
        lines.append("The repository has no timestamp here, so nothing shows that it is the newest state.")
    out.document("verification", facts, lines=lines)


@click.command("diff")
@click.argument("old")
@click.argument("new")
@workspace_option
@output_options
def diff(old: str, new: str, workspace: Path) -> None:
    """Show what differs between two releases: manifest fields and, for bundles, files."""
    from firmament.release import inspect as inspector

    opened = open_workspace(workspace, is_changing=False)
    (before, _), (after, _) = _find(opened, old), _find(opened, new)
    fields = inspector.diff(before, after)
    files: dict[str, list[str]] = {}
    paths = [_payload(opened, made) for made in (before, after)]
    if before.installer == after.installer == "bundle" and paths[0] is not None and paths[1] is not None:
        files = inspector.diff_bundles(opened.disk, paths[0], paths[1])
    lines = [f"{name}: {json.dumps(pair[0])} -> {json.dumps(pair[1])}" for name, pair in fields.items()]
    for sign, kind in (("+", "added"), ("-", "removed"), ("~", "changed")):
        lines += [f"{sign} {path}" for path in files.get(kind, ())]
    output().document("diff", {"old": old, "new": new, "fields": fields, "files": files}, lines=lines)


@click.command("legacy")
@click.argument("release")
@click.option(
    "--out",
    "destination",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Directory to write into.",
)
@click.option("--key", "name", required=True, help="RSA or P-256 key of this workspace, of no TUF role.")
@click.option(
    "--scheme",
    type=click.Choice(["rsa-pkcs1v15-sha256", "rsa-pss-sha256", "ecdsa-sha256"]),
    help="How the payload is signed.",
    default="rsa-pkcs1v15-sha256",
    show_default=True,
)
@click.option("--tag", multiple=True, metavar="DEVICE=KEYFILE", help="HMAC tag for a device; KEYFILE (0600) is binary.")
@workspace_option
@secret_options
@output_options
def legacy(
    release: str,
    destination: Path,
    name: str,
    scheme: str,
    tag: tuple[str, ...],
    workspace: Path,
    passphrase_file: Path | None,
    pin_file: Path | None,
) -> None:
    """Write RELEASE for clients without TUF: payload, `openssl dgst` signature, version.json, tags."""
    from firmament.core.ids import HARDWARE, check
    from firmament.release import legacy as writer
    from firmament.trust import key_files
    from firmament.trust.legacy import LegacyScheme

    out, opened = output(), open_workspace(workspace, is_changing=False)
    made, _ = _find(opened, release)
    view = writer.version_file(made)
    payload = _payload(opened, made)
    if payload is None:
        raise NotFoundError("The payload of this release is not in the workspace", release=release)
    record = opened.key_record(name)
    if not record.uri.startswith("file:"):
        raise click.BadParameter("legacy signatures are made with file keys", param_hint="--key")
    passphrase = TerminalSecrets(passphrase_file, pin_file).passphrase(name)
    private = key_files.load(opened.keys_directory / record.uri.removeprefix("file:"), passphrase)
    directory = destination.absolute()
    paths = writer.export(opened.disk, payload, directory, view, private, LegacyScheme(scheme))
    for text in tag:
        device, equals, file = text.partition("=")
        if not equals:
            raise click.BadParameter(f"{text!r} is not DEVICE=KEYFILE", param_hint="--tag")
        check(device, HARDWARE, what="The device's name")
        secret = key_files.read_private_file(Path(file))
        paths.append(writer.export_tag(opened.disk, directory, view, device, secret))
    out.document(
        "legacy",
        {"release": release, "scheme": scheme, "files": [str(path) for path in paths]},
        lines=[f"Wrote {path}" for path in paths],
    )
    out.note("These clients cannot tell an old release from a new one: keep them only until they run an agent.")


COMMANDS = (list_, show, inspect, verify, diff, legacy)


def _releases(opened: Workspace) -> list[tuple[Manifest, str]]:
    """Return every release known here with its state, by product and sequence number."""
    from firmament.release.build import RELEASE_FILE, load_built
    from firmament.trust import repository

    found: dict[str, tuple[Manifest, str]] = {}
    for name in opened.disk.list(opened.directory / "releases"):
        directory = opened.directory / "releases" / name
        if opened.disk.exists(directory / RELEASE_FILE):
            made = load_built(opened.disk, directory).manifest
            found[made.release_id] = (made, "built")
    for product in opened.products():
        draft, published = opened.draft(product), opened.product(product)
        if draft is not None:
            found |= {name: (made, "draft") for name, made in repository.releases_of(draft.signed).items()}
        if published is not None:
            found |= {name: (made, "published") for name, made in repository.releases_of(published.signed).items()}
    return sorted(found.values(), key=lambda item: (item[0].product, item[0].sequence_number))


def _find(opened: Workspace, release: str) -> tuple[Manifest, str]:
    for made, state in _releases(opened):
        if made.release_id == release:
            return made, state
    raise NotFoundError("There is no such release in this workspace", release=release)


def _payload(opened: Workspace, made: Manifest) -> Path | None:
    """Return the file of the first payload as it was before sealing; None when it is not here."""
    from firmament.release import sign
    from firmament.trust import repository

    built = sign.find_built(opened, made.release_id)
    if built is not None and built.manifest == made:
        return built.file_of(built.unsealed.manifest.payloads[0].target)
    if made.payloads[0].is_sealed:
        return None
    target = repository.release_targets(made)[made.payloads[0].target]
    path = opened.images.target_path(repository.target_file_name(target))
    return path if opened.disk.exists(path) else None


def _open(opened: Workspace, made: Manifest, passphrase_file: Path | None) -> list[OpenedPayload]:
    """Open the sealed payloads of a published release whose keys are here; without keys nothing."""
    from firmament.release import content_keys
    from firmament.release import delta as deltas
    from firmament.release.seal import open_release
    from firmament.trust import repository

    if not made.confidential or not content_keys.have(opened, made.release_id):
        return []
    targets = repository.release_targets(made)
    return open_release(
        made,
        content_keys.load(opened, made.release_id, TerminalSecrets(passphrase_file)),
        file_of=lambda payload: opened.images.target_path(repository.target_file_name(targets[payload.target])),
        precursor_of=lambda digest: deltas.image_file(opened, made.product, digest),
    )


def _cell(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else "-" if value is None else str(value)


def _facts(made: Manifest) -> list[str]:
    value: dict[str, Any] = made.to_json()
    return [f"  {name}: {json.dumps(item, ensure_ascii=False)}" for name, item in value.items() if name != "v"]
