"""``firmament release sbom``: add, show and compare the components of releases."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

from firmament.cli.audit import what_and_where
from firmament.cli.common import output
from firmament.cli.operator_client import connect, element
from firmament.durable import RealDisk, read_file

MAX_SBOM_LENGTH_BYTES: Final = 64 * 1024 * 1024


@click.command()
@click.argument("release")
@what_and_where
@click.option("--add", "file", type=click.Path(path_type=Path), help="CycloneDX JSON that `release build --sbom` had.")
@click.option("--diff", "other", help="Compare with this version of the product.")
def sbom(
    release: str,
    server_url: str | None,
    ca: Path | None,
    workspace: Path | None,
    token_file: Path | None,
    file: Path | None,
    other: str | None,
) -> None:
    """Show the components of RELEASE (product/version), add them, or compare with another version."""
    product, _, version = release.partition("/")
    path = f"/api/v1/sbom/{element(product)}/{element(version)}"
    out = output()
    with connect(server_url, ca, workspace, token_file) as client:
        if file is not None:
            data = read_file(RealDisk(), file, limit_bytes=MAX_SBOM_LENGTH_BYTES)
            answer = client.put_json(path, data)
            lines = [f"{answer['components']} components; {answer['findings']} known vulnerabilities."]
            out.document("sbom-added", answer, lines=lines)
        elif other is not None:
            answer = client.call("GET", f"{path}/diff?with={element(other)}")
            rows = [(each["name"], each["old"] or "-", each["new"] or "-") for each in answer["changes"]]
            out.document("sbom-diff", answer, lines=out.table(rows, header=("COMPONENT", other, version)))
        else:
            answer = client.call("GET", path)
            shown = [_row(each) for each in answer["components"]]
            out.document("sbom", answer, lines=out.table(shown, header=("COMPONENT", "VERSION", "KIND", "LICENCE")))


def _row(each: dict[str, Any]) -> tuple[str, ...]:
    return each["name"], each["version"] or "-", each["ecosystem"] or "-", each["licence"] or "-"
