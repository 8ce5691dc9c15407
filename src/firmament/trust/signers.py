"""From a key's URI to something that signs: ``file:PATH`` and ``hsm:label=...;token=...``.

The secret (passphrase or PIN) is asked for through a callback, so that nothing here knows about
terminals, and asked for late, so that a key that is not used is not opened.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from firmament.errors import KeyFileError, PassphraseError
from firmament.trust import key_files, keys

if TYPE_CHECKING:
    from securesystemslib.signer import CryptoSigner, Signer

    from firmament.trust.keys import KeyRecord


class Secrets(Protocol):
    """Where passphrases and PINs come from."""

    def passphrase(self, name: str) -> bytes:
        """Return the passphrase of the key file `name`; raises PassphraseError."""
        ...

    def pin(self, name: str) -> str:
        """Return the PIN of the token that holds the key `name`; raises PassphraseError."""
        ...

    def another_passphrase(self, name: str) -> bytes | None:
        """Return a further passphrase to try after one that did not open `name`; None to give up."""
        ...


@dataclass(frozen=True, slots=True)
class GivenSecrets:
    """One passphrase and one PIN for every key, e.g. from files."""

    given_passphrase: bytes = field(default=b"", repr=False)
    given_pin: str = field(default="", repr=False)

    def passphrase(self, name: str) -> bytes:  # noqa: D102 - see Secrets
        if not self.given_passphrase:
            raise PassphraseError("No passphrase was given", key=name)
        return self.given_passphrase

    def pin(self, name: str) -> str:  # noqa: D102 - see Secrets
        if not self.given_pin:
            raise PassphraseError("No PIN was given", key=name)
        return self.given_pin

    def another_passphrase(self, name: str) -> bytes | None:  # noqa: ARG002, D102 - see Secrets
        return None


def load_signer(record: KeyRecord, secrets: Secrets, *, base: Path = Path()) -> Signer:
    """Open the private half of `record`; relative paths are taken from `base`.

    Raises KeyFileError (missing, unsafe, or not the key of the record), PassphraseError or
    TokenDeviceError.
    """
    scheme, _, rest = record.uri.partition(":")
    match scheme:
        case "file":
            return _load_file(record, base / rest, secrets)
        case "hsm":
            from firmament.trust import hsm  # PKCS#11 is an extra, and slow to import

            return hsm.load_signer(record, secrets)
        case _:
            raise KeyFileError("The key's URI has a scheme that is not known", uri=record.uri, known="file: hsm:")


def _load_file(record: KeyRecord, path: Path, secrets: Secrets) -> CryptoSigner:
    pem = key_files.read_private_file(path)
    passphrase = secrets.passphrase(record.name) if key_files.is_encrypted(pem) else None
    while True:
        try:
            signer = keys.signer_of(key_files.decrypt(pem, passphrase, what=str(path)))
            break
        except PassphraseError:
            passphrase = secrets.another_passphrase(record.name)
            if passphrase is None:
                raise
    if signer.public_key != record.key:
        raise KeyFileError(
            "The private key is not the one of the public record",
            path=path,
            expected=record.key.keyid,
            got=signer.public_key.keyid,
        )
    return signer
