"""Two certificate authorities: one for the server's own TLS, one for device identities.

They are apart so that a device certificate can never pose as a server. All keys are ECDSA P-256:
short chains cost less of the poll than anything else in it (stack.md §7). Certificates carry
what strict verifiers ask for (RFC 5280: key usage, basic constraints, both key identifiers).
"""

from __future__ import annotations

import hashlib
import ipaddress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from firmament.core.ids import UUID, DeviceId
from firmament.durable import PUBLIC_MODE, read_file, replace_durably
from firmament.errors import FileError, MalformedError, SettingError, SignatureError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from pathlib import Path

    from firmament.durable import Disk

AUTHORITY_LIFETIME: Final = timedelta(days=30 * 365)
# Devices pin it; it must outlive them. Its key can be kept offline after `init` (given certificate).
SERVER_LIFETIME: Final = timedelta(days=397)
"""Renewed by `server run` at each start within the last 30 days."""
RENEW_BEFORE: Final = timedelta(days=30)
BACKDATE: Final = timedelta(hours=1)
"""A device whose clock is a little behind must not refuse a fresh certificate."""
MAX_PEM_LENGTH_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> str:
        """The certificate, to be pinned."""
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()


@dataclass(frozen=True, slots=True)
class ProvenRequest:
    """A certificate request whose signature proves that the sender holds the key."""

    public_key: ec.EllipticCurvePublicKey

    @property
    def der(self) -> bytes:
        """SubjectPublicKeyInfo."""
        return self.public_key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)

    @property
    def keyid(self) -> str:
        """SHA-256 of `der`, hexadecimal; the same that report envelopes carry."""
        return hashlib.sha256(self.der).hexdigest()


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """Who a verified client certificate says the peer is."""

    device_id: DeviceId
    keyid: str


def make_authority(name: str, *, now: datetime) -> Authority:
    """Make a self-signed CA that may sign end certificates only."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        _builder(subject, subject, key.public_key(), now=now, lifetime=AUTHORITY_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate, key)


def store_authority(disk: Disk, directory: Path, authority: Authority) -> None:
    """Write ``ca.key`` (0600) and ``ca.pem``."""
    disk.make_directory(directory)
    replace_durably(disk, directory / "ca.key", private_pem(authority.key))
    replace_durably(disk, directory / "ca.pem", authority.pem.encode(), mode=PUBLIC_MODE)


def load_authority(disk: Disk, directory: Path) -> Authority:
    """Read what `store_authority` wrote; raises FileError."""
    certificate = load_certificate(disk, directory / "ca.pem")
    key = load_private_key(disk, directory / "ca.key")
    return Authority(certificate, key)


def issue_server_certificate(
    authority: Authority, *, names: Sequence[str], addresses: Sequence[str], now: datetime
) -> tuple[str, bytes]:
    """Return the chain as PEM and a fresh private key as PEM; raises SettingError for a bad name."""
    key = ec.generate_private_key(ec.SECP256R1())
    try:
        alternatives: list[x509.GeneralName] = [x509.DNSName(name) for name in names]
        alternatives += [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
    except ValueError as error:
        raise SettingError("A name or address for the certificate is not well formed", reason=error) from error
    if not alternatives:
        raise SettingError("The server's certificate needs at least one name or address")
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Firmament server")])
    certificate = (
        _builder(subject, authority.certificate.subject, key.public_key(), now=now, lifetime=SERVER_LIFETIME)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(_issuer_id(authority), critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode(), private_pem(key)


def issue_device_certificate(
    authority: Authority, request: ProvenRequest, *, device_id: DeviceId, days: int, now: datetime
) -> str:
    """Return the device's chain as PEM, leaf first; the common name is the device's id."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device_id)])
    certificate = (
        _builder(subject, authority.certificate.subject, request.public_key, now=now, lifetime=timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(_issuer_id(authority), critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode() + authority.pem


def read_request(csr_pem: str) -> ProvenRequest:
    """Check a PKCS#10 request: P-256, and signed by the key it names.

    Its subject and extensions are ignored: the server decides what a certificate says. Raises
    MalformedError, or SignatureError when the sender does not hold the key.
    """
    try:
        request = x509.load_pem_x509_csr(csr_pem.encode())
        key = request.public_key()
        is_valid = request.is_signature_valid
    except Exception as error:
        raise MalformedError("The certificate request is not PEM PKCS#10", reason=error) from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise MalformedError("The identity key must be ECDSA P-256", found=type(key).__name__)
    if not is_valid:
        raise SignatureError("The certificate request is not signed by its own key")
    return ProvenRequest(key)


def peer_identity(der: bytes) -> PeerIdentity | None:
    """Read a client certificate that TLS has verified; None if it is not a device's."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        key = certificate.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    except ValueError:
        return None
    name = str(names[0].value) if len(names) == 1 else ""
    if not UUID.fullmatch(name):
        return None
    return PeerIdentity(DeviceId(name), hashlib.sha256(key).hexdigest())


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Write a key as PKCS#8, not encrypted: a server starts unattended."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def load_certificate(disk: Disk, path: Path) -> x509.Certificate:
    """Read the first certificate of a PEM file; raises FileError."""
    data = read_file(disk, path, limit_bytes=MAX_PEM_LENGTH_BYTES)
    try:
        return x509.load_pem_x509_certificate(data)
    except ValueError as error:
        raise FileError("This is not a PEM certificate", path=path, reason=error) from error


def load_private_key(disk: Disk, path: Path) -> ec.EllipticCurvePrivateKey:
    """Read an ECDSA key; raises FileError."""
    data = read_file(disk, path, limit_bytes=MAX_PEM_LENGTH_BYTES)
    try:
        key = serialization.load_pem_private_key(data, None)
    except (ValueError, TypeError) as error:
        raise FileError("This is not a PEM private key", path=path) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise FileError("The key is not ECDSA", path=path)
    return key


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    *,
    now: datetime,
    lifetime: timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + lifetime)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _issuer_id(authority: Authority) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
