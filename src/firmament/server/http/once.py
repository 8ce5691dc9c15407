"""``Idempotency-Key`` on the operator API: a change that is sent again is done once (repeats.py).

    POST /api/v1/rollouts
    Idempotency-Key: 5b0c4d1e9f

For requests that change something and say who asks; without the header nothing is different. The
key belongs to caller and tenant. The same request again gets the first answer, with
``Idempotency-Replayed: true``; another request under the key is refused (409, ``repeat/key-reused``).
Answers are kept sealed: one of them may hold a token. Payload bytes (``PUT /api/v1/blobs/…``) are
named by their digest and need no key.
"""

from __future__ import annotations

import hashlib
import re
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

from fastapi import Request

from firmament.errors import MalformedError
from firmament.server import repeats
from firmament.server.http.callers import identify
from firmament.server.http.messages import JSON, header, read_body
from firmament.server.repeats import Claim, FirstAnswer

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from firmament.server.http.messages import AsgiScope, Receive, Send
    from firmament.server.parts import Parts
    from firmament.server.scope import Scope

NAME: Final = b"idempotency-key"
REPLAYED: Final = (b"idempotency-replayed", b"true")
KEY: Final = re.compile(r"[\x21-\x7e]{1,128}")
UNSAFE: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})
BY_DIGEST: Final = "/api/v1/blobs/"
MAX_BODY_LENGTH_BYTES: Final = 64 * 1024 * 1024
# The largest body of any route: publishing (image_api.py). A key is only looked at after its caller is known.
MAX_ANSWER_LENGTH_BYTES: Final = 256 * 1024
# The longest answer to a change is a rollout with its waves, below 16 KiB. A longer one is not kept.
_FIRST_ERROR: Final = 400

CLAIM: Final[ContextVar[Claim | None]] = ContextVar("claim", default=None)
"""What the running request holds; `OperatorPart` marks it in the transaction of the change."""


class Once:
    """ASGI: the operator API, with idempotency keys."""

    def __init__(self, app: ASGIApp, parts: Parts) -> None:
        self._app = app
        self._parts = parts

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Answer one request; raises what `repeats.claim` raises."""
        key = header(scope, NAME) if scope["method"] in UNSAFE and not scope["path"].startswith(BY_DIGEST) else None
        if key is None or header(scope, b"authorization") is None:
            await self._app(scope, receive, send)
            return
        name = key.decode("latin-1")
        if not KEY.fullmatch(name):
            raise MalformedError("An idempotency key is 1 to 128 visible ASCII characters", header="Idempotency-Key")
        asking = await self._caller(scope)
        body = await read_body(
            scope, receive, limit_bytes=MAX_BODY_LENGTH_BYTES, deadline_s=self._parts.settings.body_deadline_s
        )
        digest = _digest(asking, scope, body)
        now = self._parts.clock.now()
        found = await self._parts.database.submit(
            lambda connection: repeats.claim(connection, asking, name=name, digest=digest, now=now)
        )
        if isinstance(found, FirstAnswer):
            await self._replay(found, name, send)
        else:
            await self._do(found, scope, _again(body, receive), send)

    async def _caller(self, scope: AsgiScope) -> Scope:
        # Only who asks; whether they may, with which proof, is still the handler's to say.
        request = Request(scope)
        kind, _, token = (request.headers.get("authorization") or "").partition(" ")
        address = request.client.host if request.client else ""
        secret = token.strip() if kind.lower() == "bearer" else ""
        return (await identify(self._parts, secret, address=address, is_enrolling=True)).scope

    async def _do(self, claim: Claim, scope: AsgiScope, receive: Receive, send: Send) -> None:
        answer = _Answer()
        token = CLAIM.set(claim)
        try:
            await self._app(scope, receive, answer.take)
        finally:
            CLAIM.reset(token)
            if answer.is_to_keep:
                # Before it is sent: whoever does not get it finds it here.
                sealed = self._parts.vault.seal(bytes(answer.body), purpose=_purpose(claim.name))
                await self._parts.database.submit(
                    lambda connection: repeats.keep(connection, claim, status=answer.status, sealed=sealed)
                )
            else:
                await self._parts.database.submit(lambda connection: repeats.give_back(connection, claim))
        for message in answer.messages:
            await send(message)

    async def _replay(self, found: FirstAnswer, name: str, send: Send) -> None:
        body = self._parts.vault.open(found.sealed, purpose=_purpose(name))
        headers = [REPLAYED]
        if body:
            headers += [JSON, (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": found.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class _Answer:
    """The answer of the application, held until it is kept."""

    def __init__(self) -> None:
        self.status = 0
        self.body = bytearray()
        self.messages: list[Any] = []

    async def take(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self.body += message.get("body", b"")
        self.messages.append(message)

    @property
    def is_to_keep(self) -> bool:
        """Refusals are not kept: they changed nothing, and may be no refusals the next time."""
        return 0 < self.status < _FIRST_ERROR and len(self.body) <= MAX_ANSWER_LENGTH_BYTES


def _purpose(name: str) -> str:
    return f"answer:{name}"


def _digest(asking: Scope, scope: AsgiScope, body: bytes) -> bytes:
    """Digest what is asked and with which rights: a lesser token of the same person is another request."""
    parts = (
        scope["method"].encode(),
        scope["path"].encode(),
        scope.get("query_string", b""),
        (asking.role or "").encode(),
        (asking.product or "").encode(),
        body,
    )
    whole = hashlib.sha256()
    for part in parts:
        whole.update(len(part).to_bytes(8, "big") + part)
    return whole.digest()


def _again(body: bytes, receive: Receive) -> Receive:
    is_read = False

    async def read() -> Any:
        nonlocal is_read
        if is_read:
            return await receive()
        is_read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return read
