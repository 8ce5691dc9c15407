"""Make an MCUboot image from an application binary, with MCUboot's own `imgtool`, and check it.

`imgtool` is a program that thinks it is a library: it prints, and reports mistakes as command line
errors. Here its words become this house's errors, and whatever it makes is read back by the strict
reader and verified with the public key before anybody builds a release from it.

A key that must not be on this machine signs elsewhere: `vector` gives the digest to sign,
`Signed` brings the signature back (imgtool's ``--vector-to-sign digest`` and ``--fix-sig``).
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import importlib
import importlib.util
import io
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from firmament.errors import DependencyMissingError, KeyFileError, MalformedError, PassphraseError, TooLargeError
from firmament.payload import mcuboot
from firmament.payload.readers import BytesReader

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_COUNTER: Final = 2**32 - 1
MAX_APPLICATION_LENGTH_BYTES: Final = mcuboot.MAX_IMAGE_LENGTH_BYTES
MAX_KEY_LENGTH_BYTES: Final = 64 * 1024
IMAGE_VERSION: Final = re.compile(r"(\d{1,3})\.(\d{1,3})\.(\d{1,5})(?:\+(\d{1,10}))?")
_DEPENDENCY: Final = re.compile(r"(\d{1,3}):(\d{1,3}\.\d{1,3}\.\d{1,5}(?:\+\d{1,10})?)")
_SLOT_WITHOUT_LIMIT: Final = 0


@dataclass(frozen=True, slots=True)
class Recipe:
    """What goes into the header and the TLVs."""

    image_version: str
    """``major.minor.revision[+build]``."""
    security_counter: int
    """What the boot loader compares: never goes down on a device."""
    header_length_bytes: int = 512
    slot_length_bytes: int = _SLOT_WITHOUT_LIMIT
    """Refuse an image that does not fit with its trailer; 0 does not check."""
    align: int = 4
    dependencies: tuple[str, ...] = ()
    """``IMAGE:VERSION``: the device's image of this number must be at least of this version."""
    vendor: str | None = None
    """UUID, or a domain name of which imgtool makes one."""
    class_name: str | None = None
    encrypt_for: bytes | None = None
    """Public key in PEM that the content key is wrapped for; each device gets its own wrap later."""
    encrypt_key_bits: int = 128
    is_pure: bool = False
    """Ed25519 over the image itself instead of its digest."""


@dataclass(frozen=True, slots=True)
class Signed:
    """A signature that was made elsewhere over what `vector` returned."""

    signature: bytes
    public_key: bytes
    """PEM."""


def make(application: bytes, recipe: Recipe, *, key: bytes, ask: Callable[[], bytes] | None = None) -> bytes:
    """Return the signed image; `key` is a private key in PEM, `ask` is called if it is encrypted.

    Raises DependencyMissingError without imgtool, MalformedError for a recipe that it refuses,
    KeyFileError, PassphraseError.
    """
    passphrase = ask() if ask is not None and b"ENCRYPTED" in key else None
    loaded = _load_key(key, passphrase)
    image = _create(application, recipe, key=loaded)
    return _checked(application, image, recipe, loaded.get_public_pem())


def vector(application: bytes, recipe: Recipe, *, public_key: bytes) -> bytes:
    """Return the digest that the key's holder has to sign for exactly this application and recipe.

    The key is part of what is signed for the kind of digest it asks for. An encrypted image is
    hashed before it is encrypted, so the digest does not depend on the content key.
    """
    return _create(application, recipe, public=_load_key(public_key, None), vector_to_sign="digest")


def assemble(application: bytes, recipe: Recipe, signed: Signed) -> bytes:
    """Return the image with a signature made elsewhere; raises SignatureError if it is not over it."""
    image = _create(
        application, recipe, public=_load_key(signed.public_key, None), fixed_sig={"value": signed.signature}
    )
    return _checked(application, image, recipe, signed.public_key)


def read_signature(data: bytes) -> bytes:
    """Read a signature file: base64 text as imgtool writes it, or the raw bytes; raises MalformedError."""
    if len(data) > MAX_KEY_LENGTH_BYTES:
        raise TooLargeError("A signature file is longer than allowed", limit_bytes=MAX_KEY_LENGTH_BYTES)
    try:
        return base64.b64decode(data.strip(), validate=True)
    except (binascii.Error, ValueError):
        return data


def _create(application: bytes, recipe: Recipe, *, key: Any = None, public: Any = None, **how: Any) -> bytes:
    images, decode_version = _imgtool("image"), _imgtool("version").decode_version
    _check(recipe, application)
    dependencies = None
    if recipe.dependencies:
        pairs = [_dependency(text) for text in recipe.dependencies]
        dependencies = {
            images.DEP_IMAGES_KEY: [number for number, _ in pairs],
            images.DEP_VERSIONS_KEY: [decode_version(version) for _, version in pairs],
        }
    with tempfile.TemporaryDirectory() as directory:
        source, out = Path(directory, "application.bin"), Path(directory, "image.bin")
        source.write_bytes(application)

        def run() -> None:
            image = images.Image(
                version=decode_version(recipe.image_version),
                header_size=recipe.header_length_bytes,
                pad_header=True,
                slot_size=recipe.slot_length_bytes,
                align=recipe.align,
                security_counter=recipe.security_counter,
                vid=recipe.vendor,
                cid=recipe.class_name,
            )
            image.load(str(source))
            image.create(
                key,
                "hash",
                _load_key(recipe.encrypt_for, None) if recipe.encrypt_for else None,
                dependencies=dependencies,
                encrypt_keylen=recipe.encrypt_key_bits,
                is_pure=recipe.is_pure,
                pub_key=public,
                **how,
            )
            image.save(str(out))

        _quietly(run)
        return out.read_bytes()


def _check(recipe: Recipe, application: bytes) -> None:
    if not application:
        raise MalformedError("The application is empty")
    if len(application) > MAX_APPLICATION_LENGTH_BYTES:
        raise TooLargeError("The application is longer than allowed", limit_bytes=MAX_APPLICATION_LENGTH_BYTES)
    if not IMAGE_VERSION.fullmatch(recipe.image_version):
        raise MalformedError("An MCUboot version is MAJOR.MINOR.REVISION[+BUILD]", got=recipe.image_version)
    if not 0 <= recipe.security_counter <= MAX_COUNTER:
        raise MalformedError("A security counter has 32 bits", got=recipe.security_counter, maximum=MAX_COUNTER)
    if not mcuboot.HEADER_LENGTH_BYTES <= recipe.header_length_bytes <= 0xFFFF:  # noqa: PLR2004 - a 16-bit field
        raise MalformedError("A header length is not allowed", got=recipe.header_length_bytes)


def _dependency(text: str) -> tuple[str, str]:
    match = _DEPENDENCY.fullmatch(text)
    if match is None:
        raise MalformedError("A dependency is IMAGE:MAJOR.MINOR.REVISION[+BUILD]", got=text)
    return match[1], match[2]


def _checked(application: bytes, image: bytes, recipe: Recipe, public_key: bytes) -> bytes:
    """Read back what imgtool made: what the strict reader refuses must not become a release."""
    source = BytesReader(image)
    found = mcuboot.read_image(source, len(image))
    if found.security_counter != recipe.security_counter:
        raise MalformedError(
            "The image does not carry the security counter",
            expected=recipe.security_counter,
            got=found.security_counter,
        )
    key = mcuboot.load_public_key(public_key)
    if found.is_encrypted:
        # The content key is not known here; the digest of the plaintext is that of the recipe.
        mcuboot.verify_digest(found, source, key, vector(application, recipe, public_key=public_key))
    else:
        mcuboot.verify(found, source, key)
    return image


def _load_key(pem: bytes | None, passphrase: bytes | None) -> Any:
    assert pem is not None
    keys = _imgtool("keys")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "key.pem")
        path.touch(mode=0o600)
        path.write_bytes(pem)
        try:
            found = keys.load(str(path), passphrase)
        except (ValueError, TypeError, AttributeError) as error:
            if passphrase is not None:
                raise PassphraseError("The MCUboot key cannot be opened with this passphrase") from error
            raise KeyFileError("This is not a key in PEM that imgtool takes", reason=error) from error
        except Exception as error:
            raise KeyFileError("This is not a key in PEM that imgtool takes", reason=error) from error
    if found is None:
        raise PassphraseError("The MCUboot key is encrypted and needs a passphrase")
    return found


def _quietly(work: Callable[[], None]) -> None:
    """Run imgtool; what it says goes into the error, not onto the terminal."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            work()
    except Exception as error:
        # It raises its framework's usage errors, assertions and whatever its libraries raise.
        reason = str(error) or type(error).__name__
        raise MalformedError("An MCUboot image cannot be made like this", reason=reason) from error


def _imgtool(module: str) -> Any:
    if importlib.util.find_spec("imgtool") is None:
        raise DependencyMissingError("Making MCUboot images needs a package", package="imgtool", extra="mcu")
    return importlib.import_module(f"imgtool.{module}")
