"""`firmament-agent provision`, `wrapping-key` and `install-service`: what is done once in a device's life."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from firmament.cli.agent import load_settings
from firmament.cli.common import output, output_options

if TYPE_CHECKING:
    from collections.abc import Iterator

    from firmament.agent.settings import AgentSettings


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--csr-out", type=click.Path(path_type=Path), help="Factory path: write the request here, ask nobody.")
@click.option("--certificate", type=click.Path(path_type=Path), help="Factory path: the answer to that request.")
@click.option("--force", is_flag=True, help="Replace an identity; the old one stays in force until the new one is.")
@output_options
@click.pass_context
def provision(context: click.Context, file: Path, csr_out: Path | None, certificate: Path | None, force: bool) -> None:  # noqa: FBT001 - click's shape
    """Give this device its identity, its server and its trust anchors, from the FILE an operator made.

    Both keys are made here and never leave the device. Remove FILE afterwards: its token is a secret.
    """
    from firmament.agent.provision import (
        MAX_REPLY_LENGTH_BYTES,
        Provisioning,
        enrolment_transport,
        read_provisioning_file,
    )
    from firmament.core.clock import SystemClock
    from firmament.durable import RealDisk, read_file, replace_durably

    if csr_out is not None and certificate is not None:
        raise click.UsageError("--csr-out comes first, --certificate later: give one of them")
    settings, disk, out = load_settings(context), RealDisk(), output()
    given = read_provisioning_file(disk, file)
    with _exclusive(settings):
        device = Provisioning(disk, settings.state_directory)
        if csr_out is not None:
            request = device.begin(given, force=force)
            replace_durably(disk, csr_out.absolute(), json.dumps(request, indent=2).encode() + b"\n")
            out.document("certificate-request", {"file": str(csr_out)}, lines=[f"Request: {csr_out}"])
            out.next_command(f"firmament device sign-csr {csr_out} --out answer.json   # where the operator works")
            return
        if certificate is not None:
            answer = read_file(disk, certificate, limit_bytes=MAX_REPLY_LENGTH_BYTES)
            device_id = device.finish(answer, force=force)
        else:
            transport = enrolment_transport(given, SystemClock(), settings.transfer)
            try:
                device_id = device.enrol(given, transport=transport, force=force)
            finally:
                transport.close()
    _tell_daemon(settings)
    facts = {"device_id": device_id, "product": given.product, "hardware": given.hardware, "server": given.server_url}
    out.document("provisioned", facts, lines=[f"Provisioned as {device_id} ({given.product} on {given.hardware})."])
    out.next_command("firmament-agent check")


@click.command("wrapping-key")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@output_options
@click.pass_context
def wrapping_key(context: click.Context, file: Path) -> None:
    """Replace the key that opens sealed payloads; write to FILE what an operator has to register.

    The old key is gone at once: until the new one is registered this device opens no sealed payload.
    Stop the daemon first.
    """
    from firmament.agent.wrapping_key import renew
    from firmament.durable import RealDisk, replace_durably

    settings, disk, out = load_settings(context), RealDisk(), output()
    with _exclusive(settings):
        request = renew(disk, settings.state_directory)
    replace_durably(disk, file.absolute(), json.dumps(request, indent=2).encode() + b"\n")
    facts = {"device_id": request["device_id"], "file": str(file)}
    out.document("wrapping-key", facts, lines=[f"Request: {file}"])
    out.next_command(f"firmament device register-key {file}   # where the operator works")


@contextlib.contextmanager
def _exclusive(settings: AgentSettings) -> Iterator[None]:
    """Keep other agents away; a daemon that waits for this very enrolment may go on running."""
    from firmament.agent import identity
    from firmament.agent.lock import InstanceLock
    from firmament.durable import RealDisk, make_directory_durably
    from firmament.errors import LockedError

    disk = RealDisk()
    make_directory_durably(disk, settings.state_directory)
    lock = InstanceLock(settings.state_directory)
    try:
        lock.acquire()
    except LockedError:
        if identity.is_enrolled(disk, settings.state_directory):
            raise
        apart = settings.state_directory / "provisioning"
        make_directory_durably(disk, apart)
        lock = InstanceLock(apart).acquire()
    try:
        yield
    finally:
        lock.release()


def _tell_daemon(settings: AgentSettings) -> None:
    from firmament.agent.socket import ControlClient
    from firmament.errors import FirmamentError

    with contextlib.suppress(FirmamentError):  # it finds out by itself as well
        client = ControlClient.connect(settings.socket)
        if client is not None:
            client.ask("check", {})


@click.command(name="install-service")
@click.option(
    "--root", type=click.Path(path_type=Path, file_okay=False), default=Path("/"), show_default=True,
    help="Directory to install below, e.g. an image under construction.",
)  # fmt: skip
@output_options
def install_service(root: Path) -> None:
    """Write the systemd unit, tmpfiles, and a settings skeleton; what exists and differs is kept or named.

    Safe to repeat. Nothing is started.
    """
    from firmament.agent.service import install

    steps = install(root.absolute())
    out = output()
    out.document(
        "installed",
        {"files": [{"path": str(step.path), "did": step.did} for step in steps]},
        lines=[f"{step.did:9} {step.path}" for step in steps],
    )
    out.next_command("edit /etc/firmament/agent.toml, then: systemctl enable --now firmament-agent")
