"""TLS and sockets for a device: a pinned CA, a clock that may be wrong, reads that cannot hang.

What TLS is for here: privacy, and knowing which device asks. It is not what makes an update safe
(trust.md §10, case 40: safe with TLS off), so it must not be what keeps a device from being
updated either. A device without a battery starts in 1970, one with a broken one in 2040:

* OpenSSL checks chain, host name and purpose, but no dates;
* the server certificate's end is then checked here against the *later* of the time floor (signed
  by the director for a nonce) and the machine's clock, and the clock counts only while it is
  plausible: not before the floor and not more than 400 days after it;
* "not valid yet" is never checked: it protects from nothing when the CA is pinned.

Every read has the time that is left of its exchange as its limit, headers included, so a peer
that drips one byte at a time is cut off at the deadline.
"""

from __future__ import annotations

import socket
import ssl
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from urllib3.connection import HTTPConnection, HTTPSConnection

from firmament.errors import KeyFileError, SettingError, TlsError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from firmament.core.clock import Clock

NO_CHECK_TIME: Final = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME of OpenSSL 1.1.0 and later; Python has no name for it."""
EARLIEST_CLOCK: Final = datetime(2026, 1, 1, tzinfo=UTC)
"""No machine clock before this software existed is right."""
LATEST_BEYOND_FLOOR: Final = timedelta(days=400)
# A device that was off for a year is still believed; root metadata lives 365 days.


def believed_time(now: datetime, floor: datetime | None) -> datetime:
    """Return the latest moment that has surely passed, for judging whether something has ended."""
    if floor is None:
        return max(now, EARLIEST_CLOCK)
    return now if floor <= now <= floor + LATEST_BEYOND_FLOOR else floor


class Watch:
    """How long reads of one exchange may still take."""

    def __init__(self, clock: Clock, *, deadline_s: float, idle_s: float) -> None:
        self._clock = clock
        self._until_s = clock.monotonic_s() + deadline_s
        self._idle_s = idle_s

    def timeout_s(self) -> float:
        """Return the time for the next read; raises TimeoutError when none is left."""
        left_s = self._until_s - self._clock.monotonic_s()
        if left_s <= 0:
            message = "the deadline of the exchange has passed"
            raise TimeoutError(message)
        return min(left_s, self._idle_s)


class _PlainSocket(socket.socket):
    watch: Watch | None = None

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        if self.watch is not None:
            self.settimeout(self.watch.timeout_s())
        return super().recv_into(*args, **kwargs)


class _TlsSocket(ssl.SSLSocket):
    watch: Watch | None = None

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        if self.watch is not None:
            self.settimeout(self.watch.timeout_s())
        return super().recv_into(*args, **kwargs)


class _Context(ssl.SSLContext):
    """A context whose next handshake may continue an earlier session with the same host."""

    resume: ssl.SSLSession | None = None

    def wrap_socket(self, *args: Any, **kwargs: Any) -> ssl.SSLSocket:
        kwargs["session"] = self.resume
        return super().wrap_socket(*args, **kwargs)


def make_context(*, ca_pem: str, certificate: Path | None = None, key: Path | None = None) -> ssl.SSLContext:
    """Return a client context that trusts `ca_pem` alone and shows the device's certificate.

    One context per host: sessions must not travel between hosts, as a continued session is not
    verified again. Raises SettingError for a CA that cannot be read, KeyFileError for the
    device's own files.
    """
    context = _Context(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_flags |= ssl.VerifyFlags(NO_CHECK_TIME)
    context.sslsocket_class = _TlsSocket
    try:
        context.load_verify_locations(cadata=ca_pem)
    except (ssl.SSLError, ValueError) as error:
        raise SettingError("The provisioned CA is not a PEM certificate", reason=error) from error
    if certificate is not None:
        try:
            context.load_cert_chain(certificate, key)
        except (ssl.SSLError, OSError, ValueError) as error:
            raise KeyFileError(
                "The device certificate and its key cannot be used", certificate=certificate, key=key, reason=error
            ) from error
    return context


class PlainConnection(HTTPConnection):
    """HTTP whose reads are watched; `watch_for` gives the watch of the exchange that starts."""

    def __init__(self, *args: Any, watch_for: Callable[[], Watch], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._watch_for = watch_for

    def _new_conn(self) -> socket.socket:
        plain = super()._new_conn()
        timeout = plain.gettimeout()
        watched = _PlainSocket(plain.family, plain.type, plain.proto, fileno=plain.detach())
        watched.settimeout(timeout)
        return watched

    def request(self, *args: Any, **kwargs: Any) -> None:
        """Send a request; from here on reads are limited."""
        if self.sock is None:
            self.connect()
        assert isinstance(self.sock, _PlainSocket)
        self.sock.watch = self._watch_for()
        super().request(*args, **kwargs)


class TlsConnection(HTTPSConnection):
    """HTTPS whose reads are watched and whose peer's certificate has not ended."""

    def __init__(
        self, *args: Any, watch_for: Callable[[], Watch], believed: Callable[[], datetime], **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._watch_for = watch_for
        self._believed = believed

    def connect(self) -> None:
        """Shake hands and check the certificate's end; raises TlsError."""
        super().connect()
        assert isinstance(self.sock, ssl.SSLSocket)
        found = self.sock.getpeercert() or {}
        ends = datetime.fromtimestamp(ssl.cert_time_to_seconds(str(found["notAfter"])), UTC)
        believed = self._believed()
        if ends < believed:
            self.close()
            raise TlsError("The server's certificate has ended", host=self.host, ended=ends, now=believed)

    def request(self, *args: Any, **kwargs: Any) -> None:
        """Send a request; from here on reads are limited."""
        if self.sock is None:
            self.connect()
        assert isinstance(self.sock, _TlsSocket)
        self.sock.watch = self._watch_for()
        super().request(*args, **kwargs)

    def close(self) -> None:
        """Close, keeping the session for the next handshake (TLS 1.3 tickets come after it)."""
        if isinstance(self.sock, ssl.SSLSocket) and isinstance(self.ssl_context, _Context):
            self.ssl_context.resume = self.sock.session or self.ssl_context.resume
        super().close()
