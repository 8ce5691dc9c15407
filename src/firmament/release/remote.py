"""The operator API as the release tool and the operator's commands use it: HTTPS, bearer token.

No redirects, answers of bounded length. What the server refuses comes back as the error it names,
with its facts; what the network does is a TransferError. A change carries an idempotency key of its
own, so that it may be sent again when its answer did not arrive: three times, with growing waits,
never to a server that has not answered yet. Nothing else is sent twice.
"""

from __future__ import annotations

import json
import re
import secrets
import ssl
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import urlsplit

import urllib3

from firmament.core.clock import SystemClock
from firmament.core.fields import Fields
from firmament.errors import (
    FileError,
    FirmamentError,
    HttpStatusError,
    LengthExceededError,
    MalformedError,
    RedirectError,
    Retry,
    SettingError,
    SlowError,
    TlsError,
    TruncatedError,
    UnreachableError,
    error_for_code,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from firmament.core.clock import Clock
    from firmament.core.digest import Digest

MAX_ANSWER_LENGTH_BYTES: Final = 4 * 1024 * 1024
# A page of 500 devices at 4 KiB is 2 MiB; a problem document is below 4 KiB.
CONNECT_TIMEOUT_S: Final = 10.0
READ_TIMEOUT_S: Final = 120.0
# The server hashes a blob and signs a publish before it answers: 64 GiB at 1 GiB/s take a minute.
RETRY_WAITS_S: Final = (0.5, 1.0, 2.0)
"""Between the times a change is sent; a proxy that restarts is back within them."""
MAX_WAIT_S: Final = 5
"""A server that asks for more patience than this is left to whoever called."""
_UNSAFE: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_PIECE_LENGTH_BYTES: Final = 64 * 1024
_FACT: Final = re.compile(r"(?!self$|problem$)[a-z_][a-z0-9_]{0,63}")
_FIRST_ERROR: Final = 400
_REDIRECT: Final = range(300, 400)
_NOT_FOUND: Final = 404
_PASSING: Final = frozenset({502, 503, 504})
# What a proxy says while the server behind it restarts.
_OK: Final = 200


@dataclass(frozen=True, slots=True)
class ImageState:
    """Which versions the server has published; 0 or absent for none."""

    roles: Mapping[str, int]
    director_root: int


class OperatorApi:
    """One server; close it after use. Without a token only signing in is possible."""

    def __init__(
        self,
        url: str,
        *,
        token: str | None,
        ca: Path | None = None,
        idempotency_key: str | None = None,
        clock: Clock | None = None,
    ) -> None:
        """`idempotency_key` names the changes of this client, for a script that may run twice."""
        parts = urlsplit(url)
        if parts.scheme != "https" or not parts.hostname or parts.query or parts.fragment:
            raise SettingError("The server's address must be https://host[:port]", url=url)
        self._url: Final = url.rstrip("/")
        self._token: Final = token
        self._key: Final = idempotency_key
        self._changes = 0
        self._has_answered = False
        self._clock: Final = clock or SystemClock()
        self._pool: Final = urllib3.PoolManager(
            ssl_context=_context(ca),
            retries=False,
            timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=READ_TIMEOUT_S),
        )

    def close(self) -> None:
        """Close every connection."""
        self._pool.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    # --- requests --------------------------------------------------------------------------

    def image_state(self) -> ImageState:
        """Return what is published now."""
        fields = Fields(self.call("GET", "/api/v1/image/state"), what="image state")
        roles = fields.object("roles", optional=True)
        return ImageState(
            roles={name: roles.integer(name) for name in roles.value},
            director_root=fields.integer("director_root", default=0),
        )

    def has_blob(self, digest: Digest) -> bool:
        """Whether the server has these bytes."""
        status, _ = self._exchange("HEAD", f"/api/v1/blobs/{digest.hex}", accept=(_NOT_FOUND,))
        return status != _NOT_FOUND

    def put_blob(self, digest: Digest, path: Path, length_bytes: int) -> None:
        """Send a payload; the server checks length and digest. Sending it again is harmless."""
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(length_bytes)}
        try:
            with path.open("rb") as file:
                self._exchange("PUT", f"/api/v1/blobs/{digest.hex}", body=file, headers=headers)
        except OSError as error:
            raise FileError("The payload cannot be read", path=path, reason=error.strerror or error) from error

    def publish(self, metadata: Mapping[str, bytes], *, director_roots: Mapping[str, bytes]) -> dict[str, Any]:
        """Publish metadata, all or nothing; returns ``{"snapshot_version", "releases"}``."""
        body = {
            "metadata": {name: data.decode() for name, data in metadata.items()},
            "director_roots": {name: data.decode() for name, data in director_roots.items()},
        }
        return self.call("POST", "/api/v1/image/publish", body)

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Send one JSON request and return the JSON object of the answer; no content is an empty object."""
        data = json.dumps(body).encode() if body is not None else None
        headers = {"Content-Type": "application/json"} if data is not None else {}
        answer = self._ask(method, path, data, headers)
        return _object(answer, f"The answer to {method} {path}") if answer else {}

    def put_json(self, path: str, data: bytes, *, method: str = "PUT") -> dict[str, Any]:
        """Send JSON as it is, byte for byte; return the JSON object of the answer."""
        answer = self._ask(method, path, data, {"Content-Type": "application/json"})
        return _object(answer, f"The answer to {method} {path}")

    def lines(self, path: str, *, limit_bytes: int) -> Iterator[bytes]:
        """Yield the lines of a long answer as they come, each at most `limit_bytes`; raises as `call`."""
        with self._streamed(path) as response:
            rest = b""
            while piece := response.read1(_PIECE_LENGTH_BYTES):
                *whole, rest = (rest + piece).split(b"\n")
                yield from whole
                if len(rest) > limit_bytes:
                    raise LengthExceededError("A line of the answer is longer than allowed", limit_bytes=limit_bytes)
            if rest:
                yield rest

    def pieces(self, path: str) -> Iterator[bytes]:
        """Yield a body as it comes; its length is the caller's to judge. Raises as `call`."""
        with self._streamed(path) as response:
            while piece := response.read(_PIECE_LENGTH_BYTES):
                yield piece

    @contextmanager
    def _streamed(self, path: str) -> Iterator[urllib3.BaseHTTPResponse]:
        with _mapped_errors(self._url):
            response = self._pool.request(
                "GET",
                self._url + path,
                headers={"Authorization": f"Bearer {self._token}"} if self._token is not None else {},
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
            try:
                if response.status != _OK:
                    raise _problem(response.status, response.read(MAX_ANSWER_LENGTH_BYTES), f"GET {path}")
                yield response
            finally:
                response.close()

    # --- once, however often it is sent ----------------------------------------------------

    def _ask(self, method: str, path: str, data: bytes | None, headers: Mapping[str, str]) -> bytes:
        """Send a request; a change is sent again, under one key, while that can help."""
        if method not in _UNSAFE or self._token is None:
            return self._exchange(method, path, body=data, headers=headers)[1]
        named = {**headers, "Idempotency-Key": self._next_key()}
        for wait_s in RETRY_WAITS_S:
            try:
                return self._exchange(method, path, body=data, headers=named)[1]
            except FirmamentError as error:
                patience_s = self._patience_s(error, wait_s)
                if patience_s is None:
                    raise
                self._clock.sleep(patience_s)
        return self._exchange(method, path, body=data, headers=named)[1]

    def _next_key(self) -> str:
        self._changes += 1
        if self._key is None:
            return secrets.token_hex(16)
        return self._key if self._changes == 1 else f"{self._key}.{self._changes}"

    def _patience_s(self, error: FirmamentError, wait_s: float) -> float | None:
        """Return how long to wait before sending it again; None where that cannot help."""
        if error.retry is not Retry.LATER or isinstance(error, (TlsError, RedirectError, LengthExceededError)):
            return None
        if isinstance(error, UnreachableError) and not self._has_answered:
            return None  # a wrong address is told at once
        if isinstance(error, HttpStatusError) and error.facts.get("status") not in _PASSING:
            return None
        asked_s = error.facts.get("retry_after_s", 0)
        if not isinstance(asked_s, int) or asked_s > MAX_WAIT_S:
            return None
        return max(wait_s, asked_s)

    # --- one exchange ----------------------------------------------------------------------

    def _exchange(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        accept: tuple[int, ...] = (),
    ) -> tuple[int, bytes]:
        sent = {"Accept": "application/json", **(headers or {})}
        if self._token is not None:
            sent["Authorization"] = f"Bearer {self._token}"
        with _mapped_errors(self._url):
            response = self._pool.request(
                method,
                self._url + path,
                body=body,
                headers=sent,
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
            try:
                answer = bytearray()
                while len(answer) <= MAX_ANSWER_LENGTH_BYTES and (piece := response.read(_PIECE_LENGTH_BYTES)):
                    answer += piece
            finally:
                response.close()
        self._has_answered = True
        if len(answer) > MAX_ANSWER_LENGTH_BYTES:
            raise LengthExceededError("The server's answer is longer than allowed", limit_bytes=MAX_ANSWER_LENGTH_BYTES)
        if response.status in _REDIRECT:
            raise RedirectError("The server answers with a redirect", location=response.headers.get("location", ""))
        if response.status >= _FIRST_ERROR and response.status not in accept:
            raise _problem(response.status, bytes(answer), f"{method} {path}")
        return response.status, bytes(answer)


def _context(ca: Path | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=str(ca) if ca is not None else None)
    except (OSError, ssl.SSLError) as error:
        raise SettingError("The server's CA file cannot be read", path=ca, reason=error) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


@contextmanager
def _mapped_errors(url: str) -> Iterator[None]:
    try:
        yield
    except urllib3.exceptions.SSLError as error:
        raise TlsError("The server's certificate is not accepted", url=url, reason=error) from error
    except (urllib3.exceptions.NewConnectionError, urllib3.exceptions.NameResolutionError) as error:
        raise UnreachableError("The server cannot be reached", url=url, reason=error) from error
    except (urllib3.exceptions.ReadTimeoutError, urllib3.exceptions.ConnectTimeoutError) as error:
        raise SlowError("The server does not answer in time", url=url) from error
    except urllib3.exceptions.HTTPError as error:
        raise TruncatedError("The exchange with the server broke off", url=url, reason=error) from error


def _object(data: bytes, what: str) -> dict[str, Any]:
    """Read an answer: JSON as RFC 8259 has it, shares between 0 and 1 are fractions. Raises MalformedError."""
    try:
        value = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"{what} is not valid JSON", reason=error) from error
    return Fields(value, what=what).value


def _refuse_constant(name: str) -> float:
    msg = f"{name} is no number"
    raise ValueError(msg)


def _problem(status: int, data: bytes, request: str) -> FirmamentError:
    """Read RFC 9457 problem+json into the error it names; anything else is an HttpStatusError."""
    try:
        fields = Fields(_object(data, "The problem"), what="problem")
        code, title = fields.text("type"), fields.text("title", max_length=1024)
        named = fields.object("facts", optional=True).value
        facts = {name: value for name, value in named.items() if _FACT.fullmatch(name)}
        if (request_id := fields.text("request_id", default="")) and "request_id" not in facts:
            facts["request_id"] = request_id
    except FirmamentError as error:
        unclear = HttpStatusError("The server refuses without saying why", status=status, request=request)
        unclear.__cause__ = error if isinstance(error, MalformedError) else None
        return unclear
    return error_for_code(code)(title, **facts)
