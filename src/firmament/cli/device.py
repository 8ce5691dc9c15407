"""``firmament device``: enrol, list and assign devices through the operator API."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from firmament.cli.common import output, output_options
from firmament.cli.device_keys import COMMANDS as DEVICE_KEYS
from firmament.cli.device_marks import COMMANDS as DEVICE_MARKS
from firmament.cli.operator_client import connect, element, server_address, server_options
from firmament.core.fields import format_time
from firmament.core.ids import HARDWARE, check, product_name
from firmament.durable import PUBLIC_MODE, RealDisk, read_file, replace_durably
from firmament.errors import ConflictError, FileError, MalformedError

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_ROOT_LENGTH_BYTES: Final = 512_000
MAX_PEM_LENGTH_BYTES: Final = 64 * 1024
HOUR_S: Final = 3600


@click.group(name="device")
def group() -> None:
    """Enrol, list, assign devices."""


for _command in (*DEVICE_KEYS, *DEVICE_MARKS):
    group.add_command(_command)


def _what_and_where(function: Callable[..., Any]) -> Callable[..., Any]:
    return server_options(output_options(function))


@group.command(name="list")
@_what_and_where
@click.option("--product", help="Only this product.")
@click.option("-q", "--query", "selector", default="", help="Only devices that match, e.g. 'hardware=C and tag=beta'.")
@click.option("--limit", type=click.IntRange(min=1), help="At most so many.")
def list_devices(
    server_url: str | None,
    ca: Path | None,
    workspace: Path | None,
    token_file: Path | None,
    product: str | None,
    selector: str,
    limit: int | None,
) -> None:
    """List devices, in the order they were enrolled."""
    found: list[dict[str, Any]] = []
    query = f"&product={element(product)}" if product else ""
    query += f"&query={element(selector)}" if selector else ""
    with connect(server_url, ca, workspace, token_file) as client:
        cursor: str | None = "0"
        while cursor is not None and (limit is None or len(found) < limit):
            page = client.call("GET", f"/api/v1/devices?limit={min(limit or 500, 500)}&cursor={cursor}{query}")
            found += page["devices"]
            cursor = page["next"]
    found = found[:limit]
    out = output()
    rows = [
        (
            device["device_id"],
            device["product"],
            device["hardware"],
            device["version"] or "-",
            _moment(device["last_seen"]),
            "disabled" if device["disabled"] else "",
        )
        for device in found
    ]
    header = ("DEVICE", "PRODUCT", "HARDWARE", "RUNS", "LAST SEEN", "")
    out.document("devices", {"devices": found}, lines=out.table(rows, header=header))


@group.command()
@click.argument("device_id")
@_what_and_where
def show(
    server_url: str | None, ca: Path | None, workspace: Path | None, token_file: Path | None, device_id: str
) -> None:
    """Show a device and its attempts."""
    path = f"/api/v1/devices/{element(device_id)}"
    with connect(server_url, ca, workspace, token_file) as client:
        device = client.call("GET", path)
        attempts = client.call("GET", path + "/attempts")["attempts"]
    out = output()
    lines = [
        f"{name.replace('_', ' ')}: {value if value not in ('', None) else '-'}"
        for name, value in device.items()
        if name not in {"enrolled_at", "last_seen", "attributes"}
    ]
    lines += [f"enrolled: {_moment(device['enrolled_at'])}", f"last seen: {_moment(device['last_seen'])}", ""]
    rows = [
        (_moment(attempt["updated_at"]), attempt["release"], attempt["status"], attempt["code"], attempt["message"])
        for attempt in attempts
    ]
    lines += out.table(rows, header=("WHEN", "RELEASE", "STATUS", "CODE", "WHY")) if rows else ["no attempts yet"]
    out.document("device", {"device": device, "attempts": attempts}, lines=lines)


@group.command()
@click.option("-q", "--query", "selector", required=True, help="Which devices, e.g. 'site=Porto-03'.")
@click.option("--add", "added", multiple=True, help="Tag to set; may be repeated.")
@click.option("--remove", "removed", multiple=True, help="Tag to take away; may be repeated.")
@click.option("--dry-run", is_flag=True, help="Say how many devices, and change nothing.")
@click.option("--expect-count", type=int, help="Refuse unless it is about so many devices.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_what_and_where
def tag(
    server_url: str | None,
    ca: Path | None,
    workspace: Path | None,
    token_file: Path | None,
    selector: str,
    added: tuple[str, ...],
    removed: tuple[str, ...],
    dry_run: bool,  # noqa: FBT001 - click's shape
    expect_count: int | None,
    yes: bool,  # noqa: FBT001
) -> None:
    """Tag the devices that a query selects."""
    from firmament.cli.selection import confirm_count, count_text, require_count

    if not added and not removed:
        raise click.UsageError("Say what to --add or to --remove")
    out = output()
    with connect(server_url, ca, workspace, token_file) as client:
        counted = client.call("GET", f"/api/v1/devices/count?query={element(selector)}")
        if dry_run:
            out.document("device-count", {**counted, "sample": []}, lines=[f"{count_text(counted)} devices match."])
            return
        require_count(expect_count, counted["count"])
        confirm_count(counted["count"], is_sure=yes or expect_count is not None)
        body = {"query": selector, "add": list(added), "remove": list(removed), "expect_count": counted["count"]}
        answer = client.call("POST", "/api/v1/devices/tags", body)
    out.document("changed", answer, lines=[f"{answer['changed']} devices changed."])


@group.command()
@click.argument("device_id")
@click.option("--release", default="", help="About this release (product/version) instead of the one meant for it.")
@_what_and_where
def why(
    server_url: str | None,
    ca: Path | None,
    workspace: Path | None,
    token_file: Path | None,
    device_id: str,
    release: str,
) -> None:
    """Say why a device has a release or not: every rule and what it says."""
    asked = f"?release={element(release)}" if release else ""
    with connect(server_url, ca, workspace, token_file) as client:
        found = client.call("GET", f"/api/v1/devices/{element(device_id)}/why{asked}")
    marks = {"pass": "ok  ", "wait": "wait", "block": "STOP"}
    lines = [found["sentence"], ""]
    for rule in found["rules"]:
        lines.append(f"{marks.get(rule['verdict'], rule['verdict'][:4])}  {rule['rule']}: {rule['sentence']}")
        if rule["hint"] and rule["verdict"] != "pass":
            lines.append(f"      -> {rule['hint']}")
    output().document("why", found, lines=lines)


@group.command()
@click.argument("device_id")
@click.option("--limit", type=click.IntRange(1, 200), default=50, show_default=True, help="At most so many entries.")
@_what_and_where
def timeline(
    server_url: str | None,
    ca: Path | None,
    workspace: Path | None,
    token_file: Path | None,
    device_id: str,
    limit: int,
) -> None:
    """Show what happened to a device, newest first."""
    with connect(server_url, ca, workspace, token_file) as client:
        found = client.call("GET", f"/api/v1/devices/{element(device_id)}/timeline?limit={limit}")
    out = output()
    rows = [
        (_moment(item["at"]), item["kind"], item["release"], item["status"], item["code"], item["message"])
        for item in found["entries"]
    ]
    header = ("WHEN", "WHAT", "RELEASE", "STATUS", "CODE", "WHY")
    out.document("timeline", found, lines=out.table(rows, header=header))


@group.command()
@click.argument("device_id")
@click.argument("release")
@_what_and_where
def assign(
    server_url: str | None,
    ca: Path | None,
    workspace: Path | None,
    token_file: Path | None,
    device_id: str,
    release: str,
) -> None:
    """Assign RELEASE (product/version) to a device."""
    with connect(server_url, ca, workspace, token_file) as client:
        answer = client.call("POST", f"/api/v1/devices/{element(device_id)}/assign", {"release": release})
    out = output()
    out.document("attempt", answer, lines=[f"{device_id} is to install {release} (attempt {answer['attempt_id']})."])
    out.next_command(f"firmament device show {device_id}")


@group.command()
@click.argument("device_id")
@_what_and_where
def unassign(
    server_url: str | None, ca: Path | None, workspace: Path | None, token_file: Path | None, device_id: str
) -> None:
    """Take a device's open attempt back."""
    with connect(server_url, ca, workspace, token_file) as client:
        answer = client.call("DELETE", f"/api/v1/devices/{element(device_id)}/assign")
    output().document("attempt", answer, lines=[f"Attempt {answer['attempt_id']} is cancelled."])


@group.command()
@click.argument("device_id")
@_what_and_where
def disable(
    server_url: str | None, ca: Path | None, workspace: Path | None, token_file: Path | None, device_id: str
) -> None:
    """Refuse a device from now on: stolen, sold or cloned."""
    with connect(server_url, ca, workspace, token_file) as client:
        client.call("POST", f"/api/v1/devices/{element(device_id)}/disable")
    output().document("device-disabled", {"device_id": device_id}, lines=[f"{device_id} is refused from now on."])


@group.command()
@click.argument("device_id")
@_what_and_where
def enable(
    server_url: str | None, ca: Path | None, workspace: Path | None, token_file: Path | None, device_id: str
) -> None:
    """Take a disabled device back."""
    with connect(server_url, ca, workspace, token_file) as client:
        client.call("POST", f"/api/v1/devices/{element(device_id)}/enable")
    output().document("device-enabled", {"device_id": device_id}, lines=[f"{device_id} is accepted again."])


@group.command()
@_what_and_where
@click.option("--product", required=True, help="Product line of the device.")
@click.option("--hardware", help="Limit it to this hardware.")
@click.option(
    "--hours",
    type=click.FloatRange(min=0.001, max=366 * 24),
    default=24.0,
    show_default=True,
    help="How long it can be used.",
)
@click.option(
    "--uses", type=click.IntRange(1, 1_000_000), default=1, show_default=True, help="How many devices may use it."
)
def token(
    server_url: str | None,
    ca: Path | None,
    workspace: Path | None,
    token_file: Path | None,
    product: str,
    hardware: str | None,
    hours: float,
    uses: int,
) -> None:
    """Make an enrolment token; it is shown once."""
    with connect(server_url, ca, workspace, token_file) as client:
        found = _enrolment_token(client.call, product=product, hardware=hardware, hours=hours, uses=uses)
    output().document("enrolment-token", {"token": found}, lines=[found])


@group.command(name="provision-file")
@_what_and_where
@click.option("--product", required=True, help="Product line of the device.")
@click.option("--hardware", required=True, help="Hardware of the device, as releases name it.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="File to write (mode 0600).")
@click.option(
    "--hours",
    type=click.FloatRange(min=0.001, max=366 * 24),
    default=24.0,
    show_default=True,
    help="How long it can be used.",
)
@click.option(
    "--uses", type=click.IntRange(1, 1_000_000), default=1, show_default=True, help="How many devices may use it."
)
@click.option("--without-token", is_flag=True, help="For the factory path: the device makes a request file.")
@click.option("--repository-url", help="Where the image repository is, if not on the server (CDN).")
def provision_file(
    server_url: str | None,
    ca: Path | None,
    workspace: Path | None,
    token_file: Path | None,
    product: str,
    hardware: str,
    out: Path,
    hours: float,
    uses: int,
    without_token: bool,  # noqa: FBT001 - click's shape
    repository_url: str | None,
) -> None:
    """Write the file that a device is provisioned with.

    The trust anchors come from the author's workspace, never from the server.
    """
    product_name(product)
    check(hardware, HARDWARE, what="The hardware name")
    directory = workspace or Path()
    address = server_address(server_url, ca, workspace)
    if address.ca is None:
        raise MalformedError("A device needs the server's CA; give --ca")
    disk = RealDisk()
    value: dict[str, Any] = {
        "v": 1,
        "server_url": address.url,
        "ca_pem": read_file(disk, address.ca, limit_bytes=MAX_PEM_LENGTH_BYTES).decode(),
        "product": product,
        "hardware": hardware,
        "image_root": newest_root(directory / "repository" / "metadata"),
        "director_root": newest_root(directory / "director" / "metadata"),
    }
    if repository_url is not None:
        value["repository_url"] = repository_url
    if not without_token:
        with connect(server_url, ca, workspace, token_file) as client:
            value["token"] = _enrolment_token(client.call, product=product, hardware=hardware, hours=hours, uses=uses)
    replace_durably(disk, out.absolute(), json.dumps(value, indent=2).encode() + b"\n")
    say = output()
    say.document("provision-file", {"file": str(out)}, lines=[f"Provisioning file: {out} (contains a secret)."])
    say.next_command(f"firmament-agent provision {out}   # on the device")


@group.command(name="sign-csr")
@click.argument("request_file", type=click.Path(path_type=Path))
@_what_and_where
@click.option("--product", help="Instead of what the request file says.")
@click.option("--hardware", help="Instead of what the request file says.")
@click.option("--serial", default="", help="What is printed on the case.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Where to write the answer.")
def sign_csr(
    server_url: str | None,
    ca: Path | None,
    workspace: Path | None,
    token_file: Path | None,
    request_file: Path,
    product: str | None,
    hardware: str | None,
    serial: str,
    out: Path,
) -> None:
    """Enrol a device from the request file it made (factory path); you vouch for it.

    REQUEST_FILE is what `firmament-agent provision FILE --csr-out REQUEST_FILE` wrote.
    """
    from firmament.core.canonical import decode_object

    disk = RealDisk()
    data = read_file(disk, request_file, limit_bytes=MAX_PEM_LENGTH_BYTES)
    value = decode_object(data, limit_bytes=MAX_PEM_LENGTH_BYTES, what="The request file")
    body = {name: value.get(name) for name in ("csr_pem", "hpke_public_key", "product", "hardware")}
    body |= {name: given for name, given in (("product", product), ("hardware", hardware)) if given}
    body["serial"] = serial or value.get("serial") or ""
    with connect(server_url, ca, workspace, token_file) as client:
        answer = client.call("POST", "/api/v1/enrolments/csr", body)
    replace_durably(disk, out.absolute(), json.dumps(answer, indent=2).encode() + b"\n", mode=PUBLIC_MODE)
    say = output()
    say.document(
        "enrolment",
        {"device_id": answer["device_id"], "file": str(out)},
        lines=[f"Enrolled as {answer['device_id']}. Certificate: {out}"],
    )
    say.next_command(f"firmament-agent provision FILE --certificate {out}   # on the device")


def newest_root(directory: Path) -> str:
    """Return the text of the highest ``N.root.json``; raises FileError."""
    found = {}
    if directory.is_dir():
        for path in directory.glob("*.root.json"):
            number = path.name.partition(".")[0]
            if number.isdigit():
                found[int(number)] = path
    if not found:
        raise FileError("The workspace has no root metadata", path=directory)
    return read_file(RealDisk(), found[max(found)], limit_bytes=MAX_ROOT_LENGTH_BYTES).decode()


def _enrolment_token(
    call: Callable[..., dict[str, Any]], *, product: str, hardware: str | None, hours: float, uses: int
) -> str:
    body: dict[str, Any] = {"product": product, "expires_in_s": max(1, int(hours * HOUR_S)), "uses": uses}
    if hardware is not None:
        body["hardware"] = hardware
    token: str = call("POST", "/api/v1/enrolment-tokens", body)["token"]
    if not token:
        raise ConflictError("The server gave no token")
    return token


def _moment(unix_s: int | None) -> str:
    return "-" if unix_s is None else format_time(datetime.fromtimestamp(unix_s, UTC))
