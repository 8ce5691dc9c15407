"""The operator API as the console calls it: in the same process, with the signed-in person's token.

Whatever a page shows or does is one of these calls, so roles, tenants and limits are the API's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

    from starlette.types import ASGIApp

OK_BELOW: Final = 300
UNAUTHENTICATED: Final = 401
FORBIDDEN: Final = 403
NOT_FOUND: Final = 404
FAILED: Final = 500
MAX_ANSWER_LENGTH_BYTES: Final = 16 * 1024 * 1024
"""A page of 100 devices is 60 KiB; the largest answer is a release with its bill of materials."""


class ApiError(Exception):
    """The operator API refused or failed; what it said."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        super().__init__(str(problem.get("title", "")))
        self.status: Final = status
        self.code: Final = str(problem.get("type", ""))
        self.title: Final = str(problem.get("title", "")) or "The server failed"
        self.detail: Final = str(problem.get("detail", "")) or self.title
        self.facts: Final[dict[str, Any]] = dict(problem.get("facts") or {})
        self.request_id: Final = str(problem.get("request_id", ""))

    @property
    def is_missing(self) -> bool:
        """Whether the API has no such thing."""
        return self.status == NOT_FOUND


@dataclass(frozen=True, slots=True)
class Caller:
    """For whom a call is made."""

    token: str = ""
    address: str = ""
    request_id: str = ""
    cookies: tuple[str, ...] = field(default=())


class Api:
    """Calls of one request, made as one person."""

    def __init__(self, operators: ASGIApp, caller: Caller) -> None:
        self._operators = operators
        self._caller = caller

    @property
    def token(self) -> str:
        """The token these calls carry."""
        return self._caller.token

    async def get(self, path: str, **query: object) -> Any:
        """Return the JSON of a GET; raises ApiError."""
        return await self._ask("GET", path, query=query)

    async def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Return the JSON of a POST, None without one; raises ApiError."""
        return await self._ask("POST", path, body=body or {})

    async def put(self, path: str, body: Mapping[str, Any]) -> Any:
        """Return the JSON of a PUT; raises ApiError."""
        return await self._ask("PUT", path, body=body)

    async def delete(self, path: str, **query: object) -> Any:
        """Return the JSON of a DELETE, None without one; raises ApiError."""
        return await self._ask("DELETE", path, query=query)

    async def text(self, path: str, **query: object) -> bytes:
        """Return the bytes of a GET, for what is not JSON; raises ApiError."""
        answer = await self._call("GET", path, query=query, body=None)
        if answer.status >= OK_BELOW:
            raise ApiError(answer.status, _decode(answer.body))
        return answer.body

    async def _ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, object] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> Any:
        answer = await self._call(method, path, query=query, body=body)
        if answer.status >= OK_BELOW:
            raise ApiError(answer.status, _decode(answer.body))
        return json.loads(answer.body) if answer.body else None

    async def _call(
        self, method: str, path: str, *, query: Mapping[str, object] | None, body: Mapping[str, Any] | None
    ) -> _Answer:
        content = json.dumps(body).encode() if body is not None else b""
        given = {name: str(value) for name, value in (query or {}).items() if value is not None}
        headers = [
            (b"host", b"console"),
            (b"content-type", b"application/json"),
            (b"content-length", str(len(content)).encode()),
        ]
        if self._caller.token:
            headers.append((b"authorization", f"Bearer {self._caller.token}".encode()))
        scope: MutableMapping[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "https",
            "path": "/api/v1" + path,
            "raw_path": quote("/api/v1" + path).encode(),
            "root_path": "",
            "query_string": urlencode(given).encode(),
            "headers": headers,
            "client": (self._caller.address, 0),
            "server": ("console", 443),
            "state": {"request_id": self._caller.request_id, "peer": None},
        }
        answer = _Answer()
        sent = False

        async def receive() -> dict[str, Any]:
            nonlocal sent
            if sent:
                return {"type": "http.disconnect"}
            sent = True
            return {"type": "http.request", "body": content, "more_body": False}

        try:
            await self._operators(scope, receive, answer.take)
        except Exception as error:
            if answer.status:
                # The framework has answered 500 and raises for the log; the caller logs it.
                raise ApiError(FAILED, {"title": "The server failed", "request_id": self._caller.request_id}) from error
            raise
        return answer


class _Answer:
    def __init__(self) -> None:
        self.status = 0
        self.body = b""

    async def take(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif message["type"] == "http.response.body":
            self.body += message.get("body", b"")
            if len(self.body) > MAX_ANSWER_LENGTH_BYTES:
                raise ApiError(FAILED, {"title": "An answer of the operator API is too long for a page"})


def _decode(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
