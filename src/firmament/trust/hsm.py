"""Keys that never leave a PKCS#11 token: ``hsm:label=KEY;token=TOKEN``.

ECDSA P-256, the one kind that YubiKey PIV, Nitrokey, SoftHSM2 and the cloud HSMs have in common.
The PKCS#11 library is named by the variable PYKCS11LIB. Values in the URI are percent-encoded
where they hold ``;`` or ``=`` (as in RFC 7512). Signing is `securesystemslib`'s HSMSigner; this
module finds the key by its label, compares it with the public record and maps errors.
"""

from __future__ import annotations

import os
import secrets as chance
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, unquote

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_der_public_key
from securesystemslib.signer import HSMSigner, Key, Signature, Signer, SSlibKey

from firmament.errors import DependencyMissingError, KeyFileError, PassphraseError, TokenDeviceError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from firmament.trust.keys import KeyRecord
    from firmament.trust.signers import Secrets

LIBRARY_VARIABLE: Final = "PYKCS11LIB"
_SCHEME: Final = "ecdsa-sha2-nistp256"


@dataclass(frozen=True, slots=True)
class TokenKey:
    """Which key on which token."""

    label: str
    token: str

    @property
    def uri(self) -> str:
        """As written in a public record."""
        return f"hsm:label={quote(self.label, safe='')};token={quote(self.token, safe='')}"


def parse_uri(uri: str) -> TokenKey:
    """Read ``hsm:label=...;token=...``; raises KeyFileError."""
    parts = [part.partition("=") for part in uri.removeprefix("hsm:").split(";")]
    found = {name: unquote(value) for name, _, value in parts}
    if len(found) != len(parts) or set(found) != {"label", "token"} or not all(found.values()):
        raise KeyFileError("The URI of a token key is not well formed", uri=uri, expected="hsm:label=KEY;token=TOKEN")
    return TokenKey(found["label"], found["token"])


def load_signer(record: KeyRecord, secrets: Secrets) -> Signer:
    """Find the key on its token and return its signer.

    Raises TokenDeviceError, PassphraseError for a wrong PIN, KeyFileError when the token holds
    another key than the record says, DependencyMissingError without python-pkcs11.
    """
    where = parse_uri(record.uri)
    with _mapped_errors(where):
        key, identifier = find(where)
        if key != record.key:
            raise KeyFileError(
                "The token holds another key than the public record",
                uri=record.uri,
                expected=record.key.keyid,
                got=key.keyid,
            )
        inner = HSMSigner(identifier, key, lambda _what: secrets.pin(record.name), where.token)
        return TokenSigner(inner, where)


class TokenSigner(Signer):
    """HSMSigner whose failures are errors of this house."""

    def __init__(self, inner: HSMSigner, where: TokenKey) -> None:
        self._inner = inner
        self._where = where

    @property
    def public_key(self) -> Key:  # noqa: D102 - see Signer
        return self._inner.public_key

    @classmethod
    def from_priv_key_uri(cls, priv_key_uri: str, public_key: Key, secrets_handler: Any = None) -> TokenSigner:  # noqa: D102 - see Signer
        raise NotImplementedError  # made by load_signer only; securesystemslib's registry is not used

    def sign(self, payload: bytes) -> Signature:  # noqa: D102 - see Signer
        with _mapped_errors(self._where):
            return self._inner.sign(payload)


def find(where: TokenKey) -> tuple[SSlibKey, int]:
    """Return the public key and its identifier on the token; needs no PIN."""
    pkcs11 = _library()
    token = pkcs11.lib(os.environ[LIBRARY_VARIABLE]).get_token(token_label=where.token)
    with token.open() as session:
        # Exhausted here: `get_key` leaves its search open when it finds a second object.
        wanted = {
            pkcs11.Attribute.CLASS: pkcs11.ObjectClass.PUBLIC_KEY,
            pkcs11.Attribute.KEY_TYPE: pkcs11.KeyType.EC,
            pkcs11.Attribute.LABEL: where.label,
        }
        objects = list(session.get_objects(wanted))
        if len(objects) != 1:
            raise TokenDeviceError("Not exactly one key answers to this URI", uri=where.uri, found=len(objects))
        found = objects[0]
        identifier = int.from_bytes(found[pkcs11.Attribute.ID], "big")
        from pkcs11.util.ec import encode_ec_public_key

        public = load_der_public_key(encode_ec_public_key(found))
    key = SSlibKey.from_crypto(public)
    if key.scheme != _SCHEME:
        raise KeyFileError("This kind of key is not used here", scheme=key.scheme, allowed=_SCHEME)
    return key, identifier


def public_key(where: TokenKey) -> SSlibKey:
    """Return the public half of a key that is on a token already; errors as in `load_signer`."""
    with _mapped_errors(where):
        return find(where)[0]


def generate(where: TokenKey, pin: str) -> SSlibKey:
    """Make a P-256 key on the token and return its public half; errors as in `load_signer`."""
    with _mapped_errors(where):
        pkcs11 = _library()
        from pkcs11.util.ec import encode_named_curve_parameters

        token = pkcs11.lib(os.environ[LIBRARY_VARIABLE]).get_token(token_label=where.token)
        with token.open(rw=True, user_pin=pin) as session:
            if list(session.get_objects({pkcs11.Attribute.LABEL: where.label})):
                raise KeyFileError("The token holds a key of this label already", uri=where.uri)
            parameters = session.create_domain_parameters(
                pkcs11.KeyType.EC,
                {pkcs11.Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")},
                local=True,
            )
            # 31 bits: HSMSigner writes the identifier as an unsigned integer without leading zeros.
            identifier = (chance.randbits(30) | 1 << 30).to_bytes(4, "big")
            parameters.generate_keypair(
                store=True,
                label=where.label,
                id=identifier,
                mechanism=pkcs11.Mechanism.EC_KEY_PAIR_GEN,
                private_template={pkcs11.Attribute.SENSITIVE: True, pkcs11.Attribute.EXTRACTABLE: False},
            )
        return find(where)[0]


def _library() -> Any:
    if not os.environ.get(LIBRARY_VARIABLE):
        raise TokenDeviceError("The PKCS#11 library is not named", variable=LIBRARY_VARIABLE)
    try:
        import pkcs11
    except ImportError as error:
        raise DependencyMissingError(
            "A package that token keys need is not installed", install="firmament[hsm]"
        ) from error
    return pkcs11


@contextmanager
def _mapped_errors(where: TokenKey) -> Iterator[None]:
    """Map what python-pkcs11 and HSMSigner raise; our own errors pass."""
    _library()
    from pkcs11 import exceptions

    try:
        yield
    except (exceptions.PinIncorrect, exceptions.PinInvalid, exceptions.PinLenRange, exceptions.PinLocked) as error:
        raise PassphraseError("The token refuses the PIN", uri=where.uri, reason=type(error).__name__) from error
    except (exceptions.NoSuchToken, exceptions.NoSuchKey) as error:
        raise TokenDeviceError("The key is not on a token here", uri=where.uri) from error
    except (exceptions.MultipleTokensReturned, exceptions.MultipleObjectsReturned) as error:
        raise TokenDeviceError("More than one key answers to this URI", uri=where.uri) from error
    except (exceptions.PKCS11Error, ValueError, UnsupportedAlgorithm, OSError, RuntimeError) as error:
        reason = str(error) or type(error).__name__
        raise TokenDeviceError("The token cannot be used", uri=where.uri, reason=reason) from error
