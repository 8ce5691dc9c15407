"""Settings: tokens, notifications, about."""

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


async def ask_revoke(visit: Visit, token_id: str) -> Response:
    """Ask before a token stops working."""
    return ask(
        visit,
        title=f"Revoke token {token_id}?",
        lines=(
            (
                "The program that uses it is refused with its next request, and no token comes back: give it a new "
                "one first. Devices are not affected."
            ),
        ),
        action=f"/settings/tokens/{quote(token_id, safe='')}/revoke",
        back="/settings/tokens",
        label="Revoke",
        kind="danger",
        keep="Keep",
    )


async def revoke(visit: Visit, token_id: str) -> Response:
    """Make a token useless."""
    await visit.api.delete(f"/tokens/{quote(token_id, safe='')}")
    return visit.go("/settings/tokens", said="token-revoked")


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


async def ask_remove_outlet(visit: Visit, name: str) -> Response:
    """Say who is told no more."""
    return ask(
        visit,
        title=f"Tell {name} no more?",
        lines=(
            (
                "A rollout that stops by itself is not told there any more, and its secret is forgotten. "
                "If nobody else is told, the stop waits until somebody looks."
            ),
        ),
        refusal=visit.who.why_not("manage-notifications"),
        action=f"/settings/notifications/{quote(name, safe='')}/remove",
        back="/settings/notifications",
        label="Remove",
        kind="danger",
        keep="Keep",
    )


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


async def about(visit: Visit) -> Response:
    """Show what runs here."""
    return visit.page("settings_about.html", state=await visit.card(visit.api.get("/image/state")))


VIEWS: Final = (
    get("/settings/tokens", tokens),
    post("/settings/tokens", make_token),
    get("/settings/tokens/{token_id}/revoke", ask_revoke),
    post("/settings/tokens/{token_id}/revoke", revoke),
    get("/settings/notifications", notifications),
    post("/settings/notifications", add_outlet),
    post("/settings/notifications/{name}/test", test_outlet),
    get("/settings/notifications/{name}/remove", ask_remove_outlet),
    post("/settings/notifications/{name}/remove", remove_outlet),
    get("/settings/about", about),
)
