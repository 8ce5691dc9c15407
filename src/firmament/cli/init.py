"""`firmament init`: a workspace for one person, with a small hybrid key set."""

from __future__ import annotations

from pathlib import Path

import click

from firmament.cli.common import output, output_options, passphrase_option
from firmament.cli.workspace import TerminalSecrets, now
from firmament.durable import RealDisk, read_file


@click.command("init")
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--product", required=True, help="The first product line, e.g. thermo-gateway.")
@click.option(
    "--online",
    type=click.Path(path_type=Path, dir_okay=False),
    help="online-public.json from `firmament server init`; without it you hold every key yourself.",
)
@passphrase_option
@output_options
def command(directory: Path, product: str, online: Path | None, passphrase_file: Path | None) -> None:
    """Make a workspace in DIRECTORY with keys, root, targets and one product.

    Ed25519 and ML-DSA-65 for root, targets and the product; both must sign. For several
    custodians, hold a ceremony afterwards: `firmament key ceremony start`.
    """
    from firmament.release import setup

    out, disk = output(), RealDisk()
    keys = None
    if online is not None:
        keys = setup.read_online(read_file(disk, online, limit_bytes=setup.MAX_ONLINE_LENGTH_BYTES))
    passphrase = TerminalSecrets(passphrase_file).new_passphrase()
    made = setup.quick_start(disk, directory.absolute(), product=product, online=keys, passphrase=passphrase, now=now())
    records = sorted(made.key_records().values(), key=lambda record: record.name)
    lines = [f"Made {directory} with {len(records)} keys, root 1, targets 1 and {product} 1."]
    lines += ["What this quick path gives up, compared with a ceremony of several custodians:"]
    lines += [f"  - {text}" for text in setup.GIVEN_UP]
    if online is None:
        lines.append("You hold the snapshot and timestamp keys: publish with --directory. There is no director.")
    out.document(
        "workspace",
        {
            "directory": str(directory),
            "product": product,
            "keys": {record.name: record.key.keyid for record in records},
            "has_director": online is not None,
            "gives_up": list(setup.GIVEN_UP),
        },
        lines=lines,
    )
    out.next_command(
        f"cd {directory} && firmament release build SOURCE --product {product} --version 1.0 --hardware NAME"
    )
