"""You: password, second factor, sessions, and the choices of this browser."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from firmament.console import qr
from firmament.console.api import ApiError
from firmament.console.views.base import Field, ask, get, post

if TYPE_CHECKING:
    from starlette.responses import Response

    from firmament.console.visit import Visit

ENROLMENT: Final = "/settings/second-factor"
"""The only page for those whose role needs a second factor that they do not have yet."""
REFUSED: Final = frozenset({400, 401, 409, 422, 429})
"""What a mistyped password or code is answered with; the form is shown again with the reason."""


async def you(visit: Visit) -> Response:
    """Show who is signed in, and where else."""
    return await _you(visit)


async def _you(visit: Visit, *, status: int = 200, problem: str = "") -> Response:
    return visit.page(
        "settings_session.html",
        status=status,
        sessions=await visit.card(visit.api.get("/me/sessions")),
        problem=problem,
    )


async def change_password(visit: Visit) -> Response:
    """Change the password; all other sessions end."""
    fields = await visit.form()
    if fields.get("new", "") != fields.get("again", ""):
        return await _you(visit, status=400, problem="The two new passwords differ.")
    try:
        await visit.api.post("/me/password", {"old": fields.get("old", ""), "new": fields.get("new", "")})
    except ApiError as error:
        if error.status not in REFUSED:
            raise
        return await _you(visit, status=400, problem=f"{error.title}.")
    return visit.go("/settings", said="password-changed")


async def factor(visit: Visit) -> Response:
    """Show whether there is a second factor, and the way to one."""
    return _factor(visit)


async def begin_factor(visit: Visit) -> Response:
    """Make a secret and show it, as text and as a picture for the authenticator's camera."""
    made = await visit.api.post("/me/second-factor")
    return _factor(visit, made=made)


async def confirm_factor(visit: Visit) -> Response:
    """Prove that the authenticator has the secret; show the recovery codes, once."""
    fields = await visit.form()
    try:
        found = await visit.api.post("/me/second-factor/confirm", {"code": _digits(fields)})
    except ApiError as error:
        if error.status not in REFUSED:
            raise
        made = {"secret": fields.get("secret", ""), "uri": fields.get("uri", "")}
        return _factor(visit, status=400, made=made, problem=f"{error.title}.")
    return _factor(visit, codes=found["recovery_codes"])


async def remove_factor(visit: Visit) -> Response:
    """Take the second factor away, proven by a code."""
    fields = await visit.form()
    try:
        await visit.api.post("/me/second-factor/remove", {"code": _digits(fields)})
    except ApiError as error:
        if error.status not in REFUSED:
            raise
        return _factor(visit, status=400, problem=f"{error.title}.")
    return visit.go("/settings", said="factor-removed")


def _factor(visit: Visit, *, status: int = 200, **values: Any) -> Response:
    base: dict[str, Any] = {"made": None, "codes": (), "problem": "", "picture": None}
    if values.get("made"):
        base["picture"] = qr.draw(values["made"]["uri"])
    return visit.page("settings_factor.html", status=status, **{**base, **values})


def _digits(fields: dict[str, str]) -> str:
    return fields.get("code", "").replace(" ", "")


async def ask_end(visit: Visit, session_id: str) -> Response:
    """Ask before a session ends."""
    others = session_id == "others"
    return ask(
        visit,
        title="End all other sessions?" if others else "End this session?",
        lines=(
            (
                "Whoever uses them is asked to sign in again with the next click or command; nothing else is lost. "
                "This browser stays signed in."
                if others
                else "Whoever uses it is asked to sign in again with the next click or command; nothing else is lost."
            ),
        ),
        action=f"/settings/sessions/{quote(session_id, safe='')}/end",
        back="/settings",
        label="End them" if others else "End it",
        kind="danger",
        keep="Keep",
    )


async def end(visit: Visit, session_id: str) -> Response:
    """End one of the own sessions, or all but this one."""
    path = "/me/sessions" + ("" if session_id == "others" else f"/{quote(session_id, safe='')}")
    await visit.api.delete(path)
    return visit.go("/settings", said="session-ended")


async def ask_remove_factor(visit: Visit) -> Response:
    """Say what a sign-in without a second factor means, and ask for a code."""
    return ask(
        visit,
        title="Remove your second factor?",
        lines=(
            (
                "From then on your password alone signs you in, and whoever learns it is you. "
                "The recovery codes stop working as well."
            ),
        ),
        fields=(Field("code", "Code of the authenticator", hint="Or a recovery code.", required=True),),
        action=ENROLMENT + "/remove",
        back="/settings",
        label="Remove it",
        kind="danger",
        keep="Keep it",
    )


VIEWS: Final = (
    get("/settings", you),
    post("/settings/password", change_password),
    get(ENROLMENT, factor, is_for_enrolment=True),
    post(ENROLMENT, begin_factor, is_for_enrolment=True),
    post(ENROLMENT + "/confirm", confirm_factor, is_for_enrolment=True),
    get(ENROLMENT + "/remove", ask_remove_factor),
    post(ENROLMENT + "/remove", remove_factor),
    get("/settings/sessions/{session_id}/end", ask_end),
    post("/settings/sessions/{session_id}/end", end),
)
