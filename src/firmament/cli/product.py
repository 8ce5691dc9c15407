"""`firmament product`: product lines of a workspace."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from firmament.cli.common import output, output_options
from firmament.cli.workspace import TerminalSecrets, now, open_workspace, secret_options, workspace_option

if TYPE_CHECKING:
    from pathlib import Path


@click.group("product")
def group() -> None:
    """Add product lines to a workspace."""


@group.command("add")
@click.argument("name")
@workspace_option
@secret_options
@output_options
def add(name: str, workspace: Path, passphrase_file: Path | None, pin_file: Path | None) -> None:
    """Make keys for product NAME and delegate to them; needs the targets keys."""
    from firmament.release import setup

    out, opened = output(), open_workspace(workspace)
    secrets = TerminalSecrets(passphrase_file, pin_file)
    # Existing keys first: their passphrase is also the new ones', unless a file says otherwise.
    made = setup.add_product(opened, name, passphrase=secrets.new_passphrase(), secrets=secrets, now=now())
    out.document("product", made, lines=[f"Added {name}: targets are at version {made['targets_version']}."])
    out.next_command("firmament release publish" if opened.server.url else "firmament release publish --directory DIR")


@group.command("list")
@workspace_option
@output_options
def list_(workspace: Path) -> None:
    """List the product lines with their keys and releases."""
    from firmament.trust import repository

    out, opened = output(), open_workspace(workspace, is_changing=False)
    products, rows = [], []
    for name, role in sorted(opened.products().items()):
        published = opened.product(name)
        releases = sorted(repository.releases_of(published.signed)) if published is not None else []
        rows.append((name, f"{role.threshold} of {len(role.keys)}", "yes" if role.is_hybrid else "NO", len(releases)))
        products.append(
            {
                "name": name,
                "threshold": role.threshold,
                "keyids": [key.keyid for key in role.keys],
                "is_hybrid": role.is_hybrid,
                "releases": releases,
            }
        )
    out.document(
        "products",
        {"products": products},
        lines=out.table(rows, header=("PRODUCT", "KEYS", "HYBRID", "RELEASES")),
    )
