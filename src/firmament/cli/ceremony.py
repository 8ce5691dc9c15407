"""`firmament key ceremony`: the root, carried from custodian to custodian (trust.md §8)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from firmament.cli.common import output, output_options
from firmament.cli.workspace import (
    TerminalSecrets,
    confirm,
    days,
    now,
    open_workspace,
    secret_options,
    workspace_option,
)
from firmament.core.fields import format_time
from firmament.durable import PUBLIC_MODE, RealDisk, read_file, replace_durably
from firmament.errors import ConflictError

if TYPE_CHECKING:
    from firmament.release.workspace import Workspace
    from firmament.trust.ceremony import Ceremony

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.group("ceremony")
def group() -> None:
    """Make the next root together: start, sign (each custodian), finish."""


@group.command("start")
@click.option(
    "--repository",
    type=click.Choice(["image", "director"]),
    default="image",
    show_default=True,
    help="Whose root: image, of releases, or director, of what a device should run.",
)
@click.option("--add", multiple=True, metavar="ROLE=KEY", help="Add a key of this workspace (import others' first).")
@click.option("--remove", multiple=True, metavar="ROLE=KEY", help="Remove a key, by name or keyid.")
@click.option("--threshold", multiple=True, metavar="ROLE=N", help="Set how many must sign.")
@click.option("--expires", default="365d", show_default=True, metavar="DAYS", help="How long the new root is good.")
@click.option("--allow-not-hybrid", is_flag=True, help="Accept a root or targets role that one class of keys can sign.")
@click.option("--out", "destination", type=_FILE, required=True, help="The file that will be carried.")
@workspace_option
@output_options
def start(
    repository: str,
    add: tuple[str, ...],
    remove: tuple[str, ...],
    threshold: tuple[str, ...],
    expires: str,
    allow_not_hybrid: bool,  # noqa: FBT001 - click's shape
    destination: Path,
    workspace: Path,
) -> None:
    """Draft the next root from the workspace's newest; unsigned, to be carried by hand."""
    from firmament.release import rotate
    from firmament.trust import ceremony
    from firmament.trust.ceremony import Which

    opened = open_workspace(workspace)
    changes: dict[str, rotate.Change] = {}
    for role in sorted({text.partition("=")[0] for text in (*add, *remove, *threshold)}):
        thresholds = _values(threshold, role)
        changes[role] = rotate.Change(
            add=tuple(opened.key_record(name).key for name in _values(add, role)),
            remove=tuple(rotate.keyid_of(opened, Which(repository), role, name) for name in _values(remove, role)),
            threshold=_number(thresholds[-1]) if thresholds else None,
        )
    held = rotate.start_root(opened, Which(repository), changes, expires_at=now() + days(expires))
    if not allow_not_hybrid:
        ceremony.require_hybrid_root(held)
    if RealDisk().exists(destination.absolute()):
        raise ConflictError("The ceremony file exists already; finish or remove it", path=destination)
    _save(held, destination)
    _show(opened, held, destination)
    output().next_command(f"firmament key ceremony sign {destination}")


@group.command("show")
@click.argument("file", type=_FILE)
@workspace_option
@output_options
def show(file: Path, workspace: Path) -> None:
    """Show what a ceremony file changes and who has signed."""
    opened, held = open_workspace(workspace, is_changing=False), _load(file)
    _show(opened, held, file)


@group.command("sign")
@click.argument("file", type=_FILE)
@click.option("--key", "names", multiple=True, help="Sign with this key; default: every key here that has a say.")
@click.option("--trusted-root", type=_FILE, help="Your own copy of the previous root; default: the workspace's.")
@click.option("--yes", is_flag=True, help="You have read the changes and consent.")
@workspace_option
@secret_options
@output_options
def sign(
    file: Path,
    names: tuple[str, ...],
    trusted_root: Path | None,
    yes: bool,  # noqa: FBT001 - click's shape
    workspace: Path,
    passphrase_file: Path | None,
    pin_file: Path | None,
) -> None:
    """Look at what FILE changes, then add your signature to it.

    The file must continue from the root you trust: what it says about "before" is only as true
    as whoever carried it. Compare the printed fingerprint with your paper.
    """
    from tuf.api.metadata import Root

    from firmament.release import rotate
    from firmament.trust import repository
    from firmament.trust.ceremony import Which

    opened, held, out = open_workspace(workspace), _load(file), output()
    if trusted_root is not None:
        data = read_file(RealDisk(), trusted_root, limit_bytes=repository.MAX_METADATA_LENGTH_BYTES["root"])
        held.require_previous(repository.read(data, Root, what=str(trusted_root)))
    elif opened.roots(Which(held.which)):
        held.require_previous(opened.root(Which(held.which)))
    else:
        out.note("This workspace holds no root of its own: compare the fingerprints below with your paper.")
    if not out.as_json:
        _show(opened, held, file)
    confirm("Sign this root?", is_sure=yes)
    secrets = TerminalSecrets(passphrase_file, pin_file)
    signed = rotate.sign_root(opened, held, secrets=secrets, names=names)
    _save(held, file)
    progress = held.progress()
    out.document(
        "ceremony",
        _facts(held) | {"signed_with": signed},
        lines=[f"Signed with {', '.join(signed)}.", *_progress_lines(opened, held)],
    )
    out.next_command(
        f"firmament key ceremony finish {file}" if progress.is_complete else "carry the file to the next custodian"
    )


@group.command("finish")
@click.argument("file", type=_FILE)
@workspace_option
@secret_options
@output_options
def finish(file: Path, workspace: Path, passphrase_file: Path | None, pin_file: Path | None) -> None:
    """Take the root into the workspace; refused until the old and the new threshold are met."""
    from firmament.release import rotate

    opened, held, out = open_workspace(workspace), _load(file), output()
    rotate.finish_root(opened, held, secrets=TerminalSecrets(passphrase_file, pin_file), now=now())
    version = held.draft.signed.version
    out.document(
        "ceremony", _facts(held), lines=[f"Root {version} of the {held.which} repository is in the workspace."]
    )
    out.next_command("firmament release publish" if opened.server.url else "firmament release publish --directory DIR")


# --- parts ---------------------------------------------------------------------------------


def _load(file: Path) -> Ceremony:
    from firmament.trust import ceremony

    return ceremony.read(read_file(RealDisk(), file, limit_bytes=ceremony.MAX_CEREMONY_LENGTH_BYTES))


def _save(held: Ceremony, file: Path) -> None:
    replace_durably(RealDisk(), file.absolute(), held.to_bytes(), mode=PUBLIC_MODE)


def _facts(held: Ceremony) -> dict[str, object]:
    from firmament.trust.ceremony import fingerprint

    progress = held.progress()
    return {
        "repository": held.which.value,
        "version": held.draft.signed.version,
        "expires_at": format_time(held.draft.signed.expires),
        "fingerprint": fingerprint(held.draft),
        "changes": held.changes(),
        "old": {"signed": len(progress.old_signed), "threshold": progress.old_threshold},
        "new": {"signed": len(progress.new_signed), "threshold": progress.new_threshold},
        "complete": progress.is_complete,
        "missing": [key.keyid for key in progress.missing],
    }


def _show(opened: Workspace, held: Ceremony, file: Path) -> None:
    from firmament.release.workspace import key_names
    from firmament.trust.ceremony import fingerprint

    previous = held.previous
    lines = [f"{file}: root of the {held.which} repository"]
    lines += [f"  {line}" for line in held.changes(key_names(opened.key_records()))]
    lines.append(f"  fingerprint {fingerprint(held.draft)}")
    if previous is not None:
        lines.append(f"  continues   {fingerprint(previous)}")
    output().document("ceremony", _facts(held), lines=[*lines, *_progress_lines(opened, held)])


def _progress_lines(opened: Workspace, held: Ceremony) -> list[str]:
    from firmament.release.workspace import key_names

    names = key_names(opened.key_records())
    progress = held.progress()
    lines = [
        f"old root: {len(progress.old_signed)} of {progress.old_threshold} signatures",
        f"new root: {len(progress.new_signed)} of {progress.new_threshold} signatures",
    ]
    if held.previous is None:
        del lines[0]
    lines += [f"  could sign: {names.get(key.keyid, '?')} {key.keyid[:12]}" for key in progress.missing]
    return lines


def _values(texts: tuple[str, ...], role: str) -> list[str]:
    found = []
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not value:
            raise click.BadParameter(f"{text!r} is not ROLE=VALUE")
        if name == role:
            found.append(value)
    return found


def _number(text: str) -> int:
    if not text.isdigit():
        raise click.BadParameter(f"{text!r} is not a number")
    return int(text)
