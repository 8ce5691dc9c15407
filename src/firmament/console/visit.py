"""One request of a person: who it is, what they may do, and the pages drawn for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from starlette.responses import HTMLResponse, RedirectResponse

from firmament.console import guard, words
from firmament.console.api import Api, ApiError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping
    from datetime import datetime

    from starlette.requests import Request
    from starlette.responses import Response

    from firmament.console.live import Live
    from firmament.console.render import Templates

SEE_OTHER: Final = 303


@dataclass(frozen=True, slots=True)
class Me:
    """Who is signed in, as the operator API says."""

    name: str
    role: str
    product: str | None
    tenant: str
    actions: frozenset[str]
    roles: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Action to the roles that may do it: for saying which one is missing."""
    has_factor: bool = False
    """Whether a second factor is set up."""
    needs_factor: bool = False
    """The role must have one, and this session was not opened with it: nothing else is answered."""

    @classmethod
    def of_json(cls, found: Mapping[str, Any]) -> Me:
        """Read what ``GET /api/v1/me`` says."""
        return cls(
            name=str(found["name"]),
            role=str(found["role"]),
            product=found.get("product"),
            tenant=str(found.get("tenant") or ""),
            actions=frozenset(found["actions"]),
            has_factor=bool(found["second_factor"]),
            needs_factor=bool(found["needs_second_factor"]),
            roles={action: tuple(roles) for action, roles in found["roles"].items()},
        )

    def may(self, action: str) -> bool:
        """Whether the role allows an action; the API decides again when it is asked."""
        return action in self.actions

    def why_not(self, action: str) -> str:
        """Say which role is missing, empty when none is."""
        if self.may(action):
            return ""
        able = [role for role in self.roles.get(action, ()) if role != "admin"] or ["admin"]
        return f"Needs the role {words.either(able)}; you are signed in as {self.role}."

    @property
    def audience(self) -> tuple[str, str, str]:
        """People with the same audience see the same bytes in a live region."""
        return (self.tenant, self.role, self.product or "")


@dataclass(frozen=True, slots=True)
class Card:
    """One part of a page: what the API said, or why there is nothing to show."""

    value: Any = None
    error: ApiError | None = None


@dataclass(slots=True)
class Visit:
    """Everything a view needs."""

    request: Request | None
    """None while a live part is drawn for many."""
    api: Api
    templates: Templates
    now: datetime
    me: Me | None
    request_id: str
    nav: Mapping[str, Any] = field(default_factory=dict)
    live: Live | None = None

    @property
    def who(self) -> Me:
        """The signed-in person; views of signed-in pages only."""
        assert self.me is not None
        return self.me

    @property
    def wants_fragment(self) -> bool:
        """Whether the script of the page asks for a part to swap in."""
        return self.request is None or "x-fragment" in self.request.headers

    def query(self, name: str, default: str = "") -> str:
        """Return a parameter of the address."""
        return default if self.request is None else self.request.query_params.get(name, default)

    def cookie(self, name: str) -> str:
        """Return what this browser keeps under a name, empty when it keeps nothing."""
        return "" if self.request is None else self.request.cookies.get(name, "")

    async def form(self) -> dict[str, str]:
        """Return the form that was sent; of fields of one name, the last."""
        return dict(await self.pairs())

    async def pairs(self) -> list[tuple[str, str]]:
        """Return the fields of the form that was sent, in order."""
        assert self.request is not None
        return await guard.read_form(self.request)

    async def card(self, call: Awaitable[Any]) -> Card:
        """Await one call of the API; a failure is the card's, not the page's."""
        try:
            return Card(await call)
        except ApiError as error:
            if error.status == 401:  # noqa: PLR2004 - HTTP's own number; the whole page is signed out
                raise
            return Card(error=error)

    def draw(self, name: str, /, **values: Any) -> str:
        """Draw a template with what every page knows."""
        cookies = self.request.cookies if self.request is not None else {}
        theme = cookies.get(guard.THEME_COOKIE, "")
        base: dict[str, Any] = {
            "me": self.me,
            "here": self.request.url.path if self.request is not None else "",
            "theme": theme if theme in guard.THEMES else "",
            "keys_off": cookies.get(guard.KEYS_COOKIE) == "off",
            "request_id": self.request_id,
            "nav": self.nav,
            "said": words.SAID.get(self.query("said"), ""),
            "fragment": self.wants_fragment,
            "live": "",
        }
        return self.templates.draw(name, self.now, **{**base, **values})

    def page(self, name: str, /, *, status: int = 200, **values: Any) -> Response:
        """Answer with a page."""
        return HTMLResponse(self.draw(name, **values), status_code=status)

    def go(self, path: str, *, said: str = "") -> Response:
        """Send the browser on after a form; `said` names a sentence of `words.SAID`."""
        if said:
            path += ("&" if "?" in path else "?") + f"said={said}"
        return RedirectResponse(guard.local_path(path), status_code=SEE_OTHER)
