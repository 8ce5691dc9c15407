"""Settings: people and roles, tokens, sessions, notifications, consent, about."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from firmament.console import formats, words
from firmament.console.api import ApiError
from firmament.console.views.base import ask, get, post

if TYPE_CHECKING:
    from starlette.responses import Response

    from firmament.console.visit import Visit

TOKEN_LIVES: Final = (("1", "a day"), ("30", "30 days"), ("90", "90 days"), ("365", "a year"))


async def people(visit: Visit) -> Response:
    """Show who may sign in."""
    return visit.page("settings_people.html", people=await visit.card(visit.api.get("/people")), problem="", name="")


async def add_person(visit: Visit) -> Response:
    """Add somebody; the form survives a refusal."""
    fields = await visit.form()
    body = {name: fields.get(name, "") for name in ("name", "role", "password")}
    try:
        await visit.api.post("/people", body)
    except ApiError as error:
        if error.status in {401, 403}:
            raise
        found = await visit.card(visit.api.get("/people"))
        return visit.page(
            "settings_people.html", status=error.status, people=found, problem=error.detail, name=body["name"]
        )
    return visit.go("/settings/people", said="person-added")


async def ask_disable(visit: Visit, name: str) -> Response:
    """Ask before somebody is refused."""
    return ask(
        visit,
        title=f"Refuse {name} from now on?",
        lines=("All sessions and tokens of this person stop working at once. What the person did stays in the audit.",),
        action=f"/settings/people/{quote(name)}/disable",
        back="/settings/people",
        label="Refuse",
        kind="danger",
        keep="Keep",
    )


async def disable(visit: Visit, name: str) -> Response:
    """Refuse somebody."""
    await visit.api.delete(f"/people/{quote(name, safe='')}")
    return visit.go("/settings/people", said="person-disabled")


async def tokens(visit: Visit) -> Response:
    """Show the form for a token, and the tokens there are."""
    return visit.page("settings_tokens.html", **await _tokens(visit), made=None)


async def make_token(visit: Visit) -> Response:
    """Make a token and show it once."""
    fields = await visit.form()
    days = fields.get("days", "1")
    body: dict[str, Any] = {
        "role": fields.get("role", "viewer"),
        "label": fields.get("label", ""),
        "expires_in_s": (int(days) if days in dict(TOKEN_LIVES) else 1) * formats.DAY_S,
    }
    if fields.get("product"):
        body["product"] = fields["product"]
    made = await visit.api.post("/tokens", body)
    return visit.page("settings_tokens.html", **await _tokens(visit), made=made)


async def _tokens(visit: Visit) -> dict[str, Any]:
    return {
        "products": await visit.card(visit.api.get("/products")),
        "tokens": await visit.card(visit.api.get("/tokens")),
        "lives": TOKEN_LIVES,
        "roles": [role for role in words.ROLES if role in {visit.who.role, "viewer"} or visit.who.role == "admin"],
    }


async def notifications(visit: Visit) -> Response:
    """Show who is told what, with a preview."""
    return await _outlets(visit)


async def add_outlet(visit: Visit) -> Response:
    """Add whom to tell; a secret that signs its deliveries is shown once."""
    fields = await visit.form()
    body: dict[str, Any] = {name: fields.get(name, "").strip() for name in ("name", "kind", "target")}
    if fields.get("is_escalation") == "1":
        body["is_escalation"] = True
    made, problem, status = None, "", 200
    try:
        made = await visit.api.post("/notifications/outlets", body)
    except ApiError as error:
        if error.status in {401, 403}:
            raise
        problem, status = error.detail, error.status
    return await _outlets(visit, status=status, made=made, problem=problem)


async def test_outlet(visit: Visit, name: str) -> Response:
    """Deliver a test message now and show the answer."""
    tested = await visit.api.post(f"/notifications/outlets/{quote(name, safe='')}/test")
    return await _outlets(visit, tested={"name": name, **tested})


async def remove_outlet(visit: Visit, name: str) -> Response:
    """Tell somebody no more."""
    await visit.api.delete(f"/notifications/outlets/{quote(name, safe='')}")
    return visit.go("/settings/notifications", said="saved")


async def _outlets(visit: Visit, *, status: int = 200, **values: Any) -> Response:
    base: dict[str, Any] = {
        "outlets": await visit.card(visit.api.get("/notifications/outlets")),
        "sent": await visit.card(visit.api.get("/notifications")),
        "preview": await visit.card(visit.api.get("/notifications/preview")),
        "tested": None,
        "made": None,
        "problem": "",
    }
    return visit.page("settings_notifications.html", status=status, **{**base, **values})


async def consent(visit: Visit) -> Response:
    """Show who is asked before an update, and with which words."""
    return visit.page(
        "settings_consent.html",
        policies=await visit.card(visit.api.get("/consent/policy")),
        report=await visit.card(visit.api.get("/consent/report")),
    )


async def session(visit: Visit) -> Response:
    """Show this browser's choices and the person's sessions."""
    return visit.page("settings_session.html", sessions=await visit.card(visit.api.get("/me/sessions")))


async def about(visit: Visit) -> Response:
    """Show what runs here."""
    return visit.page("settings_about.html", state=await visit.card(visit.api.get("/image/state")))


VIEWS: Final = (
    get("/settings", session),
    get("/settings/people", people),
    post("/settings/people", add_person),
    get("/settings/people/{name}/disable", ask_disable),
    post("/settings/people/{name}/disable", disable),
    get("/settings/tokens", tokens),
    post("/settings/tokens", make_token),
    get("/settings/notifications", notifications),
    post("/settings/notifications", add_outlet),
    post("/settings/notifications/{name}/test", test_outlet),
    post("/settings/notifications/{name}/remove", remove_outlet),
    get("/settings/consent", consent),
    get("/settings/about", about),
)
