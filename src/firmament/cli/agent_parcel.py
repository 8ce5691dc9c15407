"""`firmament-agent install` and `receipt`: an update that was carried here by hand, and the proof to carry back."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from firmament.cli.agent import ask_engine, load_settings, sentences, yes_option
from firmament.cli.common import output, output_options

if TYPE_CHECKING:
    from firmament.agent.settings import AgentSettings


@click.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@yes_option
@output_options
@click.pass_context
def install(context: click.Context, file: Path, yes: bool) -> None:  # noqa: FBT001 - click's shape
    """Install the release in a parcel FILE, e.g. from a USB stick.

    The same checks as online, the owner's rules, a trial and the way back; no network is needed.
    Cut short, it goes on by itself or with the same command. How it ended is written beside FILE
    as a signed receipt, for `firmament parcel receipt import`.
    """
    settings = load_settings(context)
    path = file.absolute()
    try:
        status = ask_engine(settings, "install", {"parcel": str(path), "agrees": yes})
    finally:
        written = _write(settings, path.parent)
    out = output()
    out.document("status", status, lines=sentences(status))
    if written:
        out.next_command(f"carry {written[0].name} back, then: firmament parcel receipt import {written[0].name}")


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
@output_options
@click.pass_context
def receipt(context: click.Context, directory: Path) -> None:
    """Write a signed receipt into DIRECTORY for each outcome that the server has not heard.

    `install` does it by itself, unless the stick was pulled or the machine restarted.
    """
    written = _write(load_settings(context), directory.absolute(), quietly=False)
    out = output()
    out.document(
        "receipts",
        {"receipts": [str(path) for path in written]},
        lines=[str(path) for path in written] or ["The server knows how every attempt ended here."],
    )


def _write(settings: AgentSettings, directory: Path, *, quietly: bool = True) -> list[Path]:
    """Write here what the agent signed: the daemon may not write outside its own places."""
    from firmament.agent.contact import write_anywhere
    from firmament.durable import RealDisk
    from firmament.errors import FirmamentError

    disk, written = RealDisk(), []
    with contextlib.suppress(*((FirmamentError,) if quietly else ())):
        for name, data in ask_engine(settings, "receipts", {})["receipts"].items():
            write_anywhere(disk, directory / name, data.encode())
            written.append(directory / name)
    return written
