"""`firmament release seal|give-keys`: encrypt the payloads of a release, and say who may open them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from firmament.cli.common import output, output_options, passphrase_option
from firmament.cli.workspace import (
    TerminalSecrets,
    connect,
    open_workspace,
    secret_options,
    server_options,
    size,
    workspace_option,
)
from firmament.errors import ConflictError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from firmament.release.build import BuiltRelease
    from firmament.release.seal import Sealer
    from firmament.release.workspace import Workspace

F = TypeVar("F", bound="Callable[..., Any]")
SUITE_NAMES: Final = ("aes-256-gcm", "chacha20-poly1305")
"""Those of `payload.sealing.SUITES`, which takes cryptography to import."""
DEFAULT_SUITE: Final = SUITE_NAMES[0]


def suite_option(function: F) -> F:
    """Add ``--suite``."""
    return click.option(
        "--suite",
        type=click.Choice(SUITE_NAMES),
        default=DEFAULT_SUITE,
        show_default=True,
        help="chacha20-poly1305 for processors without AES instructions.",
    )(function)


def seal_options(function: F) -> F:
    """Add what sealing needs: ``--suite`` and ``--passphrase-file``."""
    return suite_option(passphrase_option(function))


def make_sealer(opened: Workspace, suite: str, passphrase_file: Path | None) -> Sealer:
    """Return what seals a release that has no content keys yet, under a passphrase for them."""
    from firmament.payload.sealing import SUITES
    from firmament.release.seal import Sealer

    return Sealer(opened, TerminalSecrets(passphrase_file).new_passphrase(), SUITES[suite])


def sealer_of(opened: Workspace, built: BuiltRelease, passphrase_file: Path | None, suite: str = "") -> Sealer:
    """Return what seals more of a release that is sealed, under the passphrase it has."""
    from firmament.payload.sealing import SUITES
    from firmament.release import content_keys
    from firmament.release.seal import Sealer, suite_name

    secrets, release = TerminalSecrets(passphrase_file), built.manifest.release_id
    keys = content_keys.load(opened, release, secrets)
    name = suite or suite_name(built.manifest.payloads[0])
    return Sealer(opened, secrets.passphrase(release), SUITES[name], keys)


@click.command("seal")
@click.argument("release")
@seal_options
@workspace_option
@output_options
def seal(release: str, suite: str, passphrase_file: Path | None, workspace: Path) -> None:
    """Encrypt every payload of RELEASE (product/version), which is built and not signed yet.

    Each is opened again and compared before it counts. The content keys stay in this workspace under
    your passphrase; `release publish` gives them to the server unless you withhold them.
    """
    from firmament.release import delta as deltas
    from firmament.release.seal import describe

    out, opened = output(), open_workspace(workspace)
    built = deltas.open_build(opened, release)
    if built.plain:
        sealer = sealer_of(opened, built, passphrase_file, suite)
    else:
        sealer = make_sealer(opened, suite, passphrase_file)
    done = sealer.seal(built)
    done.write(opened.disk)
    rows = [(describe(payload), size(payload.length_bytes)) for payload in done.manifest.payloads]
    facts = {"release": release, "suite": suite, "payloads": [one.to_json() for one in done.manifest.payloads]}
    out.document("sealed", facts, lines=[f"Sealed {release}:", *out.table(rows, header=("PAYLOAD", "SIZE"))])
    out.next_command(f"firmament release sign {release}")


@click.command("give-keys")
@click.argument("release")
@server_options
@workspace_option
@secret_options
@output_options
def give_keys(
    release: str,
    server: str | None,
    ca: Path | None,
    token_file: Path | None,
    workspace: Path,
    passphrase_file: Path | None,
    pin_file: Path | None,
) -> None:
    """Give the server the content keys of RELEASE, which was published with --withhold-keys."""
    from firmament.release import content_keys
    from firmament.trust import repository

    out, opened = output(), open_workspace(workspace, is_changing=False)
    published = opened.product(release.partition("/")[0])
    manifest = repository.releases_of(published.signed).get(release) if published is not None else None
    if manifest is None:
        raise NotFoundError("The release is not published", release=release)
    if not any(payload.is_sealed for payload in manifest.payloads):
        raise ConflictError("The release is not sealed: there is no content key", release=release)
    keys = content_keys.load(opened, manifest.release_id, TerminalSecrets(passphrase_file, pin_file))
    with connect(opened, server=server, ca=ca, token_file=token_file) as api:
        given = content_keys.give(api, manifest, keys)
    lines = [f"The server was given {given} content keys of {release}."]
    out.document("content-keys", {"release": release, "content_keys": given}, lines=lines)


COMMANDS: Final = (seal, give_keys)
