"""`release build --mcuboot`: the application becomes an MCUboot image first, made by imgtool."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from firmament.cli.common import may_ask
from firmament.errors import MalformedError, PassphraseError

if TYPE_CHECKING:
    from collections.abc import Callable

    from firmament.release.mcuboot_build import Recipe

_FILE = click.Path(path_type=Path, dir_okay=False)
_OPTIONS = (
    click.option("--mcuboot", is_flag=True, help="SOURCE is an application binary: make a signed MCUboot image of it."),
    click.option("--mcuboot-key", type=_FILE, help="Private key in PEM that the boot loader's key belongs to."),
    click.option("--mcuboot-public-key", type=_FILE, help="Public key in PEM, when the private one is elsewhere."),
    click.option("--mcuboot-vector", type=_FILE, help="Write the digest to sign elsewhere to this file, and stop."),
    click.option("--mcuboot-signature", type=_FILE, help="The signature made elsewhere over that digest."),
    click.option("--image-version", help="MAJOR.MINOR.REVISION[+BUILD] of the image; default: the release's version."),
    click.option("--security-counter", type=int, help="Default: the release's sequence number."),
    click.option("--header-size", type=int, default=512, show_default=True, help="Bytes before the vector table."),
    click.option("--slot-size", type=int, default=0, help="Refuse an image that does not fit; 0: do not look."),
    click.option(
        "--align",
        type=click.Choice(["1", "2", "4", "8", "16", "32"]),
        default="4",
        show_default=True,
        help="Bytes that the flash writes at once.",
    ),
    click.option("--dependency", multiple=True, metavar="IMAGE:VERSION", help="Another image must be this new."),
    click.option("--vendor", help="Vendor id for the boot loader: a UUID or a domain name."),
    click.option("--class-name", help="Class id for the boot loader: a UUID or a name."),
    click.option("--encrypt", type=_FILE, help="Encrypt the image; public key in PEM to wrap its key for."),
    click.option(
        "--encrypt-bits",
        type=click.Choice(["128", "256"]),
        default="128",
        show_default=True,
        help="Length of the AES key.",
    ),
    click.option("--pure", is_flag=True, help="Ed25519 over the image itself instead of its digest."),
)


def mcuboot_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a click command; they arrive as `options` of `make_image`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def make_image(source: Path, *, version: str, sequence_number: int, options: dict[str, Any]) -> bytes | None:
    """Return the MCUboot image of an application; None when only a vector was written for another signer.

    Raises MalformedError for options that do not belong together, and whatever
    `release.mcuboot_build` raises.
    """
    from firmament.release import mcuboot_build as builder

    application = _read(source, limit_bytes=builder.MAX_APPLICATION_LENGTH_BYTES)
    recipe = _recipe(builder.Recipe, version, sequence_number, options)
    key, public = options["mcuboot_key"], options["mcuboot_public_key"]
    if (key is None) == (public is None):
        raise MalformedError("Give either --mcuboot-key, or --mcuboot-public-key when the key is elsewhere")
    limit = builder.MAX_KEY_LENGTH_BYTES
    if key is not None:
        return builder.make(application, recipe, key=_read(key, limit_bytes=limit), ask=_ask)
    pem = _read(public, limit_bytes=limit)
    if options["mcuboot_vector"] is not None:
        options["mcuboot_vector"].write_bytes(builder.vector(application, recipe, public_key=pem))
        return None
    if options["mcuboot_signature"] is None:
        raise MalformedError("A public key needs --mcuboot-vector first, then --mcuboot-signature")
    signature = builder.read_signature(_read(options["mcuboot_signature"], limit_bytes=limit))
    return builder.assemble(application, recipe, builder.Signed(signature, pem))


def _recipe(kind: type[Recipe], version: str, sequence_number: int, options: dict[str, Any]) -> Recipe:
    from firmament.release.mcuboot_build import MAX_KEY_LENGTH_BYTES

    counter = options["security_counter"]
    encrypt = options["encrypt"]
    return kind(
        image_version=options["image_version"] or version,
        security_counter=sequence_number if counter is None else counter,
        header_length_bytes=options["header_size"],
        slot_length_bytes=options["slot_size"],
        align=int(options["align"]),
        dependencies=options["dependency"],
        vendor=options["vendor"],
        class_name=options["class_name"],
        encrypt_for=None if encrypt is None else _read(encrypt, limit_bytes=MAX_KEY_LENGTH_BYTES),
        encrypt_key_bits=int(options["encrypt_bits"]),
        is_pure=options["pure"],
    )


def _ask() -> bytes:
    if not may_ask():
        raise PassphraseError("A passphrase is needed and there is no terminal to ask at", option="--mcuboot-key")
    entered: str = click.prompt("Passphrase of the MCUboot key", hide_input=True, err=True)
    return entered.encode()


def _read(path: Path, *, limit_bytes: int) -> bytes:
    from firmament.durable import RealDisk, read_file

    return read_file(RealDisk(), path, limit_bytes=limit_bytes)
