"""HTTP for a device: every exchange is bounded in time, rate and kind, every error is one of ours.

No redirects, no content encoding, no proxy from the environment, no retry of its own; the pinned
CA only (agent/tls.py). A response that is too slow is given up by the *rate* over a window, not
by silence alone, so that one byte per second does not hold a device for days (trust.md §10, 31).
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import urllib3
from urllib3 import exceptions as http_errors
from urllib3.util import Timeout, parse_url

from firmament import __version__
from firmament.agent.tls import PlainConnection, TlsConnection, Watch, believed_time, make_context
from firmament.core import canonical
from firmament.errors import (
    EncodingError,
    FirmamentError,
    HttpStatusError,
    LengthExceededError,
    RedirectError,
    SlowError,
    TlsError,
    TransferError,
    TruncatedError,
    UnreachableError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from datetime import datetime
    from pathlib import Path

    from firmament.agent.ports import Response
    from firmament.core.clock import Clock

urllib3.disable_warnings(http_errors.SystemTimeWarning)  # a device may start in 1970, see agent/tls.py

USER_AGENT: Final = f"firmament-agent/{__version__}"
CHUNK_BYTES: Final = 64 * 1024
IDLE_LIMIT_S: Final = 4.0
# Servers drop idle connections after 5 s and more (uvicorn's default is 5); one that is about to
# be dropped is not worth a failed poll.
MAX_PROBLEM_LENGTH_BYTES: Final = 16 * 1024
MAX_HOSTS: Final = 8
SUCCESS: Final = range(200, 300)
REDIRECTION: Final = range(300, 400)
NOT_MODIFIED: Final = 304
"""It redirects nowhere; to who did not ask for it it is an error like any status (`require_success`)."""


@dataclass(frozen=True, slots=True)
class TransferSettings:
    """Limits of an exchange; the table of settings explains each (agent/settings.py)."""

    connect_timeout_s: float = 15
    idle_timeout_s: float = 30
    request_deadline_s: float = 60
    deadline_s: float = 86_400
    min_rate_bytes_per_s: int = 256
    rate_window_s: float = 60
    max_rate_bytes_per_s: int = 0
    """0: as fast as it goes."""
    retry_wait_ms: int = 500
    """After a dropped connection; doubles each time that nothing came."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Whom to trust and who we are."""

    ca_pem: str
    certificate: Path | None = None
    key: Path | None = None


class HttpTransport:
    """`ports.Transport` on urllib3.

    With `tls` only https addresses are accepted; without it only http (a test bench, or a
    repository on the same machine). `time_floor` is asked at each handshake.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        settings: TransferSettings,
        tls: TlsFiles | None,
        time_floor: Callable[[], datetime | None] = lambda: None,
    ) -> None:
        self._clock = clock
        self._settings = settings
        self._tls = tls
        self._time_floor = time_floor
        self._pools: dict[tuple[str, int], urllib3.HTTPConnectionPool] = {}
        self._used_at_s = clock.monotonic_s()
        self._watch = Watch(clock, deadline_s=0, idle_s=0)
        self._bucket = TokenBucket(clock, settings.max_rate_bytes_per_s)

    def request(
        self,
        method: str,
        url: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        deadline_s: float | None = None,
    ) -> Response:
        """Send one request and return once its headers are here; raises TransferError.

        Raises RedirectError and EncodingError for answers that this transport never follows or
        unpacks; any other status is the caller's to judge (`require_success`).
        """
        settings = self._settings
        deadline_s = settings.request_deadline_s if deadline_s is None else deadline_s
        self._watch = watch = Watch(self._clock, deadline_s=deadline_s, idle_s=settings.idle_timeout_s)
        with mapped_errors(url, has_begun=False):
            pool, path = self._pool(url)
            answer = pool.urlopen(
                method,
                path,
                body=body,
                headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity", **(headers or {})},
                retries=False,
                redirect=False,
                preload_content=False,
                decode_content=False,
                timeout=Timeout(connect=min(settings.connect_timeout_s, deadline_s), read=watch.timeout_s()),
            )
        response = _HttpResponse(answer, url, self._clock, settings, self._bucket)
        try:
            _require_plain(response, url)
        except TransferError:
            response.close()
            raise
        return response

    def close(self) -> None:
        """Close every connection."""
        for pool in self._pools.values():
            pool.close()
        self._pools.clear()

    def _pool(self, url: str) -> tuple[urllib3.HTTPConnectionPool, str]:
        parsed = parse_url(url)
        scheme, host, port = parsed.scheme, parsed.host, parsed.port
        if scheme != ("http" if self._tls is None else "https") or not host or parsed.auth:
            raise UnreachableError(
                "The address cannot be used", url=url, expected="http://" if self._tls is None else "https://"
            )
        port = port or (443 if scheme == "https" else 80)
        now_s = self._clock.monotonic_s()
        if now_s - self._used_at_s > IDLE_LIMIT_S:
            self._drop_idle()
        self._used_at_s = now_s
        pool = self._pools.get((host, port))
        if pool is None:
            if len(self._pools) >= MAX_HOSTS:
                self.close()
            pool = self._pools[host, port] = self._new_pool(host, port)
        return pool, parsed.request_uri

    def _drop_idle(self) -> None:
        for pool in self._pools.values():
            if pool.pool is not None:
                with contextlib.suppress(Exception):  # an empty queue says so by an exception of its own
                    while True:
                        connection = pool.pool.get(block=False)
                        if connection is not None:
                            connection.close()
                        else:
                            break
                pool.pool.put(None)

    def _new_pool(self, host: str, port: int) -> urllib3.HTTPConnectionPool:
        pool: urllib3.HTTPConnectionPool
        if self._tls is None:
            pool = urllib3.HTTPConnectionPool(host, port, maxsize=1, block=False)
            kind: Any = functools.partial(PlainConnection, watch_for=lambda: self._watch)
        else:
            context = make_context(ca_pem=self._tls.ca_pem, certificate=self._tls.certificate, key=self._tls.key)
            pool = urllib3.HTTPSConnectionPool(
                host, port, maxsize=1, block=False, ssl_context=context, cert_reqs=ssl.CERT_REQUIRED
            )
            kind = functools.partial(TlsConnection, watch_for=lambda: self._watch, believed=self._believed)
        pool.ConnectionCls = kind
        return pool

    def _believed(self) -> datetime:
        return believed_time(self._clock.now(), self._time_floor())


class _HttpResponse:
    """`ports.Response` on urllib3."""

    def __init__(
        self,
        answer: urllib3.BaseHTTPResponse,
        url: str,
        clock: Clock,
        settings: TransferSettings,
        bucket: TokenBucket,
    ) -> None:
        self._answer = answer
        self._url = url
        self._clock = clock
        self._settings = settings
        self._bucket = bucket
        self.status = answer.status
        self.headers: Mapping[str, str] = {name.lower(): value for name, value in answer.headers.items()}

    def chunks(self) -> Iterator[bytes]:
        """Yield the body as it comes; see `ports.Response`."""
        rate = MinimumRate(self._settings.min_rate_bytes_per_s, self._settings.rate_window_s)
        size = self._bucket.chunk_bytes
        try:
            while True:
                started_s = self._clock.monotonic_s()
                with mapped_errors(self._url, has_begun=True):
                    chunk = self._answer.read1(size, decode_content=False)
                if not chunk:
                    break
                rate.add(len(chunk), self._clock.monotonic_s() - started_s)
                self._bucket.take(len(chunk))
                yield chunk
        except FirmamentError:
            self.close()
            raise

    def close(self) -> None:
        """Keep the connection if the body was read to its end, else drop it."""
        with contextlib.suppress(Exception):  # nothing that closing says is of use
            if self._answer.closed or self._answer.length_remaining == 0:
                self._answer.release_conn()
            else:
                self._answer.close()


class MinimumRate:
    """Bytes per second of *waiting*, over windows: a slow consumer or our own limit does not count."""

    def __init__(self, min_rate_bytes_per_s: int, window_s: float) -> None:
        self._min_rate = min_rate_bytes_per_s
        self._window_s = window_s
        self._bytes = 0
        self._waited_s = 0.0

    def add(self, length_bytes: int, waited_s: float) -> None:
        """Count what came and how long it took; raises SlowError at the end of a slow window."""
        self._bytes += length_bytes
        self._waited_s += waited_s
        if self._waited_s < self._window_s:
            return
        rate = self._bytes / self._waited_s
        if rate < self._min_rate:
            raise SlowError("The body comes too slowly", rate_bytes_per_s=int(rate), minimum=self._min_rate)
        self._bytes, self._waited_s = 0, 0.0


class TokenBucket:
    """Spend no more than a rate, with at most one second's worth at once."""

    def __init__(self, clock: Clock, rate_bytes_per_s: int) -> None:
        self._clock = clock
        self._rate = rate_bytes_per_s
        self._tokens = float(rate_bytes_per_s)
        self._filled_at_s = clock.monotonic_s()

    @property
    def chunk_bytes(self) -> int:
        """How much to read at once, so that a low limit does not come in bursts."""
        return CHUNK_BYTES if not self._rate else max(1024, min(CHUNK_BYTES, self._rate // 4))

    def take(self, length_bytes: int) -> None:
        """Wait until `length_bytes` may have been received."""
        if not self._rate:
            return
        now_s = self._clock.monotonic_s()
        self._tokens = min(self._rate, self._tokens + (now_s - self._filled_at_s) * self._rate)
        self._filled_at_s = now_s
        self._tokens -= length_bytes
        if self._tokens < 0:
            self._clock.sleep(-self._tokens / self._rate)


def require_success(response: Response, url: str) -> None:
    """Raise HttpStatusError unless the status is 2xx, with what the server's problem document says."""
    if response.status in SUCCESS:
        return
    facts: dict[str, object] = {"status": response.status, "url": url}
    with contextlib.suppress(FirmamentError, ValueError):
        problem = canonical.decode_object(
            read_body(response, limit_bytes=MAX_PROBLEM_LENGTH_BYTES, url=url),
            limit_bytes=MAX_PROBLEM_LENGTH_BYTES,
            what="problem",
        )
        for theirs, ours in (("type", "server_code"), ("detail", "detail"), ("request_id", "request_id")):
            if isinstance(problem.get(theirs), str):
                facts[ours] = problem[theirs][:256]
    retry_after = response.headers.get("retry-after", "")
    if retry_after.isdecimal() and len(retry_after) <= 5:  # noqa: PLR2004 - a day has five digits of seconds
        facts["retry_after_s"] = int(retry_after)
    response.close()
    raise HttpStatusError("The server answered with an error", **facts)


def read_body(response: Response, *, limit_bytes: int, url: str) -> bytes:
    """Return a whole body of at most `limit_bytes`; raises LengthExceededError above."""
    announced = response.headers.get("content-length", "")
    data = bytearray()
    try:
        if announced.isdecimal() and int(announced) > limit_bytes:
            raise LengthExceededError("The body is longer than allowed", url=url, got=announced, limit=limit_bytes)
        for chunk in response.chunks():
            data += chunk
            if len(data) > limit_bytes:
                raise LengthExceededError("The body is longer than allowed", url=url, limit=limit_bytes)
    finally:
        response.close()
    return bytes(data)


def _require_plain(response: Response, url: str) -> None:
    if response.status in REDIRECTION and response.status != NOT_MODIFIED:
        location = response.headers.get("location", "")[:256]
        raise RedirectError("The server redirects", url=url, status=response.status, location=location)
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in {"", "identity"}:
        raise EncodingError("The body is encoded", url=url, encoding=encoding[:64])


@contextlib.contextmanager
def mapped_errors(url: str, *, has_begun: bool) -> Iterator[None]:
    """Turn every exception of urllib3, http.client, ssl and sockets into a TransferError.

    `has_begun` says whether the answer's headers were here already: then a broken connection
    means a truncated body, otherwise that nobody is there.
    """
    broken = TruncatedError if has_begun else UnreachableError
    words = "The connection ended early" if has_begun else "The server cannot be reached"
    try:
        yield
    except FirmamentError:
        raise
    except (http_errors.SSLError, ssl.SSLError, ssl.CertificateError) as error:
        raise TlsError("The TLS connection was refused", url=url, reason=_reason(error)) from error
    except (http_errors.ConnectTimeoutError, http_errors.NewConnectionError) as error:
        raise UnreachableError("The server cannot be reached", url=url, reason=_reason(error)) from error
    except (http_errors.TimeoutError, TimeoutError) as error:
        raise SlowError("The server took too long", url=url, reason=_reason(error)) from error
    except (http_errors.ProtocolError, http.client.HTTPException, OSError) as error:
        raise broken(words, url=url, reason=_reason(error)) from error
    except (http_errors.HTTPError, ValueError, UnicodeError) as error:
        raise TransferError("The exchange failed", url=url, reason=_reason(error)) from error


def _reason(error: BaseException) -> str:
    return str(error)[:256]
