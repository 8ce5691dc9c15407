"""`firmament release rewrap` and `firmament-agent rewrap`: one encrypted MCUboot image, for one device (ADR-0031)."""

from __future__ import annotations

from pathlib import Path

import click

from firmament.cli.common import may_ask, output, output_options
from firmament.errors import PassphraseError

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.argument("image", type=_FILE)
@click.argument("out", type=_FILE)
@click.option("--for", "device", type=_FILE, required=True, help="Public key in PEM of the device's microcontroller.")
@click.option("--key", type=_FILE, required=True, help="Private key in PEM that IMAGE was encrypted for.")
@click.option("--boot-key", type=_FILE, required=True, help="Public key in PEM of the boot loader: who signed IMAGE.")
@output_options
def rewrap(image: Path, out: Path, device: Path, key: Path, boot_key: Path) -> None:
    """Write the MCUboot image IMAGE to OUT so that one device, and no other, can decrypt it.

    Only the entry that holds the wrapped content key is written anew: length and signature stay.
    IMAGE is verified first, and OUT is read back and verified before it is there.
    """
    from firmament.durable import PUBLIC_MODE, RealDisk, read_file, replace_durably
    from firmament.payload import mcuboot
    from firmament.payload.readers import BytesReader
    from firmament.trust import mcu_keys

    disk, limit = RealDisk(), mcu_keys.MAX_PEM_LENGTH_BYTES
    common = read_file(disk, image, limit_bytes=mcuboot.MAX_IMAGE_LENGTH_BYTES)
    signer = mcuboot.load_public_key(read_file(disk, boot_key, limit_bytes=limit))
    recipient = mcu_keys.load_public(read_file(disk, device, limit_bytes=limit))
    source = BytesReader(common)
    found = mcuboot.read_image(source, len(common))
    private = mcu_keys.load_private(read_file(disk, key, limit_bytes=limit), ask=_ask)
    content_key = mcuboot.unwrap_content_key(found, source, private)
    mcuboot.verify(found, source, signer, content_key=content_key)
    splice = mcuboot.rewrap(found, source, content_key, recipient)
    end = splice.offset + len(splice.data)
    made = common[: splice.offset] + splice.data + common[end:]
    spliced = BytesReader(made)
    mcuboot.verify(mcuboot.read_image(spliced, len(made)), spliced, signer, content_key=content_key)
    replace_durably(disk, out, made, mode=PUBLIC_MODE)
    output().document(
        "rewrapped",
        {
            "file": str(out),
            "version": found.version,
            "offset": splice.offset,
            "length_bytes": len(splice.data),
            "image_length_bytes": len(made),
        },
        lines=[f"{out}: version {found.version}; {len(splice.data)} of {len(made)} bytes are this device's own."],
    )


def _ask() -> bytes:
    if not may_ask():
        raise PassphraseError("A passphrase is needed and there is no terminal to ask at", option="--key")
    entered: str = click.prompt("Passphrase of the key", hide_input=True, err=True)
    return entered.encode()
