"""`firmament release`: build, sign, publish and withdraw releases. Looking at them: release_view.py."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from firmament.cli.common import output, output_options
from firmament.cli.release_delta import delta
from firmament.cli.release_log import proof, verify_log
from firmament.cli.release_mcuboot import make_image, mcuboot_options
from firmament.cli.release_notes import group as NOTES  # noqa: N812 - a constant, as VIEWS
from firmament.cli.release_sbom import sbom
from firmament.cli.release_seal import COMMANDS as SEALING
from firmament.cli.release_seal import make_sealer, seal_options
from firmament.cli.release_view import COMMANDS as VIEWS
from firmament.cli.rewrap import rewrap
from firmament.cli.workspace import (
    TerminalSecrets,
    confirm,
    connect,
    now,
    open_workspace,
    secret_options,
    server_options,
    size,
    workspace_option,
)
from firmament.durable import RealDisk, read_file
from firmament.errors import MalformedError, NothingToDoError

if TYPE_CHECKING:
    from collections.abc import Callable

    from firmament.release.build import BuiltRelease
    from firmament.release.publish import Plan
    from firmament.release.sign import Signed
    from firmament.release.workspace import Workspace

_FILE = click.Path(path_type=Path, dir_okay=False)
MAX_ATTACHMENT_LENGTH_BYTES = 256 * 1024 * 1024
# The SBOM of a Debian image with 4000 packages is 40 MB as SPDX JSON; only its digest is kept.


@click.group("release")
def group() -> None:
    """Build, sign, publish, inspect releases."""


group.add_command(NOTES)
for _view in (*VIEWS, delta, *SEALING):
    group.add_command(_view)
for _logged in (proof, verify_log, sbom, rewrap):
    group.add_command(_logged)


@group.command("build")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--product", help="Default: the workspace's only product.")
@click.option("--version", required=True, help="A label for people, e.g. 1.1.")
@click.option("--hardware", multiple=True, required=True, help="Exact hardware name; repeat for several.")
@click.option("--installer", help="bundle, image, mcuboot or a plug-in; default: told by SOURCE.")
@click.option("--sequence-number", type=int, help="Default: the product's highest + 1.")
@click.option(
    "--class",
    "update_class",
    type=click.Choice(["security", "feature"]),
    default="feature",
    show_default=True,
    help="What rules of consent go by.",
)
@click.option("--notes", multiple=True, metavar="LANG=FILE", help="Release notes for owners, e.g. en=notes.md.")
@click.option("--min-sequence-number", type=int, default=0, help="Stepping stone: devices below it need another first.")
@click.option("--min-agent", type=int, default=0, help="Lowest agent level that can install this.")
@click.option("--free-bytes", type=int, default=0, help="Precondition: free space on the device.")
@click.option("--battery", type=click.IntRange(0, 100), default=0, help="Precondition: battery charge in percent.")
@click.option("--mains", is_flag=True, help="Precondition: mains power.")
@click.option("--unmetered", is_flag=True, help="Precondition: a link that costs nothing.")
@click.option("--sbom", type=_FILE, help="Software bill of materials; its digest is signed.")
@click.option("--provenance", type=_FILE, help="Build provenance; its digest is signed.")
@click.option("--allow-downgrade", is_flag=True, help="An approved downgrade: older content, higher sequence number.")
@click.option(
    "--revertible-to",
    type=click.IntRange(min=1),
    metavar="SEQ",
    help="A rollout may bring devices back from this release, to a slot with at least this sequence number.",
)
@click.option("--seal", "is_sealed", is_flag=True, help="Encrypt the payloads; only devices given the key read them.")
@seal_options
@mcuboot_options
@workspace_option
@output_options
def build(source: Path, product: str | None, version: str, workspace: Path, **options: Any) -> None:
    """Build a release from SOURCE: a directory, a block image, an MCUboot image or any file."""
    from firmament.release import build as builder
    from firmament.release import sign
    from firmament.release.compose import compose, only_product
    from firmament.release.seal import describe

    out, opened = output(), open_workspace(workspace)
    product = product or only_product(opened)
    draft = compose(
        opened,
        product=product,
        version=version,
        installer="mcuboot" if options["mcuboot"] else options["installer"] or builder.detect_installer(source),
        hardware=options["hardware"],
        sequence_number=options["sequence_number"],
        update_class=options["update_class"],
        notes=_notes(options["notes"]),
        min_sequence_number=options["min_sequence_number"],
        min_agent=options["min_agent"],
        free_bytes=options["free_bytes"],
        battery_percent=options["battery"],
        mains_power=options["mains"],
        unmetered_link=options["unmetered"],
        sbom=_attachment(options["sbom"]),
        provenance=_attachment(options["provenance"]),
        allow_downgrade=options["allow_downgrade"],
        revertible_to=options["revertible_to"],
        now=now(),
    )
    target = sign.built_directory(opened, draft.release_id)
    finish: Callable[[BuiltRelease], BuiltRelease] = builder.as_it_is
    if options["is_sealed"]:
        finish = make_sealer(opened, options["suite"], options["passphrase_file"]).seal
    if options["mcuboot"]:
        image = make_image(source, version=version, sequence_number=draft.sequence_number, options=options)
        if image is None:
            _show_vector(options["mcuboot_vector"])
            return
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "image.bin")
            path.write_bytes(image)
            built = builder.build(RealDisk(), path, target, draft, finish=finish)
    else:
        built = builder.build(RealDisk(), source, target, draft, finish=finish)
    made = built.manifest
    threshold = opened.product_keys(product).threshold
    out.document(
        "release",
        {"release": made.release_id, "directory": str(built.directory), "manifest": made.to_json()},
        lines=[
            f"Built {made.release_id}, sequence number {made.sequence_number}, for {', '.join(made.hardware)}.",
            f"{made.installer}, {size(made.image.length_bytes)}, {made.image.digest}.",
            *([f"{describe(made.payloads[0])}."] if made.confidential else []),
            f"Not signed yet (needs {threshold}).",
        ],
    )
    out.next_command(f"firmament release sign {made.release_id}")


def _show_vector(path: Path) -> None:
    out = output()
    out.document("vector", {"file": str(path)}, lines=[f"The digest to sign is in {path}."])
    out.next_command("sign it where the key is, then: firmament release build --mcuboot --mcuboot-signature FILE …")


@group.command("sign")
@click.argument("release")
@click.option("--key", "names", multiple=True, help="Sign with this key; default: every key of the product here.")
@click.option("--draft", type=_FILE, help="A draft that was carried here from another signer.")
@click.option("--yes", is_flag=True, help="You have read what the draft changes and consent.")
@workspace_option
@secret_options
@output_options
def sign_(
    release: str,
    names: tuple[str, ...],
    draft: Path | None,
    yes: bool,  # noqa: FBT001 - click's shape
    workspace: Path,
    passphrase_file: Path | None,
    pin_file: Path | None,
) -> None:
    """Sign RELEASE (product/version), or add a signature to the draft that holds it.

    You are asked first when the draft changes anything that was not built here: then the digests
    shown are all you have to compare with what you were told.
    """
    from firmament.release import sign

    opened = open_workspace(workspace)
    product = release.partition("/")[0]
    if draft is not None:
        _take_draft(opened, product, draft)
    _consent(opened, product, is_sure=yes)
    secrets = TerminalSecrets(passphrase_file, pin_file)
    found = sign.sign_release(opened, release, keys=names, secrets=secrets, now=now())
    _show_signed(opened, found, f"Signed {release}")


@group.command("withdraw")
@click.argument("release")
@click.option("--key", "names", multiple=True, help="Sign with this key; default: every key of the product here.")
@workspace_option
@secret_options
@output_options
def withdraw(
    release: str, names: tuple[str, ...], workspace: Path, passphrase_file: Path | None, pin_file: Path | None
) -> None:
    """Take RELEASE out of its product's next version; nothing changes for devices until you publish."""
    from firmament.release import sign

    opened, secrets = open_workspace(workspace), TerminalSecrets(passphrase_file, pin_file)
    found = sign.withdraw_release(opened, release, keys=names, secrets=secrets, now=now())
    _show_signed(opened, found, f"Withdrew {release} from the draft")


@group.command("renew")
@click.argument("role")
@workspace_option
@secret_options
@output_options
def renew(role: str, workspace: Path, passphrase_file: Path | None, pin_file: Path | None) -> None:
    """Sign ROLE (a product, `targets`, or `timestamp`) again as it is, with a new expiry."""
    from firmament.release import publish, rotate, sign

    out, opened, secrets = output(), open_workspace(workspace), TerminalSecrets(passphrase_file, pin_file)
    if role in {"targets", "timestamp", "snapshot"}:
        if role == "targets":
            version = rotate.renew_targets(opened, secrets=secrets, now=now())
        else:
            version = publish.refresh(opened, secrets=secrets, now=now())
        out.document("role", {"role": role, "version": version}, lines=[f"{role} is now version {version}."])
        out.next_command(_publish_command(opened))
        return
    found = sign.renew_product(opened, role, keys=(), secrets=secrets, now=now())
    _show_signed(opened, found, f"Renewed {role}")


@group.command("publish")
@click.argument("what", nargs=-1, metavar="[RELEASE|PRODUCT]...")
@click.option(
    "--directory", type=click.Path(path_type=Path, file_okay=False), help="A static repository to publish to."
)
@click.option("--dry-run", is_flag=True, help="Say what would happen, and change nothing.")
@click.option("--channel", help="Promote the published releases to this channel (server).")
@click.option("--withhold-keys", is_flag=True, help="Do not give the server the content keys of sealed releases.")
@server_options
@workspace_option
@secret_options
@output_options
def publish_(
    what: tuple[str, ...],
    directory: Path | None,
    dry_run: bool,  # noqa: FBT001 - click's shape
    channel: str | None,
    withhold_keys: bool,  # noqa: FBT001 - click's shape
    server: str | None,
    ca: Path | None,
    token_file: Path | None,
    workspace: Path,
    passphrase_file: Path | None,
    pin_file: Path | None,
) -> None:
    """Publish signed drafts: to the server, to a static directory, or both; all at once or not at all."""
    from firmament.release import publish

    out, opened = output(), open_workspace(workspace)
    products = sorted({name.partition("/")[0] for name in what})
    plan = _plan(opened, products, what)
    is_remote = bool(server) or (directory is None and bool(opened.server.url))
    if plan is None and not is_remote and directory is None:
        raise NothingToDoError("No signed draft waits to be published")
    where = (["server"] if is_remote else []) + ([f"{directory}"] if directory is not None else [])
    facts = {"to": where or ["workspace"], "dry_run": dry_run, **(plan.to_json() if plan is not None else {})}
    if dry_run:
        out.document("publish", facts, lines=["Would publish:", *_plan_lines(plan, where)])
        return
    lines, secrets = ["Published:", *_plan_lines(plan, where)], TerminalSecrets(passphrase_file, pin_file)
    if is_remote:
        keys_from = None if withhold_keys else secrets
        with connect(opened, server=server, ca=ca, token_file=token_file) as api:
            facts |= publish.publish_server(
                opened, plan, api, now=now(), keys_from=keys_from, progress=_progress
            )  # fmt: skip
            for release in plan.added if plan is not None and channel else ():
                api.call("POST", f"/api/v1/releases/{release}/promote", {"channel": channel})
        lines.append(f"The server's snapshot is at version {facts['snapshot_version']}.")
        if plan is not None and plan.sealed():
            lines.append(f"The server was given {facts['content_keys']} content keys.")
    elif plan is not None:
        publish.publish_local(opened, plan, secrets=secrets, now=now())
    if directory is not None:
        facts["timestamp_version"] = publish.publish_directory(opened, directory.absolute(), now=now())
        lines.append(f"{directory} is at timestamp version {facts['timestamp_version']}.")
    out.document("publish", facts, lines=lines)
    added = plan.added if plan is not None else ()
    if is_remote and added and not channel:
        out.next_command(f"firmament device assign DEVICE {added[-1]}")
    elif added:
        out.next_command(f"firmament release verify {added[-1]}")


@group.command("promote")
@click.argument("release")
@click.option("--channel", required=True, help="E.g. testing or stable.")
@server_options
@workspace_option
@output_options
def promote(
    release: str, channel: str, server: str | None, ca: Path | None, token_file: Path | None, workspace: Path
) -> None:
    """Put a published RELEASE into a channel of the server."""
    from firmament.core.ids import release_id

    product, _, version = release.partition("/")
    release_id(product, version)
    out = output()
    opened = None if server else open_workspace(workspace)
    with connect(opened, server=server, ca=ca, token_file=token_file) as api:
        answer = api.call("POST", f"/api/v1/releases/{product}/{version}/promote", {"channel": channel})
    out.document("promotion", {"release": release, "channel": channel, **answer}, lines=[f"{release} is in {channel}."])
    out.next_command(f"firmament device list --product {product}")


# --- parts ---------------------------------------------------------------------------------


def _plan(opened: Workspace, products: list[str], what: tuple[str, ...]) -> Plan | None:
    from firmament.release import publish

    try:
        plan = publish.plan(opened, products)
    except NothingToDoError:
        if what:
            raise
        return None
    for release in (name for name in what if "/" in name):
        if release not in {*plan.added, *plan.withdrawn}:
            raise NothingToDoError("This release is not in a signed draft", release=release)
    return plan


def _plan_lines(plan: Plan | None, where: list[str]) -> list[str]:
    lines = []
    if plan is not None:
        lines += [f"  + {release}" for release in plan.added]
        lines += [f"  - {release} (withdrawn)" for release in plan.withdrawn]
        lines += [f"  {name} role version {draft.signed.version}" for name, draft in plan.drafts.items()]
        lines.append(f"  {size(plan.length_bytes)} of payloads")
    return [*lines, f"  to {', '.join(where) or 'the workspace (give --directory or --server to go further)'}"]


def _progress(path: str, length_bytes: int) -> None:
    output().note(f"Sending {path}, {size(length_bytes)}")


def _take_draft(opened: Workspace, product: str, path: Path) -> None:
    from tuf.api.metadata import Targets

    from firmament.release import sign
    from firmament.trust import repository

    data = read_file(RealDisk(), path, limit_bytes=repository.MAX_METADATA_LENGTH_BYTES["targets"])
    sign.import_draft(opened, product, repository.read(data, Targets, what=str(path)))


def _consent(opened: Workspace, product: str, *, is_sure: bool) -> None:
    """Show what a draft changes, and ask, unless it is nothing but releases as this workspace built them."""
    from firmament.release import sign

    draft = sign.current_draft(opened, product)
    if draft is None:
        return
    found = sign.changes(opened, product, draft)
    built = {name: sign.find_built(opened, name) for name in found.releases}
    if all(mine is not None and mine.manifest == found.releases[name] for name, mine in built.items()):
        return
    for line in found.lines:
        output().note(f"  {line}")
    confirm("Sign all of this?", is_sure=is_sure)


def _show_signed(opened: Workspace, found: Signed, what: str) -> None:
    from firmament.release.workspace import key_names

    out, names = output(), key_names(opened.key_records())
    lines = [
        f"{what}: {found.product} role version {found.version}, {len(found.signed)} of {found.threshold} signatures."
    ]
    path = opened.draft_path(found.product)
    if not found.is_complete:
        lines += [f"  could sign: {names.get(keyid, '?')} {keyid[:12]}" for keyid in found.missing]
    out.document("draft", found.to_json() | {"path": str(path)}, lines=lines)
    if found.is_complete:
        out.next_command(_publish_command(opened))
    else:
        out.next_command(f"carry {path} to the next signer: firmament release sign RELEASE --draft FILE")


def _publish_command(opened: Workspace) -> str:
    return "firmament release publish" if opened.server.url else "firmament release publish --directory DIR"


def _notes(texts: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for text in texts:
        language, equals, name = text.partition("=")
        if not equals:
            raise click.BadParameter(f"{text!r} is not LANG=FILE, e.g. en=notes.md", param_hint="--notes")
        data = read_file(RealDisk(), Path(name), limit_bytes=16 * 1024)
        try:
            found[language] = data.decode().strip()
        except UnicodeDecodeError as error:
            raise MalformedError("Release notes are not UTF-8 text", path=name) from error
    return found


def _attachment(path: Path | None) -> Path | None:
    if path is not None:
        read_file(RealDisk(), path, limit_bytes=MAX_ATTACHMENT_LENGTH_BYTES)
    return path
