"""`firmament device revoke-key|register-key`: for which devices content keys are wrapped."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from firmament.cli.common import output, output_options
from firmament.cli.operator_client import connect, element, server_options
from firmament.core import canonical
from firmament.core.fields import Fields
from firmament.core.ids import UUID
from firmament.durable import RealDisk, read_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MAX_FILE_LENGTH_BYTES: Final = 32 * 1024


def _what_and_where(function: Callable[..., Any]) -> Callable[..., Any]:
    return server_options(output_options(function))


@click.command("revoke-key")
@click.argument("device_id")
@click.option("--reason", required=True, help="Why; it is kept in the record.")
@_what_and_where
def revoke_key(
    server_url: str | None,
    ca: Path | None,
    workspace: Path | None,
    token_file: Path | None,
    device_id: str,
    reason: str,
) -> None:
    """Give a device no content key any more: it is offered no sealed payload until a new key is registered.

    What it was given before it may have kept. A release that it must not read needs new content keys.
    """
    with connect(server_url, ca, workspace, token_file) as client:
        client.call("POST", f"/api/v1/devices/{element(device_id)}/wrapping-key/revoke", {"reason": reason})
    out = output()
    out.document(
        "wrapping-key-revoked", {"device_id": device_id}, lines=[f"{device_id} is given no content key from now on."]
    )
    out.next_command("firmament-agent wrapping-key request.json   # on the device, to make it a new key")


@click.command("register-key")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@_what_and_where
def register_key(
    server_url: str | None, ca: Path | None, workspace: Path | None, token_file: Path | None, file: Path
) -> None:
    """Register the wrapping key that a device made anew (FILE: `firmament-agent wrapping-key`).

    You vouch that FILE comes from the device: whoever stole its keys could have signed one as well.
    """
    data = read_file(RealDisk(), file, limit_bytes=MAX_FILE_LENGTH_BYTES)
    fields = Fields(canonical.decode_object(data, limit_bytes=MAX_FILE_LENGTH_BYTES, what=str(file)), what=str(file))
    device_id, envelope = fields.text("device_id", pattern=UUID), fields.object("envelope").value
    with connect(server_url, ca, workspace, token_file) as client:
        client.call("PUT", f"/api/v1/devices/{element(device_id)}/wrapping-key", {"envelope": envelope})
    output().document(
        "wrapping-key-registered", {"device_id": device_id}, lines=[f"{device_id} has a new wrapping key."]
    )


COMMANDS: Final = (revoke_key, register_key)
