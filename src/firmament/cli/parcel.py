"""``firmament parcel``: updates that are carried to devices by hand, and the receipts that come back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from firmament.cli.common import output, output_options
from firmament.cli.operator_client import element
from firmament.cli.selection import count_text, require_count, with_server
from firmament.errors import FirmamentError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from firmament.protocol.parcel import Parcel
    from firmament.release.parcel import CarriedPayload
    from firmament.release.remote import OperatorApi

DAY_S: Final = 86_400
MAX_PROVISIONING_LENGTH_BYTES: Final = 2 * 1024 * 1024


@click.group("parcel")
def group() -> None:
    """Carry updates to devices without a network, and receipts back."""


@group.command()
@click.argument("release")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="File to write, e.g. on a stick.")
@click.option("--device", "devices", multiple=True, help="Device that shall install it; may be repeated.")
@click.option("-q", "--query", help="Devices that shall install it, e.g. 'site=Porto-03'.")
@click.option("--any-device", is_flag=True, help="No director: for any device of the product that takes such parcels.")
@click.option("--days", type=click.IntRange(1, 30), default=14, show_default=True, help="How long it is good.")
@click.option("--expect-count", type=int, help="Refuse unless the query selects so many devices.")
@click.option("--provisioning", type=click.Path(path_type=Path), help="Provisioning file to put in.")
@with_server
def export(
    server: Callable[[], OperatorApi],
    release: str,
    out: Path,
    devices: tuple[str, ...],
    query: str | None,
    any_device: bool,  # noqa: FBT001 - click's shape
    days: int,
    expect_count: int | None,
    provisioning: Path | None,
) -> None:
    """Write RELEASE (PRODUCT/VERSION) with everything that a device needs to install it into one file.

    Each device named is assigned the release, as by `device assign`. Until the parcel expires,
    nobody can take it back.
    """
    from firmament.durable import RealDisk, read_file
    from firmament.release.parcel import read_contents, write_parcel

    if sum((bool(devices), query is not None, any_device)) != 1:
        raise click.UsageError("Say for whom: --device, --query or --any-device")
    disk = RealDisk()
    given = None
    if provisioning is not None:
        given = read_file(disk, provisioning, limit_bytes=MAX_PROVISIONING_LENGTH_BYTES)
    product, _, version = release.partition("/")
    body: dict[str, Any] = {"release": release, "lifetime_s": days * DAY_S}
    with server() as client:
        if any_device:
            body["kind"] = "repository"
        elif query is not None:
            if expect_count is not None:
                narrowed = f"product={product} and ({query})"
                counted = client.call("GET", f"/api/v1/devices/count?query={element(narrowed)}")
                require_count(expect_count, counted["count"])
            body["query"] = query
        else:
            body["ids"] = list(devices)
        contents = read_contents(client.call("POST", "/api/v1/parcels", body), provisioning=given)

        def fetch(payload: CarriedPayload) -> Iterable[bytes]:
            base = f"/api/v1/releases/{element(product)}/{element(version)}/payloads/"
            return client.pieces(base + payload.digest.hex)

        parcel = write_parcel(disk, out.absolute(), contents, fetch)
    _show(parcel, out, str(out))
    output().next_command(f"firmament-agent install {out.name}   # on the device")


@group.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@output_options
def inspect(file: Path) -> None:
    """Show what a parcel holds and for whom; its digests are checked, its signatures are the device's to judge."""
    from firmament.durable import RealDisk
    from firmament.release.parcel import inspect_parcel

    _show(inspect_parcel(RealDisk(), file.absolute()), file, str(file))


def _show(parcel: Parcel, file: Path, name: str) -> None:
    from firmament.core.fields import format_time

    devices = len(parcel.devices)
    whom = count_text({"count": devices}) + (" device" if devices == 1 else " devices") if devices else "any device"
    facts = {
        "file": name,
        "parcel_id": parcel.parcel_id,
        "kind": parcel.kind.value,
        "release": parcel.release_id,
        "devices": list(parcel.devices),
        "expires_at": format_time(parcel.expires_at),
        "length_bytes": file.stat().st_size,
    }
    line = f"{parcel.release_id} for {whom}, good until {facts['expires_at']}, {facts['length_bytes']} bytes: {name}"
    output().document("parcel", facts, lines=[line])


@group.group("receipt")
def receipt() -> None:
    """Signed receipts of devices."""


@receipt.command("import")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@with_server
def import_(server: Callable[[], OperatorApi], files: tuple[Path, ...]) -> int:
    """Tell the server what devices did without a network; importing one again changes nothing."""
    from firmament.durable import RealDisk, read_file
    from firmament.protocol.parcel import MAX_RECEIPT_LENGTH_BYTES

    disk, taken, lines = RealDisk(), [], []
    refused: FirmamentError | None = None
    with server() as client:
        for file in files:
            try:
                data = read_file(disk, file.absolute(), limit_bytes=MAX_RECEIPT_LENGTH_BYTES)
                answer = client.put_json("/api/v1/receipts", data, method="POST")
            except FirmamentError as error:
                if len(files) == 1:
                    raise
                refused = refused or error
                answer = {"code": error.code, "message": error.problem}
                lines.append(f"{file.name}: {error.problem} [{error.code}]")
            else:
                news = "" if answer["new"] else " (known)"
                lines.append(f"{answer['device_id']}: {answer['release']} {answer['outcome']}{news}")
            taken.append({"file": str(file), **answer})
    output().document("receipts-imported", {"receipts": taken}, lines=lines)
    return refused.exit_code if refused is not None else 0
