"""Sign in, sign out, choices of the browser."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from firmament.console import guard
from firmament.console.api import UNAUTHENTICATED, ApiError
from firmament.console.views.base import get, post

if TYPE_CHECKING:
    from starlette.responses import Response

    from firmament.console.visit import Visit

TOO_MANY: Final = 429
NEEDS_CODE: Final = "access/second-factor"
HOUR_S: Final = 3600


async def show(visit: Visit) -> Response:
    """Show the form."""
    return await _form(visit, next=guard.local_path(visit.query("next", "/")))


async def sign_in(visit: Visit) -> Response:
    """Check name, password and, where one is set up, the code; then go on where the person wanted to go."""
    pairs = await visit.pairs()
    fields = dict(pairs)
    going_on = guard.local_path(fields.get("next", "/"))
    held = [(name.removeprefix("held:"), value) for name, value in pairs if name.startswith("held:")]
    held_path = guard.local_path(fields.get("held_path", "")) if fields.get("held_path") else ""
    body = {"session": "console", "name": fields.get("name", "").strip(), "password": fields.get("password", "")}
    if fields.get("code"):
        body["code"] = fields["code"].replace(" ", "")
    try:
        session = await visit.api.post("/login", body)
    except ApiError as error:
        needs_code = error.code == NEEDS_CODE or bool(fields.get("code"))
        status = error.status if error.status in {UNAUTHENTICATED, TOO_MANY} else 400
        problem = error.title + "."
        if error.code == NEEDS_CODE and not fields.get("code"):
            problem = "Enter the code of your authenticator as well."
        return await _form(
            visit, status=status, next=going_on, held=held, held_path=held_path,
            problem=problem, needs_code=needs_code, name=body["name"],
        )  # fmt: skip
    lifetime_s = max(60, int(session["expires_at"] - visit.now.timestamp()))
    response = visit.page("resume.html", path=held_path, held=held) if held_path else visit.go(going_on)
    guard.set_session(response, session["token"], lifetime_s)
    return response


async def sign_out(visit: Visit) -> Response:
    """Make the session useless, here and on the server."""
    try:
        await visit.api.post("/logout")
    except ApiError as error:
        if error.status != UNAUTHENTICATED:
            raise
    response = visit.go("/login?out=1")
    guard.end_session(response)
    return response


async def choose(visit: Visit) -> Response:
    """Keep the theme or the single-key shortcuts of this browser."""
    fields = await visit.form()
    response = visit.go(guard.local_path(fields.get("back", "/")))
    if "theme" in fields:
        guard.set_choice(response, guard.THEME_COOKIE, fields["theme"] if fields["theme"] in guard.THEMES else "")
    if "keys" in fields:
        guard.set_choice(response, guard.KEYS_COOKIE, "off" if fields["keys"] == "off" else "")
    return response


async def provider(visit: Visit) -> str:
    """Return the name of the identity provider that people may sign in through, empty for none."""
    found = await visit.card(visit.api.get("/outside"))
    return str(found.value["provider"]) if found.value else ""


async def _form(visit: Visit, *, status: int = 200, **values: Any) -> Response:
    base: dict[str, Any] = {
        "next": "/", "held": [], "held_path": "", "problem": "", "needs_code": False, "name": "",
        "provider": await provider(visit),
    }  # fmt: skip
    if visit.query("out"):
        base["problem"] = "You are signed out."
    if visit.query("outside"):
        base["problem"] = (
            "The identity provider's answer was refused: it does not vouch for you here, took too long, or was used "
            "already. The server's log says which."
        )
    return visit.page("login.html", status=status, **{**base, **values})


VIEWS: Final = (
    get("/login", show, is_public=True),
    post("/login", sign_in, is_public=True),
    post("/logout", sign_out, is_public=True),
    post("/choose", choose, is_public=True),
)
