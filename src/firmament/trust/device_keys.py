"""The identity key of a device: ECDSA P-256, made on the device, never leaving it.

It proves who asks (TLS client certificate) and who reports (signed envelopes). It is not
encrypted at rest: a device starts unattended, so a passphrase would lie beside it. What protects
it is its file mode, and later a secure element behind the same few methods.

`keyid` is the SHA-256 of the public key's SubjectPublicKeyInfo, as report envelopes carry it.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from firmament.errors import KeyFileError, SignatureError

if TYPE_CHECKING:
    from firmament.core.ids import DeviceId


class IdentityKey:
    """A P-256 private key with the three things a device does with it."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key

    @classmethod
    def generate(cls) -> Self:
        """Make a new key from the system's randomness."""
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def from_pem(cls, data: bytes) -> Self:
        """Read PKCS#8 PEM; raises KeyFileError for anything but an unencrypted P-256 key."""
        try:
            key = serialization.load_pem_private_key(data, None)
        except (ValueError, TypeError) as error:
            raise KeyFileError("The identity key cannot be read", reason=error) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise KeyFileError("The identity key must be ECDSA P-256", found=type(key).__name__)
        return cls(key)

    @property
    def pem(self) -> bytes:
        """The private key as PKCS#8 PEM, for a file of mode 0600."""
        return self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    @property
    def keyid(self) -> str:
        """SHA-256 of the public key, hexadecimal."""
        return hashlib.sha256(self._public_der).hexdigest()

    @property
    def _public_der(self) -> bytes:
        return _der(self._key.public_key())

    @property
    def public_der(self) -> bytes:
        """The public key as SubjectPublicKeyInfo, DER: what a server keeps."""
        return self._public_der

    def sign(self, data: bytes) -> bytes:
        """Return an ECDSA-SHA256 signature, DER."""
        return self._key.sign(data, ec.ECDSA(hashes.SHA256()))

    def request_pem(self, *, product: str, hardware: str) -> str:
        """Return a PKCS#10 certificate request: proof that this device holds the key.

        Product and hardware in its subject are for whoever carries the file in a factory; the
        server decides what the certificate says.
        """
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, product),
                x509.NameAttribute(NameOID.COMMON_NAME, hardware),
            ]
        )
        request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(self._key, hashes.SHA256())
        return request.public_bytes(serialization.Encoding.PEM).decode()

    def require_certificate(self, chain_pem: str, *, device_id: DeviceId) -> None:
        """Raise SignatureError unless the first certificate is for this key and this device."""
        try:
            certificate = x509.load_pem_x509_certificate(chain_pem.encode())
            names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
            found = _der(certificate.public_key())
        except ValueError as error:
            raise SignatureError("The device certificate cannot be read", reason=error) from error
        if found != self._public_der:
            raise SignatureError("The device certificate is for another key", keyid=self.keyid)
        if [name.value for name in names] != [device_id]:
            raise SignatureError(
                "The device certificate names another device",
                expected=device_id,
                found=" ".join(str(name.value) for name in names),
            )


def certificate_name(chain_pem: str) -> str:
    """Return the common name of the first certificate; raises SignatureError."""
    try:
        names = x509.load_pem_x509_certificate(chain_pem.encode()).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except ValueError as error:
        raise SignatureError("The device certificate cannot be read", reason=error) from error
    return str(names[0].value) if len(names) == 1 else ""


def _der(key: object) -> bytes:
    assert hasattr(key, "public_bytes")
    found: bytes = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return found
