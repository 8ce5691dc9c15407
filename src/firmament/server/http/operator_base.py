"""What the parts of the operator API share: who is asking, and how a body is read.

Each handler reads its fields, asks a service in the caller's `Scope`, and answers; rules live in
the services. Refusals are problem+json everywhere, also the framework's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, TypeVar

from firmament.core.canonical import decode_object
from firmament.core.fields import Fields
from firmament.core.ids import PRODUCT, check
from firmament.errors import MalformedError, NotFoundError, UnauthenticatedError
from firmament.server import repeats
from firmament.server.http.callers import identify
from firmament.server.http.messages import read_body
from firmament.server.http.once import CLAIM
from firmament.server.scope import Action

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi import APIRouter, Request

    from firmament.server.database.port import Connection
    from firmament.server.http.callers import Caller
    from firmament.server.parts import Parts
    from firmament.server.scope import Scope

P = ParamSpec("P")
T = TypeVar("T")

MAX_BODY_LENGTH_BYTES: Final = 64 * 1024
DAY_S: Final = 86_400
MAX_DIGITS: Final = 18
# Below 2^63.
TEXT: Final = "string"
INTEGER: Final = "integer"
OBJECT: Final = "object"


_PROBLEM: Final = {"application/json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
REFUSALS: Final[dict[int | str, dict[str, Any]]] = {
    400: {"content": _PROBLEM, "description": "The request cannot be done"},
    401: {"content": _PROBLEM, "description": "Sign in first"},
    403: {"content": _PROBLEM, "description": "The role or token does not allow it"},
}
"""What any operator path may answer instead. The shape is referred to: to be worked out anew for each path
would be a third of a server's start. The path to sign in gives it as a model, so that it is described."""


class OperatorPart:
    """Handlers of one domain, with the parts they use; a subclass fills `router` in `add_routes`."""

    def __init__(self, parts: Parts, router: APIRouter) -> None:
        self._parts = parts
        self.router = router
        self.add_routes()

    def add_routes(self) -> None:
        """Name paths, shapes and handlers."""
        raise NotImplementedError

    async def _scope(self, request: Request) -> Scope:
        """Return who a bearer token speaks for; raises UnauthenticatedError."""
        return (await self._caller(request)).scope

    async def _caller(self, request: Request, *, is_enrolling: bool = False) -> Caller:
        """Return who asks, with their session; `is_enrolling`: open to those who still lack a second factor."""
        return await identify(
            self._parts, self._secret(request), address=address_of(request), is_enrolling=is_enrolling
        )

    def _secret(self, request: Request) -> str:
        return bearer_token(request)

    async def _change(self, change: Callable[Concatenate[Connection, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a service's change in a transaction; one with an idempotency key is written down with it."""
        claim = CLAIM.get()

        def job(connection: Connection) -> T:
            done = change(connection, *args, **kwargs)
            if claim is not None:
                repeats.mark(connection, claim)
            return done

        return await self._parts.database.submit(job)

    async def _read(self, ask: Callable[Concatenate[Connection, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a service's query on a connection."""
        return await self._parts.database.read(lambda connection: ask(connection, *args, **kwargs))

    async def _scan(self, ask: Callable[Concatenate[Connection, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a service's query that may look at every device."""
        return await self._parts.database.scan(lambda connection: ask(connection, *args, **kwargs))

    async def _readable(self, request: Request, *, product: str | None = None) -> Scope:
        scope = await self._scope(request)
        scope.require(Action.READ, product=product)
        return scope

    async def _fields(self, request: Request, *, limit_bytes: int = MAX_BODY_LENGTH_BYTES) -> Fields:
        body = await read_body(
            request.scope, request.receive, limit_bytes=limit_bytes, deadline_s=self._parts.settings.body_deadline_s
        )
        return Fields(decode_object(body, limit_bytes=limit_bytes, what="The body"), what="body")


def bearer_token(request: Request) -> str:
    """Return the token of the Authorization header; raises UnauthenticatedError."""
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    if kind.lower() != "bearer" or not token.strip():
        raise UnauthenticatedError("This needs an operator token")
    return token.strip()


def address_of(request: Request) -> str:
    """Return the peer's address, as the server sees it."""
    return request.client.host if request.client else ""


def client_of(request: Request) -> str:
    """Return what the program calls itself, for lists of sessions."""
    return "".join(char for char in request.headers.get("user-agent", "")[:120] if char.isprintable())


def path_integer(text: str) -> int:
    """Read a number of a path, after it is known who asks; raises NotFoundError."""
    if not text.isdigit() or len(text) > MAX_DIGITS:
        raise NotFoundError("There is nothing of this number", number=text[:80])
    return int(text)


def query_integer(request: Request, name: str, default: int) -> int:
    """Read a whole number from the query; raises MalformedError."""
    text = request.query_params.get(name)
    if text is None:
        return default
    if not text.isdigit() or len(text) > MAX_DIGITS:
        raise MalformedError("A query parameter is not a whole number", parameter=name)
    return int(text)


def selection(request: Request) -> str:
    """Return the device query of a request; ``product`` narrows it, as before there was a language."""
    query, product = request.query_params.get("query", ""), request.query_params.get("product")
    if product is None:
        return query
    check(product, PRODUCT, what="The product name")
    return f"product={product} and ({query})" if query.strip() else f"product={product}"
