"""TLS of the server: always on, 1.2 or newer, client certificates asked for and checked.

A certificate is optional at the handshake, because enrolment and operators have none; what it
proves is decided per request. Only the device CA is trusted for clients, and only for clients.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography import x509

from firmament.durable import PUBLIC_MODE, read_file, replace_durably
from firmament.errors import FileError, SettingError
from firmament.server.authority import (
    MAX_PEM_LENGTH_BYTES,
    RENEW_BEFORE,
    issue_server_certificate,
    load_authority,
    load_certificate,
)

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from firmament.durable import Disk
    from firmament.server.layout import Layout
    from firmament.server.settings import ServerSettings

# TLS 1.2 is for old microcontrollers and their stacks; forward secrecy and AEAD only.
TLS12_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"


@dataclass(frozen=True, slots=True)
class ServerCertificate:
    """Where the server's chain and key are."""

    chain: Path
    key: Path


def server_certificate(disk: Disk, layout: Layout, settings: ServerSettings, now: datetime) -> ServerCertificate:
    """Return the given certificate, or the own CA's, renewed when it is missing or nearly expired."""
    if settings.certificate:
        return ServerCertificate(layout.directory / settings.certificate, layout.directory / settings.certificate_key)
    own = ServerCertificate(layout.tls / "server.pem", layout.tls / "server.key")
    if not _is_good(disk, own.chain, settings, now):
        authority = load_authority(disk, layout.tls)
        chain, key = issue_server_certificate(authority, names=settings.names, addresses=settings.addresses, now=now)
        # Key first: a crash in between leaves a pair that does not match, which the next start mends
        # because the chain is written last and checked against the key there.
        replace_durably(disk, own.key, key)
        replace_durably(disk, own.chain, chain.encode(), mode=PUBLIC_MODE)
    return own


def _is_good(disk: Disk, chain: Path, settings: ServerSettings, now: datetime) -> bool:
    if not disk.exists(chain) or not disk.exists(chain.with_suffix(".key")):
        return False
    certificate = load_certificate(disk, chain)
    if certificate.not_valid_after_utc - now <= RENEW_BEFORE:
        return False
    key = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        key.load_cert_chain(chain, chain.with_suffix(".key"))
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ssl.SSLError, x509.ExtensionNotFound):
        return False
    stated = {*names.get_values_for_type(x509.DNSName), *(str(a) for a in names.get_values_for_type(x509.IPAddress))}
    return {*settings.names, *settings.addresses} <= stated


def make_context(disk: Disk, certificate: ServerCertificate, device_ca: Path) -> ssl.SSLContext:
    """Build the context; raises SettingError or FileError for files that do not fit."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(TLS12_CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    try:
        context.load_cert_chain(certificate.chain, certificate.key)
        context.load_verify_locations(cadata=read_file(disk, device_ca, limit_bytes=MAX_PEM_LENGTH_BYTES).decode())
    except ssl.SSLError as error:
        raise SettingError(
            "The server's certificate and key do not fit together", chain=certificate.chain, reason=error
        ) from error
    except OSError as error:
        raise FileError("The server's certificate cannot be read", chain=certificate.chain, reason=error) from error
    context.verify_mode = ssl.CERT_OPTIONAL
    context.set_alpn_protocols(["http/1.1"])
    return context
