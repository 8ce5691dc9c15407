"""A web server of our own in front (nginx): what it says of the peer, and payloads that it sends itself.

TLS ends in nginx then, and with it the proof of a device's key. nginx passes the certificate that
it checked; this server believes it only together with a secret that both read from a file, and
checks again who issued it and until when. Without the secret the headers are nobody's word.
"""

from __future__ import annotations

import hmac
import ipaddress
import urllib.parse
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding

from firmament.durable import read_file
from firmament.errors import FirmamentError, ForbiddenError, SettingError
from firmament.server.authority import peer_identity
from firmament.server.http.messages import header

if TYPE_CHECKING:
    from datetime import datetime

    from firmament.core.clock import Clock
    from firmament.durable import Disk
    from firmament.server.authority import PeerIdentity
    from firmament.server.http.messages import AsgiScope
    from firmament.server.layout import Layout
    from firmament.server.settings import ServerSettings

SECRET_HEADER: Final = b"x-firmament-front"
CERTIFICATE_HEADER: Final = b"x-firmament-certificate"
ADDRESS_HEADER: Final = b"x-firmament-address"
MIN_SECRET_LENGTH: Final = 32
MAX_SECRET_LENGTH_BYTES: Final = 1024
MAX_REMEMBERED: Final = 4096
"""Certificates that were checked; each is about 1 KiB."""


class Front:
    """Judges what a front server says."""

    def __init__(self, secret: bytes, device_ca: x509.Certificate, clock: Clock) -> None:
        self._secret = secret
        self._device_ca = device_ca
        self._clock = clock
        self._checked: OrderedDict[bytes, tuple[PeerIdentity, datetime]] = OrderedDict()

    def admit(self, scope: AsgiScope) -> None:
        """Put the peer that nginx saw in the place of nginx; a request that came directly stays as it is.

        Raises ForbiddenError for a wrong secret, and for a certificate of somebody else.
        """
        said = header(scope, SECRET_HEADER)
        if said is None:
            return
        if not hmac.compare_digest(said, self._secret):
            raise ForbiddenError("The front server's secret is another one")
        address = header(scope, ADDRESS_HEADER)
        try:
            scope["client"] = (str(ipaddress.ip_address((address or b"").decode("ascii"))), 0)
        except ValueError as error:
            raise ForbiddenError("The front server does not say who asks") from error
        certificate = header(scope, CERTIFICATE_HEADER)
        scope["state"]["peer"] = self._peer(certificate) if certificate else None
        scope["state"]["is_fronted"] = True

    def _peer(self, certificate: bytes) -> PeerIdentity | None:
        now = self._clock.now()
        known = self._checked.get(certificate)
        if known is None:
            known = self._check(certificate)
            self._checked[certificate] = known
            if len(self._checked) > MAX_REMEMBERED:
                self._checked.popitem(last=False)
        peer, expires_at = known
        if now > expires_at:
            raise ForbiddenError("The certificate has expired", expires_at=expires_at)
        return peer

    def _check(self, certificate: bytes) -> tuple[PeerIdentity, datetime]:
        try:
            found = x509.load_pem_x509_certificate(urllib.parse.unquote_to_bytes(certificate))
            found.verify_directly_issued_by(self._device_ca)
        except (ValueError, TypeError, InvalidSignature) as error:
            raise ForbiddenError("The certificate is not of this server's device CA") from error
        peer = peer_identity(found.public_bytes(Encoding.DER))
        if peer is None or found.not_valid_before_utc > self._clock.now():
            raise ForbiddenError("The certificate is not a device's, or not yet good")
        return peer, found.not_valid_after_utc


def make_front(
    disk: Disk, layout: Layout, settings: ServerSettings, device_ca: x509.Certificate, clock: Clock
) -> Front | None:
    """Return what judges nginx's word, None when there is no nginx; raises SettingError."""
    if not settings.front_secret_file:
        return None
    path = layout.directory / settings.front_secret_file
    try:
        secret = read_file(disk, path, limit_bytes=MAX_SECRET_LENGTH_BYTES).strip()
    except (FirmamentError, OSError) as error:
        raise SettingError("The front server's secret cannot be read", path=path) from error
    if len(secret) < MIN_SECRET_LENGTH or not secret.isascii() or b'"' in secret:
        raise SettingError("The front server's secret is too short, or not printable", path=path)
    return Front(secret, device_ca, clock)
